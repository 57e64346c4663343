"""From a classifier's logits to what is asked for: activations in float64, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Pooler

Rows: TypeAlias = NDArray[np.float64]

_SELU_SCALE: Final = 1.0507009873554805
_SELU_ALPHA: Final = 1.6732632423543772

_erfc: Final = np.frompyfunc(math.erfc, 1, 1)


def _identity(rows: Rows) -> Rows:
    return rows


def _sigmoid(rows: Rows) -> Rows:
    # exp of the negative absolute value cannot overflow.
    small = np.exp(-np.abs(rows))
    return np.where(rows >= 0, 1.0, small) / (1.0 + small)


def _log_softmax(rows: Rows) -> Rows:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)


def _softmax(rows: Rows) -> Rows:
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def _auto(rows: Rows) -> Rows:
    return _sigmoid(rows) if rows.shape[-1] == 1 else _softmax(rows)


def _softplus(rows: Rows) -> Rows:
    return np.maximum(rows, 0.0) + np.log1p(np.exp(-np.abs(rows)))


def _gelu(rows: Rows) -> Rows:
    return 0.5 * rows * np.asarray(_erfc(-rows / math.sqrt(2.0)), dtype=np.float64)


def _elu(rows: Rows) -> Rows:
    return np.where(rows > 0, rows, np.expm1(np.minimum(rows, 0.0)))


def _selu(rows: Rows) -> Rows:
    return _SELU_SCALE * np.where(rows > 0, rows, _SELU_ALPHA * np.expm1(np.minimum(rows, 0.0)))


ACTIVATIONS: Final[Mapping[str, Callable[[Rows], Rows]]] = MappingProxyType(
    {
        "auto": _auto,
        "identity": _identity,
        "sigmoid": _sigmoid,
        "softmax": _softmax,
        "softmin": lambda rows: _softmax(-rows),
        "log_sigmoid": lambda rows: -_softplus(-rows),
        "log_softmax": _log_softmax,
        "tanh": np.tanh,
        "relu": lambda rows: np.maximum(rows, 0.0),
        "relu6": lambda rows: np.clip(rows, 0.0, 6.0),
        "leaky_relu": lambda rows: np.where(rows > 0, rows, 0.01 * rows),
        "elu": _elu,
        "selu": _selu,
        "gelu": _gelu,
        "silu": lambda rows: rows * _sigmoid(rows),
        "mish": lambda rows: rows * np.tanh(_softplus(rows)),
        "softplus": _softplus,
        "softsign": lambda rows: rows / (1.0 + np.abs(rows)),
        "tanhshrink": lambda rows: rows - np.tanh(rows),
        "hardtanh": lambda rows: np.clip(rows, -1.0, 1.0),
        "hardsigmoid": lambda rows: np.clip(rows / 6.0 + 0.5, 0.0, 1.0),
        "hardswish": lambda rows: rows * np.clip(rows / 6.0 + 0.5, 0.0, 1.0),
    }
)
"""Name to function of (..., size); none makes NaN of a finite value. ``auto`` is vLLM's choice: the sigmoid of a single
value, the softmax of several. The others are torch.nn's modules of these names with their default arguments; those that
look at more than one value look along the last axis."""


def choose_activation(pooler: Pooler, use_activation: bool | None) -> str | None:
    """Return the name of the activation of a request, None for none.

    Args:
        pooler: The artifact's pooler.
        use_activation: What the request says; None does as the pooler says.
    """
    wanted = pooler.use_activation if use_activation is None else use_activation
    return pooler.activation if wanted else None


def finish_logits(raw: NDArray[np.float32], activation: str | None) -> NDArray[np.float32]:
    """Apply an activation; a row's bits do not depend on the other rows.

    Args:
        raw: (..., size), left as it is.
        activation: A key of ``ACTIVATIONS``; None applies nothing.

    Returns:
        A new array (..., size).

    Raises:
        ArtifactError: no activation of that name is known.
    """
    if activation is None:
        return np.array(raw, dtype=np.float32, order="C")
    if activation not in ACTIVATIONS:
        raise ArtifactError(
            f"the pooler's activation {activation!r} is not one of {list(ACTIVATIONS)}; "
            "use the poolgraph that wrote the artifact, or export the checkpoint again"
        )
    # A contiguous copy: numpy may compute a strided row with other instructions than a contiguous one.
    rows = np.array(raw, dtype=np.float64, order="C")
    return ACTIVATIONS[activation](rows).astype(np.float32)
