"""Measure poolgraph on a GPU beside torch and plain ONNX Runtime, on models made here, within a budget of seconds.

    python benchmarks/gpu.py                      # an NVIDIA GPU, seven minutes
    python benchmarks/gpu.py --device cpu --quick --models tiny    # tries the benchmark without one

Every engine runs in a process of its own and stays loaded; they are asked in turn, so that what disturbs one disturbs
all. Models come in the order of their importance, and what there is no time for is said to be missing. ``gpu.json`` and
``gpu.md`` are written after every step to ``--out``, else to ``$OUT``, else below ``.bench/``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_engines import ENGINES, REFERENCE, choose_engines
from gpu_models import MAX_SEQ_LENGTH, MODELS, build_config, count_flops
from gpu_process import ChildFailed, ChildProcess, Preparation
from gpu_report import MIN_COSINE, write_report
from gpu_workloads import NUM_TEXTS, QUICK_NUMBER, TEXT_IDS, TEXTS, Workload, build_workloads

WORK_DIR = Path(__file__).resolve().parent.parent / ".bench" / "gpu"
TEXT_MODELS = ("bert-base", "tiny")
"""Those that are measured from strings too."""
LONGEST_ANSWER_S = 120.0
LAST_MOMENTS_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        device: ``cuda`` or ``cpu``.
        models: Names, the most important first.
        engines: Names.
        quick: Small workloads, once.
        rounds: How often every engine is asked each workload.
        slice_s: Seconds that it is asked for each time.
        deadline: When to stop, on the clock of ``time.monotonic``.
        work_dir: Where models are kept.
        out_dir: Where results go.
    """

    device: str
    models: Sequence[str]
    engines: Sequence[str]
    quick: bool
    rounds: int
    slice_s: float
    deadline: float
    work_dir: Path
    out_dir: Path

    def left_s(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()


@dataclass(slots=True)
class Record:
    """The results so far, written out after every step."""

    out_dir: Path
    started: float = field(default_factory=time.monotonic)
    machine: dict[str, Any] = field(default_factory=lambda: {"cpu": "?", "versions": {}})
    rate: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def model(self, name: str) -> dict[str, Any]:
        """Return the results of a model, made on first use."""
        return self.models.setdefault(name, {"engines": {}, "memory": {}, "loading": {}, "notes": []})

    def results(self) -> dict[str, Any]:
        """Return what gpu.json holds."""
        return {
            "machine": self.machine,
            "rate": self.rate,
            "notes": self.notes,
            "elapsed_s": time.monotonic() - self.started,
            "models": self.models,
        }

    def write(self) -> None:
        """Write both files, each under another name first."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        results = self.results()
        for name, text in (("gpu.json", json.dumps(results, indent=1) + "\n"), ("gpu.md", write_report(results))):
            partial = self.out_dir / f"{name}.partial"
            partial.write_text(text)
            partial.replace(self.out_dir / name)


def run(plan: Plan) -> Record:
    """Measure what there is time for."""
    record = Record(plan.out_dir)
    threads = max(1, (os.cpu_count() or 1) // len(plan.models))
    preparations = {name: Preparation(name, plan.work_dir / name, plan.device, threads) for name in plan.models}
    try:
        _measure_rate(plan, record)
        for name in plan.models:
            if plan.left_s() < LAST_MOMENTS_S:
                record.model(name)["notes"].append("not measured: no time was left")
                continue
            problem = preparations[name].wait(plan.left_s())
            if problem is not None:
                record.model(name)["notes"].append(problem)
            if (plan.work_dir / name / "checkpoint").exists():
                _measure_model(plan, record, name, has_artifact=problem is None)
            record.write()
    finally:
        for preparation in preparations.values():
            preparation.stop()
        record.write()
    return record


def _measure_rate(plan: Plan, record: Record) -> None:
    child = ChildProcess({"engine": "rate", "device": plan.device}, plan.work_dir / "rate.log")
    try:
        answer = child.receive(min(plan.left_s(), LONGEST_ANSWER_S))
        record.machine = answer.pop("machine")
        record.rate = answer
    except ChildFailed as error:
        record.notes.append(f"the rate of products was not measured: {error}")
    finally:
        child.stop()
    record.write()


def _measure_model(plan: Plan, record: Record, name: str, *, has_artifact: bool) -> None:
    found = record.model(name)
    children: dict[str, ChildProcess] = {}
    try:
        if not _write_reference(plan, found, name):
            return
        wanted = [engine for engine in plan.engines if has_artifact or engine.startswith("torch")]
        children = {engine: _start(plan, name, engine) for engine in wanted}
        asked = _load(plan, found, children)
        _check(plan, record, found, children, asked)
        _time(plan, record, name, children, asked)
        _read_memory(plan, found, children)
    finally:
        for child in children.values():
            child.close()
        for child in children.values():
            child.stop()


def _start(plan: Plan, model: str, engine: str) -> ChildProcess:
    model_dir = plan.work_dir / model
    request = {
        "engine": engine,
        "model": model,
        "model_dir": str(model_dir),
        "device": plan.device,
        "quick": plan.quick,
        "texts": model in TEXT_MODELS,
    }
    return ChildProcess(request, model_dir / f"{engine}.log")


def _write_reference(plan: Plan, found: dict[str, Any], name: str) -> bool:
    child = _start(plan, name, REFERENCE)
    try:
        child.receive(plan.left_s())
        found["spread"] = child.ask({"ask": "write_reference"}, plan.left_s())["spread"]
    except ChildFailed as error:
        found["notes"].append(f"the reference failed: {error}")
        return False
    finally:
        child.stop()
    return True


def _load(plan: Plan, found: dict[str, Any], children: dict[str, ChildProcess]) -> dict[str, list[str]]:
    """Wait until every engine is loaded, all at once; return what each is asked."""
    asked: dict[str, list[str]] = {}
    for engine, child in list(children.items()):
        try:
            answer = child.receive(plan.left_s())
        except ChildFailed as error:
            found["notes"].append(f"{ENGINES[engine].label} does not run: {error}")
            children.pop(engine).stop()
            continue
        asked[engine] = answer["workloads"]
        found["loading"][engine] = {"load_s": answer["load_s"], "note": answer["note"]}
    return asked


def _check(
    plan: Plan,
    record: Record,
    found: dict[str, Any],
    children: Mapping[str, ChildProcess],
    asked: Mapping[str, Sequence[str]],
) -> None:
    for engine, child in children.items():
        cells = found["engines"].setdefault(engine, {})
        for workload in asked[engine]:
            if plan.left_s() < LAST_MOMENTS_S:
                return
            try:
                cells[workload] = child.ask({"ask": "check", "workload": workload}, plan.left_s())
            except ChildFailed as error:
                cells[workload] = {"error": str(error)}
        record.write()


def _time(
    plan: Plan,
    record: Record,
    name: str,
    children: Mapping[str, ChildProcess],
    asked: Mapping[str, Sequence[str]],
) -> None:
    """Ask every engine in turn, round by round, the workloads one after the other."""
    found = record.model(name)
    medians: dict[tuple[str, str], list[float]] = {}
    order = list(dict.fromkeys(workload for it in asked.values() for workload in it))
    sizes = {it.name: it for it in _known_workloads(plan)}
    for _ in range(plan.rounds):
        for workload in order:
            for engine, child in children.items():
                cell = found["engines"].get(engine, {}).get(workload)
                if cell is None or "error" in cell or plan.left_s() < LAST_MOMENTS_S:
                    continue
                question = {"ask": "time", "workload": workload, "seconds": plan.slice_s}
                try:
                    answer = child.ask(question, plan.left_s())
                except ChildFailed as error:
                    cell["error"] = str(error)
                    continue
                medians.setdefault((engine, workload), []).append(answer["median_s"])
                lengths = _lengths(workload, sizes, plan)
                cell |= _rates(name, lengths, medians[engine, workload], record.rate)
        record.write()


def _rates(
    model: str, lengths: Sequence[int], medians: Sequence[float], rate: Mapping[str, Any] | None
) -> dict[str, Any]:
    seconds = statistics.median(medians)
    flops = count_flops(MODELS[model], build_config(MODELS[model]), lengths)
    return {
        "median_s": seconds,
        "rounds_s": list(medians),
        "texts_per_s": len(lengths) / seconds,
        "tokens_per_s": sum(lengths) / seconds,
        "share": None if rate is None else flops / seconds / rate["flops_per_s"],
    }


def _known_workloads(plan: Plan) -> list[Workload]:
    return build_workloads(quick=plan.quick)


def _lengths(name: str, known: Mapping[str, Workload], plan: Plan) -> list[int]:
    if name in (TEXTS, TEXT_IDS):
        return [MAX_SEQ_LENGTH] * (QUICK_NUMBER if plan.quick else NUM_TEXTS)
    return known[name].lengths


def _read_memory(plan: Plan, found: dict[str, Any], children: Mapping[str, ChildProcess]) -> None:
    for engine, child in children.items():
        try:
            found["memory"][engine] = child.ask({"ask": "memory"}, max(plan.left_s(), 1.0))["memory_bytes"]
        except ChildFailed as error:
            found["notes"].append(f"{ENGINES[engine].label}: {error}")


def build_plan(arguments: Sequence[str] | None = None) -> Plan:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=420.0, help="when to stop, exporting included")
    parser.add_argument("--models", type=lambda text: text.split(","), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--engines", type=lambda text: text.split(","), help=f"some of {', '.join(ENGINES)}")
    parser.add_argument("--quick", action="store_true", help="small workloads, one round")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", WORK_DIR / "results")))
    parser.add_argument("--work", type=Path, default=WORK_DIR, help="where models are kept")
    options = parser.parse_args(arguments)
    models = options.models or [name for name in MODELS if not name.startswith("tiny")]
    unknown = set(models) - MODELS.keys()
    if unknown:
        parser.error(f"unknown models {sorted(unknown)}; there are {list(MODELS)}")
    return Plan(
        device=options.device,
        models=[name for name in MODELS if name in models],
        engines=choose_engines(options.device, options.engines),
        quick=options.quick,
        rounds=1 if options.quick else 3,
        slice_s=0.05 if options.quick else 0.4,
        deadline=time.monotonic() + options.seconds,
        work_dir=options.work / options.device,
        out_dir=options.out,
    )


def find_problems(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what must not be: answers too far from fp32, a reference or an engine of poolgraph's that failed."""
    problems = []
    for model, found in models.items():
        problems += [f"{model}: {note}" for note in found["notes"] if note.startswith(("poolgraph", "the reference"))]
        for engine, cells in found["engines"].items():
            for workload, cell in cells.items():
                if 1 - cell.get("max_distance", 0.0) < MIN_COSINE:
                    problems.append(f"{model}, {engine}, {workload}: {cell['max_distance']:.2g} from fp32")
                elif "error" in cell and engine.startswith("poolgraph"):
                    problems.append(f"{model}, {engine}, {workload}: {cell['error']}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the report; 1 if there are problems, which are printed last."""
    plan = build_plan(arguments)
    record = run(plan)
    print(write_report(record.results()))
    problems = find_problems(record.models)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
