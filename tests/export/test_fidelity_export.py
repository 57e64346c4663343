"""What an export of two precisions says of them: in the manifest, in the model card, to ``inspect``."""

from __future__ import annotations

import re

import pytest
from native_graphs import FLOAT32
from task_artifacts import ARTIFACTS

from poolgraph import export_model
from poolgraph.errors import InputError
from poolgraph.export import verify_artifact
from poolgraph.export.job import ExportJob, Stages
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.inspect import describe

pytestmark = pytest.mark.usefixtures("one_trace_each")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """An embedder of both precisions, calibrated on few texts; the gate asks nothing of random weights."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "texts.txt").write_text("".join(f"text number {number} of a few\n" for number in range(16)))
    save, options = ARTIFACTS["embedder"]
    export_model(
        save(folder / "checkpoint"),
        folder / "artifact",
        precisions=("fp32", "int8"),
        calibration=folder / "texts.txt",
        min_cosine=-1.0,
        **options,
    )
    return folder / "artifact"


@pytest.mark.slow
def test_the_manifest_and_the_card_have_it(both):
    manifest = open_artifact(both, check_hashes="all")
    fidelity = manifest.report.fidelity
    assert fidelity is not None
    assert fidelity.reference == FLOAT32[0]
    reduced = [variant.name for variant in manifest.variants if variant.precision == "int8"]
    assert list(dict.fromkeys(row.variant for row in fidelity.rows)) == reduced
    assert (fidelity.num_documents, fidelity.num_queries > 20) == (10 * verify_artifact.FIDELITY_TOPICS, True)
    card = (both / "README.md").read_text(encoding="utf-8")
    section = card.split("## fp32 against int8\n")[1]
    assert f"| measure | reference | {' | '.join(reduced)} |\n| --- | --- |" in section
    assert "\n| mean cosine | - |" in section
    for row in fidelity.rows:
        assert re.search(rf"^\| {row.measure} \| .*\b{row.value:.5f} \|", section, re.MULTILINE)
    assert f"Fidelity of {' and '.join(reduced)} against {FLOAT32[0]}" in describe(manifest, both)


def test_one_precision_is_compared_with_nothing(task_artifact):
    manifest = open_artifact(task_artifact("embedder"))
    assert manifest.report.fidelity is None
    assert "fp32 against" not in (task_artifact("embedder") / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_texts_that_do_not_fit_the_model_stop_no_export(both, monkeypatch):
    def refuse(*_args):
        raise InputError("the query and the score template alone have 99 tokens")

    monkeypatch.setattr(verify_artifact, "compare_precisions", refuse)
    job = ExportJob(plan=None, folder=both, stages=Stages(None))
    assert verify_artifact._compare_precisions(job, open_artifact(both)) is None
