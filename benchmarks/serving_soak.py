"""An hour's worth of mixed traffic in ten minutes: is every answer its own, is nothing lost, does memory stay flat?

    .venv/bin/python benchmarks/serving_soak.py [--artifact DIR] [--seconds 600] [--warm-up 60] [--clients 16]

A real ``poolgraph serve`` process with four models (DIR, or a tiny one, embeds; a reranker, a classifier and a tagger
are exported from the tests' tiny checkpoints) and a cache is asked by clients over loopback: all routes, lengths from
one token to the limit, some requests malformed, some clients hanging up in the middle. Each answer is compared with
what the Python API says of the text that asked. Writes ``results/serving_soak.json`` and fails unless all is well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from soak_models import Table, make_models, make_table
from soak_traffic import Ask, Reply, make_good, make_malformed

from poolgraph.runtime.bench_machine import describe_machine, read_versions

RESULTS = Path(__file__).resolve().parent / "results" / "serving_soak.json"
SERVE = "import sys; from poolgraph.cli import main; sys.exit(main(sys.argv[1:]))"
ANSWER_TIMEOUT_S = 120.0
MALFORMED, HANG_UPS = 0.05, 0.02
LARGEST_GROWTH = 1.1


@dataclass
class Tally:
    """What happened."""

    answers: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    hang_ups: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    texts_seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


class Client:
    """One connection after another to the server."""

    def __init__(self, port: int, draw: random.Random, table: Table, tally: Tally) -> None:
        self._port, self._draw, self._table, self._tally = port, draw, table, tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, end: float) -> None:
        while time.monotonic() < end:
            make = make_malformed if self._draw.random() < MALFORMED else make_good
            ask = make(self._draw, self._table)
            if self._draw.random() < HANG_UPS:
                await self._hang_up(ask)
            else:
                await self._ask(ask)
            if self._draw.random() < 0.01:
                self._leave()
        self._leave()

    async def _ask(self, ask: Ask) -> None:
        started = time.perf_counter()
        try:
            reply = await asyncio.wait_for(self._exchange(ask), ANSWER_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as error:
            self._tally.faults[f"lost: {ask.kind}: {type(error).__name__}"] += 1
            self._leave()
            return
        self._tally.texts_seconds.append(time.perf_counter() - started)
        self._tally.answers[ask.kind] += 1
        self._tally.statuses[ask.path, reply.status] += 1
        if reply.status >= 500 and reply.status != 501:
            self._tally.faults[f"{reply.status}: {ask.kind}"] += 1
        elif fault := ask.check(reply):
            self._tally.faults[f"wrong: {ask.kind}: {fault}"] += 1

    async def _exchange(self, ask: Ask) -> Reply:
        reader, writer = await self._connect()
        writer.write(_encode(ask))
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self._leave()
        return Reply(status=int(status.split()[1]), headers=headers, body=body)

    async def _hang_up(self, ask: Ask) -> None:
        """Leave in the middle of the request, after it, or in the middle of the answer."""
        data = _encode(ask)
        reader, writer = await self._connect()
        at = self._draw.choice(["request", "after", "later", "answer"])
        writer.write(data[: self._draw.randrange(1, len(data))] if at == "request" else data)
        if at == "later":
            await asyncio.sleep(self._draw.random() * 0.1)
        elif at == "answer":
            await asyncio.wait_for(reader.read(self._draw.randrange(1, 300)), ANSWER_TIMEOUT_S)
        self._tally.hang_ups[ask.path] += 1
        if self._draw.random() < 0.5:
            writer.transport.abort()
        self._leave()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        return self._streams

    def _leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _encode(ask: Ask) -> bytes:
    lines = [
        f"{ask.method} {ask.path} HTTP/1.1",
        "host: 127.0.0.1",
        *(f"{name}: {value}" for name, value in ask.headers),
    ]
    body = ask.body or b""
    if ask.body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def load(port: int, pid: int, table: Table, options: argparse.Namespace) -> Tally:
    """Send traffic for the time that was asked for, and watch the server's memory."""
    tally = Tally()
    end = time.monotonic() + options.seconds
    seeds = range(options.seed, options.seed + options.clients)
    clients = [Client(port, random.Random(seed), table, tally) for seed in seeds]
    watch = asyncio.create_task(_watch(pid, tally, options.seconds))
    await asyncio.gather(*(client.run(end) for client in clients))
    watch.cancel()
    return tally


async def _watch(pid: int, tally: Tally, seconds: float) -> None:
    process, started = psutil.Process(pid), time.monotonic()
    while True:
        tally.memory.append((time.monotonic() - started, process.memory_info().rss / 2**20))
        await asyncio.sleep(min(2.0, seconds / 50))


