"""The selective scan of Mamba as a semantic op: tracing a loop over tokens would fix their number."""

from __future__ import annotations

import torch
from torch import Tensor

from poolgraph.graphs.pattern import SEMANTIC_DOMAIN


def selective_scan(rows: Tensor, time_step: Tensor, transition: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """Scan as one op (arXiv:2312.00752, section 3.2): ``h_t = exp(time_step_t transition) h_(t-1) + ...``.

    What is added is ``time_step_t rows_t`` for each channel times ``write_t``; the answer is ``h_t`` read with
    ``read_t``. A row of zeros leaves a state of zeros as it is, whatever its time step.

    Args:
        rows: (batch_size, sequence_length, num_channels).
        time_step: The same shape, not negative.
        transition: (num_channels, state_size), not positive, so that states fade.
        write: (batch_size, sequence_length, state_size).
        read: The same shape.

    Returns:
        (batch_size, sequence_length, num_channels).
    """
    inputs = (rows, time_step, transition, write, read)
    if not torch.compiler.is_exporting():
        return _eager_scan(*inputs)
    result: Tensor = torch.onnx.ops.symbolic(
        f"{SEMANTIC_DOMAIN}::SelectiveScan", inputs, dtype=rows.dtype, shape=rows.shape, version=1
    )
    return result


def _eager_scan(rows: Tensor, time_step: Tensor, transition: Tensor, write: Tensor, read: Tensor) -> Tensor:
    state = rows.new_zeros(rows.shape[0], *transition.shape)
    added, results = time_step * rows, []
    for step in range(rows.shape[1]):
        kept = (time_step[:, step, :, None] * transition).exp() * state
        state = kept + added[:, step, :, None] * write[:, step, None, :]
        results.append((state @ read[:, step, :, None]).squeeze(-1))
    return torch.stack(results, dim=1)
