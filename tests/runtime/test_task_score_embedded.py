"""Scores by comparing embeddings: cosine and MaxSim; the oracles are a line of numpy."""

import random

import msgspec
import numpy as np
import pytest
from little_scorers import build_scorer, draw_texts

from poolgraph.errors import InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import LateInteraction, Scoring
from poolgraph.runtime import task_score
from poolgraph.runtime.model import PoolingModel


@pytest.fixture
def cross_encoder(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "pair")) as model:
        yield model


@pytest.fixture
def bi_encoder(artifact):
    with PoolingModel.load(artifact) as model:
        yield model


@pytest.fixture
def late(make_artifact):
    directory = make_artifact(
        families=("token",),
        tasks=("token_embed",),
        default_task="token_embed",
        scoring=Scoring(kind="late_interaction"),
        late_interaction=LateInteraction(document_length=8),
        similarity_fn_name="maxsim",
        prompts={"query": "w1 ", "document": "w2 "},
    )
    with PoolingModel.load(directory) as model:
        yield model


def test_a_bi_encoder_has_no_prompt_even_by_default(bi_encoder, make_artifact):
    with PoolingModel.load(make_artifact(name="prompted", default_prompt_name="query")) as model:
        assert not np.array_equal(model.embed("w3"), bi_encoder.embed("w3"))
        np.testing.assert_array_equal(model.score("w3", ["w4", "w5"]), bi_encoder.score("w3", ["w4", "w5"]))


def test_a_bi_encoder_compares_embeddings(bi_encoder):
    queries, documents = draw_texts(12, seed=6, longest=10), draw_texts(12, seed=7, longest=10)
    left, right = (bi_encoder.embed(texts, prompt="", normalize=False).astype(float) for texts in (queries, documents))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    expected = (left * right).sum(1) / norms
    np.testing.assert_allclose(bi_encoder.score(queries, documents), expected, atol=1e-6)
    one = (left[:1] * right).sum(1) / (np.linalg.norm(left[0]) * np.linalg.norm(right, axis=1))
    np.testing.assert_allclose(bi_encoder.score(queries[0], documents), one, atol=1e-6)


def maxsim_oracle(query, document):
    return (query.astype(float) @ document.astype(float).T).max(1).sum()


@pytest.mark.parametrize("plain", [True, False])
def test_late_interaction_adds_up_the_best_matches(late, plain):
    queries, documents = draw_texts(12, seed=8, longest=5), draw_texts(12, seed=9, longest=4)
    left = late.embed_queries(queries, plain=plain)
    right = late.embed_documents(documents, plain=plain)
    expected = [maxsim_oracle(*pair) for pair in zip(left, right, strict=True)]
    np.testing.assert_allclose(late.score(queries, documents, plain=plain), expected, rtol=1e-5)
    one = [maxsim_oracle(left[0], document) for document in right]
    np.testing.assert_allclose(late.score(queries[0], documents, plain=plain), one, rtol=1e-5)


def test_the_models_own_length_of_a_document_cuts_with_a_warning(late):
    with pytest.warns(TruncationWarning, match="1 of 3 texts were longer than the model takes and were cut") as caught:
        found = late.score("w1", ["w2 " * 12, "w3"])
    assert caught[0].filename == __file__
    assert found.shape == (2,)


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
def test_embedded_scores_have_the_same_bits_in_any_step(kind, request, monkeypatch):
    model = request.getfixturevalue(kind)
    queries, documents = draw_texts(50, seed=10, longest=5), draw_texts(50, seed=11, longest=5)
    queries[10:20], documents[30:40] = queries[:10], documents[:10]
    together = model.score(queries, documents)
    alone = [model.score(query, document)[0] for query, document in zip(queries, documents, strict=True)]
    np.testing.assert_array_equal(together, alone)
    for name, budget in (("_STEP_VALUES", 3 * model.manifest.pooler.embedding_size), ("_STEP_CHARACTERS", 50)):
        monkeypatch.setattr(task_score, name, budget)
    np.testing.assert_array_equal(model.score(queries, documents), together)
    order = random.Random(0).sample(range(50), 50)
    shuffled = model.score([queries[index] for index in order], [documents[index] for index in order])
    np.testing.assert_array_equal(shuffled, together[order])


