"""One engine in a process of its own: it is loaded once and then asked, a JSON line a question, a JSON line an answer.

Answers go to the process's first standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gpu_engines import ENGINES, REFERENCE, Engine, Job
from gpu_workloads import TEXTS, Workload, build_text_workloads, build_workloads
from models import ModelPaths
from numpy.typing import NDArray

MIN_REPEATS, MAX_REPEATS = 3, 400
WARM_UPS = 2


def load_workloads(paths: ModelPaths, *, quick: bool, with_texts: bool) -> list[Workload]:
    """Return the workloads of token ids, and those of texts where they are asked for."""
    from gpu_models import read_texts
    from tokenizers import Tokenizer

    workloads = build_workloads(quick=quick)
    if not with_texts:
        return workloads
    tokenizer = Tokenizer.from_file(str(paths.checkpoint_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    return [*workloads, *build_text_workloads(tokenizer, read_texts(), quick=quick)]


def compare(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """Return the largest cosine distance, (num_texts, size) each; and that of what distinguishes texts, their mean off.

    Raises:
        ValueError: an answer of another shape, or with numbers that are not finite.
    """
    if answer.shape != reference.shape:
        raise ValueError(f"answers of shape {answer.shape}, expected {reference.shape}")
    if not np.isfinite(answer).all():
        raise ValueError(f"{int((~np.isfinite(answer)).sum())} numbers of the answers are not finite")
    left, right = answer.astype(np.float64), reference.astype(np.float64)
    mean = right.mean(0)
    return {
        "max_distance": float(_distances(_unit(left), _unit(right)).max()),
        "max_centered_distance": float(
            _distances(_unit(_unit(left) - _unit(mean)), _unit(_unit(right) - _unit(mean))).max()
        ),
    }


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    size: NDArray[np.float64] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(size, 1e-300)


def _distances(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - (left * right).sum(-1))


def device_memory_bytes() -> int | None:
    """Return what this process holds of the GPU, None where the driver does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        own = [it for it in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if it.pid == os.getpid()]
    except Exception:  # no driver, no module, or a driver that cannot tell: all the same to the report
        return None
    return int(own[0].usedGpuMemory) if own and own[0].usedGpuMemory else None


class Child:
    """The engine and what it is asked.

    Args:
        request: ``engine``, ``model``, ``model_dir``, ``device``, ``quick`` and ``texts``.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        paths = ModelPaths(model_dir=Path(request["model_dir"]))
        row = ENGINES[request["engine"]]
        workloads = load_workloads(paths, quick=request["quick"], with_texts=request["texts"])
        self.workloads = {it.name: it for it in workloads if row.takes(it)}
        self.answers_file = paths.model_dir / "reference.npz"
        started = time.perf_counter()
        self.engine: Engine = row.load(
            Job(
                model=request["model"],
                device=request["device"],
                checkpoint_dir=paths.checkpoint_dir,
                artifact_dir=paths.artifact_dir,
                workloads=tuple(self.workloads.values()),
            )
        )
        self.load_s = time.perf_counter() - started
        if row is not ENGINES[REFERENCE]:
            with np.load(self.answers_file) as stored:
                self.expected = {name: stored[name] for name in stored.files}

    def ready(self, _: Mapping[str, Any]) -> dict[str, Any]:
        asked = [it for it in self.workloads if it != TEXTS or self.engine.embed is not None]
        return {"load_s": self.load_s, "note": self.engine.note, "workloads": asked}

    def write_reference(self, _: Mapping[str, Any]) -> dict[str, Any]:
        answers = {it.name: self.engine.answer(it.ids) for it in self.workloads.values()}
        np.savez(self.answers_file, **answers)
        spread = {name: _spread(rows) for name, rows in answers.items()}
        return {"spread": spread}

    def check(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Warm up, which captures what is captured, and compare the answers of the last call with the reference's."""
        run = self._run(question["workload"])
        for _ in range(WARM_UPS):
            answer = run()
        return compare(np.asarray(answer), self.expected[question["workload"]])

    def time(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Repeat for so many seconds; the median is of this round."""
        run = self._run(question["workload"])
        run()  # the others ran in between
        seconds: list[float] = []
        started = time.perf_counter()
        while len(seconds) < MIN_REPEATS or time.perf_counter() - started < question["seconds"]:
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
            if len(seconds) >= MAX_REPEATS:
                break
        return {"median_s": statistics.median(seconds), "repeats": len(seconds)}

    def memory(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"memory_bytes": device_memory_bytes()}

    def _run(self, name: str) -> Callable[[], Any]:
        workload, embed = self.workloads[name], self.engine.embed
        if name == TEXTS:
            assert embed is not None
            return lambda: embed(workload.texts)
        return lambda: self.engine.answer(workload.ids)


QUESTIONS = ("ready", "write_reference", "check", "time", "memory")


def _spread(rows: NDArray[np.float32]) -> float:
    """Return the mean cosine distance of answers to their mean: how much they tell texts apart."""
    unit = _unit(rows.astype(np.float64))
    return float(_distances(unit, _unit(unit.mean(0))).mean())


def measure_rate(device: str) -> dict[str, Any]:
    """Return the operations a second of a large product in fp16 (fp32 on a CPU), the median of several."""
    import torch

    size, dtype = (8192, torch.float16) if device == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(30):
        begun = time.perf_counter()
        for _ in range(4):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun) / 4)
    return {"flops_per_s": 2 * size**3 / statistics.median(seconds[5:]), "size": size, "dtype": str(dtype)[6:]}


def describe_device() -> dict[str, Any]:
    """Return the GPU and the versions that the numbers belong to."""
    import torch

    from poolgraph.runtime.bench_machine import describe_machine, read_versions

    names = ("poolgraph", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "sentence-transformers", "numpy")
    found: dict[str, Any] = {"versions": read_versions(names)} | describe_machine()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def serve(request: Mapping[str, Any], reply: Callable[[Mapping[str, Any]], None]) -> None:
    """Answer the request of the command line, and then those of standard input until it ends."""
    if request["engine"] == "rate":
        reply(measure_rate(request["device"]) | {"machine": describe_device()})
        return
    child = Child(request)
    reply(child.ready({}))
    for line in sys.stdin:
        question = json.loads(line)
        assert question["ask"] in QUESTIONS
        try:
            reply(getattr(child, question["ask"])(question))
        except Exception as error:  # the engine stays: another workload may work
            reply({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"})


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), lambda value: print(json.dumps(value), file=answers, flush=True))


if __name__ == "__main__":
    main()
