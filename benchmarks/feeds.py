"""Random texts as a variant's graph takes them, in its own layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Manifest, Variant
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.tokenizer import EncodedText

SMALLEST_ID, LARGEST_ID = 1000, 20_000


def make_feeds(manifest: Manifest, variant: Variant, shape: Sequence[int]) -> Mapping[str, NDArray[np.int64]]:
    """Make the inputs of a variant's sequence graph; ``shape`` is texts and the tokens of each."""
    ids = np.random.default_rng(0).integers(SMALLEST_ID, LARGEST_ID, size=tuple(shape))
    texts = [EncodedText(input_ids=row, token_type_ids=None) for row in ids]
    return build_runner(variant, manifest.tokenization).feed(texts, variant.graphs["sequence"])
