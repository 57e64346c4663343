"""Vectors on the wire: each form against numpy, ml_dtypes or Cohere's published codes."""

from __future__ import annotations

import base64
import sys

import ml_dtypes
import msgspec
import numpy as np
import pytest

from poolgraph.errors import InputError
from poolgraph.serving.encodings import WireFormat, encode_bits, encode_floats

RNG = np.random.default_rng(3)
VALUES = (RNG.standard_normal(4000) * 10.0 ** RNG.integers(-38, 4, 4000)).astype(np.float32)
EDGES = np.array([0.0, -0.0, 1e-45, -5e-324, 1.1754944e-38, 3.4028235e38, 65504.0, 0.1, 1 / 3], dtype=np.float32)
TYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
OTHER = "big" if sys.byteorder == "little" else "little"


@pytest.mark.parametrize("values", [VALUES, EDGES], ids=["random", "edges"])
def test_json_numbers_read_as_the_same_float32(values):
    read = np.array(msgspec.json.decode(bytes(encode_floats(values))), dtype=np.float32)
    assert read.tobytes() == values.tobytes()


def test_json_numbers_are_the_shortest():
    assert bytes(encode_floats(np.array([0.1, 1 / 3], dtype=np.float32))) == b"[0.1,0.33333334]"


def test_matrices_and_strided_rows_are_written_row_by_row():
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert msgspec.json.decode(bytes(encode_floats(matrix))) == matrix.tolist()
    assert msgspec.json.decode(bytes(encode_floats(matrix.T))) == matrix.T.tolist()
    assert WireFormat().encode_bytes(matrix.T) == np.ascontiguousarray(matrix.T).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("endianness", ["native", "big", "little"])
def test_bytes_are_those_of_the_type(dtype, endianness):
    values = np.clip(VALUES, -60000, 60000)
    wire = WireFormat(encoding_format="bytes", embed_dtype=dtype, endianness=endianness)
    expected = values.astype(TYPES[dtype])
    if endianness == OTHER:
        expected = expected.byteswap()
    assert wire.encode_bytes(values) == expected.tobytes()


def test_bfloat16_rounds_ties_to_even():
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], dtype=np.uint32).view(np.float32)
    read = np.frombuffer(WireFormat(embed_dtype="bfloat16").encode_bytes(ties), dtype=np.uint16)
    assert read.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70000.0), ("float16", -1e30), ("bfloat16", 3.4028235e38)])
def test_a_number_too_large_for_the_type_is_refused(dtype, value):
    with pytest.raises(InputError, match=f"too large for {dtype}"):
        WireFormat(embed_dtype=dtype).encode_bytes(np.array([value], dtype=np.float32))


def test_base64_is_of_the_same_bits():
    wire = WireFormat(encoding_format="base64")
    assert base64.b64decode(wire.encode(VALUES)) == VALUES.tobytes()


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_is_refused_by_name(dtype):
    with pytest.raises(InputError, match=f"embed_dtype {dtype} is not supported"):
        WireFormat(embed_dtype=dtype)


@pytest.mark.parametrize(
    ("values", "signed", "unsigned"),
    [
        ([1, -1] * 4, 42, 170),
        ([1] * 8, 127, 255),
        ([-1] * 8, -128, 0),
        ([-0.0] * 8, 127, 255),
        ([-1e-45] + [0.0] * 7, -1, 127),
    ],
)
def test_bits_are_coheres(values, signed, unsigned):
    array = np.array(values, dtype=np.float32)
    assert encode_bits(array, signed=True) == [signed]
    assert encode_bits(array, signed=False) == [unsigned]


def test_bits_need_a_multiple_of_eight():
    message = "Embedding dimension must be a multiple of 8 for binary embedding types, but got 12."
    with pytest.raises(InputError, match=message):
        encode_bits(np.zeros(12, dtype=np.float32), signed=True)
