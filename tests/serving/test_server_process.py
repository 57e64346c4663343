"""A real server process on loopback, without models: limits of connections, signals, logs."""

import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from fake_app import TIMEOUT_S, fake_server

from poolgraph.serving.http_protocol import _SLOWEST, LimitedProtocol

SHORT = {"read_timeout": 0.5, "max_body_bytes": 100_000, "max_header_bytes": 2048, "max_headers": 20}


@pytest.fixture(scope="module")
def server():
    with fake_server(**SHORT) as running:
        yield running


def read_all(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def exchange(server, request: bytes) -> tuple[int, dict]:
    with server.open_socket() as connection:
        connection.sendall(request)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"] if body else {}


def test_answers_and_says_nothing_of_itself(server):
    found = server.post("/echo", b"hello")
    assert (found.status, found.body) == (200, b"hello")
    assert "server" not in found.headers
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cache-control"] == "no-store"
    assert len(found.headers["x-request-id"]) == 32


def test_an_exception_is_a_plain_500_and_its_message_is_nowhere(server):
    found = server.post("/fail", b"")
    assert (found.status, found.error["type"]) == (500, "InternalServerError")
    server.wait_for("builtins.RuntimeError")
    assert "SECRET" not in "".join(server.lines) + found.body.decode()
    assert "fake_app.py" not in found.body.decode()


def test_a_body_too_large_is_told_to_a_client_that_sends_it_all(server):
    found = server.post("/echo", b"x" * 5_000_000)
    assert (found.status, found.error["type"]) == (413, "RequestTooLarge")


def test_a_streamed_body_too_large_is_told(server):
    chunks = (b"x" * 10_000 for _ in range(100))
    found = server.post("/echo", chunks)
    assert found.status == 413


def test_the_connection_is_kept_after_a_body_too_large(server):
    connection = server.connect()
    connection.request("POST", "/echo", body=b"x" * 200_000)
    assert connection.getresponse().read().startswith(b'{"error"')
    connection.request("POST", "/echo", body=b"small")
    assert connection.getresponse().read() == b"small"
    connection.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /echo HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 3000 + b"\r\n\r\n",
        b"GET /" + b"y" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % number for number in range(21)) + b"\r\n",
    ],
    ids=["long header", "long URL", "many headers"],
)
def test_headers_too_large(server, head):
    status, error = exchange(server, head)
    assert (status, error["type"], error["code"]) == (431, "RequestTooLarge", 431)


def test_a_header_without_an_end_is_not_collected(server):
    with server.open_socket() as connection:
        connection.sendall(b"GET /echo HTTP/1.1\r\nx: ")
        for _ in range(20):
            time.sleep(0.005)
            try:
                connection.sendall(b"y" * 500)
            except OSError:
                break
        assert b" 431 " in read_all(connection)


def test_what_is_not_http_gets_the_error_body(server):
    status, error = exchange(server, b"hello\r\n\r\n")
    assert (status, error["type"]) == (400, "BadRequestError")


@pytest.mark.parametrize(
    "start",
    [b"POST /echo HTTP/1.1\r\nhost: a\r\n", b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx"],
    ids=["headers", "body"],
)
def test_a_slow_client_is_cut_even_if_it_sends_a_byte_now_and_then(server, start):
    started = time.monotonic()
    with server.open_socket() as connection:
        connection.sendall(start)
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b"x")
        answer = read_all(connection)
    assert b"408 Request Timeout" in answer
    assert b'"RequestTimeout"' in answer
    assert time.monotonic() - started < 5


def test_a_client_that_says_nothing_is_cut(server):
    started = time.monotonic()
    with server.open_socket() as connection:
        assert read_all(connection) == b""
    assert 0.3 < time.monotonic() - started < 5


def test_a_request_that_takes_longer_than_reading_may_is_not_cut(server):
    assert server.get("/sleep?0.8").body == b"slept"


