"""The target and the precision that a checkpoint is exported for."""

from __future__ import annotations

import pytest

from poolgraph.errors import InputError, ProviderError
from poolgraph.graphs.pipeline import TARGETS
from poolgraph.runtime.export_precision import MADE_FOR, VARIANTS, plan_precision
from poolgraph.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, PROVIDER_NAMES, TENSORRT_PROVIDER, Wish

CPU, GPU = (CPU_PROVIDER,), (CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER)
FOR_CUDA = {"target": "cuda"}


@pytest.mark.parametrize(
    ("wish", "here", "options"),
    [
        (Wish(), CPU, {}),
        (Wish(), GPU, FOR_CUDA),
        (Wish(fallback=True), GPU, FOR_CUDA),
        (Wish(precision="fp32"), GPU, {}),
        (Wish(precision="int8"), GPU, {"precision": "int8"}),
        (Wish(precision="bf16"), CPU, {"precision": "bf16"}),
        (Wish(precision="bf16"), GPU, {"precision": "bf16"} | FOR_CUDA),
        (Wish(precision="bf16", provider="cpu"), GPU, {"precision": "bf16"}),
        (Wish(precision="fp16"), GPU, {"precision": "fp16"} | FOR_CUDA),
        (Wish(provider="cuda"), GPU, FOR_CUDA),
        (Wish(provider="cpu"), GPU, {}),
        (Wish(provider="cuda", fallback=True), CPU, {}),
        (Wish(provider="tensorrt", fallback=True), (CPU_PROVIDER, CUDA_PROVIDER), FOR_CUDA),
        (Wish(precision="bf16", provider="cuda", fallback=True), CPU, {"precision": "bf16"}),
        (Wish(precision="fp16", provider="tensorrt"), GPU, {}),
        (Wish(provider="tensorrt"), GPU, {}),
    ],
)
def test_options(wish, here, options):
    assert plan_precision(wish, here.__contains__) == options


@pytest.mark.parametrize(
    ("wish", "here", "error", "message"),
    [
        (Wish(precision="fp16"), CPU, ProviderError, "precision 'fp16' is for a GPU: provider CUDA.* does not load"),
        (Wish(precision="fp16", provider="cuda", fallback=True), CPU, ProviderError, "is for a GPU"),
        (Wish(provider="cuda"), CPU, ProviderError, "CUDAExecutionProvider does not load.*fallback=True"),
        (Wish(provider="npu"), CPU, ProviderError, "unknown provider 'npu'"),
        (
            Wish(precision="bfloat16"),
            CPU,
            InputError,
            r"unknown precision 'bfloat16'; an export makes \['bf16', 'fp16'",
        ),
        (Wish(precision=""), CPU, InputError, "unknown precision ''"),
        (Wish(precision="int8", provider="cuda"), GPU, InputError, "in int8 for CUDAEx.*, but in fp16 or bf16"),
        (Wish(precision="fp16", provider="cpu"), GPU, InputError, "in fp16 for CPUEx.*, but in fp32 or int8 or bf16"),
        (Wish(precision="bf16", provider="tensorrt"), GPU, InputError, "in bf16 for Tensorrt.*, but in fp32 or fp16"),
    ],
)
def test_what_no_export_makes_is_refused_before_it(wish, here, error, message):
    with pytest.raises(error, match=message):
        plan_precision(wish, here.__contains__)


CPU_IN_INT8 = {"precision": "int8"}
IN_HALF = {"precision": "fp16"}


