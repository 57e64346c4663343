"""``LLM`` over classifiers and reward models: classify, reward, encode."""

import re

import numpy as np
import pytest
from little_classifiers import STEP, STEP_TAG_ID, build_classifier, reference_logits

from poolgraph import LLM, PoolerConfig, PoolingModel, PoolingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.outputs import ClassificationRequestOutput, PoolingRequestOutput

TEXTS = ["w1 w2", "w3", "ab c.", "w4 w5 w6 w7"]
STEPS = [f"w1 {STEP} w2 w3 {STEP}", "w1 w2", f"{STEP}{STEP} w5"]


@pytest.fixture
def make(tmp_path):
    return lambda kind="classifier", **options: build_classifier(tmp_path / kind, kind, **options)


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_classify_gives_probabilities(make):
    path = make()
    llm = LLM(path, runner="pooling")
    outputs = llm.classify(TEXTS)
    assert all(type(output) is ClassificationRequestOutput for output in outputs)
    assert [output.request_id for output in outputs] == ["0", "1", "2", "3"]
    for output in outputs:
        expected = softmax(reference_logits(output.prompt_token_ids, 3, "sequence"))
        np.testing.assert_allclose(output.outputs.probs, expected, rtol=1e-5)
        assert output.outputs.num_classes == 3
    with PoolingModel.load(path) as model:
        assert model.classify(TEXTS).tolist() == [output.outputs.probs for output in outputs]


def test_prompts_of_every_kind(make):
    llm = LLM(make())
    (text,) = llm.classify("w1 w2")
    ids = text.prompt_token_ids
    outputs = llm.classify(["w1 w2", ids, {"prompt": "w1 w2"}, {"prompt_token_ids": ids}], use_tqdm=False)
    assert [output.outputs for output in outputs] == [text.outputs] * 4


@pytest.mark.parametrize("older", ["use_activation", "softmax", "activation"])
def test_each_request_has_its_own_activation(make, older):
    llm = LLM(make())
    params = [PoolingParams(**{older: False}), PoolingParams(), PoolingParams(**{older: True}), PoolingParams()]
    outputs = llm.classify(TEXTS, pooling_params=params)
    logits = reference_logits(outputs[0].prompt_token_ids, 3, "sequence")
    np.testing.assert_allclose(outputs[0].outputs.probs, logits, rtol=1e-5)
    for text, one, output in zip(TEXTS, params, outputs, strict=True):
        assert llm.classify(text, pooling_params=one)[0].outputs == output.outputs


@pytest.mark.parametrize(
    ("artifact", "config", "request_says", "applied"),
    [
        (True, None, None, True),
        (False, None, None, False),
        (False, True, None, True),
        (True, False, None, False),
        (True, False, True, True),
        (False, True, False, False),
    ],
)
def test_the_request_wins_over_the_config_and_that_over_the_artifact(make, artifact, config, request_says, applied):
    llm = LLM(make(pooler={"use_activation": artifact}), pooler_config=PoolerConfig(use_activation=config))
    (output,) = llm.classify("w1", pooling_params=PoolingParams(use_activation=request_says))
    assert (sum(output.outputs.probs) == pytest.approx(1, abs=1e-5)) is applied


