"""What is printed while one waits."""

from __future__ import annotations

import io
import re

import pytest

from poolgraph import progress
from poolgraph.progress import print_progress, print_stages, print_warm_up


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_warm_up_is_a_count_on_a_terminal_and_a_line_in_a_log():
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        show = print_warm_up(stream)
        for done in (1, 2, 3):
            show(done, 3)
    assert re.fullmatch(r"poolgraph: 3 buckets warm after \d+\.\d s\n", log.getvalue())
    assert terminal.getvalue().startswith(
        "\rpoolgraph: warming up bucket 2 of 3\rpoolgraph: warming up bucket 3 of 3\r"
    )


def test_stages_in_a_log_are_lines():
    log = io.StringIO()
    with print_stages(log) as on_stage:
        on_stage("trace")
        on_stage("verify")
    assert log.getvalue() == "trace ...\nverify ...\n"


def test_stages_on_a_terminal_get_their_seconds_even_when_one_fails():
    terminal = Terminal()

    def fail():
        with print_stages(terminal) as on_stage:
            on_stage("trace")
            on_stage("verify")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (raised above)
        fail()
    assert re.fullmatch(r"trace \.\.\. \d+\.\d s\nverify \.\.\. \d+\.\d s\n", terminal.getvalue())


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    log, clock = io.StringIO(), iter([0.0, 1.0, 5.5, 5.5, 6.0, 99.0, 99.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with print_progress(40, log) as on_progress:
        for done in (0, 10, 20, 30):
            on_progress(done)
    assert log.getvalue() == "poolgraph: 10 of 40 texts\npoolgraph: 30 of 40 texts\n"


def test_a_log_without_total(monkeypatch):
    log, clock = io.StringIO(), iter([0.0, 6.0, 6.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with print_progress(None, log) as on_progress:
        on_progress(7)
    assert log.getvalue() == "poolgraph: 7 texts\n"


def test_a_terminal_gets_a_bar_that_starts_where_work_was_resumed():
    terminal = Terminal()
    with print_progress(40, terminal) as on_progress:
        on_progress(30)
        on_progress(40)
    assert "30/40" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert "40/40" in terminal.getvalue()
