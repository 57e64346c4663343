"""Precisions of an artifact against each other: every number against one from the model's own methods and scipy."""

from __future__ import annotations

import math
import re

import msgspec
import numpy as np
import pytest
from coarse_variant import add_coarse_variant
from fake_embedder import MANIFEST, VARIANT
from native_graphs import FLOAT32
from scipy import stats

from poolgraph import PoolingModel
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import (
    Fidelity,
    FidelityRow,
    LateInteraction,
    Scoring,
    StaticQuery,
    encode_manifest,
    parse_manifest,
)
from poolgraph.runtime import fidelity_report
from poolgraph.runtime.fidelity_corpus import Corpus, shipped_corpus
from poolgraph.runtime.fidelity_kinds import FIDELITY_KINDS, NUM_CANDIDATES, choose_candidates, name_kind
from poolgraph.runtime.fidelity_report import AGREEMENT, QUALITY, compare_precisions, plan_fidelity
from poolgraph.runtime.fidelity_table import describe_fidelity, tabulate_fidelity
from poolgraph.runtime.inspect import format_fidelity

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than .* cut:UserWarning")

CORPUS = shipped_corpus(2)
VARIANTS = (FLOAT32[0], "cpu_int8")


@pytest.fixture
def compare(task_artifact, tmp_path):
    """Return a function from a task's name to its coarse variant's measures and both variants."""

    def run(name, corpus=CORPUS):
        directory = add_coarse_variant(task_artifact(name), tmp_path / name)
        manifest = open_artifact(directory)
        plan = plan_fidelity(manifest)
        assert (plan.reference, plan.variants, plan.note) == (FLOAT32[0], ("cpu_int8",), "")
        fidelity = compare_precisions(directory, manifest, plan, corpus)
        assert all(row.variant == "cpu_int8" for row in fidelity.rows)
        return fidelity, [PoolingModel.load(directory, variant=variant) for variant in VARIANTS]

    return run


def values(fidelity):
    return {row.measure: row.value for row in fidelity.rows}


def best(scores, count):
    return [set(np.argsort(-row, kind="stable")[:count]) for row in scores]


def overlap(first, second, count):
    return np.mean(
        [len(one & other) / count for one, other in zip(best(first, count), best(second, count), strict=True)]
    )


def gain(scores):
    places = [int(np.argsort(-row, kind="stable").tolist().index(anchor)) for row, anchor in zip(*scores, strict=True)]
    return np.mean([1 / math.log2(place + 2) if place < 10 else 0.0 for place in places])


def assert_retrieval(fidelity, scores):
    found = values(fidelity)
    assert found["top-10 overlap"] == pytest.approx(overlap(*scores, 10))
    assert found["Spearman"] == pytest.approx(stats.spearmanr(*map(np.ravel, scores)).statistic)
    rows = {row.measure: row for row in fidelity.rows}
    reference, coarse = (gain((side, CORPUS.anchors)) for side in scores)
    assert rows["nDCG@10"].value == pytest.approx(coarse)
    assert rows["nDCG@10"].reference_value == pytest.approx(reference)
    hits = [np.mean([a in top for a, top in zip(CORPUS.anchors, best(side, 10), strict=True)]) for side in scores]
    assert rows["recall@10"].reference_value == pytest.approx(hits[0])
    assert rows["recall@10"].value == pytest.approx(hits[1])


