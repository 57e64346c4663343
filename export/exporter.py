"""``export_model``: the recipe from a checkpoint to a verified artifact."""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.export.build import LoweredVariant, build_module, trace_layout
from poolgraph.export.calibration_texts import CalibrationTexts, read_calibration
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.describe import build_manifest
from poolgraph.export.half import check_twin_range, plan_half
from poolgraph.export.int8 import plan_int8
from poolgraph.export.lower_targets import Reduced, check_capturable, choose_packed, drop_idle, lower_target
from poolgraph.export.model_card import render_model_card
from poolgraph.export.options import make_options
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.reference import compute_reference, reference_name, tool_versions
from poolgraph.export.resolve import ExportPlan, choose_targets, resolve_plan
from poolgraph.export.scoring import TEMPLATE_FILE
from poolgraph.export.static_query import answer_queries, save_static_query
from poolgraph.export.tokenizer import save_tokenizer
from poolgraph.export.twin import (
    Sources,
    WeightSizes,
    choose_twin,
    collect_sources,
    compare_stored,
    free_memory,
    measure_weights,
    shorten_plan,
)
from poolgraph.export.verify import build_probes, check_tokenizer, verify_variant
from poolgraph.graphs.artifact import record_files, save_manifest, staged_directory
from poolgraph.graphs.manifest import CheckRow, Fidelity, Manifest, Report, Rewrites, Variant
from poolgraph.graphs.pipeline import Target
from poolgraph.graphs.probe_files import load_probes, save_probes
from poolgraph.graphs.storage import save_graphs
from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.fidelity_corpus import shipped_corpus
from poolgraph.runtime.fidelity_report import compare_precisions, plan_fidelity
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.runtime.verify import check_report
from poolgraph.runtime.verify_queries import check_queries

StageHook = Callable[[str], None]

Stored = tuple[Mapping[str, ir.Model], Sources, WeightSizes]
"""Models by file name, the tensors that their files were written from, and the size of the checkpoint's."""

WEIGHTS_FILE = "weights.data"

LAYOUT_ORDER = ("uniform", "padded", "packed")
"""Order of the traces: the first decides which products are kept apart, the second whether there is a third."""

FIDELITY_TOPICS = 6
"""Topics of the shipped corpus on which an export compares its precisions; ``poolgraph verify`` takes all."""

COPIED_FILES = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Files that other programs look for in a model's folder, and the server for chat templates, copied as they are."""


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


