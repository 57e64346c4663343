"""Traces that all modules share; and checkpoints given to ``LLM``, exported in this process, which has torch loaded."""

from contextlib import redirect_stdout
from io import StringIO

import pytest

import poolgraph.cli
import poolgraph.runtime.cache
from poolgraph.errors import ExportError
from poolgraph.runtime.cache import ExportRequest


@pytest.fixture(scope="module", autouse=True)
def shared(one_trace_each) -> None:
    """Compare answers: of equal modules one trace is enough."""


@pytest.fixture
def export_here(monkeypatch) -> None:
    """Run the command line of each export in this process instead of in a child."""

    def run(request: ExportRequest, on_line: object) -> None:
        with redirect_stdout(StringIO()):
            code = poolgraph.cli.main(request.command()[3:])
        if code:
            raise ExportError(f"exit code {code}")

    monkeypatch.setattr(poolgraph.runtime.cache, "run_export_process", run)
