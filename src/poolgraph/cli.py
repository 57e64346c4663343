"""The command line: a parser made of the table of commands, exit codes, and errors without tracebacks."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Final, TextIO

from poolgraph import __version__
from poolgraph.cli_bench import BENCH_COMMAND
from poolgraph.cli_command import DONE, Command
from poolgraph.cli_export import EXPORT_COMMAND
from poolgraph.cli_inspect import INSPECT_COMMANDS
from poolgraph.cli_plan import PLAN_COMMAND
from poolgraph.cli_serve import SERVE_COMMAND
from poolgraph.cli_tasks import TASK_COMMANDS
from poolgraph.errors import PoolgraphError, VerificationError
from poolgraph.progress import open_closed_streams, say

UNEXPECTED: Final = 1
WRONG_INPUT: Final = 2
VERIFICATION_FAILED: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

EXTRA_OF_MODULE: Final = {
    "torch": "export",
    "transformers": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "optimum": "export",
    "psutil": "export",
    "onnxruntime": "cpu",
    "pyarrow": "files",
    "matplotlib": "bench",
    "openvino": "bench",
    "sentence_transformers": "bench",
    "httptools": "serve",
    "orjson": "serve",
    "prometheus_client": "serve",
    "uvicorn": "serve",
    "uvloop": "serve",
}
"""The optional part of poolgraph that installs a module."""


COMMANDS: Final[tuple[Command, ...]] = (
    EXPORT_COMMAND,
    *TASK_COMMANDS,
    SERVE_COMMAND,
    *INSPECT_COMMANDS,
    BENCH_COMMAND,
    PLAN_COMMAND,
)
"""Every sub-command, in the order of the help."""


ARGUMENT_OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "allow_unverified=True": "--allow-unverified",
        "fallback=True": "--fallback",
        "prompt=...": "--prompt ...",
        "provider=...": "--provider ...",
        "template=...": "--score-template ...",
        "truncate=True": "--truncate",
    }
)
"""The options of arguments that messages of the Python API advise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 unexpected, 2 wrong input or usage, 3 verification failed, 130 interrupted, 141 the reader went away.
    """
    return run_guarded(lambda: _run(argv))


def run_guarded(run: Callable[[], int]) -> int:
    """Run what returns an exit code; report errors and warnings as the command line does, and return the code."""
    open_closed_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = run()
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED
    except (Exception, KeyboardInterrupt) as error:
        _discard_output()
        return report_error(error)


def _discard_output() -> None:
    """Lead standard output to nowhere if it cannot be written: Python flushes it at exit, and would report that too."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    code: int = args.run(args)
    return code


def report_error(error: BaseException) -> int:
    """Say on standard error what went wrong, with a traceback only for what nobody foresaw; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        say("poolgraph: interrupted")
        return INTERRUPTED
    if isinstance(error, PoolgraphError):
        return _complain(error, VERIFICATION_FAILED if isinstance(error, VerificationError) else WRONG_INPUT)
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module in EXTRA_OF_MODULE:
        cure = f'pip install "poolgraph[{EXTRA_OF_MODULE[module]}]"'
        return _complain(f"this needs {module}, which is not installed; install it with: {cure}", WRONG_INPUT)
    if isinstance(error, OSError) and error.strerror:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, WRONG_INPUT)
    with suppress(OSError):
        traceback.print_exception(error)
    return UNEXPECTED


def build_parser() -> argparse.ArgumentParser:
    """Build the parser from the table of commands."""
    parser = argparse.ArgumentParser(
        prog="poolgraph",
        description="Compile pooling models (embedding, classification, reranking, reward) to ONNX and run them fast.",
        epilog="Exit codes: 0 done, 1 unexpected, 2 wrong input or usage, 3 verification failed.",
    )
    parser.add_argument("--version", action="version", version=f"poolgraph {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        say(f"poolgraph: warning: {_name_options(message)}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line), stream=file, end="")


def _complain(problem: object, code: int) -> int:
    say(f"poolgraph: error: {_name_options(problem)}")
    return code


def _name_options(message: object) -> str:
    """Write a message with options in the place of Python's arguments."""
    text = str(message)
    for argument, option in ARGUMENT_OPTIONS.items():
        text = text.replace(argument, option)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
