"""Spans of requests and of the engine's phases, with the SDK's exporter in memory."""

import asyncio
import sys

import pytest
from fake_app import FakeApp, call
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from poolgraph.errors import InputError
from poolgraph.serving.metrics import PrometheusObserver, metrics_text
from poolgraph.serving.tracing import TracingObserver, open_tracer, trace_requests

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter.get_finished_spans
    provider.shutdown()


def test_a_request_has_a_span_with_its_phases_in_it(spans):
    tracer, finished = spans
    observer = TracingObserver(PrometheusObserver(), tracer)

    async def app(scope, receive, send):
        observer.tokenized("m", 1, 12, 0.001)
        observer.encoded("m", 0.001)
        await FakeApp()(scope, receive, send)

    asyncio.run(call(trace_requests(app, tracer), "/score", headers=[("traceparent", PARENT)]))
    by_name = {span.name: span for span in finished()}
    request = by_name["POST /score"]
    assert f"{request.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert request.attributes["http.response.status_code"] == 200
    for name in ("tokenizing", "encoding"):
        assert by_name[name].parent.span_id == request.context.span_id
        assert by_name[name].end_time - by_name[name].start_time == pytest.approx(1e6, abs=1e3)
    assert by_name["tokenizing"].attributes["poolgraph.num_tokens"] == 12


def test_a_batch_has_a_span_of_its_own_and_all_is_still_counted(spans):
    tracer, finished = spans
    observer = TracingObserver(PrometheusObserver(), tracer)
    observer.waited("m", 0.002)
    observer.ran("m", 8, 100, 128, 0.02)
    observer.queue("m", 1, 2)
    observer.failed("m", "nan")
    assert [span.name for span in finished()] == ["queue", "run"]
    assert all(span.parent is None for span in finished())
    text = metrics_text(observer).decode()
    assert 'poolgraph_padded_tokens_total{model="m"} 128.0' in text
    assert 'poolgraph_nan_answers_total{model="m"} 1.0' in text


def test_a_span_holds_no_text_of_a_failure(spans):
    tracer, finished = spans
    with pytest.raises(RuntimeError):
        asyncio.run(call(trace_requests(FakeApp(), tracer), "/fail"))
    [span] = finished()
    assert "SECRET" not in span.to_json()
    assert (span.name, span.status.status_code.name) == ("POST", "ERROR")


def test_without_the_package_the_option_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InputError, match=r'pip install "poolgraph\[otel\]"'):
        open_tracer("http://localhost:4318")
