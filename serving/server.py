"""The serving process: the address taken, models checked and opened, then the port opened and requests answered."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path

from poolgraph.graphs.artifact import is_artifact, open_artifact
from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.serving.app import build_app
from poolgraph.serving.graceful_server import allow_connections, bind_address, run_server
from poolgraph.serving.logs import configure_logs
from poolgraph.serving.metrics import PrometheusObserver
from poolgraph.serving.registry import open_registry
from poolgraph.serving.settings import ServeSettings
from poolgraph.serving.tracing import TracingObserver, open_tracer, trace_requests


def serve(models: Sequence[ModelArguments], settings: ServeSettings) -> int:
    """Open the models, answer until a signal ends it, and return the exit code.

    The address is taken first and opened last: a port in use is told at once, and nobody connects to a server that
    cannot answer yet.

    Raises:
        InputError: the address cannot be had.
        PoolgraphError: a model cannot be opened, or its files are not those of its manifest.
    """
    configure_logs(settings.log_format, settings.log_level)
    allow_connections(settings.max_connections)
    with bind_address(settings.host, settings.port) as listener:
        counting = PrometheusObserver()
        tracer = None if settings.otlp_endpoint is None else open_tracer(settings.otlp_endpoint)
        observer = counting if tracer is None else TracingObserver(counting, tracer)
        given = {Path(model.model) for model in models if is_artifact(model.model)}
        check_artifacts(given)
        registry = open_registry(models, settings.engine, observer, settings.served_model_names)
        check_artifacts({model.runner.model.path for model in registry.models} - given)
        app = build_app(registry, settings, observer)
        traced = app if tracer is None else trace_requests(app, tracer)
        gc.collect()
        gc.freeze()  # what is loaded stays: the collector need not look at it again
        return run_server(traced, registry, settings, counting, listener)


def check_artifacts(directories: Iterable[Path]) -> None:
    """Compare every file of artifacts with its hash.

    Raises:
        ArtifactError: a file is missing, cut or changed.
    """
    for directory in directories:
        open_artifact(directory, check_hashes="all")
