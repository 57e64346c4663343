"""The offline benchmark: every engine on every workload, interleaved, each in a process of its own.

Writes ``results/<name>.json`` and, made from it, ``results/<name>.md`` and ``results/<name>.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chart import draw_chart
from engines import ENGINES, REFERENCE
from models import MODELS, ModelPaths, model_paths, remove_derived
from report import render_report
from rounds import group_lines, plan_runs, summarize_engine
from workloads import CORPUS, CORPUS_FILES, WORKLOAD_NAMES, build_workloads, load_tokenizer, select_calibration

from poolgraph.runtime.bench_corpus import read_passages
from poolgraph.runtime.bench_machine import describe_machine, hide_paths, read_versions
from poolgraph.runtime.bench_timing import Timing
from poolgraph.runtime.bench_workloads import Workload, save_workloads

HERE = Path(__file__).resolve().parent
RESULTS_DIR = HERE / "results"
CHILD_TIMEOUT_S = 1800
QUICK_NUM_MIXED = 64
QUICK_TIMING = Timing(min_s=0.2, max_s=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure and for how long."""

    name: str
    models: tuple[str, ...]
    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    quick: bool

    @property
    def timing(self) -> Timing:
        """How long a workload is repeated."""
        return QUICK_TIMING if self.quick else Timing()

    def num_mixed(self, model: str) -> int:
        """Return how many passages the mixed workload has."""
        return min(QUICK_NUM_MIXED, MODELS[model].num_mixed) if self.quick else MODELS[model].num_mixed

    def scratch_dir(self, paths: ModelPaths) -> Path:
        """Return where the texts and the reference's vectors lie; a quick run has its own."""
        return paths.model_dir / ("quick" if self.quick else "full")


def run_plan(plan: Plan) -> dict[str, Any]:
    """Prepare everything, then measure; the results are written after every model."""
    results = {
        "name": plan.name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": read_versions() | read_commit(),
        "settings": {"rounds": plan.rounds, "quick": plan.quick} | asdict(plan.timing),
        "models": {},
    }
    passages = read_passages(CORPUS, CORPUS_FILES)
    for model in plan.models:
        workloads, failures = prepare(plan, model, passages)
        lines = measure_model(plan, model, failures)
        engines = {key: summarize_engine(rows) for key, rows in group_lines(lines, model, plan.engines).items()}
        results["models"][model] = {
            "description": MODELS[model].description,
            "workloads": {w.name: {"num_texts": len(w.texts), "num_tokens": w.num_tokens} for w in workloads},
            "engines": engines,
        }
        write_results(results, RESULTS_DIR)
    return results


def prepare(plan: Plan, model: str, passages: Sequence[str]) -> tuple[list[Workload], list[dict[str, Any]]]:
    """Make the model's files, the texts, the reference's vectors and every engine's caches.

    Returns the workloads and an error line for each engine that does not load.
    """
    announce(f"preparing {model}")
    if subprocess.run([sys.executable, str(HERE / "models.py"), model], stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"{model} could not be prepared: the reason is above")
    paths = model_paths(model)
    scratch_dir = plan.scratch_dir(paths)
    calibration = json.dumps(select_calibration(passages))
    (paths.cache_dir / "calibration.json").write_text(calibration)
    workloads = build_workloads(load_tokenizer(paths.checkpoint_dir), passages, plan.num_mixed(model))
    save_workloads(scratch_dir / "workloads.json", workloads)
    reference = run_child(plan, model, REFERENCE, ["--write-reference", str(scratch_dir / "reference.npz")])
    if "error" in reference:
        raise SystemExit(f"the reference {REFERENCE} failed on {model}: {reference['error']}")
    lines = [run_child(plan, model, engine, ["--prepare"]) for engine in plan.engines]
    chosen = [workload for workload in workloads if workload.name in plan.workloads]
    return chosen, [line for line in lines if "error" in line]


def measure_model(plan: Plan, model: str, failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the rounds of one model; engines in ``failures`` keep their error line and are not run again."""
    failed = {line["engine"] for line in failures}
    lines = list(failures)
    reference = str(plan.scratch_dir(model_paths(model)) / "reference.npz")
    runs = [run for run in plan_runs([model], plan.engines, plan.rounds) if run.engine not in failed]
    for number, run in enumerate(runs, start=1):
        announce(f"[{number}/{len(runs)}] {model}, round {run.round + 1}, {run.engine}")
        line = run_child(plan, model, run.engine, ["--reference", reference])
        lines.append(line)
    return lines


def run_child(plan: Plan, model: str, engine: str, options: Sequence[str]) -> dict[str, Any]:
    """Run one engine in a process and return its line, or a line with its error."""
    command = [sys.executable, str(HERE / "run_one.py"), "--engine", engine, "--model", model, *options]
    command += ["--workloads", ",".join(plan.workloads)]
    command += ["--workloads-file", str(plan.scratch_dir(model_paths(model)) / "workloads.json")]
    command += ["--min-seconds", str(plan.timing.min_s), "--max-seconds", str(plan.timing.max_s)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return error_line(model, engine, f"no answer within {CHILD_TIMEOUT_S} s")
    if done.returncode:
        line = error_line(model, engine, last_line(done.stderr) or f"exit code {done.returncode}")
        announce(f"  {engine} failed: {line['error']}")
        return line
    announce(f"  {engine}: {time.perf_counter() - started:.1f} s")
    return json.loads(last_line(done.stdout))


def read_commit() -> dict[str, str]:
    """Return the short commit of the working tree, with a mark when it has changes; nothing outside of git."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return {"poolgraph commit": done.stdout.strip()} if done.returncode == 0 and done.stdout.strip() else {}


def error_line(model: str, engine: str, message: str) -> dict[str, Any]:
    """Return the line of an engine that did not answer."""
    return {"engine": engine, "label": ENGINES[engine].label, "model": model, "error": hide_paths(message)}


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Write the JSON, the table and the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / results["name"]
    stem.with_suffix(".json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    stem.with_suffix(".md").write_text(render_report(results))
    draw_chart(results, stem.with_suffix(".png"))


def announce(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def split_names(known: Sequence[str]) -> Any:
    """Return an argparse type for comma-separated names out of ``known``."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=split_names(tuple(MODELS)), default=("minilm", "bert-base"))
    parser.add_argument("--engines", type=split_names(tuple(ENGINES)), default=tuple(ENGINES))
    parser.add_argument("--workloads", type=split_names(WORKLOAD_NAMES), default=WORKLOAD_NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short repeats and 64 passages: to see that it works")
    parser.add_argument("--fresh", action="store_true", help="export and quantize again with the code of today")
    parser.add_argument("--name", default="offline", help="file name of the results")
    parser.add_argument("--render", action="store_true", help="only make the table and the chart again from the JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = build_parser().parse_args(arguments)
    if options.render:
        write_results(json.loads((RESULTS_DIR / f"{options.name}.json").read_text()), RESULTS_DIR)
        return
    for model in options.models if options.fresh else ():
        remove_derived(model)
    plan = Plan(
        name=options.name,
        models=options.models,
        engines=options.engines,
        workloads=options.workloads,
        rounds=options.rounds,
        quick=options.quick,
    )
    run_plan(plan)
    print((RESULTS_DIR / f"{plan.name}.md").read_text())


if __name__ == "__main__":
    main()
