import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from poolgraph import LLM, PoolerConfig, PoolingModel, PoolingParams
from poolgraph.config import LateChunkingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.outputs import EmbeddingRequestOutput, PoolingRequestOutput

TEXTS = ["w1 w2", "w3", "w4 w5 w6", "w7 w8"]


@pytest.fixture
def llm(artifact) -> LLM:
    return LLM(artifact)


@pytest.fixture
def matryoshka(artifact) -> LLM:
    return LLM(artifact, hf_overrides={"is_matryoshka": True})


def vectors(outputs) -> np.ndarray:
    return np.stack([output.outputs.data for output in outputs])


def test_embed_gives_what_the_pooling_model_gives(llm, artifact):
    outputs = llm.embed(TEXTS)
    with PoolingModel.load(artifact) as model:
        expected = model.embed(TEXTS, prompt="")
    assert vectors(outputs).tobytes() == expected.tobytes()
    assert all(type(output) is EmbeddingRequestOutput for output in outputs)
    assert outputs[1].outputs.embedding == expected[1].tolist()
    assert outputs[1].prompt_token_ids == [2, 7, 3]
    assert (outputs[1].finished, outputs[1].num_cached_tokens, outputs[1].num_truncated_tokens) == (True, 0, 0)


def test_no_prompt_is_applied(make_artifact):
    path = make_artifact(default_prompt_name="query")
    assert LLM(path).embed("w5")[0].prompt_token_ids == [2, 9, 3]


def test_request_ids_count_over_the_life_of_the_model(llm):
    assert [output.request_id for output in llm.embed(TEXTS)] == ["0", "1", "2", "3"]
    assert [output.request_id for output in llm.encode("w1")] == ["4"]


def test_prompts_of_every_kind_at_once(llm):
    outputs = llm.embed(["w1 w2", [2, 5, 6, 3], {"prompt": "w1 w2"}, {"prompt_token_ids": [2, 5, 6, 3]}])
    assert [output.prompt_token_ids for output in outputs] == [[2, 5, 6, 3]] * 4
    assert len({output.outputs.data.tobytes() for output in outputs}) == 1


def test_encode_without_a_task_does_the_default_one(llm, artifact):
    assert vectors(llm.encode(TEXTS)).tobytes() == vectors(llm.embed(TEXTS)).tobytes()
    (output,) = LLM(artifact, pooler_config={"task": "token_embed"}).encode("w1 w2")
    assert type(output) is PoolingRequestOutput
    assert output.outputs.data.shape == (4, 8)


def test_encode_without_any_task_is_an_error(make_artifact):
    llm = LLM(make_artifact(default_task=None))
    with pytest.raises(
        InputError, match=r"pooling_task required for `LLM.encode`. Please use one of the more specific"
    ):
        llm.encode("w1")
    assert llm.encode("w1", pooling_task="embed")[0].outputs.data.shape == (8,)
    assert llm.encode("w1", PoolingParams(task="token_embed"))[0].outputs.data.shape == (3, 8)


def test_token_embed_gives_a_row_for_each_token(llm, artifact):
    outputs = llm.encode(TEXTS, pooling_task="token_embed")
    with PoolingModel.load(artifact) as model:
        expected = model.token_embed(TEXTS, prompt="")
    assert [output.outputs.data.tobytes() for output in outputs] == [rows.tobytes() for rows in expected]


def test_each_request_may_have_its_own_parameters(matryoshka):
    params = [
        PoolingParams(),
        PoolingParams(dimensions=4),
        PoolingParams(use_activation=False),
        PoolingParams(dimensions=4),
    ]
    outputs = matryoshka.embed(TEXTS, pooling_params=params)
    assert [output.outputs.hidden_size for output in outputs] == [8, 4, 8, 4]
    for text, one, output in zip(TEXTS, params, outputs, strict=True):
        (alone,) = matryoshka.embed(text, pooling_params=one)
        assert alone.outputs == output.outputs
    raw = outputs[2].outputs.data
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    np.testing.assert_allclose(
        matryoshka.embed(TEXTS[2])[0].outputs.data, raw / np.linalg.norm(raw), rtol=1e-6, atol=1e-7
    )


def test_a_shortened_embedding_is_cut_first_and_normalized_then(matryoshka):
    (raw,) = matryoshka.embed("w1 w2", pooling_params=PoolingParams(use_activation=False))
    (short,) = matryoshka.embed("w1 w2", pooling_params=PoolingParams(dimensions=3))
    head = raw.outputs.data[:3]
    np.testing.assert_allclose(short.outputs.data, head / np.linalg.norm(head), rtol=1e-6)


def test_parameters_for_tokens_too(matryoshka):
    params = [PoolingParams(dimensions=2), PoolingParams(use_activation=False)]
    outputs = matryoshka.encode(["w1", "w2 w3"], params, pooling_task="token_embed")
    assert [output.outputs.data.shape for output in outputs] == [(3, 2), (4, 8)]
    np.testing.assert_allclose(np.linalg.norm(outputs[0].outputs.data, axis=1), 1, rtol=1e-6)