@dataclass(slots=True)
class _Stages:
    """Announces stages and keeps their times."""

    hook: StageHook | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.hook is not None:
            self.hook(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Within, the collector passes over what was there before.

    Torch and transformers are a million objects, which it would walk again and again for nothing while graphs are made.
    """
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


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
    precisions: Sequence[str] = ("fp32",),
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
        precisions: Precisions of the targets' variants.
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
    stages = _Stages(on_stage)
    with staged_directory(Path(output), overwrite=overwrite) as staging, _frozen_heap():
        with stages.stage("read the checkpoint"):
            found = open_checkpoint(model, revision)
            plan = resolve_plan(
                found, options=options, precisions=precisions, targets=targets, trust_remote_code=trust_remote_code
            )
        manifest, report = _build_and_verify(plan, staging, stages, min_cosine, max_memory, calibration)
        _finish(manifest, report, staging)
    return ExportResult(path=Path(output), report=report, seconds=stages.seconds)


def _build_and_verify(
    plan: ExportPlan,
    staging: Path,
    stages: _Stages,
    min_cosine: float | None,
    max_memory: float | None,
    calibration: str | Path | None,
) -> tuple[Manifest, Report]:
    texts = _read_texts(plan, calibration)
    variants, stored = _build(plan, staging, stages, texts, max_memory)
    manifest = build_manifest(plan, variants, min_cosine=min_cosine)
    twin = _compare_with_twin(plan, stored, staging, stages, max_memory)
    del stored
    gc.collect()  # graphs are full of cycles, and those of a large model take hundreds of megabytes
    if twin is None:
        report = _verify(plan, manifest, staging, stages)
        fidelity = _compare_precisions(manifest, staging, stages)
        return manifest, msgspec.structs.replace(report, fidelity=fidelity)
    return manifest, _verify_twin(plan, manifest, staging, stages, texts, *twin)


def _read_texts(plan: ExportPlan, calibration: str | Path | None) -> CalibrationTexts | None:
    if any(target.precision in ("int8", "fp16") for target in plan.targets):
        return read_calibration(calibration)
    if calibration is not None:
        raise InputError(f"--calibration {calibration} is for int8 and fp16: add --precision, or leave it out")
    return None


def _build(
    plan: ExportPlan,
    staging: Path,
    stages: _Stages,
    calibration: CalibrationTexts | None = None,
    max_memory: float | None = None,
    *,
    is_twin: bool = False,
) -> tuple[list[Variant], Stored]:
    """Compile and write; return the variants, and the models as written with the tensors behind them."""
    lowered, models, sizes = _compile(plan, stages, calibration, max_memory, is_twin=is_twin)
    sources = collect_sources(models)
    with stages.stage("write the graphs"):
        _write(plan, models, staging)
    return [item.variant for item in lowered], (models, sources, sizes)


def _compile(
    plan: ExportPlan,
    stages: _Stages,
    calibration: CalibrationTexts | None,
    max_memory: float | None,
    *,
    is_twin: bool,
) -> tuple[list[LoweredVariant], dict[str, ir.Model], WeightSizes]:
    """Trace each layout once and lower each target from it.

    Returns:
        The variants, all their models by file name, and how large the weights are before any is quantized.
    """
    module = build_module(plan)
    semantic: dict[str, tuple[ir.Model, tuple[Rewrites, ...]]] = {}
    targets = plan.targets
    for layout in LAYOUT_ORDER:
        if layout == "packed":
            targets = choose_packed(plan, targets, semantic["padded"][0])
        if not any(_needs_layout(target, layout) for target in targets):
            continue
        uniform = semantic["uniform"][0] if "uniform" in semantic else None
        with stages.stage(f"trace ({layout})"):
            semantic[layout] = trace_layout(plan, module, layout, uniform)
    sizes = measure_weights(collect_sources({layout: model for layout, (model, _) in semantic.items()}))
    precisions = {target.precision for target in targets}
    is_large = choose_twin(sizes, plan.config, free_memory(max_memory)) is not None
    texts = None if is_large else calibration
    reduced = Reduced()
    if "int8" in precisions:
        with stages.stage("calibrate int8"):
            reduced = replace(reduced, int8=plan_int8(plan, semantic["uniform"][0], None if is_twin else texts))
    if "fp16" in precisions:
        with stages.stage("probe the range of fp16"):
            layouts = {target.layout for target in targets if target.precision == "fp16"}
            half = {layout: plan_half(plan, semantic[layout][0], texts) for layout in sorted(layouts)}
            reduced = replace(reduced, half=half)
    with stages.stage("lower"):
        lowered = drop_idle([lower_target(plan, *semantic[target.layout], target, reduced) for target in targets])
    check_capturable(lowered)
    return lowered, {file: model for item in lowered for file, model in item.models.items()}, sizes


def _needs_layout(target: Target, layout: str) -> bool:
    """Whether a target is lowered from a layout, or its int8 chosen by it: by the uniform one, whatever the target."""
    return target.layout == layout or (layout == "uniform" and target.precision == "int8")


def _write(plan: ExportPlan, models: Mapping[str, ir.Model], staging: Path) -> None:
    """Write graphs, weights, tokenizer and the checkpoint's own small files."""
    (staging / "onnx").mkdir()
    save_graphs(models, staging / "onnx", WEIGHTS_FILE)
    save_tokenizer(plan.tokenizer, plan.backbone.folder, staging, list(PROBE_SENTENCES))
    save_static_query(plan.static, staging)
    for name in COPIED_FILES:
        folder = plan.checkpoint.folder if (plan.checkpoint.folder / name).is_file() else plan.backbone.folder
        if (folder / name).is_file():
            shutil.copyfile(folder / name, staging / name)
    for config in sorted(plan.checkpoint.folder.glob("[0-9]_*/config.json")):
        (staging / config.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(config, staging / config.parent.name / config.name)
    if plan.template is not None:
        (staging / TEMPLATE_FILE).write_text(plan.template, encoding="utf-8")


def _compare_with_twin(
    plan: ExportPlan, stored: Stored, staging: Path, stages: _Stages, max_memory: float | None
) -> tuple[int, CheckRow] | None:
    """Return None where the whole artifact can be verified in the memory allowed; else what stands in for that.

    Returns:
        The number of layers of the twin to verify, and the outcome of comparing all stored tensors.
    """
    models, sources, sizes = stored
    num_layers = choose_twin(sizes, plan.config, free_memory(max_memory))
    if num_layers is None:
        return None
    with stages.stage("compare the weights"):
        return num_layers, compare_stored(models, sources, staging / "onnx")


def _verify(plan: ExportPlan, manifest: Manifest, staging: Path, stages: _Stages, threads: int | None = None) -> Report:
    """Compare the artifact in ``staging`` with the reference; its probes are stored beside it.

    Raises:
        VerificationError: a check failed; the message has every one that did.
    """
    with stages.stage("answer the probes with the reference"):
        tokenizer = TextTokenizer(staging, manifest)
        probes = build_probes(tokenizer, manifest)
        reference = compute_reference(plan, probes.encoded)
        queries = answer_queries(plan.static, probes.texts)
        save_probes(staging, probes.texts, probes.prompt, reference.sequence, reference.token, probes.pairs, queries)
    with stages.stage("verify"):
        _save(manifest, staging)
        rows = [check_tokenizer(probes, tokenizer, plan.tokenizer, plan.limits.max_model_len)]
        rows += check_queries(staging, manifest, probes.texts, queries)
        for variant in manifest.variants:
            rows += verify_variant(staging, variant, probes, reference, threads=threads)
        report = Report(
            reference=reference_name(), rows=tuple(rows), versions=tool_versions(), cpu=read_cpu_info().model
        )
        check_report(report)
    return report


def _compare_precisions(manifest: Manifest, staging: Path, stages: _Stages) -> Fidelity | None:
    """Compare int8 with float32 on a part of the shipped texts: for the report, whatever the outcome.

    Returns:
        None where the artifact has one precision, or a limit so low that a score template alone is beyond it.
    """
    plan = plan_fidelity(manifest)
    if not plan.variants:
        return None
    with stages.stage("compare the precisions"), suppress(InputError):
        return compare_precisions(staging, manifest, plan, shipped_corpus(FIDELITY_TOPICS))
    return None


def _verify_twin(
    plan: ExportPlan,
    manifest: Manifest,
    staging: Path,
    stages: _Stages,
    texts: CalibrationTexts | None,
    num_layers: int,
    weights: CheckRow,
) -> Report:
    """Verify a twin of ``num_layers`` layers, made the same way; the probes are stored without answers.

    Raises:
        ExportError: values of the twin leave fp16's range.
        VerificationError: a check failed, of the twin or of the weights.
    """
    twin = shorten_plan(plan, num_layers)
    with tempfile.TemporaryDirectory(prefix=".twin-", dir=staging.parent) as folder:
        variants, _ = _build(twin, Path(folder), stages, texts, is_twin=True)
        check_twin_range(variants, num_layers)
        report = _verify(twin, msgspec.structs.replace(manifest, limits=twin.limits), Path(folder), stages, threads=1)
        probes = load_probes(Path(folder))
    save_probes(staging, probes.texts, probes.prompt, None, None, probes.pairs, probes.queries)
    total = plan.config.num_hidden_layers
    report = msgspec.structs.replace(
        report,
        reference=f"{report.reference}; a twin of the first {num_layers} of {total} layers, and all stored tensors",
        rows=(weights, *report.rows),
    )
    check_report(report)
    return report


def _finish(manifest: Manifest, report: Report, staging: Path) -> None:
    """Write the final manifest and the model card; what could not run here is not verified."""
    ran = {row.variant for row in report.rows}
    variants = tuple(msgspec.structs.replace(variant, verified=variant.name in ran) for variant in manifest.variants)
    manifest = msgspec.structs.replace(manifest, report=report, variants=variants)
    (staging / "README.md").write_text(render_model_card(manifest), encoding="utf-8")
    _save(manifest, staging)


def _save(manifest: Manifest, staging: Path) -> None:
    complete = msgspec.structs.replace(manifest, files=record_files(staging))
    save_manifest(staging, complete)
