"""Writing of graphs: one data file, each tensor once, small ones inline, as ONNX Runtime reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from little_graphs import build, random

from poolgraph.graphs.storage import ALIGNMENT, INLINE_BYTES, save_graphs

WEIGHTS = "weights.data"
LARGE = random(32, 32, seed=1)
HUGE = random(64, 64, seed=2)
SMALL = random(32, seed=3)


def lazy(name: str, array: np.ndarray, reads: list[str] | None = None) -> ir.LazyTensor:
    """A checkpoint's tensor: read when it is written."""

    def load() -> ir.TensorProtocol:
        if reads is not None:
            reads.append(name)
        return ir.tensor(array, name=name)

    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=name)


def build_lazy(text: str, **weights: np.ndarray) -> ir.Model:
    made = build(text, **weights)
    for name, array in weights.items():
        made.graph.initializers[name].const_value = lazy(name, array)
    return made


def model(*, second: str, second_weight: np.ndarray) -> ir.Model:
    return build_lazy(
        f"g (float[n,32] x) => (float[n,k] y) {{ a = MatMul(x, large)  b = Add(a, small)  y = MatMul(b, {second}) }}",
        large=LARGE,
        small=SMALL,
        **{second: second_weight},
    )


def models() -> dict[str, ir.Model]:
    return {
        "first.onnx": model(second="wide", second_weight=random(32, 40, seed=4)),
        "second.onnx": model(second="narrow", second_weight=random(32, 16, seed=5)),
        "third.onnx": build_lazy("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, huge) }", huge=HUGE),
    }


def locations(path: Path) -> dict[str, dict[str, str]]:
    """Where each initializer of a file lies; nothing for those inside it."""
    proto = onnx.load(path, load_external_data=False)
    return {t.name: {entry.key: entry.value for entry in t.external_data} for t in proto.graph.initializer}


def test_each_tensor_is_stored_once_and_shared(tmp_path: Path) -> None:
    save_graphs(models(), tmp_path, WEIGHTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.onnx", "second.onnx", "third.onnx", WEIGHTS]
    found = {name: locations(tmp_path / name) for name in models()}
    assert found["first.onnx"]["large"] == found["second.onnx"]["large"]
    entries = {tensor: place for file in found.values() for tensor, place in file.items() if place}
    assert sorted(entries) == ["huge", "large", "narrow", "wide"]
    assert {place["location"] for place in entries.values()} == {WEIGHTS}
    data = (tmp_path / WEIGHTS).read_bytes()
    assert data.count(LARGE.tobytes()) == 1
    for name, array in (("large", LARGE), ("huge", HUGE)):
        offset, length = int(entries[name]["offset"]), int(entries[name]["length"])
        assert data[offset : offset + length] == array.tobytes()
        assert offset % ALIGNMENT == 0


def test_small_tensors_stay_inline(tmp_path: Path) -> None:
    assert SMALL.nbytes <= INLINE_BYTES < LARGE.nbytes
    save_graphs(models(), tmp_path, WEIGHTS)
    proto = onnx.load(tmp_path / "first.onnx", load_external_data=False)
    small = next(tensor for tensor in proto.graph.initializer if tensor.name == "small")
    assert not small.external_data
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(small), SMALL)


def test_onnx_runtime_loads_what_is_written(tmp_path: Path) -> None:
    save_graphs(models(), tmp_path, WEIGHTS)
    x = random(3, 32, seed=9)
    for name, seed, width in (("first.onnx", 4, 40), ("second.onnx", 5, 16)):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        expected = (x @ LARGE + SMALL) @ random(32, width, seed=seed)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save_graphs(models(), tmp_path / folder, WEIGHTS)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_tensors_are_read_only_when_they_are_written(tmp_path: Path) -> None:
    reads: list[str] = []
    made = {
        f"{name}.onnx": build("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, huge) }", huge=HUGE)
        for name in "ab"
    }
    for item in made.values():
        item.graph.initializers["huge"].const_value = lazy("huge", HUGE, reads)
    assert reads == []
    save_graphs(made, tmp_path, WEIGHTS)
    assert reads == ["huge"]


def test_computed_tensors_of_equal_content_are_stored_once(tmp_path: Path) -> None:
    text = "g (float[n,64] x) => (float[n,64] y) { a = MatMul(x, one)  y = MatMul(a, two) }"
    save_graphs(
        {"a.onnx": build(text, one=HUGE, two=HUGE), "b.onnx": build(text, one=-HUGE, two=HUGE)}, tmp_path, WEIGHTS
    )
    data = (tmp_path / WEIGHTS).read_bytes()
    assert (data.count(HUGE.tobytes()), data.count((-HUGE).tobytes())) == (1, 1)
    x = random(2, 64)
    for name, sign in (("a.onnx", 1), ("b.onnx", -1)):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], sign * (x @ HUGE @ HUGE), rtol=1e-3, atol=1e-3)


def test_tensors_of_one_name_and_other_content_are_never_mixed_up(tmp_path: Path) -> None:
    made = {
        "first.onnx": build("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, table) }", table=HUGE),
        "second.onnx": build("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, table) }", table=-HUGE),
    }
    x = random(2, 64)
    save_graphs(made, tmp_path, WEIGHTS)
    session = onnxruntime.InferenceSession(tmp_path / "second.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ -HUGE, rtol=1e-4, atol=1e-4)


def test_graphs_without_large_tensors(tmp_path: Path) -> None:
    save_graphs({"a.onnx": build("g (float[n] x) => (float[n] y) { y = Mul(x, w) }", w=random(1))}, tmp_path, WEIGHTS)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": random(3)})[0].shape == (3,)
