"""What the server counts, for Prometheus: every method costs one or two microseconds, and labels are few.

The phases have the meanings of text-embeddings-inference's metrics: a text waits in the queue after it was tokenized
and until its batch runs; inference is of a batch; encoding is of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from poolgraph import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""Of what ``metrics_text`` returns."""

NOT_A_NUMBER: Final = "nan"
"""The kind of failure that has a counter of its own."""

OTHER_ROUTE: Final = "other"
"""The label of all paths that no route has, of which a client can make any number."""

ROUTES: Final = frozenset(
    {
        "/v1/embeddings",
        "/v1/embed",
        "/v2/embed",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/classify",
        "/pooling",
        "/tokenize",
        "/detokenize",
        "/v1/models",
        "/v1/models/{id}",
        "/",
        "/embed",
        "/embed_all",
        "/predict",
        "/similarity",
        "/info",
        "/health",
        "/ping",
        "/ready",
        "/metrics",
        "/version",
        "/openapi.json",
        "/docs",
    }
)

_MODELS: Final = "/v1/models/"

_PHASE_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
_REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_BATCH_TEXTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BATCH_TOKENS: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def find_route(path: str) -> str | None:
    """Return the route that a request's path is of; None where there is none."""
    if path in ROUTES:
        return path
    return "/v1/models/{id}" if path.startswith(_MODELS) and path != _MODELS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        kind: Its class in prometheus_client.
        name: Without the prefix ``poolgraph_``; counters end in ``_total``.
        help: What it counts, with its unit.
        labels: Names of its labels.
        buckets: Upper bounds, for histograms.
    """

    kind: type[Counter | Gauge | Histogram]
    name: str
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()

    def build(self, registry: CollectorRegistry) -> Any:
        """Return the metric, registered."""
        more: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        return self.kind(f"poolgraph_{self.name}", self.help, self.labels, registry=registry, **more)


METRICS: Final = (
    Metric(kind=Counter, name="requests_total", help="Requests answered", labels=("route", "status")),
    Metric(
        kind=Histogram,
        name="request_seconds",
        help="A request's time from its headers to the end of its answer",
        labels=("route",),
        buckets=_REQUEST_SECONDS,
    ),
    Metric(kind=Counter, name="texts_total", help="Texts tokenized"),
    Metric(kind=Counter, name="tokens_total", help="Tokens of these texts"),
    Metric(kind=Histogram, name="tokenization_seconds", help="Tokenizing a request's texts", buckets=_PHASE_SECONDS),
    Metric(kind=Histogram, name="queue_seconds", help="A text's time in the queue", buckets=_PHASE_SECONDS),
    Metric(kind=Histogram, name="inference_seconds", help="A batch's time in the model", buckets=_PHASE_SECONDS),
    Metric(kind=Histogram, name="encoding_seconds", help="Encoding an answer", buckets=_PHASE_SECONDS),
    Metric(kind=Histogram, name="batch_texts", help="Texts of a batch", buckets=_BATCH_TEXTS),
    Metric(kind=Histogram, name="batch_tokens", help="Tokens of a batch, padding included", buckets=_BATCH_TOKENS),
    Metric(kind=Counter, name="real_tokens_total", help="Tokens run, without padding"),
    Metric(kind=Counter, name="padded_tokens_total", help="Tokens run, padding included"),
    Metric(kind=Gauge, name="queue_texts", help="Texts in the queue"),
    Metric(kind=Gauge, name="queue_tokens", help="Tokens in the queue"),
    Metric(kind=Counter, name="cache_hits_total", help="Answers found in the cache"),
    Metric(kind=Counter, name="cache_misses_total", help="Answers not found in the cache"),
    Metric(kind=Gauge, name="cache_bytes", help="Bytes of memory that the cache holds, of all models", labels=()),
    Metric(kind=Counter, name="dropped_texts_total", help="Texts dropped before they ran", labels=("model", "reason")),
    Metric(kind=Counter, name="errors_total", help="Failures of the engine, by type", labels=("model", "type")),
    Metric(kind=Counter, name="nan_answers_total", help="Answers withheld because they held NaN or infinity"),
    Metric(kind=Counter, name="engine_restarts_total", help="Times that a model's engine was started again"),
    Metric(kind=Gauge, name="build_info", help="1, labelled with the version", labels=("version",)),
)
"""Every metric of ours; ``process_*`` come from prometheus_client."""


@dataclass(slots=True)
class _Routes:
    """Children of the request metrics, by route and status."""

    counters: dict[tuple[str, int], Any] = field(default_factory=dict)
    seconds: dict[str, Any] = field(default_factory=dict)


class PrometheusObserver:
    """The Observer that counts; thread-safe, as prometheus_client's metrics are."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series a counter, which nothing here reads
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self._metrics: dict[str, Any] = {metric.name: metric.build(self.registry) for metric in METRICS}
        self._metrics["build_info"].labels(__version__).set(1)
        self._models: dict[str, dict[str, Any]] = {}
        self._routes = _Routes()

    def requested(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended; a path of no route counts as ``other``."""
        route = find_route(path) or OTHER_ROUTE
        counter = self._routes.counters.get((route, status))
        if counter is None:
            counter = self._routes.counters[route, status] = self._metrics["requests_total"].labels(route, status)
            self._routes.seconds[route] = self._metrics["request_seconds"].labels(route)
        counter.inc()
        self._routes.seconds[route].observe(seconds)

    def tokenized(self, model: str, num_texts: int, num_tokens: int, seconds: float) -> None:
        """Count a request's texts, tokenized in so many seconds."""
        metrics = self._of(model)
        metrics["texts_total"].inc(num_texts)
        metrics["tokens_total"].inc(num_tokens)
        metrics["tokenization_seconds"].observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        """Count a text's time in the queue."""
        self._of(model)["queue_seconds"].observe(seconds)

    def ran(self, model: str, num_texts: int, real_tokens: int, padded_tokens: int, seconds: float) -> None:
        """Count a batch; ``padded_tokens`` includes the padding."""
        metrics = self._of(model)
        metrics["inference_seconds"].observe(seconds)
        metrics["batch_texts"].observe(num_texts)
        metrics["batch_tokens"].observe(padded_tokens)
        metrics["real_tokens_total"].inc(real_tokens)
        metrics["padded_tokens_total"].inc(padded_tokens)

    def queue(self, model: str, num_texts: int, num_tokens: int) -> None:
        """Note what waits."""
        metrics = self._of(model)
        metrics["queue_texts"].set(num_texts)
        metrics["queue_tokens"].set(num_tokens)

    def cache(self, model: str, hits: int, misses: int, size: int) -> None:
        """Count a look into the cache; ``size`` is the memory in bytes that it holds, of all models."""
        metrics = self._of(model)
        metrics["cache_hits_total"].inc(hits)
        metrics["cache_misses_total"].inc(misses)
        self._metrics["cache_bytes"].set(size)

    def dropped(self, model: str, reason: str, num_texts: int) -> None:
        """Count texts that never ran."""
        self._metrics["dropped_texts_total"].labels(model, reason).inc(num_texts)

    def failed(self, model: str, kind: str) -> None:
        """Count a failure of the engine; NaN has its own counter beside."""
        self._metrics["errors_total"].labels(model, kind).inc()
        if kind == NOT_A_NUMBER:
            self._of(model)["nan_answers_total"].inc()

    def restarted(self, model: str) -> None:
        """Count a restart of the engine."""
        self._of(model)["engine_restarts_total"].inc()

    def encoded(self, model: str, seconds: float) -> None:
        """Count the encoding of an answer."""
        self._of(model)["encoding_seconds"].observe(seconds)

    def _of(self, model: str) -> dict[str, Any]:
        """Return a model's metrics by name: looking labels up for each text would cost more than counting."""
        metrics = self._models.get(model)
        if metrics is None:
            own = {metric.name: self._metrics[metric.name] for metric in METRICS if metric.labels == ("model",)}
            metrics = {name: metric.labels(model) for name, metric in own.items()}
            self._models[model] = metrics
        return metrics


def metrics_text(observer: object) -> bytes:
    """Return the metrics in Prometheus' text format; of an observer that counts nothing, nothing."""
    registry = getattr(observer, "registry", None)
    return b"" if registry is None else generate_latest(registry)


def sample_names() -> frozenset[str]:
    """Return the names of all samples, as a dashboard may ask for them."""
    suffixes = {Counter: ("",), Gauge: ("",), Histogram: ("_bucket", "_count", "_sum")}
    own = {f"poolgraph_{metric.name}{suffix}" for metric in METRICS for suffix in suffixes[metric.kind]}
    return frozenset(
        own | {sample.name for family in PrometheusObserver().registry.collect() for sample in family.samples}
    )
