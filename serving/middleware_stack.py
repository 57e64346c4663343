"""The order of the middleware around the application."""

from __future__ import annotations

from collections.abc import Callable

from poolgraph.serving.access_log import Access
from poolgraph.serving.asgi_types import ASGIApp
from poolgraph.serving.middleware_api_keys import require_api_keys
from poolgraph.serving.middleware_body_limit import limit_body
from poolgraph.serving.middleware_cors import allow_origins
from poolgraph.serving.middleware_drain import Drain
from poolgraph.serving.middleware_watch import watch_requests
from poolgraph.serving.settings import ServeSettings


def wrap_app(app: ASGIApp, settings: ServeSettings, drain: Drain, on_end: Callable[[Access], None]) -> ASGIApp:
    """Return the application with all that stands before it.

    A request is named and timed; then it may be refused: by the drain, for its key, for its size. CORS stands before
    the keys, for a browser's preflight carries none. All but the first only choose who answers: they return what is to
    be awaited and are gone.
    """
    app = limit_body(app, settings.max_body_bytes)
    app = require_api_keys(app, settings.api_keys, settings.public_routes)
    app = drain.guard(app)
    app = allow_origins(app, settings.cors_origins)
    return watch_requests(app, timeout_s=settings.request_timeout, drain=drain, on_end=on_end)
