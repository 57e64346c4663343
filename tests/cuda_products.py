"""Products of the CUDA graphs in numpy."""

from __future__ import annotations

import numpy as np
from cuda_norms import tanh_gelu
from cuda_operator import HALVES, ContribOp, widen

from poolgraph.graphs.fuse_bias_products import CUDA_DOMAIN, FEATURE_MULTIPLE
from poolgraph.graphs.native import Activation

ACTIVATIONS = {Activation.NONE: lambda rows: rows, Activation.GELU_TANH: tanh_gelu}


class BiasMatMul(ContribOp):
    """This package's own (``runtime/kernels_cuda.cpp``)."""

    op_domain = CUDA_DOMAIN

    def _run(self, rows, weights, bias, activation=None):
        self.refuse(rows.dtype not in HALVES, f"rows of {rows.dtype}", "it computes in 16 bits alone")
        self.refuse({weights.dtype, bias.dtype} != {rows.dtype}, "inputs of several types", "cuBLASLt takes one")
        self.refuse(weights.ndim != 2 or bias.shape != weights.shape[1:], "shapes", "one bias a column")
        uneven = any(size % FEATURE_MULTIPLE for size in weights.shape)
        self.refuse(uneven, f"weights of {weights.shape}", "rows must begin at a multiple of 16 bytes")
        self.refuse(activation not in ACTIVATIONS, f"activation {activation}", f"known: {sorted(ACTIVATIONS)}")
        answer = ACTIVATIONS[activation](widen(rows) @ widen(weights) + widen(bias))
        return answer.astype(rows.dtype), np.zeros(0, np.uint8)


OPERATORS = (BiasMatMul,)
