import numpy as np
import pytest
from little_classifiers import MAX_MODEL_LEN, STEP_TAG_ID, VOCABULARY, build_classifier

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, Report, Source, Tokenization
from poolgraph.runtime.steps import resolve_columns, resolve_step_tag, select_steps


def step_pooler(**fields):
    return Pooler(pooling=(), embedding_size=3, token_embedding_size=3, tok_pooling_type="STEP", **fields)


def manifest(pooler):
    return Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="m", revision=None, content_hash="0"),
        architecture="A",
        tasks=("token_classify",),
        default_task="token_classify",
        pooler=pooler,
        limits=Limits(max_model_len=MAX_MODEL_LEN, vocab_size=len(VOCABULARY)),
        tokenization=Tokenization(pad_token_id=0),
        variants=(),
        report=Report(reference="none"),
        files={},
    )


def test_columns_are_counted_from_0():
    assert resolve_columns(step_pooler(), None) is None
    assert resolve_columns(step_pooler(), [2, 0]) == (2, 0)
    assert resolve_columns(step_pooler(), np.array([1])) == (1,)
    assert resolve_columns(step_pooler(), [1, 1]) == (1, 1)
    assert resolve_columns(step_pooler(returned_token_ids=(2,)), None) == (2,)
    assert resolve_columns(step_pooler(returned_token_ids=(2,)), [0]) == (0,)
    assert resolve_columns(step_pooler(returned_token_ids=(2,)), []) is None


def test_columns_of_a_language_model_head_are_vocabulary_ids():
    pooler = step_pooler(column_token_ids=(489, 12902, 7), returned_token_ids=(7, 489))
    assert resolve_columns(pooler, None) == (2, 0)
    assert resolve_columns(pooler, [12902]) == (1,)
    with pytest.raises(InputError, match=r"\[1\] are no columns.*the tokens \[489, 12902, 7\]; choose from these"):
        resolve_columns(pooler, [1, 7])


@pytest.mark.parametrize("ids", [[0, 3], [-1], [0, 99, 3]])
def test_columns_that_are_not_there(ids):
    with pytest.raises(InputError, match=r"are no columns of this model: it has 3, counted from 0 to 2") as caught:
        resolve_columns(step_pooler(), ids)
    assert (caught.value.parameter, caught.value.value) == ("returned_token_ids", ids)


def test_a_long_list_of_columns_is_cut_in_the_message():
    with pytest.raises(InputError, match=r"18, 19, \.\.\.\] \(1000 in all\)") as caught:
        resolve_columns(step_pooler(column_token_ids=tuple(range(1000))), [5000])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("ids", ["12", 3, [1.0], [True], {1}, ["1"]])
def test_columns_must_be_a_list_of_ints(ids):
    with pytest.raises(InputError, match="returned_token_ids must be"):
        resolve_columns(step_pooler(), ids)


def test_step_tags():
    assert resolve_step_tag(manifest(step_pooler(step_tag_id=4)), None) == 4
    assert resolve_step_tag(manifest(step_pooler(step_tag_id=4)), 0) == 0
    assert resolve_step_tag(manifest(step_pooler()), None) is None
    last = len(VOCABULARY) - 1
    assert resolve_step_tag(manifest(step_pooler()), np.int64(last)) == last
    for outside in (-1, last + 1):
        with pytest.raises(InputError, match=f"step_tag_id {outside} is out of vocabulary: ids run from 0 to {last}"):
            resolve_step_tag(manifest(step_pooler()), outside)
    for wrong in ("4", 4.0, True):
        with pytest.raises(InputError, match="step_tag_id must be int"):
            resolve_step_tag(manifest(step_pooler()), wrong)


def test_selection():
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    ids = np.array([2, 4, 9, 4, 3])
    np.testing.assert_array_equal(select_steps(rows, ids, step_tag_id=4, columns=(2, 0)), [[5, 3], [11, 9]])
    np.testing.assert_array_equal(select_steps(rows, ids, step_tag_id=4, columns=None), rows[[1, 3]])
    np.testing.assert_array_equal(select_steps(rows, ids, step_tag_id=None, columns=(1,)), rows[:, 1:2])
    np.testing.assert_array_equal(select_steps(rows, ids, step_tag_id=None, columns=None), rows)
    assert select_steps(rows, ids, step_tag_id=5, columns=(0, 1)).shape == (0, 2)


def test_the_tiny_tag_is_one_token(tmp_path):
    from poolgraph.runtime.model import PoolingModel

    with PoolingModel.load(build_classifier(tmp_path / "step", "step")) as model:
        ids = model.tokenizer.encode(["w1<step>w2 <step>"])[0].input_ids
    assert (ids == STEP_TAG_ID).sum() == 2
