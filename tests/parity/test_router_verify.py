"""``poolgraph verify`` of inference-free SPLADE artifacts asks queries again, as the export did."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from coarse_variant import add_coarse_variant
from scipy import stats
from tiny_router import save_router

from poolgraph import PoolingModel, export_model
from poolgraph.cli import main
from poolgraph.errors import ArtifactError, VerificationError
from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest
from poolgraph.graphs.manifest import MANIFEST_FILE, CheckRow, parse_manifest
from poolgraph.graphs.probe_files import ANSWERS_FILE, load_probes
from poolgraph.runtime.fidelity_corpus import shipped_corpus
from poolgraph.runtime.fidelity_report import compare_precisions, plan_fidelity
from poolgraph.runtime.static_query import STATIC_QUERY_FILE
from poolgraph.runtime.verify import verify_artifact


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its artifact, side by side."""
    folder = tmp_path_factory.mktemp("router")
    save_router(folder / "checkpoint", prompts={"query": "a quick ", "document": "the "})
    export_model(folder / "checkpoint", folder / "artifact")
    return folder


@pytest.fixture
def artifact(routed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(routed / "artifact", tmp_path / "artifact"))


def sign(artifact: Path) -> None:
    """Record changed files, so that no hash tells of them."""
    manifest = parse_manifest((artifact / MANIFEST_FILE).read_bytes())
    save_manifest(artifact, msgspec.structs.replace(manifest, files=record_files(artifact)))


def queries_of(rows: tuple[CheckRow, ...]) -> list[CheckRow]:
    return [row for row in rows if row.variant == "queries"]


def test_the_row_of_queries_is_repeated(routed: Path, artifact: Path) -> None:
    exported = queries_of(open_artifact(artifact).report.rows)
    told: list[CheckRow] = []
    report = verify_artifact(artifact, on_row=told.append)
    assert queries_of(report.rows) == queries_of(tuple(told)) == exported
    assert [(row.passed, row.min_cosine, row.max_difference) for row in exported] == [(True, 1.0, 0.0)]
    assert queries_of(verify_artifact(artifact, checkpoint=routed / "checkpoint").rows) == exported


def test_what_is_stored_is_what_queries_are_answered(artifact: Path) -> None:
    probes = load_probes(artifact)
    assert probes.queries is not None
    with PoolingModel.load(artifact) as model, pytest.warns(UserWarning, match="were cut"):
        answers = model.embed_sparse(list(probes.texts), side="query", truncate=True)
    for answer, (indices, values) in zip(answers, probes.queries, strict=True):
        assert np.array_equal(answer.indices, indices)
        assert np.array_equal(answer.values, values)
    assert any(len(values) == 0 for _, values in probes.queries), "the empty text"


def test_another_weight_is_found(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes = load_probes(artifact)
    assert probes.queries is not None
    weights = np.load(artifact / STATIC_QUERY_FILE)
    weights[probes.queries[-3][0][0]] *= np.float32(1.0001)
    np.save(artifact / STATIC_QUERY_FILE, weights)
    sign(artifact)
    with pytest.raises(VerificationError, match="queries weights equal weights"):
        verify_artifact(artifact)
    assert main(["verify", str(artifact)]) == 3
    assert "equal weights" in capsys.readouterr().out


def test_artifacts_without_answers_to_queries_are_told(routed: Path, artifact: Path) -> None:
    with np.load(artifact / ANSWERS_FILE) as arrays:
        kept = {name: arrays[name] for name in arrays.files if not name.startswith("query_")}
    np.savez(artifact / ANSWERS_FILE, **kept)
    sign(artifact)
    with pytest.raises(ArtifactError, match=r"must have an answer to each of .* queries, and has none: export"):
        verify_artifact(artifact)
    assert queries_of(verify_artifact(artifact, checkpoint=routed / "checkpoint").rows)


@pytest.mark.parametrize(
    "change",
    [
        {"query_counts": np.array([1], dtype=np.int64)},
        {"query_counts": np.array([], dtype=np.int64)},
        {"query_values": np.ones(3, dtype=np.int64)},
        {"query_indices": np.ones((2, 2), dtype=np.int64)},
    ],
)
def test_answers_that_do_not_fit_together(artifact: Path, change: dict[str, np.ndarray]) -> None:
    with np.load(artifact / ANSWERS_FILE) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    np.savez(artifact / ANSWERS_FILE, **(stored | change))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(artifact)


def test_words_outside_the_table(artifact: Path) -> None:
    with np.load(artifact / ANSWERS_FILE) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    stored["query_indices"][0] = 10**6
    np.savez(artifact / ANSWERS_FILE, **stored)
    sign(artifact)
    with pytest.raises(ArtifactError, match="outside the"):
        verify_artifact(artifact)


@pytest.mark.filterwarnings("ignore:.*longer than .* cut:UserWarning")
def test_precisions_are_compared_over_queries_of_the_table(routed: Path, tmp_path: Path) -> None:
    directory = add_coarse_variant(routed / "artifact", tmp_path / "coarse")
    manifest = open_artifact(directory)
    plan, corpus = plan_fidelity(manifest), shipped_corpus(2)
    fidelity = compare_precisions(directory, manifest, plan, corpus)
    found = {row.measure: row.value for row in fidelity.rows}
    assert (fidelity.num_queries, fidelity.num_documents) == (len(corpus.queries), len(corpus.documents))
    scores, rows = [], []
    for name in (plan.reference, *plan.variants):
        with PoolingModel.load(directory, variant=name, allow_unverified=True) as model:
            rows.append(model.encode_document(list(corpus.documents)))
            scores.append(model.similarity(model.encode_query(list(corpus.queries)), rows[-1]))
    assert found["Spearman"] == pytest.approx(stats.spearmanr(*map(np.ravel, scores)).statistic)
    cosines = (rows[0] * rows[1]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[1], axis=1)
    assert found["lowest cosine"] == pytest.approx(cosines.min(), abs=1e-6)