def test_each_distinct_text_is_embedded_once(bi_encoder, monkeypatch):
    embedded = []
    embed_chunk = bi_encoder.embed_chunk

    def record(texts, **options):
        embedded.extend(texts)
        return embed_chunk(texts, **options)

    monkeypatch.setattr(bi_encoder, "embed_chunk", record)
    monkeypatch.setattr(task_score, "_STEP_VALUES", 2 * bi_encoder.manifest.pooler.embedding_size)
    bi_encoder.score(["w1", "w2", "w1", "w3", "w1"], ["w4", "w5", "w5", "w6", "w7"])
    assert sorted(embedded) == ["w1", "w2", "w3", "w4", "w5", "w6", "w7"]


def test_wide_embeddings_are_compared_few_at_a_time(bi_encoder, monkeypatch):
    sizes = []

    def embed_chunk(texts, **_options):
        sizes.append(len(texts))
        return np.ones((len(texts), 2), dtype=np.float32), 0

    wide = msgspec.structs.replace(bi_encoder.manifest.pooler, embedding_size=2**18)
    monkeypatch.setattr(bi_encoder, "manifest", msgspec.structs.replace(bi_encoder.manifest, pooler=wide))
    monkeypatch.setattr(bi_encoder, "embed_chunk", embed_chunk)
    bi_encoder.score("w1", [f"w{number}" for number in range(2, 102)])
    assert max(sizes) == 64


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
def test_limits_of_each_embedded_text(kind, request):
    model = request.getfixturevalue(kind)
    found = model.score("w1 w2 w3", "w4 " * 60, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_array_equal(found, model.score("w1 w2", "w4 w4 w4"))
    with pytest.raises(InputError, match="max_tokens_per_doc must be a non-negative integer"):
        model.score("w1", "w2", max_tokens_per_doc="3")


def test_embedders_cut_to_the_limit_only_when_asked(bi_encoder):
    with pytest.raises(InputError, match="maximum context length is 16 tokens"):
        bi_encoder.score("w1", "w2 " * 30)
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than the model takes and were cut"):
        found = bi_encoder.score("w1", "w2 " * 30, truncate=True)
    np.testing.assert_array_equal(found, bi_encoder.score("w1", "w2 " * 14))


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
@pytest.mark.parametrize("options", [{"template": "plain"}, {"instruction": "w1"}, {"template_kwargs": {"a": 1}}])
def test_templates_are_for_cross_encoders(kind, options, request):
    with pytest.raises(InputError, match=f"{next(iter(options))} is for a cross-encoder .* this model is a (bi|late)-"):
        request.getfixturevalue(kind).score("w1", "w2", **options)


@pytest.mark.parametrize("name", ["prompt", "prompt_name"])
def test_prompts_are_for_cross_encoders(bi_encoder, name):
    with pytest.raises(InputError, match="a prompt is for a cross-encoder; this model is a bi-encoder: ") as caught:
        bi_encoder.score("w1", "w2", **{name: "query"})
    assert caught.value.parameter == name


@pytest.mark.parametrize("kind", ["bi_encoder", "late"])
def test_the_activation_is_of_cross_encoders(kind, request):
    for method in ("score", "rerank"):
        with pytest.raises(InputError, match=r"use_activation is for a cross-encoder; this model is a (bi|late)-"):
            getattr(request.getfixturevalue(kind), method)("w1", "w2", use_activation=False)


def test_plain_is_for_late_interaction(bi_encoder, cross_encoder):
    for model in (bi_encoder, cross_encoder):
        with pytest.raises(InputError, match="plain is for late interaction"):
            model.score("w1", "w2", plain=True)
    with pytest.raises(TaskNotSupported, match="is a bi_encoder: it reads one text at a time"):
        bi_encoder.encode_scoring_pairs(["w1"], ["w2"], [(0, 0)])
