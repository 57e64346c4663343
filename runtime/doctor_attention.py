"""Which kernel attention runs on: one small attention on CUDA, in a process of its own, as ONNX Runtime reports it.

The variable that makes it say so is read when a session opens, and it writes to the process's own standard output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from poolgraph.runtime.attention_route import SWITCH, why_slow
from poolgraph.runtime.provider_libraries import preload_libraries
from poolgraph.runtime.providers import CUDA_PROVIDER

ATTENTION_MODEL: Final = (
    b"\x08\x08:\xc8\x01\nF\n\x01q\n\x01k\n\x01v\n\x00\n\x01l\x12\x01y"
    b'"\x12MultiHeadAttention*\x10\n\tnum_heads\x18\x02\xa0\x01\x02:\rcom.microsoft\x12\x01g'
    b"Z\x19\n\x01q\x12\x14\n\x12\x08\n\x12\x0e\n\x02\x08\x02\n\x03\x08\x80\x01\n\x03\x08\x80\x01"
    b"Z\x19\n\x01k\x12\x14\n\x12\x08\n\x12\x0e\n\x02\x08\x02\n\x03\x08\x80\x01\n\x03\x08\x80\x01"
    b"Z\x19\n\x01v\x12\x14\n\x12\x08\n\x12\x0e\n\x02\x08\x02\n\x03\x08\x80\x01\n\x03\x08\x80\x01"
    b"Z\x0f\n\x01l\x12\n\n\x08\x08\x06\x12\x04\n\x02\x08\x02"
    b"b\x19\n\x01y\x12\x14\n\x12\x08\n\x12\x0e\n\x02\x08\x02\n\x03\x08\x80\x01\n\x03\x08\x80\x01"
    b"B\x02\x10\x11B\x11\n\rcom.microsoft\x10\x01"
)
"""A model of one MultiHeadAttention in fp16, as padded encoders have it: q, k, v (2, 128, 128), 2 heads, and the
lengths l (2,) of the texts as its mask. In protobuf's wire format, as ``IDENTITY_MODEL`` is; a test reads it."""

FAST_KERNEL: Final = "CUDNN_FLASH_ATTENTION"

_DEBUG: Final = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
_KERNEL: Final = re.compile(r"SdpaKernel=([A-Z_]+)")
_UNKNOWN_CURE: Final = (
    f"GPUs below compute capability 9.0 need {SWITCH}=1 for the fast one; variants in the packed layout need none of it"
)
_TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCheck:
    """The kernel that padded attention runs on.

    Attributes:
        kernel: ONNX Runtime's name for it; None where none was named.
        is_fast: Whether it is cuDNN's.
        reason: What is slow or failed, and the cure.
    """

    kernel: str | None
    is_fast: bool
    reason: str = ""


def check_attention(
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run, *, cudnn: int | None
) -> AttentionCheck:
    """Run the small attention in a process of its own; a machine that has CUDA is assumed.

    Args:
        run: As ``subprocess.run``.
        cudnn: cuDNN's number, None where there is none, for the cure.
    """
    command = [sys.executable, "-m", "poolgraph.runtime.doctor_attention"]
    try:
        # A variable of the caller's that switches cuDNN off must be seen here too.
        done = run(
            command,
            env={**os.environ, _DEBUG: "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return AttentionCheck(kernel=None, is_fast=False, reason=f"the check did not run: {error}")
    return parse_attention(done.stdout + done.stderr, done.returncode, cudnn=cudnn)


def parse_attention(output: str, code: int, *, cudnn: int | None) -> AttentionCheck:
    """Read what the process printed."""
    found = _KERNEL.search(output)
    if found is None:
        said = (output.strip().splitlines() or ["it printed nothing"])[-1]
        return AttentionCheck(kernel=None, is_fast=False, reason=f"no kernel was named (exit code {code}): {said}")
    kernel = found.group(1)
    if kernel == FAST_KERNEL:
        return AttentionCheck(kernel=kernel, is_fast=True)
    cure = why_slow(cudnn, os.environ) or _UNKNOWN_CURE
    return AttentionCheck(kernel=kernel, is_fast=False, reason=f"attention of padded texts runs on {kernel}; {cure}")


def main() -> None:
    """Run the attention once on CUDA."""
    import onnxruntime

    preload_libraries()
    session = onnxruntime.InferenceSession(ATTENTION_MODEL, providers=[CUDA_PROVIDER])
    rows = np.ones((2, 128, 128), dtype=np.float16)
    session.run(None, {"q": rows, "k": rows, "v": rows, "l": np.array([128, 64], dtype=np.int32)})


if __name__ == "__main__":
    main()
