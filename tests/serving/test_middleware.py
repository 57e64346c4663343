"""What stands before the routes: keys, sizes, names, time, origins, the drain, and the order of them all."""

import asyncio
import re

import pytest
from fake_app import FakeApp, answer, call, run

from poolgraph.serving.middleware_api_keys import require_api_keys
from poolgraph.serving.middleware_body_limit import limit_body
from poolgraph.serving.middleware_cors import allow_origins
from poolgraph.serving.middleware_drain import Drain
from poolgraph.serving.middleware_stack import wrap_app
from poolgraph.serving.middleware_watch import CLIENT_LEFT, watch_requests
from poolgraph.serving.request_ids import choose_request_id
from poolgraph.serving.settings import ServeSettings

KEYS = ("first-key", "second-key")


def watch(app, *, timeout_s=5.0, drain=None, on_end=lambda access: None):
    return watch_requests(app, timeout_s=timeout_s, drain=drain or Drain(), on_end=on_end)


# --- API keys


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer first-key"),
        ("Authorization", "bearer second-key"),
        ("Authorization", "Bearer  second-key "),
        ("X-API-Key", "first-key"),
    ],
)
def test_each_key_opens_in_either_header(header):
    assert run(call(require_api_keys(FakeApp(), KEYS), headers=[header])).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Bearer first-ke")],
        [("Authorization", "Bearer first-keyy")],
        [("Authorization", "Basic first-key")],
        [("Authorization", "first-key")],
        [("Authorization", "Bearer ")],
        [("X-API-Key", "")],
        [("Cookie", "first-key")],
    ],
)
def test_no_other_key_opens(headers):
    app = FakeApp()
    refused = run(call(require_api_keys(app, KEYS), headers=headers))
    assert (refused.status, refused.error["type"], refused.error["code"]) == (401, "AuthenticationError", 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "first-key" not in refused.body.decode()
    assert app.scopes == []


@pytest.mark.parametrize("path", ["/ready", "/metrics", "/v1/embeddings", "/docs", "/nothing", "/health/", "//health"])
def test_only_health_is_open(path):
    app = require_api_keys(FakeApp(), KEYS)
    for method, open_path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        assert run(call(app, open_path, method=method)).status == 200
    assert run(call(app, path, method="GET")).status == 401


def test_routes_can_be_made_public():
    app = require_api_keys(FakeApp(), KEYS, ["/ready"])
    assert run(call(app, "/ready", method="GET")).status == 200
    assert run(call(app, "/metrics", method="GET")).status == 401


def test_every_key_is_compared_whatever_comes_first(monkeypatch):
    compared = []

    def compare(left, right):
        compared.append(right)
        return left == right

    monkeypatch.setattr("poolgraph.serving.middleware_api_keys.compare_digest", compare)
    app = require_api_keys(FakeApp(), KEYS)
    for key in ("first-key", "no key"):
        compared.clear()
        run(call(app, headers=[("X-API-Key", key)]))
        assert len(set(compared)) == 2
        assert all(len(digest) == 32 for digest in compared)


# --- sizes of bodies


def test_an_announced_body_is_refused_unread():
    app = FakeApp()
    refused = run(call(limit_body(app, 10), headers=[("Content-Length", "11")], chunks=[b"x" * 11]))
    assert (refused.status, refused.error["type"]) == (413, "RequestTooLarge")
    assert "10 bytes" in refused.error["message"]
    assert app.scopes == []


def test_a_body_at_the_limit_passes():
    for headers in ([("Content-Length", "10")], []):
        assert run(call(limit_body(FakeApp(), 10), headers=headers, chunks=[b"x" * 5, b"x" * 5])).status == 200


def test_a_streamed_body_is_refused_as_it_passes_the_limit():
    refused = run(call(limit_body(FakeApp(), 10), chunks=[b"x" * 6, b"x" * 6, b"x" * 6]))
    assert refused.status == 413


def test_what_the_application_makes_of_the_refusal_is_not_sent():
    async def mistaken(scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception:
            await answer(send, 500, b"mine")

    assert run(call(limit_body(mistaken, 10), chunks=[b"x" * 11])).status == 413


def test_a_length_that_is_no_number_is_refused():
    assert run(call(limit_body(FakeApp(), 10), headers=[("Content-Length", "-1")])).status == 400


# --- request ids


def test_a_sane_id_is_kept_and_returned():
    app = FakeApp()
    found = run(call(watch(app), headers=[("X-Request-Id", "my-id.1")]))
    assert found.headers["x-request-id"] == "my-id.1"
    assert app.scopes[0]["state"]["request_id"] == "my-id.1"


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a b", b"a\xff", b'"}', b"a\tb", b"<script>"])
def test_other_ids_are_replaced(given):
    assert re.fullmatch("[0-9a-f]{32}", choose_request_id(given))


def test_ids_are_not_made_twice():
    assert len({choose_request_id(None) for _ in range(100)}) == 100


# --- origins

PREFLIGHT = (("Access-Control-Request-Method", "POST"),)


def test_without_origins_there_is_no_middleware():
    app = FakeApp()
    assert allow_origins(app, ()) is app


def test_an_allowed_origin_may_read():
    app = watch(allow_origins(FakeApp(), ["https://a.example"]))
    found = run(call(app, headers=[("Origin", "https://a.example")]))
    assert found.headers["access-control-allow-origin"] == "https://a.example"
    assert found.headers["vary"] == "origin"
    assert "x-tokens-dropped, x-tokens-used" in found.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in found.headers
    preflight = run(call(app, method="OPTIONS", headers=[("Origin", "https://a.example"), *PREFLIGHT]))
    assert preflight.status == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]


