"""Metrics: each call of an engine ends in the right sample, labels stay few, and counting stays cheap."""

import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poolgraph.serving.metrics import METRICS, ROUTES, PrometheusObserver, metrics_text, sample_names


def samples(observer) -> dict:
    """Samples by name and label values, without the model."""
    text = metrics_text(observer).decode()
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_observation_has_its_metric():
    observer = PrometheusObserver()
    observer.tokenized("m", 2, 40, 0.0003)
    observer.waited("m", 0.002)
    observer.ran("m", 8, 100, 128, 0.02)
    observer.queue("m", 3, 50)
    observer.cache("m", 1, 2, 4096)
    observer.dropped("m", "full", 5)
    observer.failed("m", "session")
    observer.restarted("m")
    observer.encoded("m", 0.0001)
    observer.requested("/v1/embeddings", 200, 0.004)
    found = samples(observer)
    expected = {
        ("poolgraph_texts_total",): 2,
        ("poolgraph_tokens_total",): 40,
        ("poolgraph_tokenization_seconds_count",): 1,
        ("poolgraph_tokenization_seconds_bucket", "0.00025"): 0,
        ("poolgraph_tokenization_seconds_bucket", "0.0005"): 1,
        ("poolgraph_queue_seconds_sum",): 0.002,
        ("poolgraph_inference_seconds_sum",): 0.02,
        ("poolgraph_batch_texts_bucket", "8.0"): 1,
        ("poolgraph_batch_tokens_sum",): 128,
        ("poolgraph_real_tokens_total",): 100,
        ("poolgraph_padded_tokens_total",): 128,
        ("poolgraph_queue_texts",): 3,
        ("poolgraph_queue_tokens",): 50,
        ("poolgraph_cache_hits_total",): 1,
        ("poolgraph_cache_misses_total",): 2,
        ("poolgraph_cache_bytes",): 4096,
        ("poolgraph_dropped_texts_total", "full"): 5,
        ("poolgraph_errors_total", "session"): 1,
        ("poolgraph_nan_answers_total",): 0,
        ("poolgraph_engine_restarts_total",): 1,
        ("poolgraph_encoding_seconds_sum",): 0.0001,
        ("poolgraph_requests_total", "/v1/embeddings", "200"): 1,
        ("poolgraph_request_seconds_sum", "/v1/embeddings"): 0.004,
    }
    assert {key: found[key] for key in expected} == expected


def test_nan_is_counted_by_itself_and_among_the_errors():
    observer = PrometheusObserver()
    observer.failed("m", "nan")
    found = samples(observer)
    assert found["poolgraph_nan_answers_total",] == found["poolgraph_errors_total", "nan"] == 1


def test_paths_of_clients_make_no_labels():
    observer = PrometheusObserver()
    for number in range(100):
        observer.requested(f"/path{number}", 404, 0.001)
    routes = {key[1] for key in samples(observer) if key[0] == "poolgraph_requests_total"}
    assert routes == {"other"}
    assert samples(observer)["poolgraph_requests_total", "other", "404"] == 100


def test_memory_of_the_process_is_there():
    assert samples(PrometheusObserver())["process_resident_memory_bytes",] > 1e6


def test_observers_do_not_share_counts():
    PrometheusObserver().failed("m", "session")
    assert ("poolgraph_errors_total", "session") not in samples(PrometheusObserver())


def test_threads_lose_no_count():
    observer = PrometheusObserver()

    def count() -> None:
        for _ in range(2000):
            observer.waited("m", 0.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(observer)["poolgraph_queue_seconds_count",] == 8000


def test_an_observer_that_counts_nothing_has_no_text():
    assert metrics_text(object()) == b""


def test_the_names_of_samples_are_those_in_the_text():
    observer = PrometheusObserver()
    observer.failed("m", "nan")
    observer.dropped("m", "full", 1)
    observer.requested("/v1/embeddings", 200, 0.1)
    observer.waited("m", 0.1)
    assert sample_names() == {key[0] for key in samples(observer)}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric):
    assert (metric.name.endswith("_total")) == (metric.kind.__name__ == "Counter")
    assert (metric.kind.__name__ == "Histogram") == bool(metric.buckets)
    assert {"/health", "/ping"} <= ROUTES


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models/org/small", "/v1/models/{id}"),
        ("/v1/models/", "other"),
        ("/v1/modelsx", "other"),
    ],
)
def test_every_model_counts_as_one_route(path, route):
    observer = PrometheusObserver()
    observer.requested(path, 200, 0.1)
    assert samples(observer)["poolgraph_requests_total", route, "200"] == 1


def test_a_request_costs_microseconds_to_count():
    """Some 10 us in quiet; the bound is what a thousand requests a second can afford on a busy machine."""
    observer = PrometheusObserver()

    def request() -> None:
        observer.tokenized("m", 1, 40, 2e-4)
        observer.waited("m", 1e-3)
        observer.queue("m", 3, 100)
        observer.encoded("m", 1e-4)
        observer.requested("/v1/embeddings", 200, 5e-3)

    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(200):
            request()
        best = min(best, (time.perf_counter() - started) / 200)
    assert best < 50e-6
