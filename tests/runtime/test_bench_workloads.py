"""The texts of benchmarks: exact token counts, mixed lengths, pairs, and where they come from."""

from __future__ import annotations

from itertools import pairwise

import pytest
from little_scorers import TEMPLATE, build_scorer

from poolgraph import PoolingModel
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import LateInteraction
from poolgraph.runtime.bench_corpus import clean_docstring, read_passages
from poolgraph.runtime.bench_inputs import build_workloads
from poolgraph.runtime.bench_tasks import BENCH_TASKS, choose_task
from poolgraph.runtime.bench_workloads import (
    Workload,
    build_texts,
    find_words,
    load_workloads,
    pair_passages,
    parse_shape,
    save_workloads,
    select_evenly,
)


def count_letters(texts):
    """A tokenizer whose long words are several tokens, between two special ones."""
    return [2 + sum(-(-len(word) // 3) for word in text.split()) for text in texts]


def test_shapes():
    assert parse_shape("8x128") == (8, 128)
    assert parse_shape("mixed") is None
    for name in ("8", "0x8", "8x0", "x", "8x128x2", "Mixed", "4097x8", "-1x8"):
        with pytest.raises(InputError, match="is no workload: write texts times tokens"):
            parse_shape(name)


@pytest.mark.parametrize("num_tokens", [3, 4, 16, 61])
def test_texts_have_exactly_the_tokens_asked_for(num_tokens):
    words = ["one", "fourteen", "an", "exceptionally", "so"]
    texts = build_texts(count_letters, words, num_texts=7, num_tokens=num_tokens)
    assert count_letters(texts) == [num_tokens] * 7
    assert len(set(texts)) > 1


def test_texts_that_cannot_be_made():
    assert build_texts(count_letters, ["word"], num_texts=1, num_tokens=1) is None
    assert build_texts(lambda texts: [len(text) // 100 * 7 for text in texts], ["w"], num_texts=1, num_tokens=9) is None


def test_words_are_plain():
    assert find_words(["The quick (brown) fox", "a b cd 12"]) == ["he", "quick", "brown", "fox", "cd"]


def test_select_evenly_spans_the_list_in_order():
    chosen = [int(item) for item in select_evenly([str(number) for number in range(103)], 10)]
    assert chosen[0] == 0
    assert all(10 <= right - left <= 11 for left, right in pairwise(chosen))
    with pytest.raises(ValueError, match="count is 104; there are 103"):
        select_evenly([""] * 103, 104)


def test_pairs_are_of_a_passage_with_itself_or_its_neighbour():
    queries, documents = pair_passages(["a b c d e f g h i j", "k", "l"])
    assert queries == ("a b c d e f g h", "k", "l")
    assert documents == ("a b c d e f g h i j", "l", "l")


def test_workloads_survive_the_disk(tmp_path):
    workloads = [
        Workload(name="mixed", texts=("a", "b"), lengths=(3, 4)),
        Workload(name="1x3", texts=("c",), lengths=(3,), queries=("q",)),
    ]
    save_workloads(tmp_path / "sub" / "w.json", workloads)
    assert load_workloads(tmp_path / "sub" / "w.json") == workloads
    assert workloads[0].num_tokens == 7
    assert workloads[0].digest != workloads[1].digest


def test_the_corpus_is_there_wherever_poolgraph_is():
    passages = read_passages()
    assert len(passages) > 500
    assert len(set(passages)) == len(passages)
    assert max(len(passage.split()) for passage in passages) > 300
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        read_passages(("no_such_package",))


def test_clean_docstring_keeps_prose_only():
    docstring = """Add two arrays.

    Returns
    -------
    The sum.
    >>> add(1, 2)
    .. note:: none
    ```python
    add(1, 2)
    ```
    Done - really.
    """
    assert clean_docstring(docstring) == "Add two arrays. Returns The sum. Done - really."


def test_workloads_of_an_embedder_count_its_default_prompt(make_artifact):
    said = []
    artifact = make_artifact(default_prompt_name="query")
    with PoolingModel.load(artifact) as model:
        workloads = build_workloads(model, "embed", ("2x8", "mixed", "8x17"), None, strict=False, say=said.append)
        encoded = model.tokenizer.encode(workloads[0].texts, prompt="w1 w2 ")
    assert [workload.name for workload in workloads] == ["2x8", "mixed"]
    assert [text.num_tokens for text in encoded] == [8, 8]
    assert len(workloads[1].texts) == 128
    assert max(workloads[1].lengths) == 16
    assert said == ["workload 8x17 does not fit this model and is left out"]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_uniform_pairs_have_exactly_the_tokens_asked_for(tmp_path, template):
    with PoolingModel.load(build_scorer(tmp_path / "artifact", template=template)) as model:
        assert choose_task(model.manifest) == "score"
        [uniform] = build_workloads(model, "score", ("3x30",), None, strict=True, say=print)
        encoded = BENCH_TASKS["score"].encode(model, uniform.texts, uniform.queries)
        assert [text.num_tokens for text in encoded] == [30] * 3


def test_mixed_pairs_are_cut_at_the_limit(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "artifact")) as model:
        [mixed] = build_workloads(model, "score", ("mixed",), None, strict=True, say=print)
        assert len(mixed.queries) == len(mixed.texts) == 128
        assert max(mixed.lengths) == 40
        with pytest.warns(UserWarning, match="were cut"):
            assert len(BENCH_TASKS["score"].ask(model, mixed)) == 128


def test_workloads_of_a_file(tmp_path, artifact):
    file = tmp_path / "texts.txt"
    file.write_text("w1 w2\nw3\n")
    with PoolingModel.load(artifact) as model:
        [mixed] = build_workloads(model, "embed", ("mixed",), str(file), strict=True, say=print)
        with pytest.raises(InputError, match="texts of the workload mixed, which is not asked for"):
            build_workloads(model, "embed", ("2x8",), str(file), strict=True, say=print)
    assert (mixed.texts, mixed.lengths) == (("w1 w2", "w3"), (4, 3))
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "w1", "document": "w2"}\n')
    with PoolingModel.load(build_scorer(tmp_path / "scorer")) as model:
        [mixed] = build_workloads(model, "score", ("mixed",), str(file), strict=True, say=print)
    assert (mixed.queries, mixed.texts, mixed.lengths) == (("w1",), ("w2",), (5,))


def test_documents_of_a_late_interaction_model_have_its_own_limit(make_artifact):
    artifact = make_artifact(
        tasks=("token_embed",), default_task="token_embed", late_interaction=LateInteraction(document_length=12)
    )
    said = []
    with PoolingModel.load(artifact) as model:
        found = build_workloads(model, "token_embed", ("1x12", "1x14"), None, strict=False, say=said.append)
    assert [workload.name for workload in found] == ["1x12"]
    assert said == ["workload 1x14 does not fit this model and is left out"]


def test_workloads_that_do_not_fit(artifact):
    with PoolingModel.load(artifact) as model:
        with pytest.raises(InputError, match="workload 2x17 does not fit this model, whose limit is 16 tokens"):
            build_workloads(model, "embed", ("2x8", "2x17"), None, strict=True, say=print)
        with pytest.raises(InputError, match="none of 1x1, 2x17 fits this model"):
            build_workloads(model, "embed", ("1x1", "2x17"), None, strict=False, say=lambda _message: None)
