"""``encode``, prompts, precisions and similarity against sentence-transformers: all-MiniLM-L6-v2, tiny checkpoints."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings as reference_quantize
from tiny_models import HeadSpec, dense, save_checkpoint

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.runtime.quantization import calibrate_ranges, quantize_embeddings

METHODS = ("encode", "encode_query", "encode_document")
OPTIONS = (
    {},
    {"normalize_embeddings": True},
    {"truncate_dim": 20},
    {"truncate_dim": 20, "normalize_embeddings": True},
    {"prompt": "another prompt: "},
    {"prompt_name": "document", "batch_size": 7},
)
PROMPTS = {"query": "query: ", "document": "passage: "}


@dataclass(frozen=True)
class Pair:
    """The same checkpoint, compiled and in sentence-transformers."""

    model: PoolingModel
    reference: SentenceTransformer
    _values: dict[str, np.ndarray] = field(default_factory=dict)

    def values(self, name: str) -> np.ndarray:
        """Sentence-transformers' embeddings of TEXTS by one of METHODS, computed once."""
        if name not in self._values:
            self._values[name] = getattr(self.reference, name)(TEXTS)
        return self._values[name]

    @cached_property
    def calibration(self) -> np.ndarray:
        """Sentence-transformers' embeddings of other texts; a text of both would lie on the end of a range."""
        return self.reference.encode(mixed_texts(seed=2, shortest=1))


def load(checkpoint: Path, artifact: Path) -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pair(PoolingModel.load(artifact), SentenceTransformer(str(checkpoint), device="cpu"))


@pytest.fixture(scope="module")
def minilm(minilm_checkpoint: Path, minilm_artifact: Path) -> Pair:
    return load(minilm_checkpoint, minilm_artifact)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[HeadSpec], Pair]:
    """Export a tiny checkpoint with this head, once for each."""
    pairs: dict[str, Pair] = {}

    def make(head: HeadSpec) -> Pair:
        if repr(head) not in pairs:
            folder = tmp_path_factory.mktemp("tiny")
            checkpoint = save_checkpoint(folder / "checkpoint", "BertModel", head)
            export_model(checkpoint, folder / "artifact")
            pairs[repr(head)] = load(checkpoint, folder / "artifact")
        return pairs[repr(head)]

    return make


PROMPTED = HeadSpec(settings={"prompts": PROMPTS})
RAW = HeadSpec(
    modules=(),
    settings={"prompts": {"query": "query: ", "passage": "passage: "}, "similarity_fn_name": "euclidean"},
)
HEADED = HeadSpec(
    modules=(dense(32, 24), ("Normalize", {}, {})),
    settings={"prompts": {"corpus": "corpus: "}, "default_prompt_name": "corpus"},
)


@pytest.fixture(params=["minilm", "prompted", "raw"])
def pair(request: pytest.FixtureRequest, tiny: Callable[[HeadSpec], Pair]) -> Pair:
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    return tiny(PROMPTED if request.param == "prompted" else RAW)


def mixed_texts(num_texts: int = 60, *, seed: int = 0, shortest: int = 0, longest: int = 16) -> list[str]:
    source = random.Random(seed)
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    return [" ".join(source.choices(words, k=source.randint(shortest, longest))) for _ in range(num_texts)]


TEXTS = mixed_texts()


