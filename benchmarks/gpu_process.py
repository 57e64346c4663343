"""Child processes of the GPU benchmark, asked line by line, none of them waited for beyond a time."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


class ChildFailed(Exception):
    """A child ended, or did not answer in time."""


class ChildProcess:
    """A running ``gpu_child.py``.

    Args:
        request: What its command line says.
        log: File for what it prints on standard error.
    """

    def __init__(self, request: Mapping[str, Any], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(FOLDER / "gpu_child.py"), json.dumps(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            ChildFailed: the child ended or is late; it is ended then. Or its answer is an error.
        """
        try:
            line = self._answers.get(timeout=max(timeout_s, 0.1))
        except queue.Empty:
            self.stop()
            raise ChildFailed(f"no answer within {timeout_s:.0f} s") from None
        if line is None:
            self._process.wait()
            raise ChildFailed(f"ended with {self._process.returncode}: {last_line(self.log)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailed(answer["error"])
        return answer

    def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask and return the answer; errors as of ``receive``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise ChildFailed(f"it is gone: {last_line(self.log)}") from None
        return self.receive(timeout_s)

    def close(self) -> None:
        """Tell it that nothing more is asked, at which it ends by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ended first
            self._process.stdin.close()

    def stop(self) -> None:
        """End it, by force if it does not end by itself."""
        self.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()


class Preparation:
    """A model's checkpoint and artifact, written in a process of their own.

    It does not see the GPU, on which others are being measured; their answers are checked here, and not by the export.
    Where that fails for want of the provider, it is done again with the GPU in sight.

    Args:
        model: Its name.
        model_dir: Where they go.
        device: Which variants are exported.
        threads: How many it may use.
    """

    def __init__(self, model: str, model_dir: Path, device: str, threads: int) -> None:
        model_dir.mkdir(parents=True, exist_ok=True)
        self._log = model_dir / "prepare.log"
        command = [sys.executable, str(FOLDER / "gpu_models.py"), model, "--model-dir", str(model_dir)]
        self._command = [*command, "--device", device]
        self._env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = self._start({"CUDA_VISIBLE_DEVICES": ""})

    def _start(self, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(self._command, stdout=output, stderr=output, env={**self._env, **more})

    def wait(self, timeout_s: float) -> str | None:
        """Wait until it is done; return what went wrong, or None."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._process.wait(timeout=max(timeout_s, 0.1)) != 0:
                self._process = self._start({})
            code = self._process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            return f"not exported within {timeout_s:.0f} s"
        return None if code == 0 else f"the export failed: {last_line(self._log)}"

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def last_line(log: Path) -> str:
    """Return the last line that says something, its beginning."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
