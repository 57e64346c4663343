"""OpenTelemetry spans: one a request, and within it tokenizing and encoding; one a batch, and one a text's wait.

A batch holds texts of many requests, so its spans have a trace of their own; the model's name and the time join them.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from poolgraph import __version__
from poolgraph.errors import InputError
from poolgraph.serving.asgi_types import ASGIApp, Message, Receive, Scope, Send
from poolgraph.serving.metrics import find_route

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from poolgraph.serving.observer import Observer

SERVICE: Final = "poolgraph"
_SERVER_ERROR: Final = 500


def open_tracer(endpoint: str) -> Tracer:
    """Return a tracer whose spans go to an OTLP collector over HTTP, in a thread of the SDK's.

    Raises:
        InputError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(
            f'--otlp-endpoint needs {error.name}; install it with: pip install "poolgraph[otel]"'
        ) from error
    resource = Resource.create({"service.name": SERVICE, "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider.get_tracer(SERVICE, __version__)


def trace_requests(app: ASGIApp, tracer: Tracer) -> ASGIApp:
    """Put each request into a span, a child of the client's where it sent a ``traceparent``."""
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    async def trace(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        with tracer.start_as_current_span(
            name_span(scope["method"], scope["path"]),
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_describe(scope),
            # An exception's message may quote a client's text.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= _SERVER_ERROR:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await app(scope, receive, send_traced)
            except BaseException:
                span.set_status(StatusCode.ERROR)
                raise

    return trace


def name_span(method: str, path: str) -> str:
    """Return a request's span's name: method and route, or the method alone where there is no such route."""
    route = find_route(path)
    return method if route is None else f"{method} {route}"


def _describe(scope: Scope) -> dict[str, Any]:
    return {"http.request.method": scope["method"], "url.path": scope["path"]}


class TracingObserver:
    """An observer that makes spans of what it is told, and tells another observer.

    Args:
        inner: What counts.
        tracer: What makes spans.
    """

    def __init__(self, inner: Observer, tracer: Tracer) -> None:
        self._inner = inner
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        """Hand on what makes no span."""
        return getattr(self._inner, name)

    def tokenized(self, model: str, num_texts: int, num_tokens: int, seconds: float) -> None:
        """Make a span of tokenizing."""
        self._inner.tokenized(model, num_texts, num_tokens, seconds)
        self._span("tokenizing", seconds, model=model, num_texts=num_texts, num_tokens=num_tokens)

    def waited(self, model: str, seconds: float) -> None:
        """Make a span of a text's wait."""
        self._inner.waited(model, seconds)
        self._span("queue", seconds, model=model)

    def ran(self, model: str, num_texts: int, real_tokens: int, padded_tokens: int, seconds: float) -> None:
        """Make a span of a batch."""
        self._inner.ran(model, num_texts, real_tokens, padded_tokens, seconds)
        counts = {"num_texts": num_texts, "real_tokens": real_tokens, "padded_tokens": padded_tokens}
        self._span("run", seconds, model=model, **counts)

    def encoded(self, model: str, seconds: float) -> None:
        """Make a span of encoding."""
        self._inner.encoded(model, seconds)
        self._span("encoding", seconds, model=model)

    def _span(self, name: str, seconds: float, **attributes: str | int) -> None:
        """Make a span that ends now; its parent is the request's where this is called in its context."""
        end = time_ns()
        prefixed = {f"poolgraph.{key}": value for key, value in attributes.items()}
        span = self._tracer.start_span(name, start_time=end - int(seconds * 1e9), attributes=prefixed)
        span.end(end_time=end)
