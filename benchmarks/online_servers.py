"""The servers of the online benchmark: how each is installed, started, asked, put to sleep and ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models import BENCH_DIR, ModelPaths

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
INFINITY_DIR = BENCH_DIR / "infinity"
INFINITY_PACKAGES = (
    "infinity-emb[server,torch,optimum]==0.0.78",
    "torch==2.13.0",
    "optimum==1.24.0",
    "datasets==3.6.0",
    "pyarrow==20.0.0",
)
"""This torch is the CPU's build. infinity gives optimum absolute paths, which later ones do not find, and needs
numpy 1, which later ones of what optimum needs do not take."""

_INFINITY_BIN = INFINITY_DIR / "bin"
_POOLING = ("--pooling-method", "mean")
"""Of the ONNX engines, which would take the first token's vector; the torch engine reads the checkpoint's own."""

_EXPORT = (
    "import functools, sys, torch; torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False); "
    "from optimum.onnxruntime import ORTModelForFeatureExtraction as Model; "
    "Model.from_pretrained(sys.argv[1], export=True).save_pretrained(sys.argv[2] + '/onnx')"
)
_QUANTIZE = (
    "import sys; from onnxruntime.quantization import QuantType, quantize_dynamic; "
    "quantize_dynamic(sys.argv[1] + '/onnx/model.onnx', sys.argv[2] + '/onnx/model_quantized.onnx', "
    "per_channel=True, weight_type=QuantType.QInt8)"
)
_TICKS = os.sysconf("SC_CLK_TCK")
_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """A server to measure.

    Attributes:
        label: What the table calls it.
        path: Its route for vectors.
        command: Its command line, of port, model and precision.
        prepare: Makes what it needs where that is missing.
        is_exact: Whether its vectors must have the bits of the offline ones.
    """

    label: str
    path: str
    command: Callable[[int, ModelPaths, str], list[str]]
    prepare: Callable[[ModelPaths], None] = lambda _: None
    is_exact: bool = False


def _serve_poolgraph(port: int, paths: ModelPaths, precision: str) -> list[str]:
    main = "from poolgraph.cli import main; raise SystemExit(main())"
    options = ["--precision", precision, "--port", str(port), "--served-model-name", "bench"]
    return [sys.executable, "-c", main, "serve", str(paths.artifact_dir), *options]


def _serve_infinity(port: int, model_dir: Path, engine: str) -> list[str]:
    options = ["--engine", engine, "--device", "cpu", "--port", str(port), "--served-model-name", "bench"]
    return [
        str(_INFINITY_BIN / "infinity_emb"),
        "v2",
        "--model-id",
        str(model_dir),
        "--no-model-warmup",
        *_POOLING,
        *options,
    ]


def _serve_torch(port: int, paths: ModelPaths, precision: str) -> list[str]:
    return _serve_infinity(port, paths.checkpoint_dir, "torch")


def _serve_onnx(port: int, paths: ModelPaths, precision: str) -> list[str]:
    return _serve_infinity(port, _onnx_dir(paths), "optimum")


def _serve_quantized(port: int, paths: ModelPaths, precision: str) -> list[str]:
    return _serve_infinity(port, _quantized_dir(paths), "optimum")


def _onnx_dir(paths: ModelPaths) -> Path:
    return paths.cache_dir / "infinity_onnx"


def _quantized_dir(paths: ModelPaths) -> Path:
    return paths.cache_dir / "infinity_onnx_int8"


def _install_infinity(paths: ModelPaths) -> None:
    """Make infinity's environment where it is missing."""
    done = INFINITY_DIR / ".installed"
    if done.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", INFINITY_DIR], check=True)
    subprocess.run([_INFINITY_BIN / "pip", "install", "--quiet", *INFINITY_PACKAGES], check=True)
    done.touch()


def _export_onnx(paths: ModelPaths) -> None:
    """Export the checkpoint with infinity's own optimum: its ONNX engine starts offline from such a folder."""
    _install_infinity(paths)
    _make_folder(_EXPORT, paths.checkpoint_dir, _onnx_dir(paths))


def _quantize_onnx(paths: ModelPaths) -> None:
    """Quantize that export as the int8 files of published models are; infinity prefers such a file on CPUs."""
    _export_onnx(paths)
    _make_folder(_QUANTIZE, _onnx_dir(paths), _quantized_dir(paths))


def _make_folder(script: str, source: Path, output: Path) -> None:
    if output.exists():
        return
    partial = output.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    subprocess.run([_INFINITY_BIN / "python", "-c", script, source, partial], check=True, stdout=sys.stderr)
    partial.rename(output)


SERVERS = {
    "poolgraph": ServerRow(label="poolgraph serve", path="/v1/embeddings", command=_serve_poolgraph, is_exact=True),
    "infinity_torch": ServerRow(
        label="infinity-emb, torch", path="/embeddings", command=_serve_torch, prepare=_install_infinity
    ),
    "infinity_onnx": ServerRow(
        label="infinity-emb, optimum fp32", path="/embeddings", command=_serve_onnx, prepare=_export_onnx
    ),
    "infinity_onnx_int8": ServerRow(
        label="infinity-emb, optimum int8", path="/embeddings", command=_serve_quantized, prepare=_quantize_onnx
    ),
}


def read_infinity_versions() -> dict[str, str]:
    """Return the versions of what matters in infinity's environment."""
    names = ("infinity-emb", "torch", "transformers", "sentence-transformers", "optimum", "onnxruntime")
    listed = subprocess.run(
        [_INFINITY_BIN / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    found = dict(line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)
    return {name: found[name] for name in names if name in found}


class RunningServer:
    """A server's process; between its measurements it is stopped, so that it takes nothing from the others."""

    def __init__(self, row: ServerRow, port: int, process: subprocess.Popen[bytes]) -> None:
        self.row = row
        self.port = port
        self._process = process

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for as long as this lasts."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> float:
        """Return its resident memory."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def start_server(row: ServerRow, command: Sequence[str], port: int, log: Path) -> Iterator[RunningServer]:
    """Start a server, wait until it listens, put it to sleep, and end it at the end.

    Raises:
        RuntimeError: it ended, or does not listen in time.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_for_port(process, row, port, log)
        process.send_signal(signal.SIGSTOP)
        yield RunningServer(row, port, process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], row: ServerRow, port: int, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{row.label} did not start: {log.read_text(errors='replace')[-_TAIL:]}")


def find_free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
