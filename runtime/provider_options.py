"""What ONNX Runtime is told about each execution provider. Pure: options by name, as its documentation has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from poolgraph.graphs.manifest import Graph
from poolgraph.runtime.bound_inputs import input_shape
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.providers import CUDA_PROVIDER, TENSORRT_PROVIDER

Options: TypeAlias = dict[str, str]

ProviderRow: TypeAlias = str | tuple[str, Options]
"""A provider's full name, with its options where it has any."""

TENSORRT_FOLDER: Final = "tensorrt"
"""Beside the artifact's graphs: engines and timing cache, which no manifest lists."""

BOUND_DEVICES: Final[Mapping[str, str]] = MappingProxyType({CUDA_PROVIDER: "cuda", TENSORRT_PROVIDER: "cuda"})
"""Where the buffers of providers that run in buckets are."""

BOUND_THREADS: Final = 1
"""Threads of the processor that a run of theirs takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """What a provider's options depend on; the CPU provider has none.

    Attributes:
        buckets: The shapes that will run.
        uses_graphs: Whether CUDA graphs are captured.
        gpu_mem_limit: Bytes that a session's arena may take of the device, None for all there are.
        cache_folder: Where TensorRT keeps engines and timings.
        half: Whether TensorRT may compute in fp16.
    """

    buckets: tuple[Bucket, ...] = ()
    uses_graphs: bool = True
    gpu_mem_limit: int | None = None
    cache_folder: Path | None = None
    half: bool = True


DEFAULT_SETTINGS: Final = ProviderSettings()


def build_providers(provider: str, graph: Graph, settings: ProviderSettings) -> list[ProviderRow]:
    """Return the providers of a session over a graph, the first choice first, with their options."""
    builders = _PROVIDERS.get(provider)
    if builders is None:
        return [provider]
    return [(name, build(graph, settings)) for name, build in builders]


def cuda_options(graph: Graph, settings: ProviderSettings) -> Options:
    """Return the options of the CUDA provider.

    * The arena grows by powers of two, of at most 1 GiB: with ``kSameAsRequested`` what one shape leaves free is too
      small for the next, and memory grows with every shape. Buckets are warmed up largest first, so that it stops
      growing when the model is loaded.
    * No TF32: only products in fp32 would use it, and those are poolers and heads, too small to gain by it and in fp32
      for their accuracy.
    * Copies run in the compute stream: there are none inside the graph, and a second stream would need events.
    """
    limit = {} if settings.gpu_mem_limit is None else {"gpu_mem_limit": str(settings.gpu_mem_limit)}
    return {
        "device_id": "0",
        "arena_extend_strategy": "kNextPowerOfTwo",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",
        "enable_cuda_graph": _flag(settings.uses_graphs),
        **limit,
    }


def tensorrt_options(graph: Graph, settings: ProviderSettings) -> Options:
    """Return the options of the TensorRT provider: one optimization profile a bucket length, engines kept on disk."""
    folder = "" if settings.cache_folder is None else str(settings.cache_folder)
    cache = {
        "trt_engine_cache_enable": _flag(bool(folder)),
        "trt_timing_cache_enable": _flag(bool(folder)),
    }
    paths = {"trt_engine_cache_path": folder, "trt_timing_cache_path": folder} if folder else {}
    limit = {} if settings.gpu_mem_limit is None else {"trt_max_workspace_size": str(settings.gpu_mem_limit)}
    return {
        "device_id": "0",
        "trt_fp16_enable": _flag(settings.half),
        # Sums of squares in fp16 overflow in the norms of decoders.
        "trt_layer_norm_fp32_fallback": _flag(settings.half),
        # Its own CUDA graphs leave out nodes that go to the CUDA provider.
        "trt_cuda_graph_enable": "0",
        "trt_builder_optimization_level": "3",
        **cache,
        **paths,
        **limit,
        **_build_profiles(graph, settings.buckets),
    }


def _fallback_cuda_options(graph: Graph, settings: ProviderSettings) -> Options:
    """Return the options for nodes that TensorRT leaves: no CUDA graph, which would have to be captured of both."""
    return cuda_options(graph, settings) | {"enable_cuda_graph": "0"}


def _build_profiles(graph: Graph, buckets: Sequence[Bucket]) -> Options:
    """Return the shapes of optimization profiles: a profile a length, up to the largest batch, which it is tuned for.

    A profile begins at the length below it, with one text: texts that are not of a bucket's shape still run. Each input
    has as many shapes in an option as there are profiles, in the order of their lengths.
    """
    largest = {bucket.max_length: bucket for bucket in sorted(buckets)}
    starts = [1, *sorted(largest)][: len(largest)]
    if not largest:
        return {}
    tuned = _join_shapes(graph, list(largest.values()))
    return {
        "trt_profile_min_shapes": _join_shapes(graph, [Bucket(max_length=start, batch_size=1) for start in starts]),
        "trt_profile_opt_shapes": tuned,
        "trt_profile_max_shapes": tuned,
    }


def _join_shapes(graph: Graph, buckets: Sequence[Bucket]) -> str:
    return ",".join(
        f"{tensor.name}:{'x'.join(map(str, input_shape(tensor, bucket)))}"
        for bucket in buckets
        for tensor in graph.inputs
    )


def _flag(value: bool) -> str:
    return "1" if value else "0"


_Build: TypeAlias = Callable[[Graph, ProviderSettings], Options]

_PROVIDERS: Final[Mapping[str, Sequence[tuple[str, _Build]]]] = MappingProxyType(
    {
        CUDA_PROVIDER: ((CUDA_PROVIDER, cuda_options),),
        TENSORRT_PROVIDER: ((TENSORRT_PROVIDER, tensorrt_options), (CUDA_PROVIDER, _fallback_cuda_options)),
    }
)
