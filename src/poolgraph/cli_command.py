"""What a sub-command is, its options as rows of a table, and printing its outcome."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from poolgraph.errors import InputError

DONE: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One sub-command; ``run`` returns the exit code."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Argument:
    """One argument of a sub-command: what ``argparse`` takes.

    Args:
        flags: A positional's name, or an option's spellings.
        options: The keywords of ``add_argument``.
    """

    def __init__(self, *flags: str, **options: Any) -> None:
        self.flags = flags
        self.options = options

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add it to a parser or a group of one."""
        parser.add_argument(*self.flags, **self.options)


JSON: Final = Argument("--json", action="store_true", help="print the outcome as JSON, for programs")


def add_arguments(*arguments: Argument) -> Callable[[argparse.ArgumentParser], None]:
    """Return what adds the arguments to a parser, in this order."""

    def add(parser: argparse.ArgumentParser) -> None:
        for argument in arguments:
            argument.add_to(parser)

    return add


def given_options(args: argparse.Namespace, options: Sequence[Argument]) -> dict[str, Any]:
    """Return the values of the options that were given, lists as tuples."""
    found = {name: getattr(args, name) for name in map(name_of, options)}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None
    }


def name_of(option: Argument) -> str:
    """Return the name under which argparse stores an option."""
    name: str = option.options.get("dest") or option.flags[0].removeprefix("--").replace("-", "_")
    return name


def print_json(value: object) -> None:
    """Print a value as indented JSON on standard output."""
    import msgspec

    require_output()
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def require_output() -> None:
    """Raise InputError if there is no standard output."""
    if sys.stdout is None:
        raise InputError("standard output is closed, so there is nowhere to print to")


def parse_names(text: str) -> tuple[str, ...]:
    """Read names with commas between them."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names with commas between them")
    return names


class JoinNames(argparse.Action):
    """Joins the names of an option that is given more than once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Append ``values`` to those given so far, which the default is not one of."""
        found = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if found is self.default else (*found, *values))


NAMES: Final[dict[str, Any]] = {"type": parse_names, "action": JoinNames}
"""Keywords of an option that takes names with commas between them, and may be given more than once."""


def parse_integers(text: str) -> list[int]:
    """Read integers with commas between them."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers with commas between them") from None


def parse_count(text: str) -> int:
    """Read an integer that is at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def parse_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is JSON, but not an object")
    return value
