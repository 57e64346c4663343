"""The pipelines: which passes run, in which order, for which target."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx_ir as ir

from poolgraph.graphs.cleanup import clear_notes, fold_constants, remove_dead_nodes
from poolgraph.graphs.convert_float import convert_floats
from poolgraph.graphs.expand_products import expand_products
from poolgraph.graphs.fold_attention_biases import drop_key_biases, fold_value_biases
from poolgraph.graphs.fold_reshapes import fold_reshapes
from poolgraph.graphs.fold_transposes import fold_transposes, store_transposed_weights
from poolgraph.graphs.fuse_activations import fuse_activations, fuse_gates
from poolgraph.graphs.fuse_bias_products import fuse_bias_products
from poolgraph.graphs.fuse_experts import fuse_experts
from poolgraph.graphs.fuse_feed_forward import fuse_feed_forward
from poolgraph.graphs.fuse_gelu import fuse_gelu
from poolgraph.graphs.fuse_residual_norm import fuse_norms, fuse_residuals
from poolgraph.graphs.fuse_rms_norm import fuse_rms_norm
from poolgraph.graphs.fuse_rotary import fuse_rotary
from poolgraph.graphs.fuse_skip_norm import fuse_skip_norms
from poolgraph.graphs.lower_attention import lower_attention_to_cpu, lower_attention_to_standard
from poolgraph.graphs.lower_attention_cuda import keep_scores, lower_attention_to_cuda
from poolgraph.graphs.lower_attention_native import lower_attention_to_native, lower_attention_to_native_float
from poolgraph.graphs.lower_distance_biases import lower_distance_biases
from poolgraph.graphs.lower_logarithms import lower_logarithms
from poolgraph.graphs.lower_products import lower_products_to_bfloat, lower_products_to_native
from poolgraph.graphs.lower_scan import lower_selective_scan
from poolgraph.graphs.lower_scan_cuda import fuse_causal_conv, lower_scan_to_linear_attention
from poolgraph.graphs.lower_text_sums import lower_text_sums
from poolgraph.graphs.manifest import CUDA_OPERATORS, NATIVE_OPERATORS
from poolgraph.graphs.merge_projections import merge_projections
from poolgraph.graphs.note_routers import note_routers
from poolgraph.graphs.passes import Pass
from poolgraph.graphs.push_pooling import note_products_as_in, note_row_products, push_pooling
from poolgraph.graphs.split_projections import split_projections
from poolgraph.graphs.unflatten_products import unflatten_products

SEMANTIC_PASSES: tuple[Pass, ...] = (
    store_transposed_weights,  # before fold_constants, which would compute small ones under other names
    fold_constants,
    fold_transposes,
    unflatten_products,
    fold_reshapes,  # after fold_transposes: the reshapes around a pair meet only then
    remove_dead_nodes,
    note_routers,
    note_row_products,  # before merge_projections, which leaves them
    merge_projections,
    remove_dead_nodes,
)
"""From the trace to the semantic graph that every target starts from, so that all share the same initializers."""


def semantic_passes(uniform: ir.Model | None) -> tuple[Pass, ...]:
    """Return SEMANTIC_PASSES for another layout of a model whose semantic graph of the uniform layout there is."""
    if uniform is None:
        return SEMANTIC_PASSES
    return tuple(note_products_as_in(uniform) if it is note_row_products else it for it in SEMANTIC_PASSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How one target is lowered and run.

    Attributes:
        name: The variant's name, together with the precision.
        word: Word of ``--target``; portable is always made.
        layout: Layout that is traced for it.
        precision: Precision of this row.
        sequence_passes: Passes of the sequence graph alone, before all others.
        passes: Lowering passes.
        file_stem: Name of its files below ``onnx/``, without suffix.
        providers: Execution providers that run it.
        finished_outputs: Whether the graph returns the finished value beside the raw one.
        session_options: Session configuration for the runtime.
        cpu_features: Instruction sets that the processor must have; an entry may name several, of which one suffices.
        operators: The library of operators that the graphs need, None for ONNX Runtime's own alone.
    """

    name: str
    word: str
    layout: str
    precision: str
    passes: tuple[Pass, ...]
    file_stem: str
    providers: tuple[str, ...]
    finished_outputs: bool
    session_options: Mapping[str, str]
    cpu_features: tuple[str, ...] = ()
    operators: str | None = None
    sequence_passes: tuple[Pass, ...] = ()

    @property
    def variant_name(self) -> str:
        """The variant's name in the manifest."""
        return f"{self.name}_{self.precision}"


