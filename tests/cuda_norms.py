"""Norms and activations of the CUDA graphs in numpy."""

from __future__ import annotations

import math

import numpy as np
from cuda_operator import ContribOp, widen

erf = np.vectorize(math.erf, otypes=[np.float32])


def root_mean_square(rows: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).mean(-1, keepdims=True) + np.float32(epsilon)) * weight


def layer_norm(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, epsilon: float) -> np.ndarray:
    rows = rows - rows.mean(-1, keepdims=True)
    scaled = root_mean_square(rows, weight, epsilon)
    return scaled if bias is None else scaled + bias


class SimplifiedLayerNormalization(ContribOp):
    """ONNX Runtime's, though in the standard domain; its answer has the type of its scale."""

    op_domain = ""

    def _run(self, rows, scale, axis=-1, epsilon=1e-5, stash_type=1):
        self.refuse(axis not in (-1, rows.ndim - 1), f"axis {axis}", "rows are normalized along the last one")
        return (root_mean_square(widen(rows), widen(scale), epsilon).astype(scale.dtype),)


class SkipNorm(ContribOp):
    """The sum of a row, what skipped its layer and a bias, and the norm of it."""

    def _answer(self, rows, skip, bias, norm):
        self.refuse(rows.ndim not in (2, 3), f"input of {rows.ndim} axes", "(tokens, hidden_size), or with a batch")
        fits = skip.shape == rows.shape or (rows.ndim == 3 and skip.shape in ((1, *rows.shape[1:]), rows.shape[1:]))
        self.refuse(not fits, f"skip of {skip.shape} for input of {rows.shape}", "only the batch may be left out")
        total = widen(rows) + widen(skip)
        if bias is not None:
            total = total + widen(bias)
        unset = np.full((*rows.shape[:-1], 1), np.nan, np.float32)
        return norm(total).astype(rows.dtype), unset, unset, total.astype(rows.dtype)


class SkipLayerNormalization(SkipNorm):
    def _run(self, rows, skip, gamma, beta=None, bias=None, epsilon=1e-12):
        return self._answer(rows, skip, bias, lambda it: layer_norm(it, widen(gamma), widen(beta), epsilon))


class SkipSimplifiedLayerNormalization(SkipNorm):
    def _run(self, rows, skip, gamma, bias=None, epsilon=1e-12):
        return self._answer(rows, skip, bias, lambda it: root_mean_square(it, widen(gamma), epsilon))


class Gelu(ContribOp):
    def _run(self, rows):
        return (gelu(widen(rows)).astype(rows.dtype),)


class StandardGelu(ContribOp):
    """The standard operator, which the evaluator would compute step by step in the type of its input."""

    op_domain = ""

    def _run(self, rows, approximate="none"):
        wide = widen(rows)
        return ((tanh_gelu(wide) if approximate == "tanh" else gelu(wide)).astype(rows.dtype),)


StandardGelu.__name__ = "Gelu"


class BiasGelu(ContribOp):
    def _run(self, rows, bias):
        self.refuse(bias.shape != rows.shape[-1:], f"bias of {bias.shape} for rows of {rows.shape}", "one a column")
        return (gelu(widen(rows) + widen(bias)).astype(rows.dtype),)


class FastGelu(ContribOp):
    def _run(self, rows, bias=None):
        wide = widen(rows) if bias is None else widen(rows) + widen(bias)
        return (tanh_gelu(wide).astype(rows.dtype),)


class QuickGelu(ContribOp):
    def _run(self, rows, alpha=1.702):
        wide = widen(rows)
        return ((wide * sigmoid(np.float32(alpha) * wide)).astype(rows.dtype),)


def gelu(rows: np.ndarray) -> np.ndarray:
    return rows * np.float32(0.5) * (1 + erf(rows / np.float32(math.sqrt(2))))


def tanh_gelu(rows: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (rows + np.float32(0.044715) * rows**3)
    return rows * np.float32(0.5) * (1 + np.tanh(inner))


def sigmoid(rows: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(rows * np.float32(0.5))) * np.float32(0.5)


OPERATORS = (
    SimplifiedLayerNormalization,
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    Gelu,
    StandardGelu,
    BiasGelu,
    FastGelu,
    QuickGelu,
)
