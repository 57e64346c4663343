"""What ``LLM`` returns: vLLM's output classes, with numpy arrays inside and lists made when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.late_chunking import LateChunking
from poolgraph.runtime.long_texts import TextChunks

OutputT = TypeVar("OutputT")


@dataclass(frozen=True, slots=True, eq=False)
class PoolingOutput:
    """The pooled value of one prompt: (size,) or, for a token-wise task, (num_rows, size), float32."""

    data: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and np.array_equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content is a mutable array


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _VectorOutput(PoolingOutput):
    """A (size,) vector that also reads as a list of floats, made once."""

    _list: list[float] | None = field(default=None, init=False)

    def _as_list(self) -> list[float]:
        if self._list is None:
            object.__setattr__(self, "_list", self.data.tolist())
        assert self._list is not None
        return self._list


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EmbeddingOutput(_VectorOutput):
    """The embedding of one prompt; ``data`` is the array, ``embedding`` the same as a list of floats."""

    @classmethod
    def from_base(cls, pooling_output: PoolingOutput) -> Self:
        """Read a pooled value as an embedding; ValueError when it is not a vector."""
        if pooling_output.data.ndim != 1:
            raise ValueError("pooled_data should be a 1-D embedding vector")
        return cls(pooling_output.data)

    @property
    def embedding(self) -> list[float]:
        """The embedding as a list of floats."""
        return self._as_list()

    @property
    def hidden_size(self) -> int:
        """Width of the embedding."""
        return len(self.data)

    def __repr__(self) -> str:
        return f"EmbeddingOutput(hidden_size={self.hidden_size})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClassificationOutput(_VectorOutput):
    """The class probabilities of one prompt; ``data`` is the array, ``probs`` the same as a list of floats."""

    @classmethod
    def from_base(cls, pooling_output: PoolingOutput) -> Self:
        """Read a pooled value as probabilities; ValueError when it is not a vector."""
        if pooling_output.data.ndim != 1:
            raise ValueError("pooled_data should be a 1-D probability vector")
        return cls(pooling_output.data)

    @property
    def probs(self) -> list[float]:
        """The probabilities as a list of floats."""
        return self._as_list()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.data)

    def __repr__(self) -> str:
        return f"ClassificationOutput(num_classes={self.num_classes})"


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """The similarity or relevance of one pair."""

    score: float

    @classmethod
    def from_base(cls, pooling_output: PoolingOutput) -> Self:
        """Read a pooled value as a score; ValueError when it is not one number."""
        data = pooling_output.data.squeeze()
        if data.ndim != 0:
            raise ValueError("pooled_data should be a scalar score")
        return cls(data.item())


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput(Generic[OutputT]):
    """The answer to one prompt.

    Attributes:
        request_id: Number of the prompt, counted over the life of its ``LLM``.
        outputs: The pooled value.
        prompt_token_ids: The tokens that the model saw.
        num_cached_tokens: Always 0: nothing is cached between prompts.
        finished: Always True.
        num_truncated_tokens: Tokens that truncation cut off.
        error: Always None: what fails raises.
        late_chunking: The chunks that the rows belong to, where late chunking was asked for.
        text_chunks: How a text longer than the model's limit was embedded in chunks; None where it was not.
    """

    request_id: str
    outputs: OutputT
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
    num_truncated_tokens: int = 0
    error: None = field(default=None, repr=False)
    late_chunking: LateChunking | None = field(default=None, repr=False)
    text_chunks: TextChunks | None = field(default=None, repr=False)


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """The embedding of one prompt."""

    __slots__ = ()

    @classmethod
    def from_base(cls, request_output: PoolingRequestOutput[PoolingOutput]) -> Self:
        """Read a pooling answer as an embedding."""
        return _rebuild(cls, request_output, EmbeddingOutput.from_base(request_output.outputs))


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """The class probabilities of one prompt."""

    __slots__ = ()

    @classmethod
    def from_base(cls, request_output: PoolingRequestOutput[PoolingOutput]) -> Self:
        """Read a pooling answer as probabilities."""
        return _rebuild(cls, request_output, ClassificationOutput.from_base(request_output.outputs))


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """The score of one pair."""

    __slots__ = ()

    @classmethod
    def from_base(cls, request_output: PoolingRequestOutput[PoolingOutput]) -> Self:
        """Read a pooling answer as a score."""
        return _rebuild(cls, request_output, ScoringOutput.from_base(request_output.outputs))


RequestT = TypeVar("RequestT", bound=PoolingRequestOutput[Any])


def _rebuild(cls: type[RequestT], base: PoolingRequestOutput[PoolingOutput], outputs: object) -> RequestT:
    return cls(
        request_id=base.request_id,
        outputs=outputs,
        prompt_token_ids=base.prompt_token_ids,
        num_cached_tokens=base.num_cached_tokens,
        finished=base.finished,
        num_truncated_tokens=base.num_truncated_tokens,
        late_chunking=base.late_chunking,
        text_chunks=base.text_chunks,
    )