PORTABLE = Target(
    name="portable",
    word="portable",
    layout="padded",
    precision="fp32",
    passes=(lower_attention_to_standard, lower_distance_biases, lower_selective_scan, remove_dead_nodes, clear_notes),
    file_stem="model",
    providers=("CPUExecutionProvider",),
    finished_outputs=True,
    session_options=MappingProxyType({"graph_optimization_level": "extended"}),
)

CPU_FP32 = Target(
    name="cpu",
    word="cpu",
    layout="uniform",
    precision="fp32",
    sequence_passes=(push_pooling,),
    passes=(
        fuse_rms_norm,
        remove_dead_nodes,  # what was fused reads its rows no more, and so does not stand in the way of other fusions
        lower_attention_to_cpu,
        lower_distance_biases,
        lower_selective_scan,
        lower_logarithms,
        remove_dead_nodes,
        clear_notes,
    ),
    file_stem="model_cpu_fp32",
    providers=("CPUExecutionProvider",),
    finished_outputs=False,
    # The graph is in its final form: what ONNX Runtime would still fuse (SkipLayerNormalization) is slower here.
    session_options=MappingProxyType({"graph_optimization_level": "basic"}),
)

EXACT_INT8 = MappingProxyType(
    {
        "session.x64quantprecision": "1",
        "graph_optimization_level": "extended",
        "disabled_optimizers": "BiasGeluFusion,FastGeluFusion,GatherSliceToSplitFusion,GemmActivationFusion,"
        "MatMulScaleFusion,MatmulTransposeFusion,QuickGeluFusion,SkipLayerNormFusion",
    }
)
"""Sums of products of bytes that saturate on no processor. On x86 without VNNI, ONNX Runtime adds pairs in 16 bits,
unless its optimizer may make the weights unsigned, at a level that would fuse besides. Elsewhere nothing changes."""

CPU_INT8 = replace(CPU_FP32, precision="int8", file_stem="model_cpu_int8", session_options=EXACT_INT8)
"""The pass that quantizes comes first; the export makes it, with recipes from calibration."""


def _native_passes(*lower_attention: Pass, lower_products: tuple[Pass, ...] = ()) -> tuple[Pass, ...]:
    return (
        fuse_rms_norm,
        remove_dead_nodes,
        *lower_products,
        lower_products_to_native,  # those that neither were quantized nor are rounded
        fuse_activations,
        fuse_gates,
        fuse_experts,
        remove_dead_nodes,  # what the experts' rows went through
        fuse_feed_forward,  # before the norms: a product that has one does not stand in the middle
        fuse_residuals,
        fuse_norms,
        *lower_attention,
        lower_attention_to_native_float,
        lower_attention_to_cpu,  # what no native operator computes: masks, biases of packed texts
        lower_distance_biases,  # those that no native attention has taken
        lower_selective_scan,
        lower_logarithms,
        remove_dead_nodes,
        clear_notes,
    )


NATIVE_FP32 = replace(
    CPU_FP32,
    name="native",
    file_stem="model_native_fp32",
    passes=_native_passes(),
    cpu_features=("avx2", "fma"),
    operators=NATIVE_OPERATORS,
)
"""On this package's own operators, which take in what stands around a product: the fastest, where they load."""

NATIVE_INT8 = replace(
    NATIVE_FP32,
    precision="int8",
    file_stem="model_native_int8",
    passes=_native_passes(lower_attention_to_native),
)


NATIVE_BF16 = replace(
    NATIVE_FP32,
    precision="bf16",
    file_stem="model_native_bf16",
    passes=_native_passes(lower_attention_to_native, lower_products=(lower_products_to_bfloat,)),
)
"""Products of numbers rounded to bfloat16, half the memory of float32; where the processor has no instruction for them,
they are computed in float32, to the same answers but for subnormal numbers. It shares all its weights with float32."""


def packed_native(target: Target) -> Target:
    """Return a native target in the packed layout, which takes its place for models that have one.

    There batches of any lengths are full.
    """
    return replace(target, layout="packed", passes=(lower_text_sums, *target.passes))


PORTABLE_INT8 = replace(PORTABLE, precision="int8", file_stem="model_int8")
"""Weights in 8 bits behind a DequantizeLinear: what any processor and any ONNX runtime can run. ONNX Runtime makes
MatMulNBits of such products, which rounds their rows, too; the gate judges what it answers."""

