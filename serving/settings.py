"""The server's settings, valid once built."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from poolgraph.errors import InputError
from poolgraph.serving.http_protocol import ConnectionLimits
from poolgraph.serving.logs import LEVELS, LogFormat

if TYPE_CHECKING:
    from poolgraph.serving.engine_settings import EngineSettings

PUBLIC_ROUTES: Final = ("/ready", "/metrics", "/version")
"""Routes that may be opened to requests without a key; ``/health`` and ``/ping`` are always open."""

_ORIGIN: Final = re.compile(r"\*|https?://[A-Za-z0-9.\-_\[\]:]+")
_KEY: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How models are served.

    Attributes:
        engine: Settings of queue, batches and cache.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        api_keys: Keys of which a request must carry one; none: no key is asked for.
        public_routes: Of ``PUBLIC_ROUTES``, those that need no key.
        served_model_names: Names of the only model, in place of its own.
        max_body_bytes: Of a request's body.
        max_texts: Of one request.
        max_text_chars: Of one text.
        max_header_bytes: Of a request's URL and headers.
        max_headers: Their number.
        max_connections: Open at the same time.
        read_timeout: Seconds in which a request must have arrived.
        keep_alive: Seconds that an idle connection is kept.
        request_timeout: Seconds in which a request must be answered.
        grace: Seconds that accepted requests have after SIGTERM.
        cors_origins: Origins whose pages may read answers, or ``*``.
        trust_request_chat_template: Whether a request may bring its own chat template.
        allow_docs: Whether ``/docs`` and ``/openapi.json`` are there.
        log_format: ``text`` or ``json``.
        log_level: The least that is logged; the access log is at ``info``.
        otlp_endpoint: Where OpenTelemetry spans are sent.

    Raises:
        InputError: a value that is not allowed, named by its option.
    """

    engine: EngineSettings
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    public_routes: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 2**20
    max_texts: int = 8192
    max_text_chars: int = 2**20
    max_header_bytes: int = 16 * 2**10
    max_headers: int = 64
    max_connections: int = 1024
    read_timeout: float = 30.0
    keep_alive: int = 75
    request_timeout: float = 300.0
    grace: float = 30.0
    cors_origins: tuple[str, ...] = ()
    trust_request_chat_template: bool = False
    allow_docs: bool = True
    log_format: LogFormat = "text"
    log_level: str = "info"
    otlp_endpoint: str | None = None

    def __post_init__(self) -> None:
        for name, (is_valid, allowed) in _RULES.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            for wrong in [item for item in values if not is_valid(item)]:
                shown = "" if name == "api_keys" else f", not {wrong!r}"
                raise InputError(f"--{_OPTIONS.get(name, name).replace('_', '-')} must be {allowed}{shown}")

    def connection_limits(self) -> ConnectionLimits:
        """Return what one connection may take."""
        return ConnectionLimits(
            max_header_bytes=self.max_header_bytes,
            max_headers=self.max_headers,
            read_timeout_s=self.read_timeout,
            max_connections=self.max_connections,
        )


Rule = tuple[Callable[..., bool], str]


def _at_least(least: int) -> Rule:
    return (lambda value: isinstance(value, int) and value >= least), f"an integer of at least {least}"


_SECONDS: Final[Rule] = (lambda value: 0 < value < float("inf")), "a number of seconds above 0"
_NAME: Final[Rule] = (lambda value: bool(value) and value.isprintable()), "a name of printable characters"

_OPTIONS: Final = {
    "api_keys": "api_key",
    "public_routes": "public_route",
    "served_model_names": "served_model_name",
    "cors_origins": "cors_origin",
}
"""The options whose names are not those of the settings."""

_RULES: Final[dict[str, Rule]] = {
    "host": (lambda value: bool(value.strip()), "an address such as 127.0.0.1 or 0.0.0.0"),
    "port": (lambda value: 0 <= value < 2**16, "a port from 0 to 65535"),
    "api_keys": (lambda value: _KEY.fullmatch(value) is not None, "printable ASCII characters without spaces"),
    "public_routes": (lambda value: value in PUBLIC_ROUTES, f"one of {list(PUBLIC_ROUTES)}"),
    "served_model_names": _NAME,
    "max_body_bytes": _at_least(1024),
    "max_texts": _at_least(1),
    "max_text_chars": _at_least(1),
    "max_header_bytes": _at_least(1024),
    "max_headers": _at_least(8),
    "max_connections": _at_least(1),
    "read_timeout": _SECONDS,
    "keep_alive": _at_least(1),
    "request_timeout": _SECONDS,
    "grace": (lambda value: 0 <= value < float("inf"), "a number of seconds, 0 or more"),
    "cors_origins": (lambda value: _ORIGIN.fullmatch(value) is not None, "an origin as https://example.org, or *"),
    "log_format": (lambda value: value in ("text", "json"), "text or json"),
    "log_level": (lambda value: value in LEVELS, f"one of {list(LEVELS)}"),
    "otlp_endpoint": (
        lambda value: value is None or value.startswith(("http://", "https://")),
        "a URL that starts with http:// or https://",
    ),
}
