"""What a bucket's inputs are: their shapes, and a batch of texts written into them. Pure numpy, one row a layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Graph, Tensor
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.runner_uniform import attended_tokens, stack_prompt_lengths, token_types
from poolgraph.runtime.tokenizer import EncodedText

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""The inputs of a bucket by name."""

Rows: TypeAlias = NDArray[np.float32]

CPU_INPUTS: Final = frozenset({"total_sequence_length"})
"""Inputs that a kernel reads in the processor's memory, wherever the others are."""


_FILLER_TOKENS: Final = 128
"""Rows that a block of the attention kernel computes: it would compute as many for shorter padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What became of a bucket's inputs.

    Attributes:
        first_row: The row of the first text in a sequence graph's answer (batch_size, size); the others follow.
        changed: Names of the inputs that may not be what they were before.
    """

    first_row: int
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLayout:
    """How batches of a layout are written into a bucket, and their answers taken apart.

    Attributes:
        shapes: By name of an input, its shape in a bucket.
        fill: Writes texts into all the arrays given, over what was there; takes the bucket, the texts and the token of
            padding.
        token_rows: Takes each text's rows (num_tokens, size) out of a token graph's answer.
    """

    shapes: Mapping[str, Callable[[Bucket], tuple[int, ...]]]
    fill: Callable[[Arrays, Bucket, Sequence[EncodedText], int], Filled]
    token_rows: Callable[[Rows, Sequence[EncodedText]], list[Rows]]


def build_arrays(graph: Graph, bucket: Bucket) -> dict[str, NDArray[Any]]:
    """Build the inputs of a graph in a bucket, all zeros.

    Raises:
        ArtifactError: an input that no bucket of this layout has.
    """
    return {tensor.name: np.zeros(input_shape(tensor, bucket), dtype=tensor.dtype) for tensor in graph.inputs}


def input_shape(tensor: Tensor, bucket: Bucket) -> tuple[int, ...]:
    """Return the shape of a graph's input in a bucket.

    Raises:
        ArtifactError: an input that no bucket of this layout has.
    """
    shapes = BOUND_LAYOUTS[bucket.layout].shapes
    if tensor.name not in shapes:
        raise ArtifactError(
            f"the graph has an input {tensor.name!r}; poolgraph fills {sorted(shapes)} in the {bucket.layout} layout"
        )
    return shapes[tensor.name](bucket)


def output_shape(graph: Graph, family: str, bucket: Bucket) -> tuple[int, ...]:
    """Return the shape of a graph's raw output in a bucket.

    Raises:
        ArtifactError: the manifest does not say how wide it is.
    """
    width = output_width(graph)
    if family == "sequence":
        return (bucket.batch_size, width)
    return (bucket.size, width) if bucket.layout == "packed" else (bucket.batch_size, bucket.max_length, width)


def output_width(graph: Graph) -> int:
    """Return the last axis of a graph's raw output.

    Raises:
        ArtifactError: the manifest does not say.
    """
    for tensor in graph.outputs:
        if tensor.name == graph.raw_output and isinstance(tensor.shape[-1], int):
            return tensor.shape[-1]
    raise ArtifactError(f"{graph.file} does not say how wide its output {graph.raw_output!r} is")


def fill_padded(arrays: Arrays, bucket: Bucket, texts: Sequence[EncodedText], pad_token_id: int) -> Filled:
    """Write a text a row, padded on the right; rows that no text needs have one token, so that no mean is of none."""
    is_token = np.arange(bucket.max_length) < _lengths(texts)[:, None]
    changed = []
    for name, array, numbers in _changing_tokens(arrays, texts):
        used = array[: len(texts)]
        array.fill(pad_token_id if name == "input_ids" else 0)
        if isinstance(numbers, int):
            np.multiply(is_token, numbers, out=used, casting="unsafe")
        else:
            used[is_token] = numbers
        if name in _MASKS:
            array[len(texts) :, 0] = 1
        changed.append(name)
    changed += _fill_prompt_lengths(arrays, texts, first_row=0)
    if "total_sequence_length" in arrays:
        arrays["total_sequence_length"][...] = bucket.max_length  # whatever the texts are
    return Filled(first_row=0, changed=tuple(changed))