def test_requests_win_over_the_pooler_config(artifact):
    config = '{"normalize": false, "dimensions": 4}'
    llm = LLM(artifact, override_pooler_config=config, hf_overrides={"is_matryoshka": True})
    assert llm.embed("w1")[0].outputs.hidden_size == 4
    params = PoolingParams(use_activation=True, dimensions=5)
    (output,) = llm.embed("w1", pooling_params=params)
    assert output.outputs.hidden_size == 5
    assert np.linalg.norm(output.outputs.data) == pytest.approx(1)
    assert params == PoolingParams(use_activation=True, dimensions=5)


@pytest.mark.parametrize(
    ("overrides", "dimensions", "message"),
    [
        (None, 4, "does not support Matryoshka embeddings; dimensions must be unset (received dimensions=4)."),
        ({"is_matryoshka": True}, 9, "only supports dimensions in range [1, 8], got 9."),
        ({"is_matryoshka": True}, 0, "only supports dimensions in range [1, 8], got 0."),
        ({"matryoshka_dimensions": [2, 4]}, 3, "only supports Matryoshka dimensions [2, 4], got 3."),
    ],
)
def test_dimensions_are_checked(artifact, overrides, dimensions, message):
    llm = LLM(artifact, hf_overrides=overrides)
    with pytest.raises(InputError) as caught:
        llm.embed("w1", pooling_params=PoolingParams(dimensions=dimensions))
    assert caught.value.message == f"Model {str(artifact)!r} {message}"
    with pytest.raises(InputError, match=re.escape(message)):
        LLM(artifact, hf_overrides=overrides, pooler_config=PoolerConfig(dimensions=dimensions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_params": [PoolingParams()]}, "The lengths of prompts (4) and params (1) must be the same."),
        ({"pooling_params": {"dimensions": 3}}, "pooling_params must be a PoolingParams or a list of them"),
        ({"pooling_params": [3] * 4}, "pooling_params must be a PoolingParams or a list of them"),
        ({"pooling_params": PoolingParams(step_tag_id=3)}, "does not support ['step_tag_id'] parameters"),
        ({"pooling_params": PoolingParams(task="token_embed")}, "pooling_params.task='token_embed' with pooling_task="),
        ({"lora_request": object()}, "lora_request is not supported; merge the adapter"),
        ({"truncate_prompt_tokens": 17}, "truncate_prompt_tokens=17 cannot be greater than max_total_tokens = 16."),
    ],
)
def test_options_that_are_refused(llm, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        llm.embed(TEXTS, **options)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("classify", "Classification API is not supported by this model. Try converting the model using `--convert cl"),
        ("token_classify", "Classification API is not supported by this model."),
        ("score", "`score` task was removed; use `classify` instead."),
        ("encode", "`encode` task was removed; use `token_embed` or `token_classify` instead."),
        ("plugin", "No IOProcessor plugin installed"),
        ("rank", "Unsupported task: 'rank' Supported tasks: ('embed', 'token_embed')"),
        ("", "Unsupported task: '' Supported tasks: ('embed', 'token_embed')"),
        (["embed"], "Unsupported task: ['embed'] Supported tasks: ('embed', 'token_embed')"),
    ],
)
def test_tasks_that_the_artifact_lacks(llm, task, message):
    with pytest.raises(TaskNotSupported, match=re.escape(message)):
        llm.encode("w1", pooling_task=task)