def test_a_client_that_leaves_cancels_its_request(server):
    before = int(server.get("/cancelled").body)
    with server.open_socket() as connection:
        connection.sendall(b"GET /sleep?15 HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(0.2)
    deadline = time.monotonic() + TIMEOUT_S
    while int(server.get("/cancelled").body) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert int(server.get("/cancelled").body) == before + 1
    assert server.wait_for(r"GET /sleep 499")
    assert "Exception in ASGI" not in "".join(server.lines)


def test_a_client_that_reads_nothing_is_dropped(server):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(b"GET /big?20000000 HTTP/1.1\r\nhost: a\r\n\r\n")
    time.sleep(2.0)
    with connection:
        assert len(read_all(connection)) < 20_000_000  # the kernel still hands on what it had


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [(6400, 6400, "dropped"), (6400, 6301, "dropped"), (6400, 6300, "watched"), (50, 49, "dropped"), (6400, 0, "done")],
)
def test_a_client_that_reads_less_than_a_64th_of_its_answer_is_dropped(before, now, outcome):
    happened = ["done"]
    connection = SimpleNamespace(
        parser=object(),
        transport=SimpleNamespace(get_write_buffer_size=lambda: now, abort=lambda: happened.append("dropped")),
        loop=SimpleNamespace(call_later=lambda *_: happened.append("watched")),
        limits=SimpleNamespace(read_timeout_s=30.0),
        _check_progress=None,
    )
    LimitedProtocol._check_progress(connection, before, 6400 // _SLOWEST)
    assert happened[-1] == outcome


def test_pipelined_requests_are_answered_in_order(server):
    request = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n%d"
    with server.open_socket() as connection:
        connection.sendall(b"".join(request % number for number in range(3)))
        connection.sendall(b"GET /end HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        bodies = [part.rpartition(b"\r\n\r\n")[2] for part in read_all(connection).split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"0", b"1", b"2", b"/end"]


def test_an_idle_connection_ends_whatever_is_sent_that_begins_no_request():
    with fake_server(keep_alive=1) as server, server.open_socket() as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
        found = b""
        while not found.endswith(b"/x"):  # head and body may come apart
            found += connection.recv(4096)
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def test_a_body_of_two_lengths_is_refused(server):
    request = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    status, error = exchange(server, request)
    assert (status, error["type"]) == (400, "BadRequestError")


def test_a_client_may_ask_before_it_sends_its_body(server):
    head = b"POST /echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    with server.open_socket() as connection:
        connection.sendall(head % 5)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert read_all(connection).endswith(b"hello")
    with server.open_socket() as connection:
        connection.sendall(head % 500_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_it_listens_on_ipv6_too():
    with fake_server(host="::1") as server:
        assert server.wait_for(r"on http://\[::1\]:\d+")


def test_connections_are_bounded():
    with fake_server(max_connections=2) as server:
        first, second = server.open_socket(), server.open_socket()
        time.sleep(0.1)
        with server.open_socket() as third:
            assert b"503 Service Unavailable" in read_all(third)
        first.close()
        second.close()
        time.sleep(0.1)
        assert server.get("/x").status == 200


def test_the_access_log_has_a_line_a_request_and_no_query():
    with fake_server(log_format="json") as server:
        server.get("/x?key=SECRET", {"X-Request-Id": "mine"})
        server.get("/health")
        server.get("/%0aforged")
        server.signal()
        assert server.wait() == 0
    records = [json.loads(line) for line in server.lines]
    access = [record for record in records if record["logger"] == "access"]
    assert [(record["path"], record["status"], record["request_id"]) for record in access[:1]] == [("/x", 200, "mine")]
    assert [record["path"] for record in access[1:]] == [r"'/\nforged'"]
    assert "SECRET" not in "".join(server.lines)
    assert {record["level"] for record in records if "level" in record} == {"info"}


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_server_with_0(number):
    with fake_server() as server:
        server.signal(number)
        assert server.wait() == 0
        assert "stopped" in server.lines[-1]


def test_what_is_accepted_is_finished_and_what_is_new_is_refused():
    with fake_server(grace=10) as server:
        accepted = server.connect()
        accepted.request("GET", "/sleep?1.5")
        kept = server.connect()
        kept.request("GET", "/x")
        kept.getresponse().read()
        server.signal()
        server.wait_for("draining: 1 requests in flight")
        kept.request("GET", "/x")
        refused = kept.getresponse()
        assert (refused.status, refused.getheader("connection")) == (503, "close")
        assert server.get("/ready").status == 503
        assert server.get("/health").status == 200
        assert server.post("/echo", b"new").status == 503
        response = accepted.getresponse()
        assert (response.status, response.read()) == (200, b"slept")
        assert server.wait() == 0


def test_the_grace_time_ends_it():
    with fake_server(grace=0.3) as server:
        accepted = server.connect()
        accepted.request("GET", "/sleep?60")
        time.sleep(0.2)
        started = time.monotonic()
        server.signal()
        assert server.wait() == 0
        assert time.monotonic() - started < 10
        server.wait_for("the grace time is over with 1 requests in flight")
        accepted.close()


def test_a_second_signal_ends_it_at_once():
    with fake_server(grace=60) as server:
        accepted = server.connect()
        accepted.request("GET", "/sleep?60")
        time.sleep(0.2)
        server.signal()
        server.wait_for("draining")
        started = time.monotonic()
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - started < 1
        accepted.close()


def test_a_signal_under_load_loses_no_accepted_request():
    with fake_server(grace=10) as server:
        outcomes: list[int] = []
        unsent = []
        stop = threading.Event()

        def ask() -> None:
            connection = server.connect()
            while not stop.is_set():
                try:
                    connection.request("GET", "/sleep?0.02")
                except OSError:
                    unsent.append(1)
                    return
                response = connection.getresponse()
                response.read()
                outcomes.append(response.status)
                if response.getheader("connection") == "close":
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.signal()
        for thread in threads:
            thread.join(TIMEOUT_S)
        stop.set()
        assert server.wait() == 0
        assert unsent == []
        assert set(outcomes) <= {200, 503}
        assert len(outcomes) > 50
