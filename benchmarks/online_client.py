"""The load: connections that each send the next request when the last is answered. One JSON line is printed.

A process of its own with uvloop, requests built beforehand and a parser that reads Content-Length alone, so that it
takes little of the machine that the server runs on; its own processor time a request is printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from online_texts import build_request

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
SAMPLE_EVERY = 16
"""One answer in so many is kept for the comparison with the offline answers."""


class ResponseParser:
    """Tells where one answer ends; a pipelined second answer is none of ours and refused."""

    def __init__(self) -> None:
        self._data = b""
        self._end = 0
        self._body = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take in what came; return the answer's body when it is complete.

        Raises:
            ValueError: the answer is not 200, has no length, or more follows it.
        """
        self._data = self._data + data if self._data else data
        if not self._end and not self._read_head():
            return None
        if len(self._data) < self._end:
            return None
        if len(self._data) > self._end:
            raise ValueError("more bytes than the answer has")
        body = self._data[self._body :]
        self._data, self._end = b"", 0
        return body

    def _read_head(self) -> bool:
        self._body = self._data.find(_END) + len(_END)
        if self._body < len(_END):
            return False
        head = self._data[: self._body].lower()
        if not head.startswith(b"http/1.1 200"):
            raise ValueError(f"the server refused: {self._data[:500]!r}")
        start = head.index(_LENGTH) + len(_LENGTH)
        self._end = self._body + int(head[start : head.index(b"\r\n", start)])
        return True


class Load:
    """What all connections share: the requests still to send, and what was measured."""

    def __init__(self, requests: Sequence[bytes], connections: int, stop: asyncio.Future[None]) -> None:
        self._requests = requests
        self._next = 0
        self._running = connections
        self._stop = stop
        self.until = 0.0
        self.answers: list[tuple[float, float]] = []
        self.samples: dict[int, bytes] = {}

    def take(self) -> tuple[int, bytes] | None:
        """Return the next request and its number; None when it is over."""
        if time.perf_counter() >= self.until:
            return None
        if self._next == len(self._requests):
            self.fail(ValueError(f"{len(self._requests)} texts were too few; none is sent twice"))
            return None
        self._next += 1
        return self._next - 1, self._requests[self._next - 1]

    def note(self, number: int, started: float, ended: float, body: bytes) -> None:
        """Note an answer."""
        self.answers.append((started, ended))
        if number % SAMPLE_EVERY == 0:
            self.samples[number] = body

    def end_one(self) -> None:
        """Note that a connection has done its part."""
        self._running -= 1
        if not self._running and not self._stop.done():
            self._stop.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with an error."""
        if not self._stop.done():
            self._stop.set_exception(error)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = ResponseParser()
        self._is_done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send the next request."""
        request = self._load.take()
        if request is None:
            self._is_done = True
            self._load.end_one()
            return
        self._number, data = request
        self._started = time.perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Note the answer once it is complete, and go on."""
        try:
            body = self._parser.feed(data)
        except ValueError as error:
            self._load.fail(error)
            return
        if body is not None:
            self._load.note(self._number, self._started, time.perf_counter(), body)
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        """A server that hangs up before the end has failed."""
        if not self._is_done:
            self._load.fail(error or ConnectionError("the server closed a connection"))


async def run_load(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Keep ``clients`` connections busy for so many seconds, then wait for the last answers."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    load = Load(requests, clients, stop)
    pairs = [await loop.create_connection(lambda: Client(load), "127.0.0.1", port) for _ in range(clients)]
    gc.freeze()
    gc.disable()
    load.until = time.perf_counter() + seconds
    for _, client in pairs:
        client.send()
    await stop
    for transport, _ in pairs:
        transport.close()
    return load


def summarize_answers(answers: Sequence[tuple[float, float]], warm_up: float, until: float) -> dict[str, float]:
    """Reduce start and end of requests to a rate and to latencies, leaving out the warm-up and what ended late."""
    started, ended = np.array(answers).T
    first = float(started.min()) + warm_up
    counted = (ended >= first) & (ended <= until)
    waits = np.sort(ended[counted] - started[counted]) * 1e3
    return {
        "requests": int(counted.sum()),
        "requests_per_s": float(counted.sum()) / (until - first),
        "p50_ms": float(np.percentile(waits, 50)),
        "p99_ms": float(np.percentile(waits, 99)),
        "max_ms": float(waits[-1]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="a JSON list")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--samples", type=Path, required=True, help="where the kept answers are written")
    options = parser.parse_args(argv)
    requests = [build_request(options.path, options.model, text) for text in json.loads(options.texts.read_text())]
    before = time.process_time()
    load = uvloop.run(run_load(options.port, requests, options.clients, options.warm_up + options.seconds))
    used = time.process_time() - before
    samples = {number: json.loads(body)["data"][0]["embedding"] for number, body in load.samples.items()}
    np.savez(options.samples, numbers=np.array([*samples]), vectors=np.array([*samples.values()]).astype(np.float32))
    summary = summarize_answers(load.answers, options.warm_up, load.until)
    summary |= {"answered": len(load.answers), "client_cpu_ms": used / len(load.answers) * 1e3}
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
