"""The precision that a checkpoint is exported in."""

from __future__ import annotations

import pytest

from poolgraph.errors import InputError, ProviderError
from poolgraph.runtime.export_precision import MADE_FOR, plan_precision
from poolgraph.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER, PROVIDER_NAMES, TENSORRT_PROVIDER, Wish

CPU, GPU = (CPU_PROVIDER,), (CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER)
FOR_CUDA = {"target": "cuda"}


@pytest.mark.parametrize(
    ("wish", "here", "options"),
    [
        (Wish(), GPU, {}),
        (Wish(precision="fp32"), GPU, {}),
        (Wish(precision="int8"), GPU, {"precision": "int8"}),
        (Wish(precision="bf16"), CPU, {"precision": "bf16"}),
        (Wish(precision="bf16"), GPU, {"precision": "bf16"} | FOR_CUDA),
        (Wish(precision="bf16", provider="cpu"), GPU, {"precision": "bf16"}),
        (Wish(precision="fp16"), GPU, {"precision": "fp16"} | FOR_CUDA),
        (Wish(provider="cuda"), GPU, {"precision": "fp16"} | FOR_CUDA),
        (Wish(provider="cuda", fallback=True), CPU, {}),
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


def test_every_provider_has_precisions():
    assert MADE_FOR.keys() == set(PROVIDER_NAMES.values())


def test_what_loads_is_found_out_here():
    assert plan_precision(Wish(precision="int8", provider="cpu")) == {"precision": "int8"}
