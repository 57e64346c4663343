"""Building: a plan to the module that is traced, and the trace to graphs with bound weights."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import onnx_ir as ir
from torch import nn

from poolgraph.export.bind import bind_weights
from poolgraph.export.head import build_head, build_steps
from poolgraph.export.pooling_module import PoolingModule
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.trace import TraceInputs, fake_parameters, trace_module
from poolgraph.export.unread import check_unread
from poolgraph.graphs.families import AnswerKind, finished_name, select_family, select_raw
from poolgraph.graphs.manifest import FloatRange, Graph, Quantization, Rewrites, Tensor, Variant
from poolgraph.graphs.passes import run_passes
from poolgraph.graphs.pipeline import Target, semantic_passes
from poolgraph.poolers.pooling import Pooling
from poolgraph.tasks import GraphFamily

FAMILY_SUFFIX: dict[GraphFamily, str] = {"sequence": "", "token": "_tokens"}


@dataclass(frozen=True, slots=True)
class LoweredVariant:
    """A variant of the manifest and its models by file name."""

    variant: Variant
    models: dict[str, ir.Model]


def build_module(plan: ExportPlan) -> PoolingModule:
    """Build backbone, pooling and head with fake parameters.

    Raises:
        UnsupportedArchitecture: tensors of the checkpoint's layers that the backbone does not read.
    """
    with fake_parameters():
        backbone = plan.family.build_backbone(plan.model_class, plan.config)
        head = build_head(plan.head)
        row_head = nn.Sequential(*build_steps(plan.head.rows))
    check_unread(plan, backbone)
    module = PoolingModule(
        backbone,
        None if plan.head.pooling is None else Pooling(plan.head.pooling),
        head,
        row_head=row_head,
        kind=plan.head.kind,
        position_offset=plan.position_offset,
        has_token_types=getattr(plan.config, "type_vocab_size", 0) > 0,
        head_takes_rows=plan.token_size is not None,
    )
    return module.eval()


def trace_inputs(plan: ExportPlan) -> TraceInputs:
    """Decide the optional inputs.

    Token types where there are several, the prompt's length where pooling needs it, and which tokens are attended to
    where queries are filled up with tokens that are not.
    """
    late = plan.late_interaction
    return TraceInputs(
        token_type_ids=plan.has_token_types,
        prompt_length=not plan.sentence_transformer.include_prompt,
        attended_mask=late is not None and late.query_expansion is not None and not late.query_expansion.attend,
    )


def trace_layout(
    plan: ExportPlan, module: PoolingModule, layout: str, uniform: ir.Model | None = None
) -> tuple[ir.Model, tuple[Rewrites, ...]]:
    """Trace one layout, bind the checkpoint's tensors and run the passes that all targets share.

    Args:
        plan: What is exported.
        module: Of the plan.
        layout: Which to trace.
        uniform: The semantic graph of the uniform layout, whose initializers another one shares.
    """
    model = trace_module(module, layout, trace_inputs(plan), plan.limits.max_model_len)
    bind_weights(model, plan.backbone.open_weights(), plan.model_class.base_model_prefix, plan.head.tensors())
    return model, run_passes(model, semantic_passes(uniform))


def lower_variant(
    semantic: ir.Model,
    reports: tuple[Rewrites, ...],
    target: Target,
    kind: AnswerKind,
    *,
    quantization: Quantization | None = None,
    float_range: FloatRange | None = None,
) -> LoweredVariant:
    """Lower the semantic graph for one target: one model a family; what was decided of its precision is recorded."""
    models: dict[str, ir.Model] = {}
    graphs: dict[str, Graph] = {}
    for family, suffix in FAMILY_SUFFIX.items():
        model = select_family(semantic, family, finished=target.finished_outputs)
        if model is None:
            continue
        passes = (*target.sequence_passes, *target.passes) if family == "sequence" else target.passes
        lowered = run_passes(model, passes)
        reports = reports if graphs else (*reports, *lowered)
        file = f"{target.file_stem}{suffix}.onnx"
        models[file] = model
        graphs[family] = _describe_graph(model, f"onnx/{file}", finished_name(kind, family))
    variant = _describe_variant(target, graphs)
    changed = msgspec.structs.replace(variant, quantization=quantization, float_range=float_range, passes=reports)
    return LoweredVariant(changed, models)


def lower_together(semantic: ir.Model, target: Target) -> LoweredVariant:
    """Lower the semantic graph for one target to one model with the raw outputs of all families, which share a run."""
    model, names = select_raw(semantic)
    run_passes(model, target.passes)
    file = f"{target.file_stem}.onnx"
    graph = _describe_graph(model, f"onnx/{file}", "")
    graphs: dict[str, Graph] = {
        family: msgspec.structs.replace(graph, raw_output=name) for family, name in names.items()
    }
    return LoweredVariant(_describe_variant(target, graphs), {file: model})


def _describe_variant(target: Target, graphs: dict[str, Graph]) -> Variant:
    return Variant(
        name=target.variant_name,
        target=target.name,
        precision=target.precision,
        layout=target.layout,
        providers=target.providers,
        graphs=graphs,
        cpu_features=target.cpu_features,
        operators=target.operators,
        session_options=dict(target.session_options),
    )


def _describe_graph(model: ir.Model, file: str, finished: str) -> Graph:
    outputs = tuple(_describe(value) for value in model.graph.outputs)
    return Graph(
        file=file,
        inputs=tuple(_describe(value) for value in model.graph.inputs),
        outputs=outputs,
        raw_output=outputs[0].name,
        output=finished if finished in [output.name for output in outputs] else None,
    )


def _describe(value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
    return Tensor(name=str(value.name), dtype=str(value.dtype.numpy()), shape=axes)
