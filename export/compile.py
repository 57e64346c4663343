"""Compiling: a plan to the graphs of all its targets, and those to files with what lies beside them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from poolgraph.export.build import LoweredVariant, build_module, trace_layout
from poolgraph.export.half import plan_half
from poolgraph.export.int8 import plan_int8
from poolgraph.export.job import ExportJob
from poolgraph.export.lower_targets import Reduced, check_capturable, choose_packed, drop_idle, lower_target
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.scoring import TEMPLATE_FILE
from poolgraph.export.static_query import save_static_query
from poolgraph.export.tokenizer import save_tokenizer
from poolgraph.export.twin import Sources, WeightSizes, collect_sources, measure_weights
from poolgraph.graphs.manifest import Rewrites, Variant
from poolgraph.graphs.pipeline import Target
from poolgraph.graphs.storage import save_graphs

Semantic = Mapping[str, tuple[ir.Model, tuple[Rewrites, ...]]]
"""By layout, the graph that its targets are lowered from and what its passes rewrote."""

Stored = tuple[Mapping[str, ir.Model], Sources, WeightSizes]
"""Models by file name, the tensors that their files were written from, and the size of the checkpoint's."""

WEIGHTS_FILE = "weights.data"

LAYOUT_ORDER = ("uniform", "padded", "packed")
"""Order of the traces: the first decides which products are kept apart, the second whether there is a third."""

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


def compile_checkpoint(job: ExportJob) -> tuple[list[Variant], Stored]:
    """Compile and write; return the variants, and the models as written with the tensors behind them.

    Raises:
        ExportError: the checkpoint cannot be compiled; its leaves say why.
    """
    lowered, sizes = _compile(job)
    models = {file: model for item in lowered for file, model in item.models.items()}
    sources = collect_sources(models)
    with job.stages.stage("write the graphs"):
        _write(job, models)
    return [item.variant for item in lowered], (models, sources, sizes)


def _compile(job: ExportJob) -> tuple[list[LoweredVariant], WeightSizes]:
    """Lower each target; return the variants, and how large the weights are before any is quantized."""
    semantic, targets = _trace(job)
    sizes = measure_weights(collect_sources({layout: model for layout, (model, _) in semantic.items()}))
    reduced = _reduce(job, semantic, targets, sizes)
    with job.stages.stage("lower"):
        lowered = drop_idle([lower_target(job.plan, *semantic[it.layout], it, reduced) for it in targets])
    check_capturable(lowered)
    return lowered, sizes


def _trace(job: ExportJob) -> tuple[Semantic, tuple[Target, ...]]:
    """Trace each layout once; return their graphs, and the targets that the model has graphs for."""
    module = build_module(job.plan)
    semantic: dict[str, tuple[ir.Model, tuple[Rewrites, ...]]] = {}
    targets = job.plan.targets
    for layout in LAYOUT_ORDER:
        if layout == "packed":
            targets = choose_packed(job.plan, targets, semantic["padded"][0])
        if not any(_needs_layout(target, layout) for target in targets):
            continue
        uniform = semantic["uniform"][0] if "uniform" in semantic else None
        with job.stages.stage(f"trace ({layout})"):
            semantic[layout] = trace_layout(job.plan, module, layout, uniform)
    return semantic, targets


def _needs_layout(target: Target, layout: str) -> bool:
    """Whether a target is lowered from a layout, or its int8 chosen by it: by the uniform one, whatever the target."""
    return target.layout == layout or (layout == "uniform" and target.precision == "int8")


def _reduce(job: ExportJob, semantic: Semantic, targets: Sequence[Target], sizes: WeightSizes) -> Reduced:
    """Decide what is quantized and what stays in float32: by the texts, unless the model is too large to run here."""
    plan, precisions = job.plan, {target.precision for target in targets}
    texts = None if job.twin_layers(sizes) is not None else job.texts
    reduced = Reduced()
    if "int8" in precisions:
        with job.stages.stage("calibrate int8"):
            reduced = replace(reduced, int8=plan_int8(plan, semantic["uniform"][0], None if job.is_twin else texts))
    if "fp16" in precisions:
        with job.stages.stage("probe the range of fp16"):
            layouts = {target.layout for target in targets if target.precision == "fp16"}
            half = {layout: plan_half(plan, semantic[layout][0], texts) for layout in sorted(layouts)}
            reduced = replace(reduced, half=half)
    return reduced


def _write(job: ExportJob, models: Mapping[str, ir.Model]) -> None:
    """Write graphs, weights, tokenizer and the checkpoint's own small files."""
    plan, folder = job.plan, job.folder
    (folder / "onnx").mkdir()
    save_graphs(models, folder / "onnx", WEIGHTS_FILE)
    save_tokenizer(plan.tokenizer, plan.backbone.folder, folder, list(PROBE_SENTENCES))
    save_static_query(plan.static, folder)
    _copy_files(job, plan.checkpoint.folder)
    if plan.template is not None:
        (folder / TEMPLATE_FILE).write_text(plan.template, encoding="utf-8")


def _copy_files(job: ExportJob, checkpoint: Path) -> None:
    for name in COPIED_FILES:
        source = checkpoint if (checkpoint / name).is_file() else job.plan.backbone.folder
        if (source / name).is_file():
            shutil.copyfile(source / name, job.folder / name)
    for config in sorted(checkpoint.glob("[0-9]_*/config.json")):
        (job.folder / config.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(config, job.folder / config.parent.name / config.name)
