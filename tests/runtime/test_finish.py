import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from poolgraph.config import LateChunkingParams, PoolingParams
from poolgraph.errors import InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.finish import TASK_PARAMETERS, Finish, Steps, finish_sequences, finish_tokens, plan_finish
from poolgraph.runtime.tokenizer import EncodedText

ALL = ("embed", "classify", "token_embed", "token_classify")
CHUNKS = LateChunkingParams(2)


@pytest.fixture
def manifest(artifact) -> Manifest:
    return open_artifact(artifact)


def with_pooler(manifest: Manifest, **fields) -> Manifest:
    return msgspec.structs.replace(manifest, pooler=msgspec.structs.replace(manifest.pooler, **fields))


def plan(manifest: Manifest, asked: str, default_width: int | None = None, **params) -> Finish:
    return plan_finish(PoolingParams(**params), asked, manifest=manifest, dimensions=default_width, model="m")


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("value", [None, True, False])
def test_every_task_takes_an_activation(manifest, task, value):
    finish = plan(with_pooler(manifest, activation="softmax"), task, use_activation=value)
    if task.endswith("embed"):
        assert finish == Finish(embeds=True, normalize=value is not False)
    else:
        assert finish == Finish(embeds=False, activation=None if value is False else "softmax")


@pytest.mark.parametrize("active", [True, False])
def test_the_artifact_says_what_a_request_leaves_open(manifest, active):
    changed = with_pooler(manifest, normalize=active, activation="tanh", use_activation=active)
    assert plan(changed, "token_embed").normalize is active
    assert plan(changed, "classify").activation == ("tanh" if active else None)


def test_dimensions_of_the_request_win_over_those_of_the_config(manifest):
    matryoshka = with_pooler(manifest, is_matryoshka=True)
    assert plan(matryoshka, "embed", 4).dimensions == 4
    assert plan(matryoshka, "token_embed", 4, dimensions=3).dimensions == 3
    assert plan(matryoshka, "classify", 4).dimensions is None
    with pytest.raises(InputError, match=re.escape("Model 'm' only supports dimensions in range [1, 8], got 9.")):
        plan(matryoshka, "embed", dimensions=9)


STEP = {"tok_pooling_type": "STEP"}

REFUSALS = [
    (
        "classify",
        {},
        {"dimensions": 4},
        "Task 'classify' only supports ['use_activation'] parameters, does not support ['dimensions'] parameters",
    ),
    (
        "token_classify",
        STEP,
        {"dimensions": 4},
        "Task 'token_classify' only supports ['use_activation'] parameters, does not support ['dimensions'] parameters",
    ),
    (
        "embed",
        {},
        {"step_tag_id": 1, "returned_token_ids": [2]},
        "Task embed only supports ['dimensions', "
        "'use_activation'] parameters, does not support ['step_tag_id', 'returned_token_ids'] parameters",
    ),
    (
        "token_classify",
        {},
        {"step_tag_id": 1},
        "Task token_classify only supports ['use_activation'] parameters, does not support ['step_tag_id'] parameters",
    ),
    (
        "classify",
        STEP,
        {"step_tag_id": 1},
        "Task classify only supports ['use_activation'] parameters, does not support ['step_tag_id'] parameters",
    ),
    (
        "token_embed",
        {},
        {"returned_token_ids": [1]},
        "Task token_embed only supports ['dimensions', 'use_activation', "
        "'late_chunking_params'] parameters, does not support ['returned_token_ids'] parameters",
    ),
    (
        "embed",
        {},
        {"task": "classify"},
        "You cannot overwrite pooling_params.task='classify' with pooling_task='embed'!",
    ),
    ("embed", {}, {"late_chunking_params": CHUNKS}, "Late chunking requires token_embed"),
    ("token_classify", {}, {"late_chunking_params": CHUNKS}, "Late chunking requires token_embed"),
    ("token_embed", STEP, {"late_chunking_params": CHUNKS}, "Late chunking requires all token rows"),
    (
        "embed",
        {},
        {"dimensions": 4},
        "Model 'm' does not support Matryoshka embeddings; dimensions must be unset (received dimensions=4).",
    ),
    (
        "embed",
        {"matryoshka_dimensions": (2, 4), "is_matryoshka": True},
        {"dimensions": 3},
        "Model 'm' only supports Matryoshka dimensions [2, 4], got 3.",
    ),
    ("token_classify", STEP, {"step_tag_id": 65}, "step_tag_id 65 is out of vocabulary"),
    ("token_classify", STEP, {"returned_token_ids": [8]}, "returned_token_ids [8] are no columns of this model"),
]


@pytest.mark.parametrize(("task", "pooler", "params", "message"), REFUSALS)
def test_parameters_without_meaning_are_refused(manifest, task, pooler, params, message):
    with pytest.raises(InputError) as caught:
        plan(with_pooler(manifest, **pooler), task, **params)
    assert caught.value.message.startswith(message)


def test_the_table_names_every_task():
    assert set(TASK_PARAMETERS) == set(ALL)


def test_steps_of_the_request_win_over_those_of_the_pooler(manifest):
    step = with_pooler(manifest, tok_pooling_type="STEP", step_tag_id=5, returned_token_ids=(1, 0))
    assert plan(step, "token_classify").steps == Steps(step_tag_id=5, columns=(1, 0))
    chosen = plan(step, "token_classify", step_tag_id=6, returned_token_ids=[2]).steps
    assert chosen == Steps(step_tag_id=6, columns=(2,))
    assert plan(step, "token_embed").steps == Steps(step_tag_id=5, columns=(1, 0))
    assert plan(step, "embed").steps is None
    assert plan(manifest, "token_classify").steps is None


def test_rows_are_finished_each_in_its_own_way():
    raw = np.array([[3, 4], [1, 1], [0, 5]], dtype=np.float32)
    unit, plain = Finish(embeds=True, normalize=True), Finish(embeds=True, dimensions=1)
    logits = Finish(embeds=False, activation="softmax")
    answers = finish_sequences(raw, [unit, plain, logits])
    np.testing.assert_allclose(answers[0], [0.6, 0.8], rtol=1e-6)
    assert answers[1].tolist() == [1]
    np.testing.assert_allclose(answers[2], np.exp([-5, 0]) / np.exp([-5, 0]).sum(), rtol=1e-5)
    assert raw.tolist() == [[3, 4], [1, 1], [0, 5]]


def test_columns_then_rows_then_the_activation():
    raw = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]], dtype=np.float32)
    text = EncodedText(input_ids=np.array([9, 5, 9]), token_type_ids=None)
    finish = Finish(embeds=False, activation="softmax", steps=Steps(step_tag_id=9, columns=(2, 0)))
    rows = finish_tokens(raw, text, finish)
    odds = np.exp([[3, 1], [10, 7]])
    np.testing.assert_allclose(rows, odds / odds.sum(1, keepdims=True), rtol=1e-5)
    none = finish_tokens(raw, text, replace(finish, steps=Steps(step_tag_id=1, columns=None)))
    assert none.shape == (0, 3)


def test_chunks_are_averaged_before_they_are_cut_and_normalized():
    raw = np.array([[1, 2, 3], [3, 2, 1], [0, 4, 9]], dtype=np.float32)
    text = EncodedText(input_ids=np.array([1, 2, 3]), token_type_ids=None)
    rows = finish_tokens(raw, text, Finish(embeds=True, normalize=True, dimensions=2, chunk_size=2))
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)
