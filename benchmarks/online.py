"""The online benchmark: concurrent clients on ``poolgraph serve`` and its peers, and the same texts offline.

    .venv/bin/python benchmarks/online.py [--rounds 3] [--seconds 4] [--servers poolgraph,infinity_torch]

Servers run side by side, all but the one that is measured stopped; rounds go through servers and numbers of clients in
turn. Writes ``results/<name>.json`` and, made from it, ``results/<name>.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from models import MODELS, ModelPaths, model_paths, prepare_model
from online_report import check_vectors, judge_goals, render_online, summarize_rounds
from online_servers import SERVERS, RunningServer, find_free_port, read_infinity_versions, start_server
from online_texts import build_texts
from workloads import CORPUS, CORPUS_FILES, load_tokenizer

from poolgraph import PoolingModel
from poolgraph.runtime.bench_corpus import read_passages
from poolgraph.runtime.bench_machine import describe_machine, read_versions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("poolgraph", "onnxruntime", "tokenizers", "numpy", "uvicorn", "uvloop", "httptools", "msgspec", "orjson")
SUBJECT = "poolgraph"
WARM_UP_S = 0.5
DEFAULT_SERVERS = ("poolgraph", "infinity_torch", "infinity_onnx_int8")
"""infinity_onnx is slower than both of infinity's others."""

MOST_PER_SECOND = 1600
"""Texts kept ready for a second of load; a server that answers more ends the run with a message."""

CHILD_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure and for how long."""

    name: str
    model: str
    precision: str
    servers: tuple[str, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: float
    offline_texts: int

    @property
    def texts_per_level(self) -> int:
        """Texts kept ready for one measurement, at least as many as are run offline."""
        return max(self.offline_texts, int((self.seconds + WARM_UP_S) * MOST_PER_SECOND))

    def take(self, texts: Sequence[str], number: int, level: int) -> list[str]:
        """Return the texts of a round and a number of clients, which no other has; servers get the same."""
        start = (number * len(self.clients) + level) * self.texts_per_level
        return list(texts[start : start + self.texts_per_level])


def run_plan(plan: Plan, paths: ModelPaths, scratch: Path) -> dict[str, Any]:
    """Start all servers, measure round after round, and return the results."""
    results: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": read_versions(PACKAGES),
        "peer_versions": read_infinity_versions() if {*plan.servers} - {SUBJECT} else {},
        "model": MODELS[plan.model].description,
        "labels": {name: SERVERS[name].label for name in plan.servers},
        "settings": {"rounds": plan.rounds, "seconds": plan.seconds, "offline_texts": plan.offline_texts},
    }
    tokenizer = load_tokenizer(paths.checkpoint_dir)
    tokenizer.no_truncation()
    number = plan.texts_per_level * len(plan.clients) * plan.rounds
    texts = build_texts(tokenizer, read_passages(CORPUS, CORPUS_FILES), number)
    with ExitStack() as stack:
        reference = stack.enter_context(PoolingModel.load(paths.artifact_dir, precision=plan.precision))
        servers = {name: stack.enter_context(_start(name, plan, paths, scratch)) for name in plan.servers}
        bench = Bench(plan=plan, paths=paths, servers=servers, reference=reference, texts=texts, scratch=scratch)
        rounds = [bench.measure_round(number) for number in range(plan.rounds)]
        results["variant"] = reference.variant.name
    summary = summarize_rounds(rounds)
    return results | {"summary": summary, "goals": judge_goals(summary, SUBJECT), "rounds": rounds}


def _start(name: str, plan: Plan, paths: ModelPaths, scratch: Path) -> AbstractContextManager[RunningServer]:
    row, port = SERVERS[name], find_free_port()
    return start_server(row, row.command(port, paths, plan.precision), port, scratch / f"{name}.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A run under way.

    Attributes:
        plan: What to measure.
        paths: The model's files.
        servers: The servers, all asleep.
        reference: Gives the vectors that answers are compared with.
        texts: All texts of the run.
        scratch: A folder for the children's files.
    """

    plan: Plan
    paths: ModelPaths
    servers: Mapping[str, RunningServer]
    reference: PoolingModel
    texts: Sequence[str]
    scratch: Path

    def measure_round(self, number: int) -> dict[str, Any]:
        """Measure every number of clients on every server, then the last texts offline."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self.servers}
        chosen: list[str] = []
        for level, clients in enumerate(self.plan.clients):
            chosen = self.plan.take(self.texts, number, level)
            for name, server in self.servers.items():
                row = found[name][str(clients)] = self.measure_level(server, chosen, clients)
                print(f"round {number}, {name}, {clients} clients: {_describe(row)}", flush=True)
        offline = self.measure_offline(chosen[: self.plan.offline_texts])
        print(f"round {number}, offline: {_describe(offline)}", flush=True)
        return {"offline": offline, "servers": found}

    def measure_level(self, server: RunningServer, texts: Sequence[str], clients: int) -> dict[str, Any]:
        """Load one server, and check a part of its answers.

        Raises:
            ValueError: an answer is not its text's.
        """
        samples = self.scratch / "samples.npz"
        options = ["--port", server.port, "--path", server.row.path, "--model", "bench", "--clients", clients]
        options += ["--seconds", self.plan.seconds, "--warm-up", WARM_UP_S, "--samples", samples]
        with server.awake():
            before = server.cpu_seconds()
            row = self._run_child("online_client.py", options, texts)
            row["server_cpu_ms"] = (server.cpu_seconds() - before) / row["answered"] * 1e3
            row["server_mib"] = server.memory_mib()
        with np.load(samples) as kept:
            expected = self.reference.embed([texts[index] for index in kept["numbers"]])
            row["min_cosine"] = check_vectors(kept["vectors"], expected, exact=server.row.is_exact)
            row["compared"] = len(expected)
        return row

    def measure_offline(self, texts: Sequence[str]) -> dict[str, Any]:
        """Measure the same model in a process without a server."""
        options = [self.paths.artifact_dir, "--precision", self.plan.precision, "--seconds", self.plan.seconds]
        return self._run_child("online_direct.py", options, texts)

    def _run_child(self, script: str, options: Sequence[object], texts: Sequence[str]) -> dict[str, Any]:
        file = self.scratch / "texts.json"
        file.write_text(json.dumps(texts))
        command = [sys.executable, str(HERE / script), *map(str, options), "--texts", str(file)]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_TIMEOUT_S, check=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result


def _describe(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in row.items())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="online")
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--servers", type=lambda text: tuple(text.split(",")), default=DEFAULT_SERVERS)
    parser.add_argument("--clients", type=lambda text: tuple(map(int, text.split(","))), default=(1, 16, 64))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--offline-texts", type=int, default=2048)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = build_parser().parse_args(argv)
    plan = Plan(**vars(options))
    paths = model_paths(plan.model)
    prepare_model(plan.model)
    for name in plan.servers:
        SERVERS[name].prepare(paths)
    with TemporaryDirectory() as scratch:
        results = run_plan(plan, paths, Path(scratch))
    (RESULTS / f"{plan.name}.json").write_text(json.dumps(results, indent=2) + "\n")
    page = render_online(results)
    (RESULTS / f"{plan.name}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
