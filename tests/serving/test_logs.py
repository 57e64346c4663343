"""Logs: two forms, one line an event, and nothing of what clients sent."""

import asyncio
import io
import json
import logging
import time
import warnings

import pytest

from poolgraph.serving.access_log import Access, AccessLog
from poolgraph.serving.logs import OWN_LOGGER, EventFormatter, configure_logs, format_time

ACCESS = Access(client="10.0.0.1", method="POST", path="/v1/embeddings", status=200, seconds=0.00345, request_id="id1")


@pytest.fixture
def restored_logging():
    names = (OWN_LOGGER, "uvicorn.error")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names}
    show = warnings.showwarning
    yield
    warnings.showwarning = show
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).propagate = True


def record(message="said", error=None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(OWN_LOGGER, logging.WARNING, __file__, 1, message, (), info)


def raised() -> Exception:
    try:
        raise ValueError("the text SECRET is wrong")
    except ValueError as error:
        return error


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_told_without_its_message(log_format):
    line = EventFormatter(log_format).format(record("failed", raised()))
    assert "builtins.ValueError" in line
    assert "test_logs.py" in line
    assert "SECRET" not in line


def test_json_events_are_one_line_each():
    line = EventFormatter("json").format(record("two\nlines", raised()))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "poolgraph", "two\nlines")


def test_times_are_utc_with_milliseconds():
    assert format_time(0.5) == "1970-01-01T00:00:00.500Z"


def lines_of(log_format, *accesses) -> list[str]:
    stream = io.StringIO()

    async def scenario():
        log = AccessLog(log_format, stream)
        for access in accesses:
            log.add(access)
        assert stream.getvalue() == ""
        await asyncio.sleep(0.4)

    asyncio.run(scenario())
    return stream.getvalue().splitlines()


def test_access_lines_in_both_forms():
    [text] = lines_of("text", ACCESS)
    assert text.endswith(" access 10.0.0.1 POST /v1/embeddings 200 3.45ms id1")
    [line] = lines_of("json", ACCESS)
    found = json.loads(line)
    assert (found["logger"], found["status"], found["milliseconds"]) == ("access", 200, 3.45)


def test_a_path_cannot_forge_a_line():
    forged = Access(**{name: getattr(ACCESS, name) for name in ACCESS.__slots__} | {"path": "/x\n2026 access"})
    assert len(lines_of("text", forged)) == 1
    long = Access(**{name: getattr(ACCESS, name) for name in ACCESS.__slots__} | {"path": "/" * 100_000})
    assert len(lines_of("text", long)[0]) < 400


def test_a_stream_that_is_full_stops_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    async def scenario():
        log = AccessLog("text", Full())
        log.add(ACCESS)
        log.flush()

    asyncio.run(scenario())


def test_many_lines_are_written_before_the_interval():
    stream = io.StringIO()

    async def scenario():
        log = AccessLog("text", stream)
        for _ in range(300):
            log.add(ACCESS)

    asyncio.run(scenario())
    assert len(stream.getvalue().splitlines()) == 256


def test_a_line_costs_microseconds():
    async def scenario() -> float:
        best = float("inf")
        for _ in range(10):
            log = AccessLog("json", io.StringIO())
            started = time.perf_counter()
            for _ in range(200):
                log.add(ACCESS)
            best = min(best, (time.perf_counter() - started) / 200)
        return best

    assert asyncio.run(scenario()) < 50e-6


def test_levels_and_warnings(restored_logging, capsys):
    configure_logs("text", "warning")
    logging.getLogger(OWN_LOGGER).info("unseen")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning("4 texts were cut", UserWarning, "f", 1)
    said = capsys.readouterr().err
    assert "unseen" not in said
    assert "warning UserWarning: 4 texts were cut" in said
