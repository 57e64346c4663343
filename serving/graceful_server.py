"""uvicorn within our limits, and an end that loses no accepted request."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Final

import uvicorn

from poolgraph import __version__
from poolgraph.errors import InputError
from poolgraph.serving.access_log import Access, AccessLog
from poolgraph.serving.http_protocol import limit_protocol
from poolgraph.serving.logs import OWN_LOGGER
from poolgraph.serving.metrics import PrometheusObserver
from poolgraph.serving.middleware_drain import Drain
from poolgraph.serving.middleware_stack import wrap_app
from poolgraph.serving.settings import ServeSettings

if TYPE_CHECKING:
    from poolgraph.serving.asgi_types import ASGIApp
    from poolgraph.serving.registry import ModelRegistry

DONE: Final = 0
_BACKLOG: Final = 2048
_OTHER_FILES: Final = 256
"""Open files beside the connections: libraries, weights, the cache, pipes."""

_LAST_WORDS_S: Final = 5
"""How long requests that outlived the grace time have to be told so."""

_LOGGER: Final = logging.getLogger(OWN_LOGGER)
_QUIET: Final = frozenset({"/health", "/ping", "/ready", "/metrics"})
"""Probes, which the access log leaves out unless the level is debug."""

SECURITY_HEADERS: Final = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
]
"""On every answer; the server does not say what it is made of."""


def allow_connections(max_connections: int) -> None:
    """Raise the process's limit of open files to what so many connections take.

    Raises:
        InputError: the system does not allow it.
    """
    needed = max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"--max-connections {max_connections} needs {needed} open files, and this process may have {hard}; "
            "lower it, or raise the limit (ulimit -Hn, LimitNOFILE=)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def bind_address(host: str, port: int) -> socket.socket:
    """Return a socket that has the address and does not listen yet.

    Raises:
        InputError: the host is unknown, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _explain(error, host, port) from error
    listener.setblocking(False)
    return listener


def _explain(error: OSError, host: str, port: int) -> InputError:
    return InputError(f"cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port")


def report_access(settings: ServeSettings, observer: PrometheusObserver, log: AccessLog) -> Callable[[Access], None]:
    """Return what counts a request that has ended, and logs it if the level allows."""
    is_quiet = settings.log_level not in ("debug", "info")
    left_out = frozenset() if settings.log_level == "debug" else _QUIET

    def report(access: Access) -> None:
        observer.requested(access.path, access.status, access.seconds)
        if not is_quiet and access.path not in left_out:
            log.add(access)

    return report


def run_server(
    app: ASGIApp,
    registry: ModelRegistry,
    settings: ServeSettings,
    observer: PrometheusObserver,
    listener: socket.socket,
) -> int:
    """Listen and answer until a signal ends it."""
    drain = Drain()
    log = AccessLog(settings.log_format)
    wrapped = wrap_app(app, settings, drain, report_access(settings, observer, log))
    config = uvicorn.Config(
        wrapped,
        loop="uvloop",
        http=limit_protocol(settings.connection_limits()),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=SECURITY_HEADERS,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = GracefulServer(config, drain, registry, settings)
    # What is loaded stays: looking through it again would hold up requests for tens of milliseconds.
    gc.collect()
    gc.freeze()
    try:
        server.run(sockets=[listener])
    finally:
        log.flush()
    _LOGGER.info("stopped")
    return DONE


class GracefulServer(uvicorn.Server):
    """A server that, told to end, first answers what it has accepted.

    The first SIGTERM or SIGINT begins to drain: new requests are refused while the listener stays open, so that a
    balancer that has not noticed yet gets answers. When nothing is in flight, or the grace time is over, the engines
    are closed, which answers what is left with an error, and the process ends. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, registry: ModelRegistry, settings: ServeSettings) -> None:
        super().__init__(config)
        self._drain = drain
        self._registry = registry
        self._grace_s = settings.grace
        self._address = (settings.host, settings.port)
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or on the second signal end."""
        if self._drain.is_draining:
            say_last(f"second signal ({signal.Signals(sig).name}): ending at once")
            os._exit(128 + sig)
        self._drain.begin()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so.

        Raises:
            InputError: another process began to listen on the port in the meantime.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _explain(error, *self._address) from error
        names = ", ".join(model.names[0] for model in self._registry.models)
        for listener in self.servers[0].sockets:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _LOGGER.info("poolgraph %s serves %s on http://%s:%d", __version__, names, shown, port)

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether it is time to end."""
        if self._drain.is_draining and self._deadline is None:
            self._deadline = monotonic() + self._grace_s
            _LOGGER.info("draining: %d requests in flight, %g s of grace", self._drain.in_flight, self._grace_s)
        is_over = self._deadline is not None and (not self._drain.in_flight or monotonic() >= self._deadline)
        return await super().on_tick(counter) or is_over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the engines, which fails what is still in flight, then the connections."""
        if self._drain.in_flight:
            _LOGGER.warning("the grace time is over with %d requests in flight", self._drain.in_flight)
        await self._registry.close(0.0)
        await super().shutdown(sockets)


def say_last(text: str) -> None:
    """Print the last words of a process that ends without cleaning up."""
    sys.stderr.write(f"poolgraph: {text}\n")
    sys.stderr.flush()