def quietly(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call without warnings: of texts that are cut, and of ranges of few rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Cosine at least 0.99999, differences at most 1e-4."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    rows, others = np.atleast_2d(found), np.atleast_2d(expected)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    assert ((rows * others).sum(1) / norms).min() >= 0.99999
    assert np.abs(found - expected).max() <= 1e-4


CASES = [*(("encode", options) for options in OPTIONS), *((name, {}) for name in METHODS[1:])]
CASES += [(name, {"prompt": ""}) for name in METHODS[1:]]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_embeddings(pair: Pair, name: str, options: dict[str, Any]) -> None:
    ours, theirs = getattr(pair.model, name), getattr(pair.reference, name)
    assert_close(ours(TEXTS, **options), theirs(TEXTS, **options))
    assert_close(ours(TEXTS[1], **options), theirs(TEXTS[1], **options))


def test_prompts_move_the_embeddings(tiny: Callable[[HeadSpec], Pair]) -> None:
    """So that the comparison above could not pass without them."""
    model = tiny(PROMPTED).model
    answers = [getattr(model, name)(TEXTS) for name in METHODS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(answers[first] - answers[second]).max() > 0.01
    assert tiny(PROMPTED).model.prompts == tiny(PROMPTED).reference.prompts == PROMPTS


@pytest.mark.parametrize("head", [RAW, HEADED], ids=["passage", "corpus"])
def test_a_missing_side_prompt_is_empty(tiny: Callable[[HeadSpec], Pair], head: HeadSpec) -> None:
    """Sentence-transformers gives every model a prompt ``document``, so that it takes neither of these two for one."""
    pair = tiny(head)
    assert pair.model.prompts == pair.reference.prompts
    assert pair.model.default_prompt_name == pair.reference.default_prompt_name
    for name in METHODS:
        assert_close(getattr(pair.model, name)(TEXTS[:12]), getattr(pair.reference, name)(TEXTS[:12]))
    assert np.array_equal(pair.model.encode_document(TEXTS[:12]), pair.model.embed(TEXTS[:12], prompt=""))


@pytest.mark.parametrize("name", METHODS)
def test_long_texts_are_cut_alike(pair: Pair, name: str) -> None:
    long = [*mixed_texts(2, seed=1, longest=600), " ".join(["fox"] * 700), "a"]
    with pytest.warns(UserWarning, match="of 4 texts were longer"):
        found = getattr(pair.model, name)(long)
    assert_close(found, getattr(pair.reference, name)(long))


def assert_same_codes(found: np.ndarray, expected: np.ndarray, values: np.ndarray, ranges: np.ndarray) -> None:
    """Equal, except one step apart where the value is on a border between two steps within float32's rounding.

    The greatest value of a dimension is on one by definition where the ranges are those of the values themselves.
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    width = (ranges[1] - ranges[0]) / 255
    positions = (values - ranges[0]) / width
    on_border = np.abs(positions - np.round(positions)) * width <= 1e-6 * np.abs(values).max()
    steps = np.abs(found.astype(int) - expected.astype(int))
    assert not steps[~on_border].any()
    assert steps.max() <= 1
    assert on_border.mean() < 0.1


@pytest.mark.parametrize(("name", "precision"), [("encode", "int8"), ("encode_query", "uint8")])
def test_scalar_precisions(pair: Pair, name: str, precision: str) -> None:
    found = quietly(getattr(pair.model, name), TEXTS, precision=precision)
    expected = quietly(getattr(pair.reference, name), TEXTS, precision=precision)
    values = pair.values(name)
    assert_same_codes(found, expected, values, np.stack((values.min(axis=0), values.max(axis=0))))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_scalar_precisions_of_given_ranges(pair: Pair, precision: str) -> None:
    calibration, values = pair.calibration, pair.values("encode")
    found = quantize_embeddings(pair.model.encode(TEXTS), precision, calibration_embeddings=calibration)
    expected = reference_quantize(values, precision, calibration_embeddings=calibration)
    assert_same_codes(found, expected, values, calibrate_ranges(calibration))


def test_few_codes_of_a_real_model_differ(minilm: Pair) -> None:
    calibration, values = minilm.calibration, minilm.values("encode")
    found = quantize_embeddings(minilm.model.encode(TEXTS), "uint8", calibration_embeddings=calibration)
    expected = reference_quantize(values, "uint8", calibration_embeddings=calibration)
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize(("name", "precision"), [("encode", "binary"), ("encode_document", "ubinary")])
def test_binary_precisions(pair: Pair, name: str, precision: str) -> None:
    ours, theirs = getattr(pair.model, name), getattr(pair.reference, name)
    values = pair.values(name)
    found, expected = ours(TEXTS, precision=precision), theirs(TEXTS, precision=precision)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    differ = np.unpackbits((found ^ expected).view(np.uint8), axis=1)[:, : values.shape[1]].astype(bool)
    assert not differ[np.abs(values) >= 1e-6].any()
    assert ours(TEXTS[0], precision=precision).shape == theirs(TEXTS[0], precision=precision).shape


def test_precisions_are_the_same_names(pair: Pair) -> None:
    for precision in ("int4", "float16"):
        with pytest.raises(ValueError, match="precision") as ours:
            pair.model.encode(TEXTS, precision=precision)
        with pytest.raises(ValueError, match="Precision"):
            pair.reference.encode(TEXTS, precision=precision)
        assert "int8" in str(ours.value)


def test_token_embeddings(pair: Pair) -> None:
    found = pair.model.encode(TEXTS[:9], output_value="token_embeddings")
    expected = pair.reference.encode(TEXTS[:9], output_value="token_embeddings", batch_size=1)
    assert isinstance(found, list)
    for rows, others in zip(found, expected, strict=True):
        assert rows.shape == others.shape
        assert np.abs(rows - others.numpy()).max() <= 1e-4
    lone = pair.model.encode(TEXTS[1], output_value="token_embeddings")
    assert np.array_equal(lone, found[1])


def test_token_embeddings_behind_a_head_are_refused(tiny: Callable[[HeadSpec], Pair]) -> None:
    pair = tiny(HEADED)
    assert pair.reference.encode(TEXTS[1], output_value="token_embeddings").shape[1] == 32
    with pytest.raises(ValueError, match="call token_embed for its rows"):
        pair.model.encode(TEXTS, output_value="token_embeddings")


def test_similarity(pair: Pair) -> None:
    assert pair.model.similarity_fn_name == pair.reference.similarity_fn_name
    queries, documents = pair.model.encode_query(TEXTS[:20]), pair.model.encode_document(TEXTS[20:50])
    theirs = pair.values("encode_query")[:20], pair.values("encode_document")[20:50]
    # In float64: of near vectors torch's float32 distances, computed from products, keep three digits.
    exact = tuple(rows.astype(np.float64) for rows in theirs)
    found, expected = pair.model.similarity(queries, documents), pair.reference.similarity(*exact).numpy()
    assert found.shape == (20, 30)
    scale = max(1.0, float(np.abs(expected).max()))  # products of vectors that are not normalized
    assert np.abs(found - expected).max() <= 1e-4 * scale
    found = pair.model.similarity_pairwise(queries, documents[:20])
    expected = pair.reference.similarity_pairwise(exact[0], exact[1][:20]).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * scale


def test_what_a_model_says_of_itself(pair: Pair) -> None:
    for name in ("max_seq_length", "prompts", "default_prompt_name", "similarity_fn_name"):
        assert getattr(pair.model, name) == getattr(pair.reference, name)
    assert pair.model.get_embedding_dimension() == pair.reference.get_embedding_dimension()
