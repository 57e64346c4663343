"""Scores of pairs and their order: cross-encoders on pairs, and what every way of scoring refuses."""

import random
import warnings

import numpy as np
import pytest
from little_classifiers import MAX_MODEL_LEN, build_classifier
from little_scorers import TEMPLATE, build_scorer, draw_texts, pair_logits, prompt_logits, sigmoid

from poolgraph.errors import InputError, TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import LateInteraction, Scoring
from poolgraph.runtime import pipeline
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_pairs import plan_pairs
from poolgraph.runtime.task_score import RankedDocument

TOO_LONG = f"This model's maximum context length is {MAX_MODEL_LEN} tokens"


@pytest.fixture
def cross_encoder(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "pair")) as model:
        yield model


@pytest.fixture
def templated(tmp_path):
    with PoolingModel.load(build_scorer(tmp_path / "templated", template=TEMPLATE)) as model:
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


def test_one_query_against_each_document_or_each_against_its_own(cross_encoder):
    queries, documents = draw_texts(20), draw_texts(20, seed=1)
    each = [pair_logits(cross_encoder, *pair) for pair in zip(queries, documents, strict=True)]
    one = [pair_logits(cross_encoder, queries[0], document) for document in documents]
    np.testing.assert_allclose(cross_encoder.score(queries, documents), sigmoid(each), atol=1e-5)
    np.testing.assert_allclose(cross_encoder.score(queries[0], documents), sigmoid(one), atol=1e-5)
    found = cross_encoder.score(queries[0], documents[0], use_activation=False)
    assert (found.shape, found.dtype) == ((1,), np.float32)
    np.testing.assert_allclose(found, one[:1], rtol=1e-5)


@pytest.mark.parametrize("variant", ["cpu_fp32", "portable_fp32"])
def test_a_pair_has_the_same_score_in_any_company(tmp_path, monkeypatch, variant):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 7})
    queries, documents = draw_texts(60, seed=2), draw_texts(60, seed=3)
    with PoolingModel.load(build_scorer(tmp_path / "pair"), variant=variant) as model:
        together = model.score(queries, documents)
        alone = [model.score(query, document)[0] for query, document in zip(queries, documents, strict=True)]
        order = random.Random(0).sample(range(60), 60)
        shuffled = model.score([queries[index] for index in order], [documents[index] for index in order])
    if variant == "cpu_fp32":
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(shuffled, together[order])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)


def test_too_long_is_refused_by_the_pairs_number(cross_encoder, monkeypatch):
    monkeypatch.setattr(pipeline.encode_windows, "__kwdefaults__", {"window": 2})
    documents = ["w1", "w2", "w3", "w4 " * 50]
    with pytest.raises(InputError, match=rf"{TOO_LONG}.* \(pair 3\)"):
        cross_encoder.score("w1", documents)


