import dataclasses
import subprocess
import sys

import pytest

from poolgraph.config import LateChunkingParams, PoolerConfig, PoolingParams, RequestOutputKind, parse_pooler_config
from poolgraph.errors import InputError


@pytest.mark.parametrize("older", ["normalize", "softmax", "activation"])
@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
@pytest.mark.parametrize("value", [True, False])
def test_older_spellings_become_use_activation(kind, older, value):
    assert kind(**{older: value}) == kind(use_activation=value)


@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
def test_spellings_that_agree_are_fine_and_those_that_do_not_are_refused(kind):
    assert kind(use_activation=True, normalize=True).use_activation is True
    with pytest.raises(InputError, match=r"'use_activation': True, 'normalize': False.*contradict each other"):
        kind(use_activation=True, normalize=False)
    with pytest.raises(InputError, match="contradict"):
        kind(normalize=True, softmax=False)


@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dimensions", 3.5, "dimensions must be an int, not float"),
        ("dimensions", True, "dimensions must be an int, not bool"),
        ("use_activation", "yes", "use_activation must be a bool, not str"),
        ("normalize", 1, "normalize must be a bool, not int"),
        ("step_tag_id", "7", "step_tag_id must be an int, not str"),
        ("returned_token_ids", 7, "returned_token_ids must be a list of ints, not int"),
        ("returned_token_ids", b"a", "returned_token_ids must be a list of ints, not bytes"),
        ("returned_token_ids", ["a"], "returned_token_ids must be an int, not str"),
        ("task", "rank", "unknown task 'rank'; allowed are"),
    ],
)
def test_wrong_values_name_field_and_value(kind, field, value, message):
    with pytest.raises(InputError, match=message) as caught:
        kind(**{field: value})
    assert caught.value.parameter == field


@pytest.mark.parametrize("value", [0, -2])
def test_truncation_keeps_something(value):
    with pytest.raises(InputError, match=r"truncate_prompt_tokens must be -1 .* or a positive"):
        PoolingParams(truncate_prompt_tokens=value)


def test_records_are_frozen_slotted_hashable_and_survive_replace():
    ids = [1, 2]
    params = PoolingParams(returned_token_ids=ids, normalize=False)
    ids.append(3)
    assert params.returned_token_ids == (1, 2)
    assert hash(params) == hash(dataclasses.replace(params))
    assert dataclasses.replace(params, dimensions=4).use_activation is False
    assert not hasattr(params, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.dimensions = 3
    with pytest.raises(TypeError, match="positional"):
        PoolingParams(True)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("CLS", "seq_pooling_type"),
        ("LAST", "seq_pooling_type"),
        ("MEAN", "seq_pooling_type"),
        ("ALL", "tok_pooling_type"),
        ("STEP", "tok_pooling_type"),
    ],
)
def test_pooling_type_is_a_convenience(kind, field):
    config = PoolerConfig(pooling_type=kind)
    assert config == PoolerConfig(**{field: kind})
    assert dataclasses.replace(config, dimensions=2) == PoolerConfig(**{field: kind}, dimensions=2)


@pytest.mark.parametrize("field", ["seq_pooling_type", "tok_pooling_type"])
def test_pooling_type_excludes_the_others(field):
    value = "CLS" if field == "seq_pooling_type" else "ALL"
    with pytest.raises(InputError, match=f"Cannot set both `pooling_type` and `{field}`"):
        PoolerConfig(pooling_type="CLS", **{field: value})


def test_unknown_pooling_types_name_the_allowed_ones():
    with pytest.raises(InputError, match=r"unknown pooling_type 'MAX'; allowed are \['CLS', 'LAST', 'MEAN', 'ALL', 'S"):
        PoolerConfig(pooling_type="MAX")
    with pytest.raises(InputError, match=r"unknown seq_pooling_type 'ALL'; allowed are \['CLS', 'LAST', 'MEAN'\]"):
        PoolerConfig(seq_pooling_type="ALL")


def test_logit_sigma_divides():
    assert PoolerConfig(logit_mean=1, logit_sigma=0.5).logit_sigma == 0.5
    with pytest.raises(InputError, match=r"logit_sigma cannot be 0 \(division by zero\)"):
        PoolerConfig(logit_sigma=0)
    with pytest.raises(InputError, match="logit_mean must be a number, not str"):
        PoolerConfig(logit_mean="1")