def test_one_label_is_a_list_of_one(make):
    llm = LLM(make(labels=("relevant",)))
    (output,) = llm.classify("w1 w2")
    logit = reference_logits(output.prompt_token_ids, 1, "sequence")
    np.testing.assert_allclose(output.outputs.probs, 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_encode_does_every_task_of_a_classifier(make):
    llm = LLM(make())
    (whole,) = llm.encode("w1 w2")
    assert type(whole) is PoolingRequestOutput
    assert whole.outputs.data.tolist() == llm.classify("w1 w2")[0].outputs.probs
    (rows,) = llm.encode("w1 w2", pooling_task="token_classify")
    np.testing.assert_allclose(
        rows.outputs.data, softmax(reference_logits(rows.prompt_token_ids, 3, "token")), rtol=1e-5
    )
    assert LLM(llm._runner.model.path, task="token_classify").encode("w1")[0].outputs.data.shape == (3, 3)


def test_reward_of_a_sequence_head(make):
    llm = LLM(make(labels=("reward",), pooler={"use_activation": False}), task="reward")
    (output,) = llm.reward("w1 w2")
    assert output.outputs.data.shape == (1,)
    np.testing.assert_allclose(output.outputs.data, reference_logits(output.prompt_token_ids, 1, "sequence"), rtol=1e-5)
    assert llm.encode("w1 w2")[0].outputs == output.outputs
    (rows,) = LLM(llm._runner.model.path, pooler_config={"task": "token_classify"}).reward("w1 w2")
    assert rows.outputs.data.shape == (4, 1)


def test_reward_of_a_token_head(make):
    llm = LLM(make("token_classifier"), task="reward")
    (output,) = llm.reward("w1 w2", pooling_params=PoolingParams(use_activation=False))
    np.testing.assert_allclose(output.outputs.data, reference_logits(output.prompt_token_ids, 5, "token"), rtol=1e-5)
    assert llm.encode("w1 w2")[0].outputs == llm.reward("w1 w2")[0].outputs


def test_reward_of_steps(make):
    llm = LLM(make("step"))
    outputs = llm.reward(STEPS)
    assert [output.outputs.data.shape for output in outputs] == [(2, 2), (0, 2), (2, 2)]
    ids = np.array(outputs[0].prompt_token_ids)
    logits = reference_logits(ids, 2, "token")[ids == STEP_TAG_ID]
    np.testing.assert_allclose(outputs[0].outputs.data, softmax(logits), rtol=1e-5)


def test_steps_of_the_request_and_of_the_config(make):
    path = make("step")
    config = '{"pooling_type": "STEP", "step_tag_id": 2, "returned_token_ids": [1]}'
    (output,) = LLM(path, pooler_config=config).reward(STEPS[0], pooling_params=PoolingParams(use_activation=False))
    logits = reference_logits(output.prompt_token_ids, 2, "token")
    np.testing.assert_allclose(output.outputs.data, logits[:1, 1:], rtol=1e-5)
    params = PoolingParams(use_activation=False, step_tag_id=STEP_TAG_ID, returned_token_ids=[1, 0])
    (output,) = LLM(path, pooler_config=config).reward(STEPS[0], pooling_params=params)
    rows = np.array(output.prompt_token_ids) == STEP_TAG_ID
    np.testing.assert_allclose(output.outputs.data, logits[rows][:, ::-1], rtol=1e-5)


def test_columns_come_before_the_activation(make):
    (output,) = LLM(make("step")).reward(STEPS[0], pooling_params=PoolingParams(returned_token_ids=[0]))
    ids = np.array(output.prompt_token_ids)
    logits = reference_logits(ids, 2, "token")[ids == STEP_TAG_ID][:, :1]
    np.testing.assert_allclose(output.outputs.data, 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_step_pooling_by_config_on_a_token_classifier(make):
    config = PoolerConfig(pooling_type="STEP", step_tag_id=STEP_TAG_ID, returned_token_ids=[3, 1])
    (output,) = LLM(make("token_classifier"), pooler_config=config).reward(STEPS[0])
    ids = np.array(output.prompt_token_ids)
    logits = reference_logits(ids, 5, "token")[ids == STEP_TAG_ID][:, [3, 1]]
    np.testing.assert_allclose(output.outputs.data, softmax(logits), rtol=1e-5)


def test_all_rows_by_config_of_a_step_model(make):
    (output,) = LLM(make("step"), pooler_config={"pooling_type": "ALL"}).reward(STEPS[0])
    assert len(output.outputs.data) == len(output.prompt_token_ids)


REFUSED_CONFIGS = [
    (
        "classifier",
        {"step_tag_id": 3},
        "step_tag_id has no meaning for tasks ['classify', 'token_classify'] without STEP",
    ),
    ("step", {"step_tag_id": 9999}, "step_tag_id 9999 is out of vocabulary"),
    ("step", {"returned_token_ids": [2]}, "returned_token_ids [2] are no columns of this model"),
    ("step", {"pooling_type": "LAST"}, "seq_pooling_type LAST was asked for, but it has no sequence graph"),
    ("classifier", {"logit_sigma": 2.0}, "logit_sigma 2.0 was asked for, but None is compiled into the artifact"),
]


@pytest.mark.parametrize(("kind", "config", "message"), REFUSED_CONFIGS)
def test_configs_that_are_refused(make, kind, config, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LLM(make(kind), pooler_config=config)


def test_scaling_that_is_compiled_in_may_be_named(make):
    path = make(pooler={"logit_mean": 2.5, "logit_sigma": 0.5})
    LLM(path, pooler_config={"logit_mean": 2.5, "logit_sigma": 0.5})
    with pytest.raises(InputError, match=r"export the checkpoint with --pooler-config '\{\"logit_mean\": 2.0\}'"):
        LLM(path, pooler_config={"logit_mean": 2.0})


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("classifier", "embed", "Embedding API is not supported by this model. Try converting the model using "
         "`--convert embed`. This artifact supports ['classify', 'token_classify']."),
        ("classifier", "token_embed", "Embedding API is not supported by this model."),
        ("token_classifier", "classify", "Classification API is not supported by this model. Try converting the model "
         "using `--convert classify`. This artifact supports ['token_classify']."),
        ("classifier", "rank", "Unsupported task: 'rank' Supported tasks: ('classify', 'token_classify')"),
    ],
)  # fmt: skip
def test_tasks_that_a_classifier_lacks(make, kind, task, message):
    with pytest.raises(TaskNotSupported, match=re.escape(message)):
        LLM(make(kind)).encode("w1", pooling_task=task)


def test_methods_that_a_token_classifier_lacks(make):
    llm = LLM(make("token_classifier"))
    with pytest.raises(TaskNotSupported, match="Classification API is not supported by this model"):
        llm.classify("w1")
    with pytest.raises(TaskNotSupported, match="Embedding API is not supported by this model"):
        llm.embed("w1")


def test_params_of_another_task_are_refused(make):
    llm = LLM(make())
    with pytest.raises(InputError, match=re.escape("Task 'classify' only supports ['use_activation'] parameters")):
        llm.classify("w1", pooling_params=PoolingParams(dimensions=2))
    with pytest.raises(
        InputError, match=r"You cannot overwrite pooling_params.task='token_classify' with pooling_task="
    ):
        llm.classify("w1", pooling_params=PoolingParams(task="token_classify"))


def test_a_text_alone_and_in_company_has_the_same_bits(make):
    llm = LLM(make())
    texts = [f"w{number} " * (number % 7 + 1) for number in range(20)]
    for task in ("classify", "token_classify"):
        together = llm.encode(texts, pooling_task=task)
        for text, output in zip(texts, together, strict=True):
            assert llm.encode(text, pooling_task=task)[0].outputs == output.outputs
