"""docs/operations.md says what is so: options and their defaults, metrics, times."""

import argparse
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from poolgraph.cli import build_parser
from poolgraph.cli_command import name_of
from poolgraph.cli_serve import ENGINE_OPTIONS, SERVE_COMMAND, SERVER_OPTIONS, parse_size
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.metrics import METRICS
from poolgraph.serving.settings import PUBLIC_ROUTES, ServeSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
OPTION_ROWS = {
    name: default
    for names, default in re.findall(r"^\| ((?:`--[a-z-]+`(?:, )?)+) \|([^|]*)\|", PAGE, re.MULTILINE)
    for name in re.findall(r"--[a-z-]+", names)
}


def test_every_option_has_a_row_and_every_row_an_option():
    parser = argparse.ArgumentParser(add_help=False)
    SERVE_COMMAND.add_arguments(parser)
    options = {action.option_strings[0] for action in parser._actions if action.option_strings}
    assert set(OPTION_ROWS) == options


@pytest.mark.parametrize("option", [*SERVER_OPTIONS, *ENGINE_OPTIONS], ids=name_of)
def test_defaults_are_those_of_the_settings(option):
    defaults = {field.name: field.default for field in (*fields(ServeSettings), *fields(EngineSettings))}
    default = defaults[name_of(option)]
    said = OPTION_ROWS[option.flags[0]].strip()
    if isinstance(default, bool) or default is None or default == ():
        assert not said[:1].isdigit()
    elif isinstance(default, int | float):
        assert (parse_size(said) if said[-1] in "KMG" else float(said)) == default
    else:
        assert said == default


def test_every_metric_has_a_row():
    named = set(re.findall(r"`(poolgraph_\w+)`", "".join(re.findall(r"^\| `poolgraph_.*$", PAGE, re.MULTILINE))))
    assert named == {f"poolgraph_{metric.name}" for metric in METRICS}
    for metric in METRICS:
        [row] = [line for line in PAGE.splitlines() if line.startswith("| `") and f"`poolgraph_{metric.name}`" in line]
        assert re.findall(r"`(\w+)`", row.split("|")[2]) == list(metric.labels)


def test_public_routes_are_named():
    [row] = re.findall(r"^\| `--public-route`.*$", PAGE, re.MULTILINE)
    assert all(f"`{route}`" in row for route in PUBLIC_ROUTES)


def test_command_lines_parse():
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:\w+=\$\([^)]*\) )?poolgraph (serve .*)$", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)).run
