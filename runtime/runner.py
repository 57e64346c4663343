"""What a batch looks like to a graph, one runner a layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Graph, Tokenization, Variant
from poolgraph.runtime.planner import Batch, BatchLayout
from poolgraph.runtime.runner_packed import PackedRunner
from poolgraph.runtime.runner_padded import PaddedRunner
from poolgraph.runtime.runner_uniform import UniformRunner
from poolgraph.runtime.tokenizer import EncodedText


class Runner(Protocol):
    """Plans batches, feeds them and takes the answers apart, all pure."""

    @property
    def layout(self) -> BatchLayout:
        """What its batches look like."""

    def plan(
        self, lengths: Sequence[int], *, max_batch_tokens: int, runs: int, lone_fills: bool = False
    ) -> tuple[Batch, ...]:
        """Cut texts of these lengths into batches; ``lone_fills`` is whether one alone gets the cores of all runs."""

    def feed(self, texts: Sequence[EncodedText], graph: Graph) -> Mapping[str, NDArray[np.int64]]:
        """Build the inputs that the graph names."""

    def split_tokens(self, answer: NDArray[np.float32], texts: Sequence[EncodedText]) -> list[NDArray[np.float32]]:
        """Take each text's rows (num_tokens, size) out of a token graph's answer."""


_RUNNERS: Final[Mapping[str, Callable[[Tokenization], Runner]]] = MappingProxyType(
    {"uniform": lambda _: UniformRunner(), "padded": PaddedRunner, "packed": lambda _: PackedRunner()}
)


def build_runner(variant: Variant, tokenization: Tokenization) -> Runner:
    """Build the runner for a variant's layout.

    Raises:
        ArtifactError: a layout that this version does not run.
    """
    if variant.layout not in _RUNNERS:
        raise ArtifactError(
            f"variant {variant.name!r} has the layout {variant.layout!r}; this poolgraph runs {sorted(_RUNNERS)}"
        )
    return _RUNNERS[variant.layout](tokenization)
