import json

import msgspec
import pytest

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.manifest_overrides import check_hf_overrides, check_pooler_config, override_manifest


@pytest.fixture
def manifest(artifact) -> Manifest:
    return open_artifact(artifact)


def with_pooler(manifest: Manifest, **fields) -> Manifest:
    return msgspec.structs.replace(manifest, pooler=msgspec.structs.replace(manifest.pooler, **fields))


def test_overrides_give_a_new_manifest(manifest):
    before = msgspec.json.encode(manifest)
    changed = override_manifest(manifest, {"matryoshka_dimensions": [2, 4]}, 5)
    assert changed.pooler.matryoshka_dimensions == (2, 4)
    assert changed.pooler.is_matryoshka
    assert changed.limits.max_model_len == 5
    assert override_manifest(manifest, {"is_matryoshka": True}, None).pooler.is_matryoshka
    assert override_manifest(manifest, None, None) == manifest
    assert msgspec.json.encode(manifest) == before


@pytest.mark.parametrize(
    ("overrides", "limit", "message"),
    [
        ({"matryoshka_dimensions": [2, 99]}, None, r"matryoshka_dimensions must be a list of ints from 1 to 8"),
        ({"matryoshka_dimensions": 4}, None, r"matryoshka_dimensions must be a list of ints from 1 to 8"),
        (
            None,
            17,
            r"User-specified max_model_len \(17\) is greater than the derived max_model_len \(max_model_len=16 ",
        ),
        (None, 0, "max_model_len must be a number of tokens from 1 to 16"),
        (None, "8", "max_model_len must be a number of tokens from 1 to 16"),
    ],
)
def test_overrides_that_are_refused(manifest, overrides, limit, message):
    with pytest.raises(InputError, match=message):
        override_manifest(manifest, overrides, limit)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"architectures": ["X"]},
            r"hf_overrides \['architectures'\] would need another export; a compiled model takes ",
        ),
        (
            {"is_causal": False},
            r"Export the checkpoint with --hf-overrides '{\"is_causal\": false}', or give LLM the chec",
        ),
        ({"method": "a", "is_matryoshka": True}, r"hf_overrides \['method'\] would need"),
        (3, "hf_overrides must be a mapping, not int"),
    ],
)
def test_hf_overrides_that_are_not_compiled_in(manifest, overrides, message):
    with pytest.raises(InputError, match=message):
        check_hf_overrides(overrides, manifest)


def test_hf_overrides_that_are(manifest):
    recorded = {"method": "no_post_processing", "classifier_from_token": ["Yes"]}
    exported = msgspec.structs.replace(manifest, options={"hf_overrides": json.dumps(recorded)})
    check_hf_overrides(recorded, exported)
    check_hf_overrides({"method": "no_post_processing", "architectures": ["TinyModel"]}, exported)
    check_hf_overrides({"is_matryoshka": True, "matryoshka_dimensions": [2]}, manifest)
    check_hf_overrides(None, manifest)
    with pytest.raises(InputError, match=r"hf_overrides \['method'\]"):
        check_hf_overrides({**recorded, "method": "from_2_way_softmax"}, exported)


COMPILED = [
    {"pooling_type": "MEAN", "use_activation": False},
    {"pooling_type": "ALL"},
    {"pooling_type": "STEP", "step_tag_id": 5, "returned_token_ids": [1, 0]},
    {"logit_mean": 0, "logit_sigma": 1.0},
    {"dimensions": 4, "enable_chunked_processing": True, "max_embed_len": 99},
]


@pytest.mark.parametrize("config", COMPILED)
def test_configs_that_need_no_other_graph(manifest, config):
    check_pooler_config(PoolerConfig(**config), manifest)


def test_configs_that_name_what_is_compiled(manifest):
    pooler = {"pooling": ("lasttoken",), "logit_mean": 2.65, "logit_sigma": 0.5}
    check_pooler_config(
        PoolerConfig(pooling_type="LAST", logit_mean=2.65, logit_sigma=0.5), with_pooler(manifest, **pooler)
    )


@pytest.mark.parametrize(
    ("pooler", "config", "message"),
    [
        ({}, {"pooling_type": "CLS"}, r"seq_pooling_type CLS was asked for, but \['mean'\] is compiled into the "
         r"artifact; export the checkpoint with --pooler-config '{\"seq_pooling_type\": \"CLS\"}'"),
        ({"pooling": ("mean", "max")}, {"pooling_type": "MEAN"}, r"but \['mean', 'max'\] is compiled"),
        ({"pooling": ()}, {"pooling_type": "MEAN"}, "MEAN was asked for, but it has no sequence graph"),
        ({}, {"logit_mean": 1.0}, r"logit_mean 1.0 was asked for, but None is compiled into the artifact; "
         r"export the checkpoint with --pooler-config '{\"logit_mean\": 1.0}'"),
        ({"logit_sigma": 2.0}, {"logit_sigma": 1.0}, "logit_sigma 1.0 was asked for, but 2.0 is compiled"),
        ({}, {"step_tag_id": 5}, r"step_tag_id has no meaning for tasks .* without STEP pooling"),
        ({"tok_pooling_type": "STEP"}, {"pooling_type": "ALL", "returned_token_ids": [1]},
         "returned_token_ids has no meaning"),
    ],
)  # fmt: skip
def test_configs_that_need_another_graph(manifest, pooler, config, message):
    with pytest.raises(InputError, match=message):
        check_pooler_config(PoolerConfig(**config), with_pooler(manifest, **pooler))


def test_rows_without_a_token_graph(manifest):
    alone = msgspec.structs.replace(manifest, tasks=("embed",))
    with pytest.raises(InputError, match=r"tok_pooling_type has no meaning for tasks \['embed'\]"):
        check_pooler_config(PoolerConfig(pooling_type="ALL"), alone)


def test_a_config_wins_over_the_artifact_field_by_field(manifest):
    compiled = with_pooler(manifest, tok_pooling_type="STEP", step_tag_id=5, returned_token_ids=(1,))
    changed = override_manifest(compiled, config=PoolerConfig(use_activation=False, step_tag_id=6)).pooler
    assert (changed.normalize, changed.use_activation) == (False, False)
    assert (changed.tok_pooling_type, changed.step_tag_id, changed.returned_token_ids) == ("STEP", 6, (1,))
    changed = override_manifest(compiled, config=PoolerConfig(returned_token_ids=[0, 2])).pooler
    assert (changed.normalize, changed.step_tag_id, changed.returned_token_ids) == (True, 5, (0, 2))
    assert override_manifest(compiled, config=PoolerConfig(pooling_type="ALL")).pooler.tok_pooling_type == "ALL"
    assert override_manifest(compiled, config=PoolerConfig()) == compiled


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_type": "STEP", "step_tag_id": 65}, "step_tag_id 65 is out of vocabulary: ids run from 0 to 64"),
        ({"pooling_type": "STEP", "returned_token_ids": [8]}, r"returned_token_ids \[8\] are no columns of this model"),
    ],
)
def test_steps_that_the_model_does_not_have(manifest, config, message):
    with pytest.raises(InputError, match=message):
        override_manifest(manifest, config=PoolerConfig(**config))
