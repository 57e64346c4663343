"""The failure table of docs/operations.md, row by row, against the real server on loopback with a tiny model."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import faulty_server
import msgspec
import pytest
from fake_app import TIMEOUT_S, server_process
from faulty_server import FATAL_ID, FATAL_WORD, SLOW_ID, SLOW_SECONDS, SLOW_WORD
from prometheus_client.parser import text_string_to_metric_families
from tiny_artifact import VOCABULARY, write_artifact

from poolgraph.graphs.artifact import open_artifact, record_files, save_manifest
from poolgraph.serving.metrics import ROUTES

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("failures") / "tiny")


def command(*arguments: str) -> list[str]:
    return [sys.executable, faulty_server.__file__, "serve", *map(str, arguments)]


@contextmanager
def serving(artifact: Path, *arguments: str, **options):
    with server_process(command(artifact, "--port", "0", *arguments), **options) as server:
        yield server


@pytest.fixture(scope="module")
def server(artifact):
    with serving(artifact) as running:
        yield running


def embed(server, text, headers=()):
    return server.post("/v1/embeddings", json.dumps({"input": text}), {**JSON, **dict(headers)})


def metrics(server) -> dict:
    """Samples by name and label values, without the model."""
    text = server.get("/metrics").body.decode()
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def eventually(find, *, what: str):
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def in_thread(function, *args) -> tuple[threading.Thread, list]:
    """Run a function in a thread, its result put into the list."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    return thread, results