def test_pooler_config_from_json_as_the_process_reward_example_writes_it():
    config = PoolerConfig.from_json('{"pooling_type": "STEP", "step_tag_id": 123, "returned_token_ids": [456, 789]}')
    assert config == PoolerConfig(tok_pooling_type="STEP", step_tag_id=123, returned_token_ids=(456, 789))


def test_parse_pooler_config_takes_every_form():
    config = PoolerConfig(use_activation=False)
    assert parse_pooler_config(config) is config
    assert parse_pooler_config(None) == PoolerConfig()
    assert parse_pooler_config({"normalize": False}) == config
    assert parse_pooler_config('{"normalize": false}') == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "pooler_config is not JSON"),
        ("[1]", "pooler_config must be .* not list"),
        (3, "pooler_config must be .* not int"),
        ({"pooling_typ": "CLS"}, "pooler_config has no key 'pooling_typ'; did you mean 'pooling_type'?"),
        ({"xyzzy": 1}, "pooler_config has no key 'xyzzy'; known keys are"),
    ],
)
def test_parse_pooler_config_refuses(value, message):
    with pytest.raises(InputError, match=message):
        parse_pooler_config(value)


@pytest.mark.parametrize("size", [0, -1, True, False, 1.5, "2", 2**63, None])
def test_a_chunk_has_a_positive_number_of_tokens(size):
    with pytest.raises(InputError, match=r"chunk_size must be a positive integer less than 2\*\*63") as caught:
        LateChunkingParams(size)
    assert caught.value.parameter == "chunk_size"
    assert LateChunkingParams(chunk_size=2**63 - 1) == LateChunkingParams(2**63 - 1)


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, 2, None])
def test_pooling_has_final_outputs_only(kind):
    with pytest.raises(InputError, match=f"For pooling output_kind has to be FINAL_ONLY, got {kind}"):
        PoolingParams(output_kind=kind)
    assert PoolingParams(output_kind=RequestOutputKind.FINAL_ONLY) == PoolingParams()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("late_chunking_params", {"chunk_size": 2}, "late_chunking_params must be a LateChunkingParams, not dict"),
        ("extra_kwargs", ["max_tokens_per_doc"], "extra_kwargs must be a Mapping, not list"),
        ("requires_token_ids", 1, "requires_token_ids must be a bool, not int"),
        ("skip_reading_prefix_cache", "no", "skip_reading_prefix_cache must be a bool, not str"),
        ("late_interaction_params", object(), "late_interaction_params is set by vLLM's engine and must be None"),
    ],
)
def test_wrong_values_of_what_the_engine_of_vllm_sets(field, value, message):
    with pytest.raises(InputError, match=message) as caught:
        PoolingParams(**{field: value})
    assert caught.value.parameter == field


def test_what_the_engine_of_vllm_sets_is_accepted():
    PoolingParams(requires_token_ids=True, skip_reading_prefix_cache=False, late_interaction_params=None)
    config = PoolerConfig(enable_flash_late_interaction=False, enable_chunked_processing=True, max_embed_len=9000)
    assert config.max_embed_len == 9000
    with pytest.raises(InputError, match="enable_chunked_processing must be a bool, not int"):
        PoolerConfig(enable_chunked_processing=1)
    with pytest.raises(InputError, match="max_embed_len must be an int, not str"):
        PoolerConfig(max_embed_len="9000")


def test_extra_kwargs_are_copied_compared_and_left_out_of_the_hash():
    given = {"chat_template_kwargs": {"instruction": "find it"}}
    params = PoolingParams(extra_kwargs=given)
    given["chat_template_kwargs"]["instruction"] = "lose it"
    assert params.extra_kwargs == {"chat_template_kwargs": {"instruction": "find it"}}
    assert params != PoolingParams()
    assert hash(params) == hash(PoolingParams(extra_kwargs={"chat_template_kwargs": {"instruction": "find it"}}))


def test_config_loads_nothing_heavy():
    code = "import sys, poolgraph.config; print([m for m in ('numpy', 'msgspec', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