def preflight(asked=None, origin="https://a.example"):
    named = [] if asked is None else [("Access-Control-Request-Headers", asked)]
    app = watch(allow_origins(FakeApp(), ["https://a.example"]))
    return run(call(app, method="OPTIONS", headers=[("Origin", origin), *PREFLIGHT, *named]))


@pytest.mark.parametrize(
    "asked",
    [
        "x-stainless-os",
        "authorization,content-type,x-stainless-arch,x-stainless-retry-count",
        "authorization, content-type ,\tx-fern-language, x-fern-sdk-name",
        "X-Odd!#$%&'*+-.^_`|~9",
        ",".join(["x-fern-sdk-name"] * 64),
    ],
)
def test_the_headers_that_a_client_asks_for_are_allowed(asked):
    found = preflight(asked)
    assert found.status == 200
    assert found.headers["access-control-allow-headers"] == asked
    assert found.headers["vary"] == "origin, access-control-request-headers"


@pytest.mark.parametrize(
    "asked", [None, "", "x-a,", ",", "x a", "x-a;q=1", "x-\u00e9", "x-a\r\nset-cookie: b", "x" * 1025, "a " * 500 + ";"]
)
def test_what_is_no_list_of_headers_is_not_given_back(asked):
    found = preflight(asked)
    assert found.status == 200
    assert found.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key, x-request-id"
    assert found.headers["vary"] == "origin"


def test_another_origin_learns_nothing_of_the_headers_that_it_asks_for():
    found = preflight("x-stainless-os", "https://b.example")
    assert found.status == 400
    assert "access-control-allow-headers" not in found.headers


@pytest.mark.parametrize("origin", ["https://b.example", "https://a.example.evil", "null", "https://A.example"])
def test_another_origin_may_not(origin):
    app = watch(allow_origins(FakeApp(), ["https://a.example"]))
    assert "access-control-allow-origin" not in run(call(app, headers=[("Origin", origin)])).headers
    preflight = run(call(app, method="OPTIONS", headers=[("Origin", origin), *PREFLIGHT]))
    assert preflight.status == 400
    assert "access-control-allow-methods" not in preflight.headers


def test_any_origin_if_asked_for():
    found = run(call(watch(allow_origins(FakeApp(), ["*"])), headers=[("Origin", "https://b.example")]))
    assert found.headers["access-control-allow-origin"] == "*"


# --- the drain


def test_a_draining_server_refuses_new_work_and_still_tells_of_itself():
    drain = Drain()
    app = watch(drain.guard(FakeApp()), drain=drain)
    assert run(call(app, "/ready")).status == 200
    drain.begin()
    refused = run(call(app))
    assert (refused.status, refused.error["type"]) == (503, "ServiceUnavailable")
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"] == "1"
    assert run(call(app, "/ready")).status == 503
    assert run(call(app, "/health")).status == run(call(app, "/ping")).status == 200


