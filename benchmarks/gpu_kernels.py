"""Where a call's time goes on a GPU, kernel by kernel: torch's profiler sees those of every library in the process.

    python benchmarks/gpu_kernels.py --model bert-base --workload 32x512
    python benchmarks/gpu_kernels.py --model bert-base --engines poolgraph-padded-cublaslt,torch-padded

It takes the models that ``gpu.py`` has written, or writes them. Every engine runs in a process of its own; without
CUDA graphs kernels have the same names and times, which is what the default engines are.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_engines import ENGINES, Job, choose_engines
from gpu_models import MODELS, prepare_model
from gpu_workloads import build_workloads
from models import ModelPaths

WORK_DIR = Path(__file__).resolve().parent.parent / ".bench" / "gpu" / "cuda"
DEFAULT_ENGINES = ("poolgraph-padded", "torch-padded")
WARM_UPS, CALLS = 5, 10
SHOWN = 16

KINDS = (
    ("attention", r"fmha|flash|sdpa|attention"),
    ("products", r"gemm|cutlass|nvjet|xmma|cublas|splitk"),
    ("norms", r"layer_?norm|LayerNorm|skip"),
    ("copies", r"memcpy|memset"),
)
"""What the names of kernels say of their work, the first pattern that is found; the rest are passes over rows."""

OTHER_KIND = "passes over rows"


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of an average call: its name, how often it runs, and milliseconds in all."""

    name: str
    launches: float
    milliseconds: float

    @property
    def kind(self) -> str:
        """What it works at."""
        return next((kind for kind, pattern in KINDS if re.search(pattern, self.name, re.IGNORECASE)), OTHER_KIND)


def average(kernels: Iterable[tuple[str, int, float]], calls: int) -> list[KernelTime]:
    """Return the kernels of an average call, the longest first, of all calls' names, launches and microseconds."""
    launches: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    for name, count, spent in kernels:
        launches[name] += count
        microseconds[name] += spent
    found = [KernelTime(name, launches[name] / calls, microseconds[name] / calls / 1e3) for name in launches]
    return sorted(found, key=lambda kernel: -kernel.milliseconds)


def describe(kernels: Sequence[KernelTime], call_ms: float) -> str:
    """Write a call: the sums by kind, and the longest kernels."""
    kinds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        kinds[kernel.kind] += kernel.milliseconds
    total = sum(kinds.values())
    lines = [f"a call {call_ms:.2f} ms, of which kernels {total:.2f} ms", ""]
    lines += [f"{spent:8.3f} ms  {kind}" for kind, spent in sorted(kinds.items(), key=lambda item: -item[1])]
    lines += ["", *(f"{it.milliseconds:8.3f} ms  {it.launches:5.0f}x  {it.name[:110]}" for it in kernels[:SHOWN])]
    return "\n".join(lines)


def profile_engine(engine: str, model: str, workload_name: str, work_dir: Path) -> str:
    """Load an engine and profile calls of one workload."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    paths = ModelPaths(model_dir=work_dir / model)
    workload = next(it for it in build_workloads(quick=False) if it.name == workload_name)
    job = Job(
        model=model,
        device="cuda",
        checkpoint_dir=paths.checkpoint_dir,
        artifact_dir=paths.artifact_dir,
        workloads=(workload,),
    )
    loaded = ENGINES[engine].load(job)
    for _ in range(WARM_UPS):
        loaded.answer(workload.ids)
    started = time.perf_counter()
    for _ in range(CALLS):
        loaded.answer(workload.ids)
    call_ms = (time.perf_counter() - started) / CALLS * 1e3
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            loaded.answer(workload.ids)
        torch.cuda.synchronize()
    events = profiled.key_averages()
    kernels = average(((it.key, it.count, it.self_device_time_total) for it in events), CALLS)
    return describe([kernel for kernel in kernels if kernel.milliseconds > 0], call_ms)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--workload", default="32x512")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=DEFAULT_ENGINES)
    parser.add_argument("--work", type=Path, default=WORK_DIR, help="where models are kept")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(profile_engine(options.engines[0], options.model, options.workload, options.work)))
        return 0
    prepare_model(options.model, ModelPaths(model_dir=options.work / options.model), "cuda")
    failed = 0
    for engine in choose_engines("cuda", options.engines):
        print(f"\n## {ENGINES[engine].label}, {options.model}, {options.workload}\n", flush=True)
        given = ["--model", options.model, "--workload", options.workload, "--work", str(options.work)]
        child = [sys.executable, str(Path(__file__).resolve()), "--one", "--engines", engine, *given]
        found = subprocess.run(child, check=False, capture_output=True, text=True)
        failed |= found.returncode
        print(json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else found.stderr[-1500:], flush=True)
    return int(failed != 0)


if __name__ == "__main__":
    raise SystemExit(main())