def refused(*arguments: str, **options) -> str:
    """Run a server that must not come up; return its one line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=environment, check=False, **options
    )
    assert done.returncode == 2, done.stderr
    line, loaded = done.stderr.splitlines()
    assert line.startswith("poolgraph: error: ")
    assert loaded == "loaded: []"
    assert done.stdout == ""
    return line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_faults_are_words_of_the_tiny_model():
    assert (VOCABULARY[SLOW_ID], VOCABULARY[FATAL_ID]) == (SLOW_WORD, FATAL_WORD)


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.8])
def test_a_signal_while_it_starts_ends_it(artifact, seconds):
    process = subprocess.Popen(command(artifact, "--port", "0"), stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


# --- what keeps it from starting


def test_a_changed_file_is_found_before_the_port_opens(artifact, tmp_path):
    """Of files that opening alone does not hash."""
    damaged = write_artifact(tmp_path / "damaged")
    notes = damaged / "weights.data"
    notes.write_bytes(b"right")
    manifest = open_artifact(damaged)
    save_manifest(damaged, msgspec.structs.replace(manifest, files=record_files(damaged)))
    notes.write_bytes(b"wrong")
    assert open_artifact(damaged)
    line = refused(damaged, "--port", str(free_port()))
    assert "weights.data does not have the SHA-256 that the manifest says" in line


def test_a_cut_file_is_found(tmp_path):
    damaged = write_artifact(tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text("{}")
    assert "tokenizer.json has 2 bytes" in refused(damaged)


def test_a_model_that_is_not_there(tmp_path):
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_a_port_that_is_taken(server, artifact):
    line = refused(artifact, "--port", str(server.port))
    assert f"cannot listen on 127.0.0.1 port {server.port}: Address already in use" in line
    assert server.get("/health").status == 200


def test_a_host_that_is_not_ours(artifact):
    assert "cannot listen on 203.0.113.1 port 8000" in refused(artifact, "--host", "203.0.113.1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "70000"),
        ("--cors-origin", "example.org"),
        ("--api-key", "two words"),
        ("--api-key-file", "/nowhere/key"),
        ("--served-model-name", ""),
        ("--read-timeout", "0"),
    ],
)
def test_settings_that_are_wrong(artifact, arguments):
    assert arguments[0] in refused(artifact, *arguments)


def test_more_connections_than_the_system_allows(artifact):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 600))

    line = refused(artifact, "--max-connections", "1000", preexec_fn=limit)
    assert "--max-connections 1000 needs 1256 open files, and this process may have 600" in line
    with serving(artifact, "--max-connections", "300", preexec_fn=limit) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert re.search(r"Max open files\s+556\s+600", limits)


# --- what it answers


def test_it_is_ready_and_answers(server):
    assert server.get("/health").status == server.get("/ready").status == 200
    found = embed(server, ["w1 w2", "w3"])
    assert found.status == 200
    assert len(json.loads(found.body)["data"]) == 2


def test_nan_never_leaves_and_is_counted(server):
    found = embed(server, "w1 nan")
    assert (found.status, found.error["type"]) == (500, "InternalServerError")
    counts = metrics(server)
    assert counts["poolgraph_nan_answers_total",] == counts["poolgraph_errors_total", "nan"] >= 1
    assert embed(server, "w1").status == 200


def test_every_route_but_health_asks_for_a_key(artifact):
    with serving(artifact, "--api-key", "right", "--public-route", "/ready") as server:
        for route in sorted(ROUTES | {"/nothing", "/v1"}):
            expected = 200 if route in ("/health", "/ping", "/ready") else 401
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "righ"}):
                assert server.get(route, headers).status == expected, route
                assert server.post(route, b"{}", {**JSON, **headers}).status in (expected, 405), route
        for header in (("Authorization", "Bearer right"), ("X-API-Key", "right")):
            assert embed(server, "w1", [header]).status == 200
            assert server.get("/metrics", dict([header])).status == 200
        assert "right" not in "".join(server.lines)


def test_too_large_is_told(artifact):
    limits = ("--max-body", "2K", "--max-texts", "3", "--max-text-chars", "100", "--max-header-bytes", "1K")
    with serving(artifact, *limits) as server:
        for found in (
            server.post("/v1/embeddings", b'{"input": "' + b"w1 " * 2000 + b'"}', JSON),
            embed(server, ["w1"] * 4),
            embed(server, "w1 " * 40),
        ):
            assert (found.status, found.error["type"]) == (413, "RequestTooLarge")
        assert embed(server, "w1", [("X-Long", "y" * 2000)]).status == 431
        assert embed(server, ["w1"] * 3).status == 200


def test_a_slow_client_is_cut(artifact):
    with serving(artifact, "--read-timeout", "0.3") as server:
        with server.open_socket() as connection:
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{")
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
            assert connection.recv(4096) == b""
        assert embed(server, "w1").status == 200


def test_a_full_queue_answers_at_once(artifact):
    with serving(artifact, "--max-queue-tokens", "4", "--request-timeout", "20") as server:
        # One slow batch a slot, and one that waits. All at once might be refused but the first, before that one runs.
        waiting = []
        for number in range(8):
            waiting.append(in_thread(embed, server, f"{SLOW_WORD} w{number}"))
            time.sleep(0.05)
        eventually(lambda: metrics(server).get(("poolgraph_queue_tokens",), 0) >= 4, what="a full queue")
        started = time.monotonic()
        found = embed(server, "w1")
        assert time.monotonic() - started < SLOW_SECONDS / 2
        assert (found.status, found.error["type"]) == (429, "TooManyRequests")
        assert int(found.headers["retry-after"]) >= 1
        for thread, _ in waiting:
            thread.join(TIMEOUT_S)
        assert {results[0].status for _, results in waiting} <= {200, 429}
        assert embed(server, "w1").status == 200
        assert metrics(server)["poolgraph_dropped_texts_total", "full"] >= 1


def test_a_deadline_is_kept(artifact):
    with serving(artifact, "--request-timeout", "0.3") as server:
        found = embed(server, SLOW_WORD)
        assert (found.status, found.error["type"]) == (504, "DeadlineExceeded")


KILLED = """
import json, socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
body = json.dumps({"input": [sys.argv[2]] + ["w1"] * 50}).encode()
head = "POST /v1/embeddings HTTP/1.1|host: a|content-type: application/json|content-length: %d||" % len(body)
connection.sendall(head.replace("|", "\\r\\n").encode() + body)
print("sent", flush=True)
time.sleep(60)
"""


def test_a_client_that_is_killed_lets_its_texts_go(artifact):
    with serving(artifact, "--max-batch-tokens", "3") as server:
        holding = [in_thread(embed, server, f"{SLOW_WORD} w{number}") for number in range(4)]
        eventually(lambda: metrics(server).get(("poolgraph_queue_texts",), 0) >= 1, what="busy engines")
        client = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(server.port), "w2"], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout.readline() == "sent\n"
        eventually(lambda: metrics(server)["poolgraph_queue_texts",] >= 50, what="its texts in the queue")
        client.send_signal(signal.SIGKILL)
        client.wait()
        client.stdout.close()
        dropped = ("poolgraph_dropped_texts_total", "disconnected")
        assert eventually(lambda: metrics(server).get(dropped), what="dropped texts") >= 50
        for thread, results in holding:
            thread.join(TIMEOUT_S)
            assert results[0].status == 200
        assert server.wait_for(r"POST /v1/embeddings 499")
        assert embed(server, "w1").status == 200
        assert metrics(server)["poolgraph_queue_texts",] == 0


def test_a_dead_engine_is_told_and_comes_back(artifact):
    with serving(artifact) as server:
        found = embed(server, FATAL_WORD)
        assert (found.status, found.error["type"]) == (503, "ServiceUnavailable")
        assert server.get("/health").status == 503
        assert server.get("/ready").status == 503
        assert "SECRET" not in found.body.decode()
        eventually(lambda: server.get("/health").status == 200, what="an engine that is back")
        assert server.get("/ready").status == 200
        assert embed(server, "w1").status == 200
        counts = metrics(server)
        assert counts["poolgraph_engine_restarts_total",] == counts["poolgraph_errors_total", "engine"] == 1
        assert "SECRET" not in "".join(server.lines)


def limit_files() -> None:
    """No file may grow beyond 64 KiB: what a full disk does to a cache."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_no_space_for_the_cache_changes_no_answer(artifact, tmp_path):
    cache = ("--cache", "1M", "--cache-path", tmp_path / "answers.sqlite")
    with serving(artifact, *cache, preexec_fn=limit_files) as server:
        first = [embed(server, [f"w{number} w{other}" for other in range(50)]) for number in range(40)]
        again = [embed(server, [f"w{number} w{other}" for other in range(50)]) for number in range(40)]
        assert {found.status for found in first + again} == {200}
        assert [json.loads(one.body)["data"] for one in first] == [json.loads(one.body)["data"] for one in again]
        server.wait_for("cache")
        server.signal()
        assert server.wait() == 0
    assert not any("Traceback" in line for line in server.lines)


