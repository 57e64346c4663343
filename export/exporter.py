"""``export_model``: the recipe from a checkpoint to a verified artifact."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from poolgraph.config import PoolerConfig
from poolgraph.errors import Float16RangeError, InputError
from poolgraph.export.calibration_texts import CalibrationTexts, read_calibration
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.compile import compile_checkpoint
from poolgraph.export.describe import build_manifest
from poolgraph.export.job import ExportJob, StageHook, Stages, frozen_heap
from poolgraph.export.model_card import render_model_card
from poolgraph.export.options import ExportOptions, make_options
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.export.targets import choose_targets
from poolgraph.export.verify_artifact import compare_with_twin, save_complete, verify_twin, verify_whole
from poolgraph.graphs.artifact import staged_directory
from poolgraph.graphs.manifest import Manifest, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: The artifact.
        report: How it was verified.
        seconds: Time of each stage, in seconds.
    """

    path: Path
    report: Report
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is exported."""

    model: str | Path
    revision: str | None
    options: ExportOptions
    precisions: Sequence[str] | None
    targets: Sequence[str]
    trust_remote_code: bool

    def plan(self, unfit: Collection[str]) -> ExportPlan:
        """Read the checkpoint and decide."""
        return resolve_plan(
            open_checkpoint(self.model, self.revision),
            options=self.options,
            precisions=self.precisions,
            targets=self.targets,
            trust_remote_code=self.trust_remote_code,
            unfit=unfit,
        )


@dataclass(frozen=True, slots=True)
class _Gate:
    """How it is calibrated and verified."""

    min_cosine: float | None
    max_memory: float | None
    calibration: str | Path | None


def export_model(
    model: str | Path,
    output: str | Path,
    *,
    task: str = "auto",
    convert: str = "auto",
    runner: str = "auto",
    pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None,
    hf_overrides: Mapping[str, Any] | str | None = None,
    score_template: str | None = None,
    revision: str | None = None,
    precisions: Sequence[str] | None = None,
    targets: Sequence[str] = ("cpu",),
    min_cosine: float | None = None,
    max_memory: float | None = None,
    calibration: str | Path | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    on_stage: StageHook | None = None,
) -> ExportResult:
    """Compile a checkpoint into an artifact and verify it; a failed export leaves nothing behind.

    Args:
        model: A checkpoint's folder or a hub id.
        output: The artifact's directory, made by this call.
        task: ``auto`` or what the artifact is for.
        convert: ``auto``, ``none``, ``embed`` or ``classify``: what the model is made into.
        runner: ``auto`` or ``pooling``.
        pooler_config: How it pools, where the checkpoint's files are not to decide; an object, a mapping or JSON text.
        hf_overrides: Fields of config.json, changed before anything is decided.
        score_template: A shipped score template's name, a file, or jinja source.
        revision: Revision of a hub id.
        precisions: Precisions of the variants (None: each target's own, a GPU's fp16, or bf16 where that is refused).
        targets: Targets beside the portable one.
        min_cosine: Overrides the lowest cosine that verification accepts; recorded in the manifest.
        max_memory: GiB that this process may use to verify (None: half of what is free); beyond it, a twin is verified.
        calibration: File of texts by which int8 scales are chosen (None: texts that ship with poolgraph).
        trust_remote_code: Let transformers run code that comes with the checkpoint, during this call only.
        overwrite: Replace an artifact that is already there.
        on_stage: Called with the name of each stage as it starts.

    Raises:
        InputError: an argument that is not acceptable, or no such checkpoint.
        ExportError: the checkpoint cannot be compiled; its leaves say why.
        VerificationError: the compiled model's answers are not the reference's.
        ArtifactError: the output directory is in use.
    """
    options = make_options(task, convert, runner, pooler_config, hf_overrides, score_template)
    choose_targets(targets, precisions)  # what is not offered is refused before a hub is asked for files
    wish = _Wish(model, revision, options, precisions, targets, trust_remote_code)
    gate, stages = _Gate(min_cosine, max_memory, calibration), Stages(on_stage)
    report = _export_what_fits(wish, gate, stages, Path(output), overwrite=overwrite)
    return ExportResult(path=Path(output), report=report, seconds=stages.seconds)


def _export_what_fits(wish: _Wish, gate: _Gate, stages: Stages, output: Path, *, overwrite: bool) -> Report:
    """Export; once more without fp16 where the precision is open and the model's numbers are beyond fp16's range."""
    try:
        return _export(wish, gate, stages, output, overwrite=overwrite)
    except Float16RangeError as error:
        if wish.precisions is not None:
            raise
        reason = error.reason
    warnings.warn(f"exporting in bf16 in the place of fp16: {reason}", UserWarning, stacklevel=3)
    gc.collect()  # the graphs of the first attempt
    gate = replace(gate, calibration=None)  # its texts were for fp16
    return _export(wish, gate, stages, output, overwrite=overwrite, unfit=("fp16",))


def _export(
    wish: _Wish, gate: _Gate, stages: Stages, output: Path, *, overwrite: bool, unfit: Collection[str] = ()
) -> Report:
    with staged_directory(output, overwrite=overwrite) as staging, frozen_heap():
        with stages.stage("read the checkpoint"):
            plan = wish.plan(unfit)
        texts = _read_texts(plan, gate.calibration)
        job = ExportJob(plan=plan, folder=staging, stages=stages, texts=texts, max_memory=gate.max_memory)
        manifest, report = _build_and_verify(job, gate.min_cosine)
        _finish(manifest, report, staging)
    return report


def _read_texts(plan: ExportPlan, calibration: str | Path | None) -> CalibrationTexts | None:
    if any(target.precision in ("int8", "fp16") for target in plan.targets):
        return read_calibration(calibration)
    if calibration is not None:
        raise InputError(f"--calibration {calibration} is for int8 and fp16: add --precision, or leave it out")
    return None


def _build_and_verify(job: ExportJob, min_cosine: float | None) -> tuple[Manifest, Report]:
    variants, stored = compile_checkpoint(job)
    manifest = build_manifest(job.plan, variants, min_cosine=min_cosine)
    twin = compare_with_twin(job, stored)
    del stored
    gc.collect()  # graphs are full of cycles, and those of a large model take hundreds of megabytes
    return manifest, verify_whole(job, manifest) if twin is None else verify_twin(job, manifest, *twin)


def _finish(manifest: Manifest, report: Report, staging: Path) -> None:
    """Write the final manifest and the model card; what could not run here is not verified."""
    ran = {row.variant for row in report.rows}
    variants = tuple(msgspec.structs.replace(variant, verified=variant.name in ran) for variant in manifest.variants)
    manifest = msgspec.structs.replace(manifest, report=report, variants=variants)
    (staging / "README.md").write_text(render_model_card(manifest), encoding="utf-8")
    save_complete(manifest, staging)