def fill_packed(arrays: Arrays, bucket: Bucket, texts: Sequence[EncodedText], pad_token_id: int) -> Filled:
    """Write texts end to end: texts of no token first, then the texts, then padding as short texts.

    A text of no token begins and ends at 0, so that its first row lies inside, whichever rows are padding.
    """
    bounds = np.cumsum(_lengths(texts))
    used = int(bounds[-1])
    changed = ["cu_seqlens"]
    for name, array, numbers in _changing_tokens(arrays, texts):
        array[:used] = numbers
        array[used:] = pad_token_id if name == "input_ids" else int(name in _MASKS)
        changed.append(name)
    fillers = _filler_bounds(bucket, len(texts), used)
    first_row = bucket.batch_size - len(texts) - len(fillers)
    assert first_row >= 0
    stop = first_row + 1 + len(texts)
    arrays["cu_seqlens"][: first_row + 1] = 0
    arrays["cu_seqlens"][first_row + 1 : stop] = bounds
    arrays["cu_seqlens"][stop:] = fillers
    changed += _fill_prompt_lengths(arrays, texts, first_row=first_row)
    return Filled(first_row=first_row, changed=tuple(changed))


def _changing_tokens(
    arrays: Arrays, texts: Sequence[EncodedText]
) -> Iterator[tuple[str, NDArray[Any], NDArray[np.int64] | int]]:
    """Yield each input with a number a token, and the numbers; but none that is all zeros and stays so."""
    for name, array in arrays.items():
        if name in _TOKENS:
            numbers = _TOKENS[name](texts)
            if not isinstance(numbers, int) or numbers or array.any():
                yield name, array, numbers


def _filler_bounds(bucket: Bucket, num_texts: int, used: int) -> NDArray[np.int64]:
    """Return where the texts end that padding stands in: short ones, since attention to them costs their square."""
    places = max(1, bucket.batch_size - num_texts)
    length = min(bucket.max_length, max(_FILLER_TOKENS, -(-(bucket.size - used) // places)))
    ends: NDArray[np.int64] = np.minimum(np.arange(used, bucket.size, length) + length, bucket.size)
    return ends


def _lengths(texts: Sequence[EncodedText]) -> NDArray[np.int64]:
    return np.fromiter((len(text.input_ids) for text in texts), dtype=np.int64, count=len(texts))


def _fill_prompt_lengths(arrays: Arrays, texts: Sequence[EncodedText], first_row: int) -> list[str]:
    if "prompt_length" not in arrays:
        return []
    arrays["prompt_length"].fill(0)
    arrays["prompt_length"][first_row : first_row + len(texts)] = stack_prompt_lengths(texts)
    return ["prompt_length"]


def _input_ids(texts: Sequence[EncodedText]) -> NDArray[np.int64]:
    return np.concatenate([text.input_ids for text in texts])


def _token_types(texts: Sequence[EncodedText]) -> NDArray[np.int64] | int:
    if all(text.token_type_ids is None for text in texts):
        return 0
    return np.concatenate([token_types(text) for text in texts])


def _attended(texts: Sequence[EncodedText]) -> NDArray[np.int64] | int:
    if all(text.attended is None for text in texts):
        return 1
    return np.concatenate([attended_tokens(text) for text in texts])


_TOKENS: Final[Mapping[str, Callable[[Sequence[EncodedText]], NDArray[np.int64] | int]]] = MappingProxyType(
    {
        "input_ids": _input_ids,
        "attention_mask": lambda texts: 1,
        "attended_mask": _attended,
        "token_type_ids": _token_types,
    }
)
"""Inputs with a number a token: those of all texts end to end, or one number that all have."""

_MASKS: Final = frozenset({"attention_mask", "attended_mask"})


def _padded_rows(answer: Rows, texts: Sequence[EncodedText]) -> list[Rows]:
    return [answer[row, : text.num_tokens] for row, text in enumerate(texts)]


def _packed_rows(answer: Rows, texts: Sequence[EncodedText]) -> list[Rows]:
    bounds = [0, *np.cumsum(_lengths(texts)).tolist()]
    return [answer[start:stop] for start, stop in pairwise(bounds)]


def _rows_of_tokens(bucket: Bucket) -> tuple[int, ...]:
    return (bucket.batch_size, bucket.max_length)


def _tokens(bucket: Bucket) -> tuple[int, ...]:
    return (bucket.size,)


def _texts(bucket: Bucket) -> tuple[int, ...]:
    return (bucket.batch_size,)


BOUND_LAYOUTS: Final[Mapping[str, BoundLayout]] = MappingProxyType(
    {
        "padded": BoundLayout(
            shapes={
                **dict.fromkeys(_TOKENS, _rows_of_tokens),
                "prompt_length": _texts,
                "total_sequence_length": lambda bucket: (),
            },
            fill=fill_padded,
            token_rows=_padded_rows,
        ),
        "packed": BoundLayout(
            shapes={
                **{name: _tokens for name in _TOKENS if name != "attention_mask"},
                "cu_seqlens": lambda bucket: (bucket.batch_size + 1,),
                "token_offset": _rows_of_tokens,
                "prompt_length": _texts,
            },
            fill=fill_packed,
            token_rows=_packed_rows,
        ),
    }
)
"""The layouts that bound sessions run. ``token_offset`` stays zero: its shape tells the kernel the longest text."""
