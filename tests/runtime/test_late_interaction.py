"""Queries and documents of a late-interaction artifact: markers, lengths, expansion, skip list, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from poolgraph import PoolingModel
from poolgraph.errors import ArtifactError, InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import Graph, QueryExpansion, Tensor, Tokenization
from poolgraph.runtime.embeddings import finish_embeddings
from poolgraph.runtime.late_interaction import expand_query, resolve_side, scored_tokens
from poolgraph.runtime.runner_padded import PaddedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.tokenizer import EncodedText

MASK = 60
CLS, SEP = 2, 3
QUERY_MARKER, DOCUMENT_MARKER = 5, 6
"""Ids of w1 and w2, the markers here."""

Make = Callable[..., Path]


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last + 1))


def ids(first: int, last: int) -> list[int]:
    return [number + 4 for number in range(first, last + 1)]


def expected(model: PoolingModel, *token_ids: int) -> np.ndarray:
    """What the token graph answers for ids taken as they are."""
    text = EncodedText(input_ids=np.array(token_ids), token_type_ids=None)
    return finish_embeddings(model.run_token([text])[0], normalize=True, dimensions=None)


def encoded_ids(model: PoolingModel, side: str, text: str, **options: object) -> list[int]:
    return model.encode_side(side, [text], **options)[0].input_ids.tolist()  # type: ignore[arg-type]


def test_markers_are_the_sides_prompts(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert())
    assert np.array_equal(model.embed_queries("w7")[0], expected(model, CLS, QUERY_MARKER, 11, SEP))
    assert np.array_equal(model.embed_documents(["w7"])[0], expected(model, CLS, DOCUMENT_MARKER, 11, SEP))


def test_another_prompt_instead_of_the_marker(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert())
    by_name, by_text = model.embed_queries("w7", prompt_name="other"), model.embed_queries("w7", prompt="w9 ")
    assert np.array_equal(by_name[0], expected(model, CLS, 13, 11, SEP))
    assert np.array_equal(by_text[0], by_name[0])
    with pytest.raises(InputError, match="'absent' is not one of the model's prompts"):
        model.embed_documents("w7", prompt_name="absent")


def test_plain_is_token_embed(make_colbert: Make) -> None:
    expansion = QueryExpansion(strategy="fixed", token_id=MASK, length=8)
    model = PoolingModel.load(
        make_colbert(query_expansion=expansion, document_length=5, skip_token_ids=(11,), skip_in=("query", "document"))
    )
    text = words(5, 12)
    plain = model.token_embed([text])[0]
    assert np.array_equal(model.embed_queries(text, plain=True)[0], plain)
    assert np.array_equal(model.embed_documents(text, plain=True)[0], plain)
    assert len(model.embed_documents(text, plain=True, prompt="w9 ")[0]) == len(plain) + 1


@pytest.mark.parametrize(
    ("strategy", "query_length", "num_words", "kept"),
    [
        ("fixed", None, 0, [CLS, QUERY_MARKER, SEP, *[MASK] * 5]),
        ("fixed", None, 2, [CLS, QUERY_MARKER, *ids(1, 2), SEP, *[MASK] * 3]),
        ("fixed", None, 5, [CLS, QUERY_MARKER, *ids(1, 5), SEP]),
        ("fixed", None, 9, [CLS, QUERY_MARKER, *ids(1, 5), SEP]),
        ("fixed", 12, 9, [CLS, QUERY_MARKER, *ids(1, 5), SEP]),
        ("min", None, 2, [CLS, QUERY_MARKER, *ids(1, 2), SEP, *[MASK] * 3]),
        ("min", None, 9, [CLS, QUERY_MARKER, *ids(1, 9), SEP]),
        ("min", 10, 9, [CLS, QUERY_MARKER, *ids(1, 7), SEP]),
        ("min", 4, 9, [CLS, QUERY_MARKER, *ids(1, 5), SEP]),
    ],
)
def test_expansion(
    strategy: str, query_length: int | None, num_words: int, kept: list[int], make_colbert: Make
) -> None:
    expansion = QueryExpansion(strategy=strategy, token_id=MASK, length=8)
    model = PoolingModel.load(make_colbert(query_expansion=expansion, query_length=query_length))
    assert encoded_ids(model, "query", words(1, num_words)) == kept
    assert encoded_ids(model, "document", words(1, 2)) == [CLS, DOCUMENT_MARKER, *ids(1, 2), SEP]


def test_expanded_tokens_are_scored_and_not_attended_to() -> None:
    text = EncodedText(input_ids=np.array([2, 9, 3]), token_type_ids=np.array([0, 1, 1]), num_truncated_tokens=4)
    expansion = QueryExpansion(strategy="fixed", token_id=MASK, length=5)
    filled = expand_query(text, expansion)
    assert filled.input_ids.tolist() == [2, 9, 3, MASK, MASK]
    assert filled.token_type_ids is not None
    assert filled.token_type_ids.tolist() == [0, 1, 1, 0, 0]
    assert filled.attended is not None
    assert filled.attended.tolist() == [1, 1, 1, 0, 0]
    assert filled.num_truncated_tokens == 4
    attending = QueryExpansion(strategy="fixed", token_id=MASK, length=5, attend=True)
    assert expand_query(text, attending).attended is None
    left = expand_query(text, expansion, left=True)
    assert left.input_ids.tolist() == [MASK, MASK, 2, 9, 3]
    assert left.attended is not None
    assert left.attended.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("strategy", "fills_left"), [("fixed", True), ("min", False)])
def test_a_fixed_length_is_reached_on_the_tokenizers_side(strategy: str, fills_left: bool, make_colbert: Make) -> None:
    expansion = QueryExpansion(strategy=strategy, token_id=MASK, length=6)
    tokenization = Tokenization(pad_token_id=0, padding_side="left")
    model = PoolingModel.load(make_colbert(query_expansion=expansion, manifest={"tokenization": tokenization}))
    own = [CLS, QUERY_MARKER, 11, SEP]
    assert encoded_ids(model, "query", "w7") == ([MASK, MASK, *own] if fills_left else [*own, MASK, MASK])


@pytest.mark.parametrize(("sides", "query_vectors", "document_vectors"), [(("document",), 4, 3), (("query",), 3, 4)])
def test_skip_list(sides: tuple[str, ...], query_vectors: int, document_vectors: int, make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(skip_token_ids=(11, 59), skip_in=sides))
    assert len(model.embed_queries("w7")[0]) == query_vectors
    rows = model.embed_documents("w7")[0]
    assert len(rows) == document_vectors
    if sides == ("document",):
        assert np.array_equal(rows, expected(model, CLS, DOCUMENT_MARKER, 11, SEP)[[0, 1, 3]])


def test_a_document_of_skipped_tokens_alone_has_no_vectors(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(skip_token_ids=(CLS, DOCUMENT_MARKER, SEP)))
    assert model.embed_documents(["", "w7"])[0].shape == (0, 8)


def test_lengths_of_the_definition_cut_with_one_warning(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(query_length=5, document_length=6))
    with pytest.warns(TruncationWarning, match="1 of 2 query texts were longer than 5 tokens and were cut") as seen:
        short, long = model.embed_queries(["w7", words(1, 9)])
    assert [str(item.filename) for item in seen] == [__file__]
    assert (len(short), len(long)) == (4, 5)
    with pytest.warns(TruncationWarning, match="2 of 2 document texts were longer than 6 tokens"):
        model.embed_documents([words(1, 9), words(1, 10)])
    assert model.encode_side("document", [words(1, 9)])[0].num_truncated_tokens == 6


def test_a_length_beyond_the_models_limit_is_the_models_limit(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(document_length=300))
    assert len(encoded_ids(model, "document", words(1, 30))) == 16


def test_texts_beyond_the_models_limit_are_refused_unless_truncate(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert())
    with pytest.raises(InputError, match=re.escape("maximum context length is 16 tokens")):
        model.embed_documents(["w7", words(1, 20)])
    with pytest.warns(TruncationWarning, match="1 of 2 document texts were longer than 16 tokens"):
        assert len(model.embed_documents(["w7", words(1, 20)], truncate=True)[1]) == 16
    with pytest.warns(UserWarning, match="1 of 1 query texts were longer than 16 tokens"):
        model.embed_queries([words(1, 20)], plain=True, truncate=True)


def test_nothing_is_cut_with_truncate_false(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(document_length=6))
    assert len(model.embed_documents([words(1, 3)], truncate=False)[0]) == 6
    with pytest.raises(InputError, match=re.escape("document 1 has 7 tokens, its marker and special tokens")):
        model.embed_documents([words(1, 3), words(1, 4)], truncate=False)


def test_texts_have_the_same_bits_alone_and_together(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(document_length=8))
    texts = [words(number % 5, number % 5 + number % 3) for number in range(30)]
    together = model.embed_documents(texts)
    alone = [model.embed_documents(text)[0] for text in texts]
    assert all(first.tobytes() == second.tobytes() for first, second in zip(together, alone, strict=True))


def test_a_dense_model_has_no_sides(artifact: Path) -> None:
    model = PoolingModel.load(artifact)
    with pytest.raises(TaskNotSupported, match=r"'tiny' is no late-interaction model.*\['embed', 'token_embed'\]"):
        model.embed_queries("w7")


def test_an_expansion_beyond_the_models_limit(make_colbert: Make) -> None:
    model = PoolingModel.load(make_colbert(query_expansion=QueryExpansion(strategy="fixed", token_id=MASK, length=17)))
    with pytest.raises(ArtifactError, match="expands queries to 17 tokens, but takes texts of at most 16"):
        model.embed_queries("w7")


def test_scored_tokens(make_colbert: Make) -> None:
    manifest = PoolingModel.load(make_colbert(skip_token_ids=(7, 9))).manifest
    token_ids = np.array([2, 7, 8, 9])
    assert scored_tokens(resolve_side(manifest, "document"), token_ids).tolist() == [True, False, True, False]
    assert scored_tokens(resolve_side(manifest, "query"), token_ids).all()


def attended_graph() -> Graph:
    names = ("input_ids", "attended_mask")
    inputs = tuple(Tensor(name=name, dtype="int64", shape=("batch_size", "sequence_length")) for name in names)
    return Graph(file="", inputs=inputs, outputs=(), raw_output="")


def test_runners_feed_which_tokens_are_attended_to() -> None:
    plain = EncodedText(input_ids=np.array([2, 3]), token_type_ids=None)
    filled = EncodedText(input_ids=np.array([2, 9]), token_type_ids=None, attended=np.array([1, 0]))
    longer = EncodedText(input_ids=np.array([2, 9, 9]), token_type_ids=None, attended=np.array([1, 1, 0]))
    uniform = UniformRunner().feed([plain, filled], attended_graph())
    assert uniform["attended_mask"].tolist() == [[1, 1], [1, 0]]
    padded = PaddedRunner(Tokenization(pad_token_id=0)).feed([plain, longer], attended_graph())
    assert padded["attended_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]
    left = PaddedRunner(Tokenization(pad_token_id=0, padding_side="left")).feed([filled, longer], attended_graph())
    assert left["attended_mask"].tolist() == [[0, 1, 0], [1, 1, 0]]
