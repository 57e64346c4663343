"""The semantic op of a bias by distance: what is added to a score depends on how far the key is from its query."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from poolgraph.graphs.pattern import DISTANCE_BIAS, SEMANTIC_DOMAIN


def distances(sequence_length: int, device: torch.device) -> Tensor:
    """Return what the columns of a bias by distance are for: 1 - sequence_length up to sequence_length - 1."""
    return torch.arange(1 - sequence_length, sequence_length, device=device)


def distance_bias(by_distance: Tensor, sequence_length: int) -> Tensor:
    """Give each pair of a query and a key the bias of the distance between them, as one op.

    Args:
        by_distance: (num_heads, 2 * sequence_length - 1), its columns those of ``distances``.
        sequence_length: Number of queries and keys.

    Returns:
        (1, num_heads, sequence_length, sequence_length), of index query and key.
    """
    if not torch.compiler.is_exporting():
        index = torch.arange(sequence_length, device=by_distance.device)
        return by_distance[:, index[None, :] - index[:, None] + sequence_length - 1].unsqueeze(0)
    shape = (1, by_distance.shape[0], sequence_length, sequence_length)
    result: Tensor = torch.onnx.ops.symbolic(
        f"{SEMANTIC_DOMAIN}::{DISTANCE_BIAS}", (by_distance,), dtype=by_distance.dtype, shape=shape, version=1
    )
    return result


def bucket_bias(buckets: Tensor, embedding: nn.Embedding, sequence_length: int) -> Tensor:
    """Return the bias of models that learn a number a head for each bucket of distances.

    Args:
        buckets: The bucket of each distance from ``-farthest`` to ``farthest``, (2 * farthest + 1, 1); what is farther
            is of the same as those.
        embedding: A bucket's numbers, (num_buckets, num_heads).
        sequence_length: Number of queries and keys.

    Returns:
        (1, num_heads, sequence_length, sequence_length).
    """
    farthest = buckets.shape[0] // 2
    distance = distances(sequence_length, buckets.device).clamp(-farthest, farthest)
    # As an embedding: ``buckets[distance]`` is traced as GatherND, which no CUDA graph can hold.
    found = functional.embedding(distance + farthest, buckets).squeeze(-1)
    return distance_bias(embedding(found).transpose(0, 1), sequence_length)
