"""What is written into a bucket's inputs, number by number, over whatever stood there before."""

from __future__ import annotations

import numpy as np
import pytest

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Graph, Tensor
from poolgraph.runtime.bound_inputs import BOUND_LAYOUTS, build_arrays, input_shape, output_shape
from poolgraph.runtime.buckets import Bucket, packed_bucket
from poolgraph.runtime.tokenizer import EncodedText

PAD = 9
TEXTS = [
    EncodedText(input_ids=np.array([1, 2, 3]), token_type_ids=np.array([0, 0, 1]), prompt_length=1),
    EncodedText(input_ids=np.array([4]), token_type_ids=None),
    EncodedText(input_ids=np.array([5, 6]), token_type_ids=None, prompt_length=2, attended=np.array([1, 0])),
]


def graph(*inputs):
    tensors = tuple(Tensor(name=name, dtype=dtype, shape=()) for name, dtype in inputs)
    return Graph(
        file="g.onnx",
        inputs=tensors,
        outputs=(Tensor(name="pooled", dtype="float32", shape=("batch_size", 7)),),
        raw_output="pooled",
    )


def fill(bucket, names):
    arrays = {name: np.full(input_shape(Tensor(name=name, dtype="int64", shape=()), bucket), 77) for name in names}
    filled = BOUND_LAYOUTS[bucket.layout].fill(arrays, bucket, TEXTS, PAD)
    assert set(filled.changed) == set(names) - {"total_sequence_length"}
    return filled.first_row, {name: array.tolist() for name, array in arrays.items()}


def test_padded():
    bucket = Bucket(max_length=4, batch_size=5)
    names = (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "attended_mask",
        "prompt_length",
        "total_sequence_length",
    )
    unused = [1, 0, 0, 0]
    first_row, arrays = fill(bucket, names)
    assert first_row == 0
    assert arrays == {
        "input_ids": [[1, 2, 3, PAD], [4, PAD, PAD, PAD], [5, 6, PAD, PAD], [PAD] * 4, [PAD] * 4],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], unused, unused],
        "token_type_ids": [[0, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4, [0] * 4],
        "attended_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], unused, unused],
        "prompt_length": [1, 0, 2, 0, 0],
        "total_sequence_length": 4,
    }


def test_packed():
    """Eight slots: two of no token, three texts, and two of the six tokens left over, of at most four each."""
    bucket = Bucket(max_length=4, batch_size=7, num_tokens=12)
    first_row, arrays = fill(bucket, ("input_ids", "cu_seqlens", "token_type_ids", "attended_mask", "prompt_length"))
    assert first_row == 2
    assert arrays == {
        "input_ids": [1, 2, 3, 4, 5, 6, *[PAD] * 6],
        "cu_seqlens": [0, 0, 0, 3, 4, 6, 10, 12],
        "token_type_ids": [0, 0, 1, *[0] * 9],
        "attended_mask": [1, 1, 1, 1, 1, 0, *[1] * 6],
        "prompt_length": [0, 0, 1, 0, 2, 0, 0],
    }


@pytest.mark.parametrize("bucket", [Bucket(max_length=4, batch_size=5), packed_bucket(12, 4, 4)], ids=str)
def test_token_types_that_are_zeros_stay_and_others_do_not(bucket):
    names = ("input_ids", "token_type_ids", *(("cu_seqlens",) if bucket.layout == "packed" else ()))
    arrays = build_arrays(graph(*((name, "int64") for name in names)), bucket)
    fill_layout, types = BOUND_LAYOUTS[bucket.layout].fill, arrays["token_type_ids"]
    seen = []
    for texts in (TEXTS[1:], TEXTS, TEXTS[1:], TEXTS[1:]):
        seen.append(("token_type_ids" in fill_layout(arrays, bucket, texts, PAD).changed, int(types.sum())))
    assert seen == [(False, 0), (True, 1), (True, 0), (False, 0)]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_masks_of_every_type(dtype):
    arrays = {"attention_mask": np.ones((3, 4), dtype=dtype)}
    BOUND_LAYOUTS["padded"].fill(arrays, Bucket(max_length=4, batch_size=3), TEXTS[:2], PAD)
    assert arrays["attention_mask"].astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_packed_padding_stands_in_texts_as_short_as_the_kernels_blocks():
    """Attention to them costs the square of their length."""
    texts = [EncodedText(input_ids=np.ones(100, dtype=np.int64), token_type_ids=None)]
    bounds = {}
    for num_texts in (1, 20, 500):
        bucket = packed_bucket(3000, 1000, num_texts)
        arrays = {"cu_seqlens": np.zeros(bucket.batch_size + 1, dtype=np.int64)}
        first = BOUND_LAYOUTS["packed"].fill(arrays, bucket, texts, PAD).first_row
        assert arrays["cu_seqlens"][first : first + 2].tolist() == [0, 100]
        assert arrays["cu_seqlens"][-1] == 3000
        bounds[num_texts] = np.diff(arrays["cu_seqlens"][first + 1 :]).max()
    assert bounds == {1: 967, 20: 132, 500: 128}


def test_packed_without_padding():
    bucket = Bucket(max_length=3, batch_size=3, num_tokens=6)
    assert fill(bucket, ("cu_seqlens",)) == (0, {"cu_seqlens": [0, 3, 4, 6]})


def test_arrays_have_the_graphs_types():
    bucket = Bucket(max_length=3, batch_size=4, num_tokens=7)
    arrays = build_arrays(graph(("input_ids", "int64"), ("token_offset", "int32"), ("cu_seqlens", "int64")), bucket)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "input_ids": ((7,), "int64"),
        "token_offset": ((4, 3), "int32"),
        "cu_seqlens": ((5,), "int64"),
    }
    assert not arrays["token_offset"].any()


def test_shapes_of_outputs():
    padded, packed = Bucket(max_length=3, batch_size=4), Bucket(max_length=3, batch_size=4, num_tokens=7)
    shapes = [output_shape(graph(), family, bucket) for family in ("sequence", "token") for bucket in (padded, packed)]
    assert shapes == [(4, 7), (4, 7), (4, 3, 7), (7, 7)]


def test_an_input_that_nobody_fills():
    with pytest.raises(ArtifactError, match=r"an input 'position_ids'; poolgraph fills \['attended_mask'"):
        build_arrays(graph(("position_ids", "int64")), Bucket(max_length=3, batch_size=4))


def test_an_output_of_unknown_width():
    wide = Graph(file="g.onnx", inputs=(), outputs=(), raw_output="pooled")
    with pytest.raises(ArtifactError, match=r"g\.onnx does not say how wide its output 'pooled' is"):
        output_shape(wide, "sequence", Bucket(max_length=3, batch_size=4))
