"""Traces that all modules share; and checkpoints given to ``LLM``, exported in this process, which has torch loaded."""

from contextlib import redirect_stdout
from io import StringIO

import pytest

import poolgraph.cli
import poolgraph.runtime.cache
import poolgraph.runtime.export_precision
from poolgraph.errors import ExportError
from poolgraph.runtime.cache import ExportRequest
from poolgraph.runtime.providers import CPU_PROVIDER


@pytest.fixture(scope="module", autouse=True)
def shared(one_trace_each) -> None:
    """Compare answers: of equal modules one trace is enough."""


@pytest.fixture
def export_here(monkeypatch) -> None:
    """Run each export's command line in this process, not in a child, and as on a machine without a GPU: in float32."""

    def run(request: ExportRequest, on_line: object) -> None:
        with redirect_stdout(StringIO()):
            code = poolgraph.cli.main(request.command()[3:])
        if code:
            raise ExportError(f"exit code {code}")

    monkeypatch.setattr(poolgraph.runtime.cache, "run_export_process", run)
    monkeypatch.setattr(poolgraph.runtime.export_precision, "available_providers", lambda: (CPU_PROVIDER,))
