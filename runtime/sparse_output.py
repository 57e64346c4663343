"""Sparse embeddings of what a model answered a request."""

from __future__ import annotations

import numpy as np

from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.finish import cut_edges
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.sparse import SparseEmbedding, sparsify, weigh_words


def read_sparse(output: PoolingRequestOutput[PoolingOutput], manifest: Manifest) -> SparseEmbedding:
    """Return the weights of a text's words.

    Args:
        output: Of the task ``embed``, or of models with ``token_weights`` of ``token_classify``.
        manifest: The model's.
    """
    weights = manifest.pooler.token_weights
    if weights is None:
        (embedding,) = sparsify(output.outputs.data[None])
        return embedding
    input_ids = np.array(output.prompt_token_ids, dtype=np.int64)
    kept = cut_edges(input_ids, weights.first_token_id, weights.last_token_id)
    return weigh_words(
        input_ids[kept],
        output.outputs.data[:, 0],
        skipped=weights.skip_token_ids,
        size=manifest.limits.vocab_size,
    )
