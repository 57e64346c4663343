"""Where tests of bound sessions run: in the processor's memory always, on a CUDA device under ``-m gpu``."""

import pytest

DEVICES = [
    pytest.param(("CPUExecutionProvider", "cpu"), id="cpu"),
    pytest.param(("CUDAExecutionProvider", "cuda"), id="cuda", marks=pytest.mark.gpu),
]