def test_methods_that_the_artifact_lacks(llm, make_artifact):
    for method in (llm.classify, llm.reward):
        with pytest.raises(TaskNotSupported, match="Classification API is not supported by this model"):
            method("w1")


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"tasks": ("token_embed",), "default_task": "token_embed"}, {}),
        ({"tasks": ("token_embed",), "default_task": None}, {}),
        ({}, {"pooler_config": PoolerConfig(task="token_embed")}),
        ({}, {"task": "token_embed"}),
    ],
)
def test_embed_gives_matrices_where_the_task_is_token_embed(make_artifact, changes, options):
    llm = LLM(make_artifact(**changes), **options)
    outputs = llm.embed(TEXTS)
    assert all(type(output) is PoolingRequestOutput for output in outputs)
    expected = llm.encode(TEXTS, pooling_task="token_embed")
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_late_chunking_averages_raw_rows_before_the_norm(llm, size):
    (raw,) = llm.encode("w1 w2 w3", PoolingParams(use_activation=False), pooling_task="token_embed")
    params = PoolingParams(late_chunking_params=LateChunkingParams(size))
    (output,) = llm.encode("w1 w2 w3", params, pooling_task="token_embed")
    means = np.stack([raw.outputs.data[start : start + size].mean(0) for start in range(0, 5, size)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(output.outputs.data, expected, rtol=1e-5, atol=1e-6)
    assert output.late_chunking.input_tokens == 5
    assert len(output.late_chunking.chunks) == len(output.outputs.data)
    assert raw.late_chunking is None


def test_a_late_chunk_knows_its_characters(llm):
    prompts = ["w1 w22 w3", [2, 5, 6, 3], "w1 w2 w3 w4"]
    params = PoolingParams(late_chunking_params=LateChunkingParams(2))
    outputs = llm.encode(prompts, params, pooling_task="token_embed", truncate_prompt_tokens=5)
    ranges = [[chunk.char_range for chunk in output.late_chunking.chunks] for output in outputs]
    assert ranges == [[(0, 2), (3, 9), None], [None, None], [(0, 2), (3, 8), None]]
    for kwargs in ({"add_special_tokens": False}, {"truncation_side": "left", "truncate_prompt_tokens": 3}):
        (output,) = llm.encode("w1", params, pooling_task="token_embed", tokenization_kwargs=kwargs)
        assert output.late_chunking.input_tokens == len(output.prompt_token_ids)
    (output,) = llm.encode("w1 w2", params, pooling_task="token_embed", tokenization_kwargs=kwargs)
    assert output.late_chunking.chunks[0].char_range is None


def test_late_chunking_behind_a_head_is_refused(make_artifact):
    path = make_artifact()
    modules = '[{"type": "sentence_transformers.models.Pooling"}, {"type": "sentence_transformers.models.Dense"}]'
    (path / "modules.json").write_text(modules)
    params = PoolingParams(late_chunking_params=LateChunkingParams(2))
    with pytest.raises(InputError, match=r"late chunking averages the rows before the head, but Dense of modules.json"):
        LLM(path).encode("w1", params, pooling_task="token_embed")


def test_steps_of_an_embedder(artifact):
    llm = LLM(artifact, pooler_config={"pooling_type": "STEP", "step_tag_id": 6}, task="token_embed")
    (rows,) = llm.encode("w1 w2 w3 w2", PoolingParams(use_activation=False))
    (whole,) = llm.encode("w1 w2 w3 w2", PoolingParams(use_activation=False, step_tag_id=6), pooling_task="token_embed")
    (every,) = LLM(artifact).encode("w1 w2 w3 w2", PoolingParams(use_activation=False), pooling_task="token_embed")
    assert rows.outputs.data.tobytes() == whole.outputs.data.tobytes() == every.outputs.data[[2, 4]].tobytes()


def test_no_prompt_and_too_long_a_prompt(llm):
    with pytest.raises(InputError, match="You must pass at least one prompt"):
        llm.embed([])
    with pytest.raises(
        InputError, match=r"This model's maximum context length is 16 tokens. .* contains 22 input tokens"
    ):
        llm.embed("w1 " * 20)
    with pytest.raises(InputError, match="MultiModalParam is not supported for TinyModel"):
        llm.embed({"prompt": "w1", "multi_modal_data": {"image": 1}})


@pytest.mark.parametrize(
    ("options", "tokens", "cut"),
    [
        ({"tokenization_kwargs": {"truncate_prompt_tokens": -1}}, 16, 6),
        ({"tokenization_kwargs": {"truncate_prompt_tokens": 5}}, 5, 17),
        ({"truncate_prompt_tokens": 5}, 5, 17),
        ({"pooling_params": PoolingParams(truncate_prompt_tokens=5)}, 5, 17),
        ({"pooling_params": PoolingParams(truncate_prompt_tokens=5), "truncate_prompt_tokens": 7}, 5, 17),
    ],
)
def test_truncation_says_how_much_it_cut(llm, options, tokens, cut):
    (output,) = llm.embed("w1 " * 20, **options)
    assert (len(output.prompt_token_ids), output.num_truncated_tokens) == (tokens, cut)
    assert output.prompt_token_ids[-1] == 3


def test_a_lower_limit(artifact):
    llm = LLM(artifact, max_model_len=5)
    with pytest.raises(InputError, match=r"maximum context length is 5 tokens.* contains 6 input tokens"):
        llm.embed("w1 w2 w3 w4")
    (output,) = llm.embed("w1 w2 w3 w4", truncate_prompt_tokens=-1)
    assert output.prompt_token_ids == [2, 5, 6, 7, 3]
    with pytest.raises(InputError, match="cannot be greater than max_total_tokens = 5"):
        llm.embed("w1", truncate_prompt_tokens=6)
    assert llm.get_tokenizer().count(["w1"]) == [3]


class Bar:
    def __init__(self, **options):
        self.options, self.updates, self.closed = options, 0, False

    def update(self, number):
        self.updates += number

    def close(self):
        self.closed = True


def test_progress(llm, capsys):
    bars = []
    llm.embed(TEXTS, use_tqdm=lambda **options: bars.append(Bar(**options)) or bars[-1])
    assert (bars[0].options["total"], bars[0].updates, bars[0].closed) == (4, 4, True)
    llm.embed(TEXTS, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_nothing_of_the_caller_is_changed(llm, artifact):
    manifest = msgspec.json.encode(open_artifact(artifact))
    prompts, kwargs = [{"prompt_token_ids": [5, 6, 7]}], {"truncate_prompt_tokens": 2}
    llm.embed(prompts, tokenization_kwargs=kwargs)
    assert (prompts, kwargs) == ([{"prompt_token_ids": [5, 6, 7]}], {"truncate_prompt_tokens": 2})
    assert msgspec.json.encode(open_artifact(Path(artifact))) == manifest
