"""The pages say what is so: code blocks run, options, files, keys and links exist."""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from poolgraph.cli import COMMANDS, build_parser
from poolgraph.graphs import manifest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])
ROOMS = ("src/poolgraph", "graphs", "poolers", "export", "runtime", "serving")
RECORDS = [
    value
    for value in vars(manifest).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__struct_fields__
]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def first_column(text: str) -> list[str]:
    """The names in backticks that start the rows of a page's tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """The third-level sections of a page by the first name in backticks in their heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^### `([^`]+)`[^\n]*\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))


def options_of(add_arguments) -> set[str]:
    parser = argparse.ArgumentParser(prog="poolgraph", add_help=False)
    add_arguments(parser)
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", parser.format_usage()))
    assert options
    return options


@pytest.mark.parametrize("number", range(len(code_blocks(README, "python"))))
def test_python_blocks_of_the_readme_print_what_they_say(minilm_artifact, number):
    block = code_blocks(README, "python")[number]
    code = block.replace('"minilm"', repr(str(minilm_artifact)))
    assert code != block
    said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert said
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().splitlines() == said


def test_the_readme_has_python_for_both_classes():
    blocks = code_blocks(README, "python")
    assert any("PoolingModel.load(" in block for block in blocks)
    assert any("LLM(" in block for block in blocks)


def test_command_lines_of_the_readme_parse():
    lines = [line for block in code_blocks(README, "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("poolgraph ")]
    assert {command[0] for command in commands} >= {"export", "embed", "inspect", "verify"}
    options = {command.name: options_of(command.add_arguments) for command in COMMANDS}
    for command in commands:
        assert build_parser().parse_args(command).run
        assert {word for word in command if re.match(r"--?[a-z]", word)} <= options[command[0]]


def test_the_table_of_commands_is_the_parser():
    rows = re.findall(r"^\| `poolgraph (\w+)[^`]*` \|[^|]*\| ([^|]*) \|$", README, re.MULTILINE)
    named = {name: set(re.findall(r"`(--?[a-z-]+)`", options)) for name, options in rows}
    # A row names an option once: -o stands for --output.
    assert named == {command.name: options_of(command.add_arguments) for command in COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("https://", "#"))]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:^ *|`)make ([a-z-]+)", text, re.MULTILINE)
    assert set(named) <= set(targets)


@pytest.mark.parametrize("room", ROOMS)
def test_architecture_has_a_line_for_each_file(room):
    files = {path.name for path in (ROOT / room).glob("*.py")}
    if room != "src/poolgraph":
        files.discard("__init__.py")
    named = first_column(sections("architecture.md").get(f"{room}/", ""))
    assert sorted(named) == sorted(files)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_artifact_format_has_every_key(record):
    rows = sections("artifact_format.md")[record.__name__]
    assert first_column(rows) == list(record.__struct_fields__)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_artifact_format_says_which_keys_may_be_left_out(record):
    rows = sections("artifact_format.md")[record.__name__]
    optional = re.findall(r"^\| `(\w+)` \|[^|]*\bdefault\b", rows, re.MULTILINE)
    assert optional == [
        field.name for field in msgspec.structs.fields(record) if not field.required and field.name != "format_version"
    ]


def test_artifact_format_says_which_versions_are_read():
    text = (ROOT / "docs" / "artifact_format.md").read_text(encoding="utf-8")
    assert f"today {manifest.OLDEST_READABLE} to {manifest.FORMAT_VERSION}." in text