PACKED_FP32 = Target(
    name="packed",
    word="packed",
    layout="packed",
    precision="fp32",
    passes=(lower_attention_to_standard, lower_distance_biases, remove_dead_nodes, clear_notes),
    file_stem="model_packed_fp32",
    providers=("CPUExecutionProvider",),
    finished_outputs=False,
    session_options=MappingProxyType({"graph_optimization_level": "extended"}),
)
"""The packed layout on standard operators, whose mask is blocks: what any machine can check packed graphs with. No
artifact has it."""

CUDA_PROJECTIONS: tuple[Pass, ...] = (
    split_projections,
    fold_reshapes,
    fuse_rms_norm,
    remove_dead_nodes,
    fuse_rotary,
    drop_key_biases,
    fold_value_biases,
    remove_dead_nodes,
)
"""What a GPU's graphs go through before attention is lowered; values keep their names from here on."""

_CUDA_FUSIONS: tuple[Pass, ...] = (
    remove_dead_nodes,
    fuse_causal_conv,
    expand_products,
    fold_reshapes,
    fuse_gelu,
    fuse_skip_norms,
)


def _cuda_lowering(lower_attention: Pass) -> tuple[Pass, ...]:
    return (
        *CUDA_PROJECTIONS,
        lower_attention,
        lower_distance_biases,
        lower_scan_to_linear_attention,
        *_CUDA_FUSIONS,
    )


CUDA_LOWERING = _cuda_lowering(lower_attention_to_cuda)
"""What a GPU's graphs of any precision go through."""

CUDA_PROBED: tuple[Pass, ...] = (
    lower_attention_to_standard,
    lower_distance_biases,
    lower_scan_to_linear_attention,
    *_CUDA_FUSIONS,
)
"""The same behind CUDA_PROJECTIONS with attention that a CPU runs: for measuring the range of values."""


def cuda_passes(precision: str, kept: Collection[str] = (), *, operators: str | None = None) -> tuple[Pass, ...]:
    """Return the passes of a GPU's graphs; the nodes of the values ``kept`` stay in float32."""
    own = (fuse_bias_products, remove_dead_nodes) if operators == CUDA_OPERATORS else ()
    lowering = _cuda_lowering(keep_scores(kept)) if kept else CUDA_LOWERING
    return (*lowering, convert_floats(precision, kept), remove_dead_nodes, *own, clear_notes)


CUDA_FP16 = Target(
    name="cuda",
    word="cuda",
    layout="padded",
    precision="fp16",
    passes=cuda_passes("fp16"),
    file_stem="model_cuda_fp16",
    providers=("CUDAExecutionProvider",),
    finished_outputs=False,
    session_options=MappingProxyType({"graph_optimization_level": "basic"}),
)
"""Texts padded on the right, for the kernels that take lengths; the attention of decoders is causal."""

CUDA_BF16 = replace(CUDA_FP16, precision="bf16", passes=cuda_passes("bf16"), file_stem="model_cuda_bf16")

CUDA_PACKED_FP16 = replace(CUDA_FP16, name="cuda_packed", layout="packed", file_stem="model_cuda_packed_fp16")
"""Texts end to end, without padding, for encoders; its attention kernel has no bf16."""


def _on_cublaslt(target: Target, name: str) -> Target:
    """Return a GPU's target with this package's products in the place of ONNX Runtime's."""
    return replace(
        target,
        name=name,
        word="cublaslt",
        passes=cuda_passes(target.precision, operators=CUDA_OPERATORS),
        file_stem=f"model_{name}_{target.precision}",
        operators=CUDA_OPERATORS,
    )


CUBLASLT_PACKED_FP16 = _on_cublaslt(CUDA_PACKED_FP16, "cublaslt_packed")
CUBLASLT_FP16 = _on_cublaslt(CUDA_FP16, "cublaslt")
CUBLASLT_BF16 = _on_cublaslt(CUDA_BF16, "cublaslt")
"""Products that take in their bias and GELU: a pass less over the rows each. Made where they are asked for by name."""

TARGETS: tuple[Target, ...] = (
    PORTABLE,
    PORTABLE_INT8,
    NATIVE_FP32,
    CPU_FP32,
    NATIVE_INT8,
    CPU_INT8,
    NATIVE_BF16,
    CUDA_PACKED_FP16,
    CUDA_FP16,
    CUDA_BF16,
    CUBLASLT_PACKED_FP16,
    CUBLASLT_FP16,
    CUBLASLT_BF16,
)
