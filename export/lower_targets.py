"""Each target's variant from its layout's semantic graph, with what was decided of reduced precisions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from poolgraph.errors import ExportError, Float16RangeError
from poolgraph.export.build import LoweredVariant, lower_variant
from poolgraph.export.half import HalfPlan
from poolgraph.export.int8 import Int8Plan
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.check_cuda import check_cuda
from poolgraph.graphs.fuse_bias_products import has_bias_products
from poolgraph.graphs.lower_attention_cuda import fits_packed
from poolgraph.graphs.lower_attention_native import fits_native_packed
from poolgraph.graphs.manifest import CUDA_OPERATORS, NATIVE_OPERATORS, Quantization, Rewrites, Variant
from poolgraph.graphs.note_routers import router_weights
from poolgraph.graphs.pipeline import Target, cuda_passes, packed_native

MOST_FINDINGS = 3
"""Nodes that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What was decided of the reduced precisions asked for."""

    int8: Int8Plan | None = None
    half: Mapping[str, HalfPlan] = field(default_factory=dict)
    """By layout."""


def choose_packed(plan: ExportPlan, targets: Sequence[Target], padded: ir.Model) -> tuple[Target, ...]:
    """Leave out the packed targets that a model has no graph for; packed native ones take the uniform ones' place.

    A maximum over tokens would hold every row once a text, so that packing is not worth it. Nor do native ones try it
    with a class that has no row in the table, which may mix tokens by other means than attention.

    Args:
        plan: What is exported.
        targets: What was asked for.
        padded: The semantic graph of the padded layout.
    """
    if "max" in (plan.head.pooling or ()):
        return tuple(target for target in targets if target.layout != "packed")
    kept = [it for it in targets if it.layout != "packed" or fits_packed(padded)]
    if not (plan.backbone.has_row and fits_native_packed(padded)):
        return tuple(kept)
    return tuple(packed_native(it) if it.operators == NATIVE_OPERATORS else it for it in kept)


def lower_target(
    plan: ExportPlan, semantic: ir.Model, reports: tuple[Rewrites, ...], target: Target, reduced: Reduced
) -> LoweredVariant:
    """Lower one target, with the scales that int8 was given, or the values that stay in float32 of fp16."""
    if target.precision == "int8" and reduced.int8 is not None:
        target, quantization = reduced.int8.for_target(target)
        return lower_variant(semantic, reports, target, plan.head.kind, quantization=quantization)
    if target.precision == "fp16" and target.layout in reduced.half:
        half = reduced.half[target.layout]
        target = replace(target, passes=cuda_passes("fp16", half.kept, operators=target.operators))
        return lower_variant(semantic, reports, target, plan.head.kind, float_range=half.record)
    return lower_variant(semantic, reports, target, plan.head.kind, quantization=_note_routers(target, semantic))


def _note_routers(target: Target, semantic: ir.Model) -> Quantization | None:
    """Return the record of native bf16 where products choose experts: they stay in float32, as in int8."""
    rounds = target.precision == "bf16" and target.operators == NATIVE_OPERATORS
    routers = router_weights(semantic) if rounds else ()
    return Quantization(routers=routers) if routers else None


def drop_idle(lowered: Sequence[LoweredVariant]) -> list[LoweredVariant]:
    """Leave out the variants on this package's products for CUDA whose graphs have none of them, with a warning.

    Raises:
        ExportError: nothing but the portable variant is left.
    """
    idle = [it.variant.name for it in lowered if it.variant.operators == CUDA_OPERATORS and not _has_products(it)]
    kept = [it for it in lowered if it.variant.name not in idle]
    if idle:
        why = "none of the model's products has a bias for cuBLASLt to take in"
        if all(it.variant.target == "portable" for it in kept):
            raise ExportError(f"{why}: choose --target cuda")
        warnings.warn(f"{', '.join(idle)} left out: {why}", stacklevel=2)
    return kept


def _has_products(lowered: LoweredVariant) -> bool:
    return any(has_bias_products(model) for model in lowered.models.values())


def check_capturable(lowered: Sequence[LoweredVariant]) -> None:
    """Check that the graphs for CUDA run there from end to end, and can be captured.

    Raises:
        ExportError: naming the nodes that do not.
        Float16RangeError: likewise, where values of the graph stay in float32.
    """
    for item in lowered:
        if "CUDAExecutionProvider" not in item.variant.providers:
            continue
        for file, model in item.models.items():
            findings = check_cuda(model)
            if findings:
                named = "; ".join(str(finding) for finding in findings[:MOST_FINDINGS])
                raise _refuse(f"{file} would leave the GPU at {len(findings)} nodes: {named}", item.variant)


def _refuse(why: str, variant: Variant) -> ExportError:
    kept = variant.float_range.float32 if variant.float_range is not None else ()
    if not kept:
        return ExportError(why)
    return Float16RangeError(f"{why}. In float32, beyond the range of fp16, are {', '.join(kept)}")