def test_truncation_cuts_the_longer_text_and_warns_once(cross_encoder):
    documents = ["w3 " * 50, "w4", "w5 " * 60]
    with pytest.warns(
        TruncationWarning, match=f"2 of 3 pairs were longer than {MAX_MODEL_LEN} tokens and were cut"
    ) as caught:
        found = cross_encoder.score("w1 w2", documents, truncate=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    cut = [pair_logits(cross_encoder, "w1 w2", text) for text in ("w3 " * (MAX_MODEL_LEN - 5), "w4")]
    np.testing.assert_allclose(found[:2], sigmoid(cut), atol=1e-5)


def test_limits_of_each_text(cross_encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cross_encoder.score("w1 w2 w3", "w4 " * 60, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_array_equal(found, cross_encoder.score("w1 w2", "w4 w4 w4"))
    with pytest.raises(InputError, match="max_tokens_per_doc must be a non-negative integer"):
        cross_encoder.score("w1", "w2", max_tokens_per_doc=-1)
    with pytest.raises(InputError, match=rf"max_tokens_per_query \({MAX_MODEL_LEN}\) must be less than max_model_len"):
        cross_encoder.score("w1", "w2", max_tokens_per_query=MAX_MODEL_LEN)


def test_progress_counts_pairs(cross_encoder, capsys):
    cross_encoder.score("w1", ["w2", "w3"], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_encoding_and_running_apart(cross_encoder):
    queries, documents = ["w1"], ["w2", "w3 w4"]
    encoded = cross_encoder.encode_scoring_pairs(queries, documents, plan_pairs(1, 2))
    assert [text.num_tokens for text in encoded] == [5, 6]
    np.testing.assert_array_equal(cross_encoder.run_pairs(encoded), cross_encoder.score(queries, documents))
    options = ScoreOptions(truncate_to=5)
    (cut,) = cross_encoder.encode_scoring_pairs(queries, ["w3 w4 w5"], [(0, 0)], options)
    assert (cut.num_tokens, cut.num_truncated_tokens) == (5, 2)


def test_an_instruction_needs_a_template(cross_encoder):
    with pytest.raises(InputError, match="has no place for an instruction"):
        cross_encoder.score("w1", "w2", instruction="w3")
    with pytest.raises(InputError, match="has no place for an instruction"):
        cross_encoder.score("w1", "w2", template_kwargs={"x": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("a", "b", "c")}, r"Scoring API is only enabled for num_labels == 1\. This model has 3 labels"),
        (
            {"kind": "token_classifier"},
            r"This model does not support the Scoring API\. Its tasks are \['token_classify'\]",
        ),
        (
            {"labels": ("relevant",)},
            r"This model does not support the Scoring API\. .* one of bge_reranker_v2_gemma, .*qwen3_reranker",
        ),
    ],
)
def test_models_that_do_not_score(tmp_path, options, message):
    build_classifier(tmp_path / "model", **options)
    with PoolingModel.load(tmp_path / "model") as model, pytest.raises(TaskNotSupported, match=message):
        model.score("w1", "w2")


def test_a_template_makes_a_cross_encoder_of_a_classifier_with_one_label(tmp_path):
    build_classifier(tmp_path / "model", labels=("relevant",))
    with PoolingModel.load(tmp_path / "model") as model:
        found = model.score("w1", "w2", template="{{ query }} {{ document }}")
        np.testing.assert_allclose(found, sigmoid([prompt_logits(model, "w1 w2")]), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (["w1", "w2"], ["w3"], "Input lengths must be either 1:1, 1:N or N:N"),
        ([], ["w3"], "At least one text element must be given"),
        ("w1", [], "At least one text_pair element must be given"),
        ((), np.array([]), "At least one text element must be given"),
        ("w1", [3], "text 0 must be a str, got int"),
        ({"content": []}, "w1", "texts must be a str or a list of str, got dict"),
        ("w1", None, "texts must be a str or a list of str, got NoneType"),
        ("w1", np.array("w2"), "got a ndarray that has no items"),
    ],
)
@pytest.mark.parametrize("kind", ["cross_encoder", "bi_encoder", "late"])
def test_texts_refused(kind, request, queries, documents, message):
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(kind).score(queries, documents)


@pytest.mark.parametrize("options", [{"use_activation": 1}, {"truncate": 64}])
def test_switches_are_bools(cross_encoder, options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be a bool, not int"):
        cross_encoder.score("w1", "w2", **options)


def test_rerank_sorts_by_score_and_then_by_index(cross_encoder):
    documents = ["w3", "w4", "w3", "w5 w6", "w3"] * 12
    scores = cross_encoder.score("w1", documents)
    ranked = cross_encoder.rerank("w1", documents)
    assert [document.score for document in ranked] == sorted(map(float, scores), reverse=True)
    for text in {*documents}:
        indices = [document.index for document in ranked if document.text == text]
        assert indices == [index for index, other in enumerate(documents) if other == text]
    assert all(
        document == RankedDocument(document.index, float(scores[document.index]), documents[document.index])
        for document in ranked
    )
    assert cross_encoder.rerank("w1", documents, 2) == ranked[:2]
    assert cross_encoder.rerank("w1", documents, top_n=99) == cross_encoder.rerank("w1", documents, top_n=0) == ranked


@pytest.mark.parametrize("kind", ["bi_encoder", "late", "templated"])
def test_every_way_of_scoring_ranks(kind, request):
    documents = ["w3 w4", "w1", "w7"]
    model = request.getfixturevalue(kind)
    ranked = model.rerank("w1", documents, top_n=1)
    assert ranked[0].index == int(model.score("w1", documents).argmax())


@pytest.mark.parametrize("top_n", [-1, 1.0, "1", True])
def test_top_n_is_a_count(cross_encoder, top_n):
    with pytest.raises(InputError, match="top_n must be a number of documents"):
        cross_encoder.rerank("w1", ["w2"], top_n=top_n)


def test_rerank_takes_one_query(cross_encoder):
    with pytest.raises(InputError, match="query must be a str, got list"):
        cross_encoder.rerank(["w1"], ["w2"])
    with pytest.raises(InputError, match="At least one text_pair element"):
        cross_encoder.rerank("w1", [])


def test_rerank_warns_at_its_own_caller(cross_encoder):
    with pytest.warns(UserWarning, match="1 of 2 pairs") as caught:
        cross_encoder.rerank("w1", ["w2 " * 60, "w3"], truncate=True)
    assert caught[0].filename == __file__