@pytest.mark.parametrize(
    ("wish", "here", "options"),
    [
        (Wish(variant="portable_fp32"), GPU, {}),
        (Wish(variant="portable_int8"), GPU, CPU_IN_INT8),
        (Wish(variant="native_fp32"), GPU, {}),
        (Wish(variant="native_bf16", precision="bf16"), GPU, {"precision": "bf16"}),
        (Wish(variant="cpu_int8", provider="cpu", precision="int8"), GPU, CPU_IN_INT8),
        (Wish(variant="cuda_fp16"), GPU, FOR_CUDA | IN_HALF),
        (Wish(variant="cuda_bf16", provider="cuda"), GPU, FOR_CUDA | {"precision": "bf16"}),
        (Wish(variant="cuda_packed_fp16", precision="fp16"), GPU, FOR_CUDA | IN_HALF),
        (Wish(variant="cublaslt_bf16"), GPU, {"target": "cublaslt", "precision": "bf16"}),
        (Wish(variant="cublaslt_packed_fp16", provider="cuda"), GPU, {"target": "cublaslt"} | IN_HALF),
        (Wish(variant="portable_fp32", provider="tensorrt"), GPU, {}),
        (Wish(variant="portable_fp32", provider="tensorrt", precision="fp16"), GPU, {}),
        (Wish(variant="portable_fp32", provider="tensorrt", fallback=True), CPU, {}),
    ],
)
def test_options_of_a_variant(wish, here, options):
    assert plan_precision(wish, here.__contains__) == options


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        (
            Wish(variant="cuda"),
            InputError,
            r"unknown variant 'cuda'; an export makes \['portable_fp32', 'portable_int8'",
        ),
        (Wish(variant="cpu_bf16"), InputError, "unknown variant 'cpu_bf16'"),
        (Wish(variant="cuda_packed_bf16"), InputError, "unknown variant 'cuda_packed_bf16'"),
        (Wish(variant=""), InputError, "unknown variant ''"),
        (Wish(variant="cuda_fp16", precision="fp4"), InputError, "unknown precision 'fp4'"),
        (Wish(variant="cuda_fp16", precision="bf16"), InputError, "'cuda_fp16' is in fp16, but precision 'bf16' is"),
        (Wish(variant="cpu_fp32", precision="int8"), InputError, "'cpu_fp32' is in fp32, but precision 'int8' is"),
        (Wish(variant="portable_int8", provider="tensorrt"), InputError, "'portable_int8' runs on CPUExec.*'tensorrt'"),
        (Wish(variant="cuda_fp16", provider="cpu"), InputError, "runs on CUDAExec.*, but provider 'cpu' is asked for"),
        (
            Wish(variant="cpu_fp32", provider="cuda", fallback=True),
            InputError,
            "runs on CPUExec.*, but provider 'cuda'",
        ),
        (Wish(variant="cpu_fp32", provider="npu"), ProviderError, "unknown provider 'npu'"),
        (
            Wish(variant="cuda_fp16"),
            ProviderError,
            "variant 'cuda_fp16' is for CUDAExec.*: provider CUDA.* does not load",
        ),
        (Wish(variant="cublaslt_fp16", fallback=True), ProviderError, r"does not load .*poolgraph\[gpu\]"),
        (Wish(variant="portable_fp32", provider="tensorrt"), ProviderError, r"does not load .*poolgraph\[tensorrt\]"),
    ],
)
def test_variants_that_no_export_makes_or_that_do_not_run_here_are_refused_before_it(wish, error, message):
    with pytest.raises(error, match=message):
        plan_precision(wish, CPU.__contains__)


def test_the_table_of_variants_is_that_of_targets():
    words = {target.variant_name: (target.word, target.providers[0]) for target in TARGETS}
    table = {
        f"{name}_{it}": (made.target, made.providers[0]) for name, made in VARIANTS.items() for it in made.precisions
    }
    portable = {name: pair for name, pair in words.items() if pair[0] == "portable"}
    assert {name for name in table if name.startswith("portable_")} == portable.keys()
    assert {name: pair for name, pair in table.items() if name not in portable} == {
        name: pair for name, pair in words.items() if name not in portable
    }


def test_every_provider_has_precisions():
    assert MADE_FOR.keys() == set(PROVIDER_NAMES.values())


def test_what_loads_is_found_out_here():
    assert plan_precision(Wish(precision="int8", provider="cpu")) == {"precision": "int8"}
