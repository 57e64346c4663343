"""What a web framework costs a request: Litestar, FastAPI, BlackSheep and a bare ASGI application, on uvicorn.

Each has one POST route with a typed body ``{model, input}``. It answers an embedding of 384 numbers, encoded by the
same function in all of them, so what differs is the framework: routing, reading and checking the body, sending. The
server runs in a process of its own with uvloop and httptools; its processor time a request holds on a busy machine too,
its requests a second do not. Rounds of the frameworks take turns; medians are kept.

    python benchmarks/http_frameworks.py [--rounds 3] [--requests 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import psutil

RESULT = Path(__file__).parent / "results" / "http_frameworks.json"
SIZE = 384
CONNECTIONS = 16
TEXT = "The committee met on Tuesday to decide how the money for the new library would be spent this year."
VECTOR = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


class Body(msgspec.Struct):
    """The request."""

    model: str
    input: str


def encode_answer(model: str) -> bytes:
    vector = msgspec.Raw(orjson.dumps(VECTOR, option=orjson.OPT_SERIALIZE_NUMPY))
    item = {"index": 0, "object": "embedding", "embedding": vector}
    usage = {"prompt_tokens": 24, "total_tokens": 24}
    return msgspec.json.encode({"object": "list", "model": model, "data": [item], "usage": usage})


def build_bare() -> Any:
    decode = msgspec.json.Decoder(Body).decode

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        parts = []
        more = True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        answer = encode_answer(decode(b"".join(parts)).model)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def build_litestar() -> Any:
    from litestar import Litestar, Response, post

    async def embed(data: Body) -> Response[bytes]:
        return Response(encode_answer(data.model), media_type="application/json", status_code=200)

    embed.__annotations__ = {"data": Body, "return": Response[bytes]}
    return Litestar([post("/v1/embeddings")(embed)], logging_config=None)


def build_fastapi() -> Any:
    from fastapi import FastAPI, Response
    from pydantic import BaseModel

    class Request(BaseModel):
        model: str
        input: str

    async def embed(body: Request) -> Response:
        return Response(encode_answer(body.model), media_type="application/json")

    embed.__annotations__ = {"body": Request, "return": Response}
    app = FastAPI()
    app.post("/v1/embeddings")(embed)
    return app


def build_blacksheep() -> Any:
    from dataclasses import dataclass

    from blacksheep import Application, Content, FromJSON, Response

    @dataclass
    class Request:
        model: str
        input: str

    async def embed(body: Any) -> Response:
        return Response(200, content=Content(b"application/json", encode_answer(body.value.model)))

    embed.__annotations__ = {"body": FromJSON[Request], "return": Response}
    app = Application()
    app.router.add_post("/v1/embeddings", embed)
    return app


BUILDERS = {"bare": build_bare, "litestar": build_litestar, "fastapi": build_fastapi, "blacksheep": build_blacksheep}


def serve(name: str, port: int) -> None:
    import uvicorn

    start = time.perf_counter()
    app = BUILDERS[name]()
    print(json.dumps({"build_seconds": time.perf_counter() - start}), flush=True)
    lifespan = "off" if name == "bare" else "on"
    config = uvicorn.Config(
        app, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False, lifespan=lifespan
    )
    uvicorn.Server(config).run()


async def ask(port: int, num_requests: int) -> int:
    """Send requests one after another over one connection; return the bytes of their answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "minilm", "input": TEXT}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    total = 0
    for _ in range(num_requests):
        writer.write(request)
        answered = await reader.readuntil(b"\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200"), answered
        (length,) = [int(line[15:]) for line in answered.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        total += len(await reader.readexactly(length))
    writer.close()
    return total


async def load(port: int, num_requests: int) -> None:
    await asyncio.gather(*(ask(port, num_requests // CONNECTIONS) for _ in range(CONNECTIONS)))


def measure(name: str, port: int, num_requests: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--serve", name, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        process = psutil.Process(child.pid)
        wait_for_port(port)
        asyncio.run(load(port, num_requests // 4))
        before, start = process.cpu_times(), time.perf_counter()
        asyncio.run(load(port, num_requests))
        after, seconds = process.cpu_times(), time.perf_counter() - start
        memory = process.memory_info().rss
        child.terminate()
    used = after.user + after.system - before.user - before.system
    return {
        "cpu_us_per_request": used / num_requests * 1e6,
        "requests_per_second": num_requests / seconds,
        "build_seconds": told["build_seconds"],
        "memory_mb": memory / 2**20,
    }


def wait_for_port(port: int) -> None:
    import socket

    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the server did not open its port")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve")
    parser.add_argument("--port", type=int, default=18311)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in BUILDERS}
    for number in range(options.rounds):
        for index, name in enumerate(BUILDERS):
            rounds[name].append(measure(name, options.port + number * len(BUILDERS) + index, options.requests))
            print(name, {key: round(value, 3) for key, value in rounds[name][-1].items()}, flush=True)
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        for name, rows in rounds.items()
    }
    packages = ("litestar", "fastapi", "blacksheep", "uvicorn", "uvloop", "httptools", "msgspec", "orjson")
    result = {
        "machine": {"cores": psutil.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
        "connections": CONNECTIONS,
        "requests": options.requests,
        "rounds": options.rounds,
        "medians": medians,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
