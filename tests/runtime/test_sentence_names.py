"""The names of sentence-transformers on a hand-made artifact: meanings, shapes, warnings and what is refused."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, SparseEncoder

from poolgraph import PoolingModel
from poolgraph.errors import ArtifactError, InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import LateInteraction, Pooler, Scoring
from poolgraph.runtime.encode_request import EncodeOptions, EncodeRequest
from poolgraph.runtime.quantization import quantize_embeddings
from poolgraph.runtime.sentence_names import SentenceNames

MakeArtifact = Callable[..., Path]

SIZE = 8
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "", "w1 w2 w3"]
LONG = " ".join(["w9"] * 30)
PLAIN = Pooler(pooling=("mean",), normalize=False, embedding_size=SIZE, token_embedding_size=SIZE)


@pytest.fixture
def model(artifact: Path) -> PoolingModel:
    return PoolingModel.load(artifact)


@pytest.fixture
def plain_model(make_artifact: MakeArtifact) -> PoolingModel:
    """A model that does not normalize."""
    return PoolingModel.load(make_artifact(name="plain", pooler=PLAIN))


@pytest.fixture
def late_model(make_artifact: MakeArtifact) -> PoolingModel:
    """A late-interaction model, its markers w1 and w2, its queries of at most 6 tokens."""
    directory = make_artifact(
        name="late",
        families=("token",),
        tasks=("token_embed",),
        default_task="token_embed",
        pooler=Pooler(pooling=(), normalize=True, embedding_size=SIZE, token_embedding_size=SIZE),
        prompts={"query": "w1 ", "document": "w2 "},
        similarity_fn_name="maxsim",
        scoring=Scoring(kind="late_interaction"),
        late_interaction=LateInteraction(query_length=6, document_length=16),
    )
    return PoolingModel.load(directory)


def test_options_are_those_of_sentence_transformers() -> None:
    """Their names, order and defaults, so that calls by position mean the same; ``**kwargs`` are no options."""
    for name in ("encode", "encode_query", "encode_document"):
        theirs = inspect.signature(getattr(SentenceTransformer, name)).parameters
        expected = {key: value.default for key, value in theirs.items() if key not in ("self", "kwargs")}
        ours = inspect.signature(getattr(SentenceNames, name)).parameters
        found = {key: value.default for key, value in ours.items() if "options" not in key}
        found = {key: value for key, value in found.items() if key not in ("self", "sentences")}
        found |= {item.name: item.default for item in fields(EncodeRequest)}
        of_sparse = set(inspect.signature(getattr(SparseEncoder, name)).parameters) - set(theirs)
        assert list(found)[len(expected) :] == ["convert_to_sparse_tensor", "save_to_cpu", "max_active_dims"]
        assert of_sparse == set(list(found)[len(expected) :])
        assert list(found)[: len(expected)] == list(expected)
        off = {"convert_to_sparse_tensor": False, "save_to_cpu": False, "max_active_dims": None}
        assert found == expected | {"inputs": None} | off
    assert set(EncodeOptions.__annotations__) == {item.name for item in fields(EncodeRequest)}


def test_a_list_gives_a_matrix_and_a_lone_text_a_vector(model: PoolingModel) -> None:
    expected = model.embed(TEXTS)
    for inputs in (TEXTS, tuple(TEXTS), np.array(TEXTS), (text for text in TEXTS)):
        assert np.array_equal(model.encode(inputs), expected)
    for name in ("encode", "encode_query", "encode_document"):
        encode = getattr(model, name)
        assert np.array_equal(encode(TEXTS[0]), encode(TEXTS)[0])
        assert np.array_equal(encode(sentences=TEXTS), encode(TEXTS))
        assert np.array_equal(encode(TEXTS[:1]), encode(TEXTS)[:1])
        rows = encode(TEXTS, convert_to_numpy=False)
        assert isinstance(rows, list)
        assert np.array_equal(rows, encode(TEXTS))


@pytest.mark.parametrize(("precision", "width"), [("float32", SIZE), ("int8", SIZE), ("ubinary", 1)])
def test_no_text_gives_no_rows(model: PoolingModel, precision: str, width: int) -> None:
    found = model.encode([], precision=precision)
    assert found.shape == (0, width)
    assert found.dtype == model.encode(TEXTS * 20, precision=precision).dtype
    assert model.encode_query([]).shape == (0, SIZE)
    assert model.encode([], output_value="token_embeddings") == []


def test_prompts(make_artifact: MakeArtifact) -> None:
    prompts = {"query": "w1 w2 ", "document": "w3 ", "passage": "w4 "}
    model = PoolingModel.load(make_artifact(prompts=prompts, default_prompt_name="passage"))
    embed = model.embed
    assert np.array_equal(model.encode(TEXTS), embed(TEXTS, prompt="w4 "))
    assert np.array_equal(model.encode_query(TEXTS), embed(TEXTS, prompt="w1 w2 "))
    assert np.array_equal(model.encode_document(TEXTS), embed(TEXTS, prompt="w3 "))
    assert np.array_equal(model.encode_query(TEXTS, "passage"), embed(TEXTS, prompt="w4 "))
    assert np.array_equal(model.encode_document(TEXTS, prompt=""), embed(TEXTS, prompt=""))
    assert np.array_equal(model.encode(TEXTS, "query", "w7 "), embed(TEXTS, prompt="w7 "))
    assert model.prompts == prompts
    assert model.default_prompt_name == "passage"
    with pytest.raises(InputError, match=r"'corpus' is not one of the model's prompts \['document', 'passage', 'que"):
        model.encode(TEXTS, prompt_name="corpus")


def test_a_side_without_a_prompt_has_none_not_the_default_one(make_artifact: MakeArtifact) -> None:
    model = PoolingModel.load(make_artifact(prompts={"passage": "w4 "}, default_prompt_name="passage"))
    for found in (model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS, prompt_name="query")):
        assert np.array_equal(found, model.embed(TEXTS, prompt=""))
    assert model.prompts == {"query": "", "document": "", "passage": "w4 "}


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document"])
def test_long_texts_are_cut_with_one_warning_at_the_caller(model: PoolingModel, name: str) -> None:
    with pytest.warns(TruncationWarning, match="2 of 3 texts were longer than 16 tokens and were cut") as caught:
        found = getattr(model, name)(["w1", LONG, LONG])
    assert [warning.filename for warning in caught] == [__file__]
    assert np.array_equal(found[1], found[2])
    with pytest.raises(InputError, match="maximum context length is 16"):
        model.embed(LONG)


def test_normalization_and_shortening(model: PoolingModel, plain_model: PoolingModel) -> None:
    raw = plain_model.encode(TEXTS)
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(norms - 1).max() > 0.1
    np.testing.assert_allclose(model.encode(TEXTS), raw / norms, rtol=1e-6)
    np.testing.assert_allclose(plain_model.encode(TEXTS, normalize_embeddings=True), raw / norms, rtol=1e-6)
    # Cut after the model's own normalization, which is not done again unless asked for.
    short = raw[:, :3] / norms
    np.testing.assert_allclose(model.encode(TEXTS, truncate_dim=3), short, rtol=1e-6)
    found = model.encode(TEXTS, truncate_dim=np.int64(3), normalize_embeddings=True)
    np.testing.assert_allclose(found, short / np.linalg.norm(short, axis=1, keepdims=True), rtol=1e-5)
    assert np.array_equal(plain_model.encode(TEXTS, truncate_dim=3), raw[:, :3])
    assert model.encode(TEXTS, truncate_dim=99).shape == (len(TEXTS), SIZE)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(model: PoolingModel, precision: str) -> None:
    texts = [f"w{number} w{number + 7}" for number in range(50)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.encode(texts, precision=precision)
        expected = quantize_embeddings(model.embed(texts), precision)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_scalar_precisions_need_more_than_one_text(model: PoolingModel) -> None:
    with pytest.raises(InputError, match="int8 ranges cannot be computed from one embedding"):
        model.encode("w1", precision="int8")
    assert model.encode("w1", precision="binary").shape == (1,)
    with pytest.warns(UserWarning, match="uint8 ranges computed from only 5 embeddings"):
        model.encode(TEXTS, precision="uint8")


def test_token_embeddings_are_the_rows_of_the_backbone(model: PoolingModel) -> None:
    found = model.encode(TEXTS, output_value="token_embeddings", normalize_embeddings=True, truncate_dim=2)
    expected = model.token_embed(TEXTS, normalize=False)
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]
    lone = model.encode(TEXTS[0], output_value="token_embeddings", prompt="w3 ")
    assert np.array_equal(lone, model.token_embed("w3 " + TEXTS[0], normalize=False)[0])
    with pytest.warns(UserWarning, match="1 of 1 texts were longer"):
        assert model.encode(LONG, output_value="token_embeddings").shape == (16, SIZE)
    codes = model.encode(TEXTS, output_value="token_embeddings", precision="ubinary")
    assert [rows.shape for rows in codes] == [(len(rows), 1) for rows in expected]


def write_modules(directory: Path, *kinds: str, **settings: object) -> None:
    rows = [{"idx": index, "type": f"sentence_transformers.models.{kind}"} for index, kind in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(rows))
    (directory / "config_sentence_transformers.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("kinds", "settings", "allowed"),
    [
        (("Transformer", "Pooling"), {}, True),
        (("Transformer", "Pooling", "Normalize"), {"prompts": {}, "truncate_dim": None}, True),
        (("Transformer", "Pooling", "Dropout", "Normalize"), {}, True),
        (("Transformer", "Pooling", "Dense"), {}, False),
        (("Transformer", "Pooling", "Normalize", "LayerNorm"), {}, False),
        (("Transformer", "Pooling", "Normalize"), {"truncate_dim": 4}, False),
    ],
)
def test_token_embeddings_behind_a_head_are_refused(model, kinds, settings, allowed) -> None:
    write_modules(model.path, *kinds, **settings)
    if allowed:
        assert len(model.encode(TEXTS, output_value="token_embeddings")) == len(TEXTS)
        return
    with pytest.raises(TaskNotSupported, match=r"has the head \[.*\] compiled in; call token_embed"):
        model.encode(TEXTS, output_value="token_embeddings")


def test_modules_that_are_no_list_are_named(model: PoolingModel) -> None:
    (model.path / "modules.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"modules\.json cannot be read"):
        model.encode(TEXTS, output_value="token_embeddings")


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert_to_tensor": True}, "there is no torch at run time; call torch.from_numpy"),
        ({"device": "cpu"}, r"by PoolingModel.load\(provider=...\)"),
        ({"pool": {"input": None}}, "no worker processes"),
        ({"chunk_size": 5}, "no worker processes"),
        ({"output_value": None}, r"output_value None is not supported; choose one of \['sentence_embedding', 'token"),
        ({"output_value": ["token_embeddings"]}, "is not supported; choose one of"),
        ({"precision": "int4"}, r"precision 'int4' is not supported; choose one of \['float32', 'int8', 'uint8', 'bin"),
        ({"batch_size": 0}, "batch_size must be a positive int, got 0"),
        ({"truncate_dim": -1}, "truncate_dim must be a positive int, got -1"),
        ({"truncate_dim": True}, "truncate_dim must be a positive int, got True"),
        ({"sentences": ["w1"]}, "not both"),
    ],
)
def test_refused_options(model: PoolingModel, name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(model, name)(TEXTS, **options)


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document"])
def test_refused_inputs(model: PoolingModel, name: str) -> None:
    encode = getattr(model, name)
    with pytest.raises(InputError, match="pass the texts as inputs"):
        encode()
    with pytest.raises(InputError, match="text 1 must be a str, got tuple"):
        encode(["w1", ("w1", "w2")])
    with pytest.raises(InputError, match="texts must be a str or a list of str, got dict"):
        encode({"text": "w1"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalise'"):
        encode(TEXTS, normalise=True)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_the_models_own(make_artifact: MakeArtifact, name: str) -> None:
    model = PoolingModel.load(make_artifact(similarity_fn_name=name, pooler=PLAIN))
    assert model.similarity_fn_name == name
    first, second = model.encode(TEXTS), model.encode(TEXTS[:2])
    definition = {
        "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        "dot": lambda a, b: a @ b,
        "euclidean": lambda a, b: -np.linalg.norm(a - b),
        "manhattan": lambda a, b: -np.abs(a - b).sum(),
    }[name]
    expected = np.array([[definition(a, b) for b in second] for a in first])
    np.testing.assert_allclose(model.similarity(first, second), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.similarity(first[0], second), expected[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(first[:2], second), np.diagonal(expected), atol=1e-5)


def test_what_a_model_says_of_itself(model: PoolingModel, late_model: PoolingModel) -> None:
    assert model.max_seq_length == model.get_max_seq_length() == 16
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == SIZE
    assert model.prompts == {"query": "w1 w2 ", "document": "", "passage": "w3 "}
    assert model.default_prompt_name is None
    assert late_model.get_embedding_dimension() == SIZE
    assert late_model.similarity_fn_name == "maxsim"


def test_a_model_without_embeddings(make_artifact: MakeArtifact) -> None:
    model = PoolingModel.load(make_artifact(tasks=("classify", "token_classify"), default_task="classify"))
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(TaskNotSupported, match="cannot embed"):
            call(TEXTS)
        with pytest.raises(TaskNotSupported, match="cannot embed"):
            call([])
    with pytest.raises(TaskNotSupported, match="cannot token_embed"):
        model.get_embedding_dimension()
    with pytest.raises(TaskNotSupported, match="cannot token_embed"):
        model.encode(TEXTS, output_value="token_embeddings")


def test_late_interaction(late_model: PoolingModel) -> None:
    texts = ["w5 w6", "w7", "w8 w9 w5"]
    queries, documents = late_model.encode_query(texts), late_model.encode_document(texts)
    for found, expected in (
        (queries, late_model.embed_queries(texts)),
        (documents, late_model.embed_documents(texts)),
        (late_model.encode_query(texts, prompt="w3 "), late_model.embed_queries(texts, prompt="w3 ")),
    ):
        assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]
    lone = late_model.encode_query(texts[0])
    assert np.array_equal(lone, queries[0])
    assert len(lone) == len(texts[0].split()) + 3  # [CLS], marker, [SEP]
    scores = late_model.similarity(queries, documents)
    expected = [[(query @ document.T).max(1).sum() for document in documents] for query in queries]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(late_model.similarity_pairwise(queries, documents), np.diagonal(expected), rtol=1e-5)
    assert late_model.similarity(lone, documents).shape == (1, 3)
    assert late_model.encode_query([]) == []
    codes = late_model.encode_document(texts, precision="binary")
    assert [rows.dtype for rows in codes] == [np.int8] * 3


def test_late_interaction_refused(late_model: PoolingModel) -> None:
    with pytest.raises(TaskNotSupported, match="call encode_query or encode_document, or token_embed"):
        late_model.encode(TEXTS)
    with pytest.raises(InputError, match="embed_queries and embed_documents take dimensions"):
        late_model.encode_query(TEXTS, truncate_dim=4)
    with pytest.warns(TruncationWarning, match="1 of 1 document texts were longer"):
        assert late_model.encode_document(LONG).shape == (16, SIZE)


def test_answers_have_the_same_bits_alone_and_in_any_batch(plain_model: PoolingModel) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, 60, length)) for length in [*range(15)] * 4]
    for options in ({}, {"truncate_dim": 5, "normalize_embeddings": True}):
        together = plain_model.encode(texts, **options)
        order = generator.permutation(len(texts))
        assert np.array_equal(plain_model.encode([texts[i] for i in order], **options), together[order])
        assert np.array_equal([plain_model.encode(text, **options) for text in texts], together)
