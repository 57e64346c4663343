import json
import re
from pathlib import Path

import pytest

import poolgraph.runtime.model_arguments
from poolgraph import LLM, PoolerConfig, PoolingModel, PoolingParams
from poolgraph.errors import ArtifactError, InputError, ManifestError, TaskNotSupported
from poolgraph.runtime import export_precision
from poolgraph.runtime.model_arguments import keep_template

TEMPLATE = "Q: {{ query }} D: {{ document }}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "generate"}, "runner 'generate' is not supported"),
        ({"task": ["embed"]}, "unknown task ['embed']; allowed are"),
        ({"tokenizer": "other/model"}, "an artifact carries its own tokenizer"),
        ({"pooler_config": {}, "override_pooler_config": {}}, "pooler_config and override_pooler_config mean the same"),
        ({"gpu_memory_utilisation": 1}, "did you mean gpu_memory_utilization"),
        ({"chat_templates": "x"}, "did you mean chat_template"),
        ({"max_model_len": 17}, "User-specified max_model_len (17) is greater than the derived max_model_len"),
        ({"hf_overrides": 3}, "hf_overrides must be a mapping, not int"),
        (
            {"hf_overrides": {"num_labels": 2}},
            "hf_overrides ['num_labels'] would need another export; a compiled model",
        ),
        ({"pooler_config": {"pooling_type": "CLS"}}, "seq_pooling_type CLS was asked for, but ['mean'] is compiled"),
        ({"pooler_config": {"logit_mean": 2.0}}, "logit_mean 2.0 was asked for, but None is compiled"),
        ({"pooler_config": '{"dimensions": 4}'}, "does not support Matryoshka embeddings; dimensions must be unset"),
        ({"pooler_config": {"pooling_type": "MAX"}}, "unknown pooling_type 'MAX'"),
    ],
)
def test_arguments_that_are_refused(artifact, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LLM(artifact, **options)


def test_the_arguments_of_the_engine(artifact):
    path = str(artifact)
    LLM(model=path, tokenizer=path, dtype="float32", seed=3, tensor_parallel_size=1, trust_remote_code=True)
    LLM(path, chat_template=TEMPLATE, hf_overrides={"architectures": ["TinyModel"], "is_matryoshka": True})
    LLM(path, pooler_config=PoolerConfig(seq_pooling_type="MEAN", logit_mean=0.0, logit_sigma=1.0))
    with pytest.raises(ArtifactError, match=r"no variant for precision .fp16."):
        LLM(path, dtype="float16")
    with pytest.raises(ManifestError, match=r"no variant 'cuda_fp16'; this artifact has \[.*'cpu_fp32'.*\]"):
        LLM(path, variant="cuda_fp16")


def test_a_bound_of_chunks_without_chunks_is_warned_about(artifact):
    message = "^pooler_config: max_embed_len has no effect without enable_chunked_processing$"
    with pytest.warns(UserWarning, match=message) as caught:
        LLM(artifact, pooler_config='{"max_embed_len": 9000}')
    assert [warning.filename for warning in caught] == [__file__]


def test_long_texts_are_embedded_in_chunks_where_the_pooler_config_says_so(artifact):
    chunked = LLM(artifact, pooler_config={"enable_chunked_processing": True, "max_embed_len": 40})
    long, short = chunked.embed(["w1 " * 30, "w1 w2"])
    assert (long.text_chunks.num_chunks, short.text_chunks) == (3, None)
    assert short.outputs == LLM(artifact).embed("w1 w2")[0].outputs
    message = "maximum embedding input length is 40 tokens. However, you requested 42 tokens"
    with pytest.raises(InputError, match=message):
        chunked.embed("w1 " * 40)


def test_a_pooler_config_that_asks_for_no_chunks_is_not_warned_about(artifact):
    LLM(artifact, pooler_config={"enable_chunked_processing": False, "enable_flash_late_interaction": True})


def test_buckets_and_cuda_graphs_are_the_models(artifact, monkeypatch):
    seen, real = [], PoolingModel.load.__func__

    def load(cls, path, **options):
        seen.append((options["buckets"], options["cuda_graphs"]))
        return real(cls, path, **options)

    monkeypatch.setattr(PoolingModel, "load", classmethod(load))
    LLM(artifact)
    LLM(artifact, enforce_eager=True, buckets="buckets.json")
    assert seen == [(None, True), ("buckets.json", False)]


@pytest.mark.parametrize(
    "options", [{"convert": "classify"}, {"task": "classify"}, {"pooler_config": {"task": "classify"}}]
)
def test_a_task_that_the_artifact_lacks(artifact, options):
    with pytest.raises(
        TaskNotSupported, match=r"does not support (convert|task) 'classify'; it supports \['embed', 'to"
    ):
        LLM(artifact, **options)


def test_overrides_that_the_artifact_was_exported_with(make_artifact):
    recorded = {"is_causal": False, "classifier_from_token": ["no", "yes"]}
    path = make_artifact(options={"hf_overrides": json.dumps(recorded)})
    LLM(path, hf_overrides=recorded)
    with pytest.raises(InputError, match=r"--hf-overrides '\{\"is_causal\": true\}', or give LLM the checkpoint"):
        LLM(path, hf_overrides={"is_causal": True})


@pytest.fixture
def asked(artifact, monkeypatch) -> list[dict[str, str]]:
    """The export options that LLM asks for on a machine without a GPU."""
    found = []
    monkeypatch.setattr(export_precision, "available_providers", lambda: ("CPUExecutionProvider",))

    def resolve(model, *, revision, options, on_line):
        found.append(options)
        return artifact

    monkeypatch.setattr(poolgraph.runtime.model_arguments, "resolve_artifact", resolve)
    return found


@pytest.mark.parametrize(
    ("options", "exported"),
    [
        ({}, {}),
        ({"task": "embed", "trust_remote_code": True}, {"task": "embed", "trust-remote-code": "true"}),
        ({"runner": "pooling", "convert": "embed"}, {"convert": "embed"}),
        (
            {"pooler_config": {"task": "token_embed", "dimensions": 4}, "hf_overrides": {"is_matryoshka": True}},
            {"task": "token_embed"},
        ),
        (
            {"override_pooler_config": '{"normalize": false, "pooling_type": "MEAN"}'},
            {"pooler-config": '{"seq_pooling_type": "MEAN"}'},
        ),
        ({"hf_overrides": {"b": 1, "a": [2], "matryoshka_dimensions": [4]}}, {"hf-overrides": '{"a": [2], "b": 1}'}),
        ({"chat_template": "plain"}, {"score-template": "plain"}),
        ({"dtype": "float32"}, {}),
    ],
)
def test_what_a_checkpoint_is_exported_with(asked, options, exported):
    LLM("owner/name", **options)
    assert asked == [exported]


def test_a_checkpoint_is_exported_in_the_precision_that_is_asked_for(asked):
    with pytest.raises(ArtifactError, match="no variant for precision 'bf16'"):  # of the artifact in its place
        LLM("owner/name", dtype="bfloat16")
    assert asked == [{"precision": "bf16"}]


def test_a_checkpoint_is_exported_for_the_variant_that_is_asked_for(asked):
    with pytest.raises(ManifestError, match="no variant 'cpu_int8'"):  # of the artifact in its place
        LLM("owner/name", variant="cpu_int8")
    assert asked == [{"precision": "int8"}]
    with pytest.raises(InputError, match="unknown variant 'gpu_fp16'"):
        LLM("owner/name", variant="gpu_fp16")
    with pytest.raises(InputError, match="'cpu_int8' is in int8, but precision 'fp32' is asked for"):
        LLM("owner/name", variant="cpu_int8", dtype="float32")
    assert len(asked) == 1


def test_a_checkpoint_is_exported_for_a_gpu_where_it_loads(asked, monkeypatch):
    monkeypatch.setattr(export_precision, "available_providers", lambda: ("CUDAExecutionProvider",))
    monkeypatch.setattr(export_precision, "provider_loads", lambda name: True)
    LLM("owner/name")
    assert asked == [{"target": "cuda"}]


def test_a_template_is_handed_to_the_export_as_a_file_named_by_its_content(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("POOLGRAPH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    LLM("owner/name", chat_template=TEMPLATE)
    LLM("owner/name", chat_template=tmp_path / "mine.jinja")
    first, second = (options["score-template"] for options in asked)
    assert first == second
    assert Path(first).read_text() == TEMPLATE
    assert [path.name for path in Path(first).parent.iterdir()] == [Path(first).name]
    with pytest.raises(InputError, match="is no file and no template's text; names are"):
        keep_template("nowhere")
    assert keep_template(None) is None


def test_an_artifact_needs_no_file_of_a_template(artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("POOLGRAPH_CACHE", str(tmp_path / "cache"))
    LLM(artifact, chat_template=TEMPLATE)
    assert not (tmp_path / "cache").exists()


def test_overrides_of_a_checkpoint_went_into_the_export(asked):
    LLM("owner/name", hf_overrides={"num_labels": 2})
    assert asked == [{"hf-overrides": '{"num_labels": 2}'}]


def test_each_field_has_its_own_precedence(artifact):
    llm = LLM(artifact, pooler_config={"use_activation": False, "dimensions": 4}, hf_overrides={"is_matryoshka": True})
    (output,) = llm.embed("w1", pooling_params=PoolingParams(use_activation=True))
    raw = LLM(artifact, pooler_config={"normalize": False}).embed("w1")[0].outputs.data[:4]
    assert output.outputs.data == pytest.approx(raw / (raw**2).sum() ** 0.5)
    assert llm.embed("w1")[0].outputs.data.tolist() == raw.tolist()