def test_what_was_accepted_is_answered_and_counted():
    async def scenario():
        drain = Drain()
        app = watch(drain.guard(FakeApp()), drain=drain)
        accepted = asyncio.create_task(call(app, "/sleep?0.05"))
        await asyncio.sleep(0.01)
        assert drain.in_flight == 1
        drain.begin()
        found = await accepted
        assert (found.status, found.headers["connection"], drain.in_flight) == (200, "close", 0)

    run(scenario())


def test_what_was_refused_does_not_hold_up_the_drain():
    async def scenario():
        drain = Drain()
        drain.begin()
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [], "state": {}}
        app = watch(drain.guard(FakeApp()), drain=drain)
        task = asyncio.create_task(app(scope, None, lambda message: asyncio.sleep(5)))
        await asyncio.sleep(0.01)
        assert drain.in_flight == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


# --- exceptions, and the record of a request


def test_an_exception_becomes_an_error_without_its_message(caplog):
    ended = []
    found = run(call(watch(FakeApp(), on_end=ended.append), "/fail"))
    assert (found.status, found.error["type"]) == (500, "InternalServerError")
    assert "SECRET" not in found.body.decode()
    assert [(access.path, access.status, access.method) for access in ended] == [("/fail", 500, "POST")]


def test_a_client_that_left_is_counted_as_such():
    async def scenario():
        ended = []
        state = {}
        task = asyncio.create_task(call(watch(FakeApp(), on_end=ended.append), "/sleep?5", state=state))
        await asyncio.sleep(0.01)
        state["is_disconnected"] = True
        task.cancel()
        with pytest.raises(IndexError):  # nothing was sent
            await task
        assert [access.status for access in ended] == [CLIENT_LEFT]

    run(scenario())


def test_a_cancellation_that_is_not_the_clients_goes_on():
    async def scenario():
        task = asyncio.create_task(call(watch(FakeApp()), "/sleep?5"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())


# --- all together


def stack(app=None, drain=None, **settings):
    ended = []
    return wrap_app(app or FakeApp(), ServeSettings(engine=None, **settings), drain or Drain(), ended.append), ended


def test_refusals_have_ids_and_are_recorded():
    app, ended = stack(api_keys=KEYS)
    found = run(call(app, headers=[("X-Request-Id", "mine")]))
    assert (found.status, found.headers["x-request-id"]) == (401, "mine")
    assert [(access.status, access.request_id) for access in ended] == [(401, "mine")]


def test_a_preflight_needs_no_key():
    app, _ = stack(api_keys=KEYS, cors_origins=("https://a.example",))
    assert run(call(app, method="OPTIONS", headers=[("Origin", "https://a.example"), *PREFLIGHT])).status == 200
    refused = run(call(app, headers=[("Origin", "https://a.example")]))
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")


def test_a_body_is_not_read_without_a_key():
    app, _ = stack(api_keys=KEYS, max_body_bytes=1024)
    assert run(call(app, headers=[("Content-Length", "5000")])).status == 401
    assert run(call(app, headers=[("Content-Length", "5000"), ("X-API-Key", KEYS[0])])).status == 413


def test_every_refusal_may_be_read_by_an_allowed_origin():
    drain = Drain()
    app, _ = stack(drain=drain, request_timeout=0.02, cors_origins=("https://a.example",))
    origin = [("Origin", "https://a.example")]
    late = run(call(app, "/sleep?5", headers=origin))
    failed = run(call(app, "/fail", headers=origin))
    drain.begin()
    refused = run(call(app, headers=origin))
    assert [found.status for found in (late, failed, refused)] == [504, 500, 503]
    for found in (late, failed, refused):
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        assert found.headers["x-request-id"]


def test_a_draining_server_closes_each_connection_once():
    drain = Drain()
    app, _ = stack(drain=drain)
    drain.begin()
    sent = []

    async def send(message):
        sent.append(message)

    async def scenario():
        for path in ("/echo", "/health"):
            scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
            await app(scope, lambda: asyncio.sleep(0, {"type": "http.request"}), send)

    run(scenario())
    heads = [message for message in sent if message["type"] == "http.response.start"]
    assert [head["status"] for head in heads] == [503, 200]
    assert [head["headers"].count((b"connection", b"close")) for head in heads] == [1, 1]


def test_what_is_not_http_passes():
    seen = []

    async def lifespan(scope, receive, send):
        seen.append(scope["type"])

    app, _ = stack(lifespan, api_keys=KEYS, cors_origins=("*",))
    run(app({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
