"""Products in tiles of AMX beside those in vectors."""

from __future__ import annotations

import numpy as np
import pytest
from native_graphs import ProductCase, native_session
from native_libraries import WITH_AVX512, emulates_amx, take_native_library

from poolgraph.graphs.manifest import NATIVE_OPERATORS
from poolgraph.graphs.native import BFLOAT, QUANTIZED, Activation, Gate, Norm, ProductOperators
from poolgraph.runtime.native_library import Library, used_instructions

pytestmark = pytest.mark.skipif(not emulates_amx(), reason="needs AVX-512 with VNNI, and a compiler")


def answer(case: ProductCase, rows: np.ndarray) -> np.ndarray:
    attributes = {**case.attributes(), "norm": int(Norm.NONE), "epsilon": 0.0}
    session = native_session(case.kind.matmul, {"rows": rows, **case.weights}, attributes, ("rows",), threads=2)
    return session.run(None, {"rows": rows})[0]


@pytest.mark.parametrize("kind", [QUANTIZED, BFLOAT], ids=lambda it: it.matmul)
@pytest.mark.parametrize("in_features", [4, 63, 64, 65, 300, 1100])
def test_tiles_answer_as_vectors_do(
    in_features: int, kind: ProductOperators, emulated_amx: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_native_library(monkeypatch, emulated_amx)
    assert used_instructions(NATIVE_OPERATORS) == ("amx_int8", "amx_bf16")
    options = {"activation": Activation.SILU, "gate": Gate.SECOND, "factors": True}
    case = ProductCase(kind=kind, in_features=in_features, out_features=290, **options)
    for count in (1, 15, 16, 17, 31, 32, 48, 61, 600):
        rows = np.random.default_rng(count).standard_normal((count, in_features)).astype(np.float32)
        found = {}
        for library in (WITH_AVX512, emulated_amx):
            take_native_library(monkeypatch, library)
            found[library] = answer(case, rows)
        in_vectors, in_tiles = found.values()
        if kind is QUANTIZED:
            np.testing.assert_array_equal(in_tiles, in_vectors)
        else:
            np.testing.assert_allclose(in_tiles, in_vectors, rtol=0, atol=2e-6 * np.abs(in_vectors).max())
