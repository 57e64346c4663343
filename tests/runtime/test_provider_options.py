"""What ONNX Runtime is told: golden options of CUDA and TensorRT for a set of buckets."""

from __future__ import annotations

from pathlib import Path

from poolgraph.graphs.manifest import Graph, Tensor
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.provider_options import ProviderSettings, build_providers

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

GRAPH = Graph(
    file="g.onnx",
    inputs=tuple(
        Tensor(name=name, dtype="int64", shape=("batch_size", "sequence_length"))
        for name in ("input_ids", "attention_mask")
    ),
    outputs=(),
    raw_output="pooled",
)
BUCKETS = (
    Bucket(max_length=512, batch_size=8),
    Bucket(max_length=64, batch_size=64),
    Bucket(max_length=64, batch_size=1),
    Bucket(max_length=512, batch_size=1),
)


def test_cuda():
    assert build_providers(CUDA, GRAPH, ProviderSettings(buckets=BUCKETS, gpu_mem_limit=1 << 30)) == [
        (
            CUDA,
            {
                "device_id": "0",
                "arena_extend_strategy": "kNextPowerOfTwo",
                "do_copy_in_default_stream": "1",
                "use_tf32": "0",
                "enable_cuda_graph": "1",
                "gpu_mem_limit": "1073741824",
            },
        )
    ]


def test_cuda_without_graphs_and_limit():
    [(_, options)] = build_providers(CUDA, GRAPH, ProviderSettings(uses_graphs=False))
    assert options["enable_cuda_graph"] == "0"
    assert "gpu_mem_limit" not in options


def test_tensorrt():
    settings = ProviderSettings(buckets=BUCKETS, uses_graphs=True, cache_folder=Path("a/tensorrt"))
    (name, options), (fallback, cuda) = build_providers(TENSORRT, GRAPH, settings)
    assert (name, fallback) == (TENSORRT, CUDA)
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_cuda_graph_enable": "0",
        "trt_builder_optimization_level": "3",
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_engine_cache_path": "a/tensorrt",
        "trt_timing_cache_path": "a/tensorrt",
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1,input_ids:1x64,attention_mask:1x64",
        "trt_profile_opt_shapes": "input_ids:64x64,attention_mask:64x64,input_ids:8x512,attention_mask:8x512",
        "trt_profile_max_shapes": "input_ids:64x64,attention_mask:64x64,input_ids:8x512,attention_mask:8x512",
    }
    assert cuda["enable_cuda_graph"] == "0"


def test_tensorrt_in_fp32_without_a_cache():
    (_, options), _ = build_providers(TENSORRT, GRAPH, ProviderSettings(half=False, gpu_mem_limit=5))
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_layer_norm_fp32_fallback": "0",
        "trt_cuda_graph_enable": "0",
        "trt_builder_optimization_level": "3",
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
        "trt_max_workspace_size": "5",
    }


def test_the_cpu_is_told_nothing():
    assert build_providers(CPU, GRAPH, ProviderSettings(buckets=BUCKETS)) == [CPU]
