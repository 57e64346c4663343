"""Requests that mean to confuse the server about where one ends, whose answer is whose, or what it speaks."""

import socket

import pytest
from fake_app import fake_server

UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
HEAD = b"POST /echo HTTP/1.1\r\nhost: a\r\n"
CLOSE = b"connection: close\r\n"


@pytest.fixture(scope="module")
def server():
    with fake_server(read_timeout=2, max_header_bytes=4096) as running:
        yield running


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def exchange(server, *parts: bytes) -> list[tuple[int, bytes]]:
    """Send parts in packets of their own; return status and body of every answer until the connection ends."""
    with server.open_socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(parts):
            if number:
                assert not select_readable(connection)
            connection.sendall(part)
        found = read_all(connection)
    answers = found.split(b"HTTP/1.1 ")[1:]
    return [(int(one[:3]), one.partition(b"\r\n\r\n")[2]) for one in answers]


def select_readable(connection: socket.socket) -> bool:
    """Wait a moment; return whether the server has said something already."""
    connection.settimeout(0.1)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.settimeout(20)
    return True


@pytest.mark.parametrize("cut", [None, -5, -3, 20, -1])
def test_a_wish_for_http2_is_passed_over_and_the_body_read(server, cut):
    """Java's client sends it with every first request; the body came to nobody, or was read as a request."""
    end = b"GET /end HTTP/1.1\r\nhost: a\r\n" + CLOSE + b"\r\n"
    request = HEAD + UPGRADE + b"content-length: 5\r\n\r\nhello"
    parts = [request + end] if cut is None else [request[:cut], request[cut:] + end]
    assert exchange(server, *parts) == [(200, b"hello"), (200, b"/end")]


def test_a_body_behind_a_wish_is_no_request(server):
    inner = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
    length = b"content-length: %d\r\n\r\n" % len(inner)
    request = HEAD + UPGRADE.replace(b"Upgrade,", b"close, Upgrade,") + length
    assert exchange(server, request, inner) == [(200, inner)]


def test_a_chunked_body_behind_a_wish(server):
    chunked = HEAD + b"connection: upgrade, close\r\nupgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n"
    assert exchange(server, chunked + b"3\r\nabc\r\n0\r\n\r\n") == [(200, b"abc")]


def test_a_tunnel_is_refused(server):
    ((status, _),) = exchange(server, b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n")
    assert status == 400


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 5000,
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
    ids=["no HTTP", "headers too large", "header without an end", "bad chunk", "two lengths"],
)
def test_what_is_wrong_with_a_later_request_is_not_told_to_an_earlier_one(server, bad):
    first = b"GET /sleep?0.3 HTTP/1.1\r\nhost: a\r\n\r\n"
    assert exchange(server, first + bad) == [(200, b"slept")]
    assert exchange(server, first, bad) == [(200, b"slept")]


def test_whole_requests_before_a_wrong_one_are_all_answered(server):
    first = b"GET /sleep?0.2 HTTP/1.1\r\nhost: a\r\n\r\n" + HEAD + b"content-length: 1\r\n\r\nx"
    assert exchange(server, first + b"garbage\r\n\r\n") == [(200, b"slept"), (200, b"x")]


LENGTH = b"content-length: 1\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + LENGTH * 2 + b"\r\nx",
        HEAD + b"content-length: +1\r\n\r\nx",
        HEAD + b"content-length: -1\r\n\r\nx",
        HEAD + b"content-length: 1, 1\r\n\r\nx",
        HEAD + b"content-length: " + b"9" * 40 + b"\r\n\r\nx",
        HEAD + LENGTH + CHUNKED + b"\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        HEAD + CHUNKED + b"\r\n" + b"f" * 20 + b"\r\n",
        HEAD + b"content-length : 1\r\n\r\nx",
        HEAD + b"x: a\r\n b\r\n" + LENGTH + b"\r\nx",
        HEAD + b"x: a\x00b\r\n" + LENGTH + b"\r\nx",
        HEAD.replace(b"\r\n", b"\n") + b"content-length: 1\n\nx",
        b"GET http://a HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET ?x HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(server, request_bytes):
    ((status, body),) = exchange(server, request_bytes)
    assert status == 400
    assert b"BadRequestError" in body


def test_trailers_change_nothing(server):
    request = HEAD + CHUNKED + CLOSE + b"\r\n1\r\nx\r\n0\r\nx-request-id: forged\r\n\r\n"
    ((status, body),) = exchange(server, request)
    assert (status, body) == (200, b"x")