def test_a_cache_outlives_the_process(artifact, tmp_path):
    cache = ("--cache", "1M", "--cache-path", tmp_path / "answers.sqlite")
    bodies = []
    for _ in range(2):
        with serving(artifact, *cache) as server:
            bodies.append(json.loads(embed(server, "w1 w2").body)["data"])
            hits = metrics(server)["poolgraph_cache_hits_total",]
            server.signal()
            assert server.wait() == 0
    assert bodies[0] == bodies[1]
    assert hits == 1


# --- the end


def test_a_signal_under_load_loses_no_accepted_request(artifact):
    with serving(artifact, "--grace", "15") as server:
        outcomes: list[tuple[int, bool]] = []

        def ask(number: int) -> None:
            connection = server.connect()
            while True:
                try:
                    body = json.dumps({"input": [f"w{number}", f"w{number + 10} w1"]})
                    connection.request("POST", "/v1/embeddings", body=body, headers=JSON)
                except ConnectionRefusedError:
                    return
                response = connection.getresponse()
                found = response.read()
                outcomes.append((response.status, b'"embedding"' in found))
                if response.getheader("connection") == "close":
                    return

        slow, answered = in_thread(embed, server, SLOW_WORD)
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        server.signal()
        for thread in [*threads, slow]:
            thread.join(TIMEOUT_S)
        assert server.wait() == 0
        assert set(outcomes) == {(200, True), (503, False)} or set(outcomes) == {(200, True)}
        assert answered[0].status == 200
        assert server.wait_for(r"loaded: \[\]")


def test_what_outlives_the_grace_time_is_told(artifact):
    with serving(artifact, "--grace", "0.2", "--max-batch-tokens", "3") as server:
        waiting = [in_thread(embed, server, f"{SLOW_WORD} w{number}") for number in range(8)]
        eventually(lambda: metrics(server).get(("poolgraph_queue_texts",), 0) >= 4, what="a queue")
        server.signal()
        for thread, _ in waiting:
            thread.join(TIMEOUT_S)
        assert {results[0].status for _, results in waiting} == {200, 503}
        assert server.wait() == 0
