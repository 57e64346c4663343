"""The operators for CUDA, compiled for the CPU provider, beside a cuBLASLt on the host that checks how it is called."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from cuda_operators import run_reference
from little_graphs import random
from one_node import TOLERANCE
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, RuntimeException

from poolgraph.graphs.manifest import CUDA_OPERATORS
from poolgraph.graphs.native import Activation
from poolgraph.runtime.native_library import available_operators, library_path
from poolgraph.runtime.out_of_memory import is_out_of_memory

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(CUDA_OPERATORS not in available_operators(), reason="needs a C++ compiler")

KINDS = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
ALLOC_FAILED = 3
FAILURES = (Fail, InvalidGraph, RuntimeException)

Array = np.ndarray[Any, Any]
Open = Callable[..., onnxruntime.InferenceSession]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """The cuBLASLt that what stands for ONNX Runtime's provider is linked to, and another that was there before."""
    folder = tmp_path_factory.mktemp("cublaslt")
    compile_c = ["cc", "-std=gnu11", "-O2", "-fPIC", "-shared"]
    for name in ("libother_lt.so", "libfake_lt.so"):
        options = ["-lm", "-Wl,-Bsymbolic", f"-Wl,-soname,{name}", "-o", folder / name]
        subprocess.run([*compile_c, REPOSITORY / "tests" / "fake_cublaslt.c", *options], check=True)
    provider = folder / "fake_provider.c"
    provider.write_text("int provider;\n")
    linked = [provider, "-Wl,--no-as-needed", folder / "libfake_lt.so", "-o", provider.with_suffix(".so")]
    subprocess.run([*compile_c, *linked], check=True)
    other = ctypes.CDLL(str(folder / "libother_lt.so"), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(str(folder / "libfake_lt.so"))
    ctypes.CDLL(str(provider.with_suffix(".so")))
    return found, other


@pytest.fixture(scope="module")
def cublaslt(libraries: tuple[ctypes.CDLL, ctypes.CDLL]) -> ctypes.CDLL:
    """The cuBLASLt that the operators are to find in this process."""
    return libraries[0]


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("operators") / "on_host.so"
    source = REPOSITORY / "runtime" / "kernels_cuda.cpp"
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DPOOLGRAPH_ON_HOST"]
    subprocess.run(["c++", *options, source, "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture
def open_product(operators: Path, cublaslt: ctypes.CDLL) -> Iterator[Open]:
    """Open a session of one product; no description of a matrix outlives the test."""
    yield functools.partial(open_session, operators)
    assert ctypes.c_int.in_dll(cublaslt, "live").value == 0


def open_session(
    operators: Path,
    feeds: Mapping[str, Array],
    activation: int = Activation.NONE,
    kind: str = "float16",
    provider: Any = "CPUExecutionProvider",
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(operators))
    model = ir.to_proto(product_graph(feeds, kind, activation)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def product_graph(feeds: Mapping[str, Array], kind: str, activation: int) -> ir.Model:
    """A product in 16 bits of float32 inputs, with axes of any size, whose answer is float32 again."""
    axes = {name: ",".join(f"{name}{axis}" for axis in range(array.ndim)) for name, array in feeds.items()}
    given = ", ".join(f"float[{of}] {name}" for name, of in axes.items())
    answer = ",".join([*(f"x{axis}" for axis in range(feeds["x"].ndim - 1)), "b0"])
    halves = "".join(f"{name}h = Cast<to={KINDS[kind].value}>({name})  " for name in feeds)
    product = f"yh, memory = poolgraph.cuda.BiasMatMul<activation={activation}>(xh, wh, bh)"
    header = '<ir_version: 10, opset_import: ["": 20, "poolgraph.cuda": 1]>'
    return ir.from_onnx_text(
        f"{header} g ({given}) => (float[{answer}] y) {{ {halves} {product}  y = Cast<to=1>(yh) }}"
    )


def drawn(*shape: int, out: int = 48, seed: int = 0) -> dict[str, Array]:
    """Rows of a shape, weights and bias; products of about 1."""
    weights = random(shape[-1], out, seed=seed + 1) / np.sqrt(np.float32(shape[-1]))
    return {"x": random(*shape, seed=seed), "w": weights, "b": random(out, seed=seed + 2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [Activation.NONE, Activation.GELU_TANH], ids=lambda it: it.name)
@pytest.mark.parametrize("shape", [(1, 64), (33, 64), (3, 5, 24), (2, 1, 3, 8)], ids=str)
def test_products_are_what_the_graphs_are_checked_with(
    open_product: Open, kind: str, activation: Activation, shape: tuple[int, ...]
) -> None:
    feeds = drawn(*shape)
    found = open_product(feeds, activation, kind).run(["y"], feeds)[0]
    assert found.shape == (*shape[:-1], 48)
    expected = run_reference(product_graph(feeds, kind, activation), feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def test_no_rows_are_no_product(open_product: Open, cublaslt: ctypes.CDLL) -> None:
    feeds, before = drawn(0, 64), asked(cublaslt)
    assert open_product(feeds).run(["y"], feeds)[0].shape == (0, 48)
    assert asked(cublaslt) == before


def asked(cublaslt: ctypes.CDLL) -> int:
    return ctypes.c_int.in_dll(cublaslt, "asked").value


def test_an_algorithm_is_asked_for_once_a_number_of_rows(open_product: Open, cublaslt: ctypes.CDLL) -> None:
    feeds, before = drawn(4, 2, 64), asked(cublaslt)
    session = open_product(feeds)
    first = session.run(["y"], feeds)[0]
    for shape in ((4, 2, 64), (8, 1, 64), (2, 4, 64)):
        again = session.run(["y"], {**feeds, "x": feeds["x"].reshape(shape)})[0]
        np.testing.assert_array_equal(again.reshape(first.shape), first)
    assert asked(cublaslt) == before + 1
    session.run(["y"], {**feeds, "x": feeds["x"][:3]})
    assert asked(cublaslt) == before + 2


def test_the_algorithms_that_are_kept_are_bounded(open_product: Open, cublaslt: ctypes.CDLL) -> None:
    feeds, before = drawn(300, 8, out=8), asked(cublaslt)
    session = open_product(feeds)
    whole = session.run(["y"], feeds)[0]
    for count in (*range(1, 300), 1, 299):
        found = session.run(["y"], {**feeds, "x": feeds["x"][:count]})[0]
        np.testing.assert_array_equal(found, whole[:count])
    assert asked(cublaslt) == before + 301  # 300 sizes, the first of them twice: it was no longer kept


@pytest.mark.parametrize(
    ("which", "status", "message"),
    [
        ("refuses", 15, r"no kernel for a product of 2 rows, 64 to 48 features \(status 15\)"),
        ("fails", 14, "cublasLtMatmul failed with status 14"),
    ],
)
def test_what_cublaslt_refuses_is_an_error(
    open_product: Open, cublaslt: ctypes.CDLL, which: str, status: int, message: str
) -> None:
    with returning(cublaslt, which, status), pytest.raises(FAILURES, match=message) as caught:
        open_product(drawn(2, 64)).run(["y"], drawn(2, 64))
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize("which", ["refuses", "fails"])
def test_a_lack_of_memory_is_one_that_batches_are_split_at(
    open_product: Open, cublaslt: ctypes.CDLL, which: str
) -> None:
    with returning(cublaslt, which, ALLOC_FAILED), pytest.raises(FAILURES) as caught:
        open_product(drawn(2, 64)).run(["y"], drawn(2, 64))
    assert is_out_of_memory(caught.value)


@contextlib.contextmanager
def returning(cublaslt: ctypes.CDLL, which: str, status: int) -> Iterator[None]:
    given = ctypes.c_int.in_dll(cublaslt, which)
    given.value = status
    try:
        yield
    finally:
        given.value = 0


def test_of_two_cublaslt_the_providers_is_asked(open_product: Open, libraries: tuple[ctypes.CDLL, ctypes.CDLL]) -> None:
    before = asked(libraries[0])
    open_product(drawn(2, 64)).run(["y"], drawn(2, 64))
    assert (asked(libraries[0]), asked(libraries[1])) == (before + 1, 0)


def test_many_threads_share_a_product(open_product: Open) -> None:
    feeds = drawn(40, 64)
    session = open_product(feeds)
    whole = session.run(["y"], feeds)[0]

    def run_rows(count: int) -> bool:
        return np.array_equal(session.run(["y"], {**feeds, "x": feeds["x"][:count]})[0], whole[:count])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run_rows, [1 + number % 40 for number in range(400)]))


def test_inputs_that_do_not_fit_are_refused(open_product: Open) -> None:
    feeds = drawn(2, 64)
    session = open_product(feeds)
    for wrong in ({"x": feeds["x"][:, :56]}, {"b": feeds["b"][:40]}, {"w": feeds["w"][:, :40]}):
        with pytest.raises(FAILURES, match="rows, weights and bias do not fit each other"):
            session.run(["y"], {**feeds, **wrong})
    with pytest.raises(FAILURES, match="cuBLASLt has no activation 1"):
        open_product(feeds, Activation.GELU)


def test_without_a_provider_an_error_says_what_is_missing(operators: Path) -> None:
    """In a process of its own: this one has it."""
    script = f"""
import pathlib
from test_kernels_cuda import drawn, open_session
try:
    open_session(pathlib.Path({str(operators)!r}), drawn(2, 64)).run(["y"], drawn(2, 64))
except Exception as error:
    print(error)
"""
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "runtime"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "fake_provider is not loaded, whose cuBLASLt the products are computed by" in found.stdout


def test_the_library_that_is_installed_is_for_cuda_alone() -> None:
    path = library_path(CUDA_OPERATORS)
    assert path is not None
    with pytest.raises(FAILURES, match="BiasMatMul"):
        open_session(path, drawn(2, 64))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [Activation.NONE, Activation.GELU_TANH], ids=lambda it: it.name)
def test_products_on_the_device(kind: str, activation: Activation) -> None:
    path = library_path(CUDA_OPERATORS)
    assert path is not None
    for shape in ((1, 64), (3, 5, 24), (16, 128, 256)):
        feeds = drawn(*shape)
        session = open_session(path, feeds, activation, kind, "CUDAExecutionProvider")
        expected = run_reference(product_graph(feeds, kind, activation), feeds)["y"]
        found = session.run(["y"], feeds)[0]
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


@pytest.mark.gpu
def test_a_captured_product_reads_what_is_written_into_its_input() -> None:
    path = library_path(CUDA_OPERATORS)
    assert path is not None
    feeds = drawn(40, 64)
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    session = open_session(path, feeds, Activation.GELU_TANH, provider=provider)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in feeds.items()}
    out = onnxruntime.OrtValue.ortvalue_from_shape_and_type((40, 48), np.float32, "cuda", 0)
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("y", out)
    for seed in range(4):  # the second run is captured, the others replay it
        rows = random(40, 64, seed=seed)
        values["x"].update_inplace(rows)
        session.run_with_iobinding(binding)
        fed = {**feeds, "x": rows}
        expected = run_reference(product_graph(fed, "float16", Activation.GELU_TANH), fed)["y"]
        np.testing.assert_allclose(out.numpy(), expected, rtol=2e-3, atol=2e-3)