def test_embeddings(compare):
    fidelity, models = compare("embedder")
    queries = [model.encode_query(list(CORPUS.queries)) for model in models]
    documents = [model.encode_document(list(CORPUS.documents)) for model in models]
    pairs = zip(models, queries, documents, strict=True)
    assert_retrieval(fidelity, [model.similarity(query, document) for model, query, document in pairs])
    cosines = np.concatenate([(one * other).sum(1) for one, other in (queries, documents)])
    assert values(fidelity)["mean cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert values(fidelity)["lowest cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert values(fidelity)["Spearman"] < 1
    assert (fidelity.num_queries, fidelity.num_documents) == (len(CORPUS.queries), 20)


def test_late_interaction(compare):
    fidelity, models = compare("colbert")
    scores = [
        model.similarity(model.encode_query(list(CORPUS.queries)), model.encode_document(list(CORPUS.documents)))
        for model in models
    ]
    assert_retrieval(fidelity, scores)
    assert list(values(fidelity)) == ["top-10 overlap", "Spearman", "recall@10", "nDCG@10"]


def test_cross_encoder(compare):
    fidelity, models = compare("reranker")
    candidates = choose_candidates(CORPUS)
    scores = [
        np.stack(
            [
                model.score(query, [CORPUS.documents[index] for index in row], truncate=True)
                for query, row in zip(CORPUS.queries, candidates, strict=True)
            ]
        )
        for model in models
    ]
    found = values(fidelity)
    assert found["Spearman"] == pytest.approx(stats.spearmanr(*map(np.ravel, scores)).statistic)
    assert found["largest difference"] == pytest.approx(np.abs(scores[0] - scores[1]).max())
    assert found["same best document"] == np.mean(scores[0].argmax(1) == scores[1].argmax(1))
    places = [list(row).index(anchor) for row, anchor in zip(candidates, CORPUS.anchors, strict=True)]
    assert found["nDCG@10"] == pytest.approx(gain((scores[1], places)))
    assert fidelity.num_truncated > 0
    assert f"{fidelity.num_truncated} inputs cut" in describe_fidelity(fidelity)


@pytest.mark.parametrize(
    ("name", "method"), [("classifier", "classify"), ("ner", "token_classify"), ("reward", "classify")]
)
def test_labels_and_rewards(compare, name, method):
    fidelity, models = compare(name)
    texts = [*CORPUS.documents, *CORPUS.queries]
    sides = [getattr(model, method)(texts, truncate=True) for model in models]
    first, second = (np.concatenate([np.atleast_2d(rows) for rows in side]) for side in sides)
    found = values(fidelity)
    assert found["largest difference"] == pytest.approx(np.abs(first - second).max())
    assert found["largest difference"] > 0
    assert found["Spearman"] == pytest.approx(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    assert found.get("same label") == (np.mean(first.argmax(1) == second.argmax(1)) if first.shape[1] > 1 else None)
    assert (fidelity.num_queries, fidelity.num_documents) == (0, len(texts))


def test_process_rewards_are_compared_at_every_token(compare):
    fidelity, _ = compare("process-reward")
    assert list(values(fidelity)) == ["same label", "Spearman", "largest difference"]
    assert 0 < values(fidelity)["largest difference"] < 0.2


def test_without_judgements_nothing_is_said_of_retrieval(compare):
    corpus = Corpus(name="own", queries=("a",), documents=tuple("bcdefghijklm"), anchors=(0,), is_judged=False)
    fidelity, _ = compare("embedder", corpus)
    assert list(values(fidelity)) == ["mean cosine", "lowest cosine", "top-10 overlap", "Spearman"]
    assert describe_fidelity(fidelity) == f"cpu_int8 against {FLOAT32[0]}: 1 queries and 12 own"


def test_candidates_surround_the_anchor():
    rows = choose_candidates(CORPUS)
    assert rows.shape == (len(CORPUS.queries), NUM_CANDIDATES)
    assert rows.min() >= 0
    assert rows.max() < len(CORPUS.documents)
    assert all(anchor in row for anchor, row in zip(CORPUS.anchors, rows, strict=True))


# --- decisions


def change(record, **changes):
    return msgspec.structs.replace(record, **changes)


INT8 = change(VARIANT, name="cpu_int8", precision="int8")
PORTABLE = change(VARIANT, name="portable_fp32", target="portable", layout="padded")
NEEDY = change(INT8, cpu_features=("no_such_instruction",))


@pytest.mark.parametrize(
    ("variants", "reference", "compared", "note"),
    [
        ((PORTABLE, VARIANT, INT8), "cpu_fp32", ("cpu_int8",), ""),
        ((PORTABLE, INT8), "portable_fp32", ("cpu_int8",), ""),
        ((PORTABLE, VARIANT), None, (), "no two precisions to compare; --checkpoint PATH"),
        ((INT8,), None, (), "no float32 variant .* cpu_int8 with: give --checkpoint PATH, .* --precision fp32,int8"),
        ((PORTABLE, NEEDY), None, (), "cpu_int8 cannot run on this machine"),
    ],
)
def test_what_is_compared(variants, reference, compared, note):
    plan = plan_fidelity(change(MANIFEST, variants=variants))
    assert (plan.reference, plan.variants) == (reference, compared)
    assert bool(note) == bool(plan.note)
    assert re.search(note, plan.note)


def test_the_original_is_compared_with_the_best_float32_and_all_others():
    plan = plan_fidelity(change(MANIFEST, variants=(PORTABLE, VARIANT, INT8)), with_original=True)
    assert (plan.reference, plan.variants) == (None, ("cpu_fp32", "cpu_int8"))


CLASSIFIER = change(MANIFEST.pooler, activation="auto", embedding_size=1, token_embedding_size=1)
LABELS = change(CLASSIFIER, embedding_size=3, token_embedding_size=3)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("embed", {"scoring": Scoring(kind="bi_encoder")}),
        ("routes", {"static_query": StaticQuery(file="query_weights.npy")}),
        ("token_embed", {"tasks": ("token_embed",)}),
        ("late_interaction", {"tasks": ("token_embed",), "late_interaction": LateInteraction()}),
        (
            "cross_encoder",
            {"tasks": ("classify",), "pooler": CLASSIFIER, "scoring": Scoring(kind="cross_encoder")},
        ),
        (
            "reward",
            {
                "tasks": ("classify",),
                "pooler": CLASSIFIER,
                "scoring": Scoring(kind="cross_encoder"),
                "options": {"task": "reward"},
            },
        ),
        ("reward", {"tasks": ("classify", "token_classify"), "pooler": CLASSIFIER}),
        ("classify", {"tasks": ("classify", "token_classify"), "pooler": LABELS}),
        ("token_classify", {"tasks": ("token_classify",), "pooler": LABELS}),
        ("token_reward", {"tasks": ("token_classify",), "pooler": CLASSIFIER}),
    ],
)
def test_kinds(kind, changes):
    assert name_kind(change(MANIFEST, **changes)) == kind


