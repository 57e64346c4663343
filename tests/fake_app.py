"""An application without models behind the real middleware and server: what operations are tested with.

Run as a script, it is a server process: ``python fake_app.py '{"port": 0, ...settings...}'``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import SimpleNamespace

TIMEOUT_S = 20.0


async def read_body(receive) -> bytes:
    body = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        body += event.get("body", b"")
        if not event.get("more_body"):
            return body


async def answer(send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class FakeApp:
    """Routes: /echo answers its body, /sleep?S after S seconds, /fail raises, /big?N answers N bytes, /cancelled says
    how many sleeps were cancelled, any other path its own name."""

    cancelled: int = 0
    scopes: list = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        body = await read_body(receive)
        query = scope["query_string"].decode()
        if scope["path"] == "/echo":
            await answer(send, 200, body)
        elif scope["path"] == "/sleep":
            try:
                await asyncio.sleep(float(query))
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            await answer(send, 200, b"slept")
        elif scope["path"] == "/fail":
            raise RuntimeError("the text was: SECRET")
        elif scope["path"] == "/big":
            await answer(send, 200, b"x" * int(query))
        elif scope["path"] == "/cancelled":
            await answer(send, 200, str(self.cancelled).encode())
        else:
            await answer(send, 200, scope["path"].encode())


class FakeModel:
    """What the server asks of a model."""

    names = ("fake",)
    is_alive = True
    is_warm = True

    async def check_ready(self) -> None:
        return


async def close_nothing(grace: float) -> None:
    return


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict:
        return json.loads(self.body)["error"]


async def call(app, path="/echo", *, method="POST", headers=(), chunks=(b"",), state=None) -> Answer:
    """Call an ASGI application with a body in chunks."""
    events = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    sent = []
    scope = {
        "type": "http",
        "method": method,
        "path": path.partition("?")[0],
        "query_string": path.partition("?")[2].encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "state": {"request_id": "unnamed"} if state is None else state,
    }

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    found = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
    return Answer(sent[0]["status"], found, body)


def run(awaitable):
    return asyncio.run(awaitable)


@dataclass
class ServerProcess:
    """A server in a process of its own, its log lines read as they come."""

    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)
    port: int = 0

    def connect(self, timeout: float = TIMEOUT_S) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def open_socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def get(self, path: str, headers=None, *, method="GET", body=None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, path: str, body, headers=None) -> Answer:
        return self.get(path, headers, method="POST", body=body)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def wait_for(self, pattern: str) -> re.Match:
        """Return the first log line that matches, as soon as there is one."""
        deadline = monotonic() + TIMEOUT_S
        while monotonic() < deadline:
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            if self.process.poll() is not None:
                sleep(0.1)
                break
            sleep(0.01)
        found = next((match for line in self.lines if (match := re.search(pattern, line))), None)
        assert found, f"no line matches {pattern!r} in:\n" + "".join(self.lines)
        return found


@contextmanager
def server_process(command: list[str], **options):
    """Start a server, wait until it listens, and end it if the test has not."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)
    server = ServerProcess(process)

    def read() -> None:
        for line in process.stderr:
            server.lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        server.port = int(server.wait_for(r"on http://\S+:(\d+)")[1])
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(TIMEOUT_S)
        process.stderr.close()


def fake_server(**settings):
    """Start this file as a server with these settings."""
    return server_process([sys.executable, __file__, json.dumps({"port": 0, **settings})])


def main(arguments: dict) -> int:
    from poolgraph.serving.graceful_server import bind_address, run_server
    from poolgraph.serving.logs import configure_logs
    from poolgraph.serving.metrics import PrometheusObserver
    from poolgraph.serving.settings import ServeSettings

    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    settings = ServeSettings(engine=None, **tuples)
    configure_logs(settings.log_format, settings.log_level)
    with bind_address(settings.host, settings.port) as listener:
        registry = SimpleNamespace(models=(FakeModel(),), close=close_nothing)
        return run_server(FakeApp(), registry, settings, PrometheusObserver(), listener)


if __name__ == "__main__":
    from poolgraph.cli import run_guarded

    raise SystemExit(run_guarded(lambda: main(json.loads(sys.argv[1]))))