async def read_metrics(port: int) -> dict[tuple[str, ...], float]:
    """Return the server's samples by name and sorted label values, once its queues are empty."""
    client = Client(port, random.Random(0), None, Tally())  # type: ignore[arg-type] # makes no traffic of its own
    ask = Ask(kind="metrics", path="/metrics", headers=(), method="GET", check=lambda _: None)
    for _ in range(100):
        text = (await client._exchange(ask)).body.decode()
        samples = {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        if not any(value for key, value in samples.items() if key[0] == "poolgraph_queue_texts"):
            break
        await asyncio.sleep(0.1)
    client._leave()
    return samples


def compare_metrics(samples: dict[tuple[str, ...], float], tally: Tally) -> list[str]:
    """Return where the server's counts are not what was sent; who hung up may have been answered, or never heard."""
    faults = []
    sent, known = Counter[tuple[str, int]](), {key[1] for key in samples if key[0] == "poolgraph_requests_total"}
    hang_ups = Counter[str]()
    for (path, status), number in tally.statuses.items():
        sent[path if path in known else "other", status] += number
    for path, number in tally.hang_ups.items():
        hang_ups[path if path in known else "other"] += number
    for route in known:
        counted = {
            int(key[2]): value
            for key, value in samples.items()
            if key[0] == "poolgraph_requests_total" and key[1] == route
        }
        own = {status: number for (path, status), number in sent.items() if path == route}
        extra = {status: counted.get(status, 0) - own.get(status, 0) for status in {*counted, *own}}
        # The pages that this asks for itself are at most as many as its attempts.
        allowed = hang_ups[route] + (100 if route == "/metrics" else 0)
        if min(extra.values()) < 0 or sum(extra.values()) > allowed:
            faults.append(f"{route}: {extra} more than the answers that came, with {hang_ups[route]} hung up")
    for key, value in samples.items():
        quiet = ("poolgraph_errors_total", "poolgraph_nan_answers_total", "poolgraph_engine_restarts_total")
        if (key[0] in (*quiet, "poolgraph_queue_texts", "poolgraph_queue_tokens")) and value:
            faults.append(f"{key} is {value}")
    return faults


def judge_memory(memory: Sequence[tuple[float, float]], warm_up: float) -> tuple[float, float, float]:
    """Return the memory after the warm-up, its largest value since, and that of the end, in MiB (medians of five)."""
    since = [size for seconds, size in memory if seconds >= warm_up]
    smooth = [statistics.median(since[at : at + 5]) for at in range(max(1, len(since) - 4))]
    return smooth[0], max(smooth), smooth[-1]


def serve_and_load(models: dict[str, Path], table: Table, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", SERVE, "serve", *map(str, models.values())]
    command += [
        "--served-model-name",
        *models,
        "--port",
        "0",
        "--cache",
        "256K",
        "--cache-path",
        str(folder / "cache.db"),
    ]
    command += ["--cache-disk", "512K", "--log-format", "json"]
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            port = _find_port(log, process)
            tally = asyncio.run(load(port, process.pid, table, options))
            samples = asyncio.run(read_metrics(port))
        finally:
            process.terminate()
            code = process.wait(60)
    events = _events(log)
    if code or "trace" in events:
        print(events[-4000:])
    return {**summarize(tally, samples, options), "exit_code": code, "log_has_traces": "trace" in events}


def _find_port(log: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(1200):
        if found := re.search(r"on http://\S+?:(\d+)", log.read_text()):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def _events(log: Path) -> str:
    return "".join(line for line in log.read_text().splitlines() if '"logger":"access"' not in line)


def summarize(tally: Tally, samples: dict[tuple[str, ...], float], options: argparse.Namespace) -> dict[str, Any]:
    faults = [f"{number} x {fault}" for fault, number in tally.faults.items()] + compare_metrics(samples, tally)
    first, most, last = judge_memory(tally.memory, options.warm_up)
    if most > LARGEST_GROWTH * first:
        faults.append(f"memory grew from {first:.0f} to {most:.0f} MiB")
    seconds = sorted(tally.texts_seconds)
    total = sum(tally.answers.values())
    return {
        "seconds": options.seconds,
        "clients": options.clients,
        "answers": total,
        "answers_by_kind": dict(sorted(tally.answers.items())),
        "malformed": tally.answers["malformed"],
        "hang_ups": sum(tally.hang_ups.values()),
        "statuses": {str(status): sum(n for (_, s), n in tally.statuses.items() if s == status) for status in
                     sorted({status for _, status in tally.statuses})},
        "texts": sum(value for key, value in samples.items() if key[0] == "poolgraph_texts_total"),
        "cache_hits": sum(value for key, value in samples.items() if key[0] == "poolgraph_cache_hits_total"),
        "dropped_texts": sum(value for key, value in samples.items() if key[0] == "poolgraph_dropped_texts_total"),
        "p50_ms": 1e3 * seconds[len(seconds) // 2],
        "p99_ms": 1e3 * seconds[int(len(seconds) * 0.99)],
        "memory_mib": {"after_warm_up": first, "most": most, "end": last},
        "memory_growth": most / first,
        "faults": faults,
    }  # fmt: skip


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="the embedder's; a tiny one unless given")
    parser.add_argument("--exported", type=Path, help="folder of the tiny artifacts by name; made unless given")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder, options.artifact, options.exported)
        found = serve_and_load(models, make_table(models), options, folder)
    result = {"machine": describe_machine(), "versions": read_versions(), **found}
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 1 if found["faults"] or found["exit_code"] or found["log_has_traces"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