def test_every_measure_of_a_kind_is_known():
    named = {measure for kind in FIDELITY_KINDS.values() for measure in kind.measures}
    assert named == {*AGREEMENT, *QUALITY}


# --- records


ROWS = (
    FidelityRow(variant="cpu_int8", measure="Spearman", value=None),
    FidelityRow(variant="cpu_int8", measure="nDCG@10", value=0.51234, reference_value=0.5),
    FidelityRow(variant="cpu_int8", measure="largest difference", value=0.0123),
)
FIDELITY = Fidelity(reference="cpu_fp32", corpus="texts", num_queries=2, num_documents=30, rows=ROWS)


def test_the_table():
    assert format_fidelity(FIDELITY).splitlines() == [
        "Fidelity of cpu_int8 against cpu_fp32: 2 queries and 30 texts",
        "  measure             reference  cpu_int8",
        "  ------------------  ---------  --------",
        "  Spearman            -          -",
        "  nDCG@10             0.50000    0.51234",
        "  largest difference  -          1.2e-02",
    ]
    assert tabulate_fidelity(FIDELITY)[0] == ["measure", "reference", "cpu_int8"]


def test_the_manifest_keeps_it():
    made = change(MANIFEST, report=change(MANIFEST.report, fidelity=FIDELITY))
    assert parse_manifest(encode_manifest(made)).report.fidelity == FIDELITY


def test_what_is_not_defined_is_none():
    assert fidelity_report._finite(math.nan) is None
    assert fidelity_report._finite(0.5) == 0.5
