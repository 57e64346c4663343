"""Verifying what an export wrote: the whole artifact, or a twin of its first layers and all its stored tensors."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from poolgraph.errors import InputError
from poolgraph.export.compile import Stored, compile_checkpoint
from poolgraph.export.half import check_twin_range
from poolgraph.export.job import ExportJob
from poolgraph.export.reference import compute_reference, reference_name, tool_versions
from poolgraph.export.static_query import answer_queries
from poolgraph.export.twin import compare_stored, shorten_plan
from poolgraph.export.verify import build_probes, check_tokenizer, verify_variant
from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import CheckRow, Fidelity, Manifest, Report
from poolgraph.graphs.probe_files import load_probes, save_probes
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.fidelity_corpus import shipped_corpus
from poolgraph.runtime.fidelity_report import compare_precisions, plan_fidelity
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.runtime.verify import check_report
from poolgraph.runtime.verify_queries import check_queries

FIDELITY_TOPICS = 6
"""Topics of the shipped corpus on which an export compares its precisions; ``poolgraph verify`` takes all."""


def compare_with_twin(job: ExportJob, stored: Stored) -> tuple[int, CheckRow] | None:
    """Return None where the whole artifact can be verified in the memory allowed; else what stands in for that.

    Returns:
        The number of layers of the twin to verify, and the outcome of comparing all stored tensors.
    """
    models, sources, sizes = stored
    num_layers = job.twin_layers(sizes)
    if num_layers is None:
        return None
    with job.stages.stage("compare the weights"):
        return num_layers, compare_stored(models, sources, job.folder / "onnx")


def verify_whole(job: ExportJob, manifest: Manifest) -> Report:
    """Compare the artifact with the reference, and its precisions with each other.

    Raises:
        VerificationError: a check failed; the message has every one that did.
    """
    report = _verify(job, manifest)
    return msgspec.structs.replace(report, fidelity=_compare_precisions(job, manifest))


def verify_twin(job: ExportJob, manifest: Manifest, num_layers: int, weights: CheckRow) -> Report:
    """Verify a twin of ``num_layers`` layers, made the same way; the probes are stored without answers.

    Args:
        job: Of the whole checkpoint.
        manifest: Of the whole artifact.
        num_layers: How many of its first layers the twin has.
        weights: The outcome of comparing all stored tensors.

    Raises:
        Float16RangeError: values of the twin leave fp16's range.
        VerificationError: a check failed, of the twin or of the weights.
    """
    twin = shorten_plan(job.plan, num_layers)
    with tempfile.TemporaryDirectory(prefix=".twin-", dir=job.folder.parent) as name:
        small = replace(job, plan=twin, folder=Path(name), max_memory=None, is_twin=True)
        variants, _ = compile_checkpoint(small)
        check_twin_range(variants, num_layers)
        report = _verify(small, msgspec.structs.replace(manifest, limits=twin.limits), threads=1)
        probes = load_probes(small.folder)
    save_probes(job.folder, probes.texts, probes.prompt, None, None, probes.pairs, probes.queries)
    total = job.plan.config.num_hidden_layers
    report = msgspec.structs.replace(
        report,
        reference=f"{report.reference}; a twin of the first {num_layers} of {total} layers, and all stored tensors",
        rows=(weights, *report.rows),
    )
    check_report(report)
    return report


def save_complete(manifest: Manifest, folder: Path) -> None:
    """Write the manifest with a record of every file that lies beside it."""
    save_manifest(folder, msgspec.structs.replace(manifest, files=record_files(folder)))


def _verify(job: ExportJob, manifest: Manifest, threads: int | None = None) -> Report:
    """Compare the artifact with the reference; its probes are stored beside it."""
    plan, folder = job.plan, job.folder
    with job.stages.stage("answer the probes with the reference"):
        tokenizer = TextTokenizer(folder, manifest)
        probes = build_probes(tokenizer, manifest)
        reference = compute_reference(plan, probes.encoded)
        queries = answer_queries(plan.static, probes.texts)
        save_probes(folder, probes.texts, probes.prompt, reference.sequence, reference.token, probes.pairs, queries)
    with job.stages.stage("verify"):
        save_complete(manifest, folder)
        rows = [check_tokenizer(probes, tokenizer, plan.tokenizer, plan.limits.max_model_len)]
        rows += check_queries(folder, manifest, probes.texts, queries)
        for variant in manifest.variants:
            rows += verify_variant(folder, variant, probes, reference, threads=threads)
        report = Report(
            reference=reference_name(), rows=tuple(rows), versions=tool_versions(), cpu=read_cpu_info().model
        )
        check_report(report)
    return report


def _compare_precisions(job: ExportJob, manifest: Manifest) -> Fidelity | None:
    """Compare int8 with float32 on a part of the shipped texts: for the report, whatever the outcome.

    Returns:
        None where the artifact has one precision, or a limit so low that a score template alone is beyond it.
    """
    plan = plan_fidelity(manifest)
    if not plan.variants:
        return None
    with job.stages.stage("compare the precisions"), suppress(InputError):
        return compare_precisions(job.folder, manifest, plan, shipped_corpus(FIDELITY_TOPICS))
    return None
