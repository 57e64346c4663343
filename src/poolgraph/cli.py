"""The command line, one row a sub-command: parse, call the API, print. Rooms are imported only by the row that runs."""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from poolgraph import __version__
from poolgraph.errors import InputError, PoolgraphError, VerificationError
from poolgraph.progress import open_closed_streams, print_progress, print_stages, say

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Report

DONE: Final = 0
UNEXPECTED: Final = 1
WRONG_INPUT: Final = 2
VERIFICATION_FAILED: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

TASKS: Final = ("auto", "embed", "classify", "score", "reward", "token_embed", "token_classify")

EXTRA_OF_MODULE: Final = {
    "torch": "export",
    "transformers": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "optimum": "export",
    "onnxruntime": "cpu",
    "pyarrow": "files",
}
"""The optional part of poolgraph that installs a module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One sub-command; ``run`` returns the exit code."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 unexpected, 2 wrong input or usage, 3 verification failed, 130 interrupted, 141 the reader went away.
    """
    open_closed_streams()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = _run(argv)
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


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint folder or a hub id")
    add("--task", choices=TASKS, default="auto", help="what the model answers; auto reads the checkpoint")
    add("-o", "--output", metavar="DIR", type=Path, help="the artifact to make (default: MODEL's name + .poolgraph)")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--precision", metavar="P[,P]", type=_parse_list, default=("fp32",), help="fp32 (default)")
    add("--target", metavar="T[,T]", type=_parse_list, default=("cpu",), help="cpu (default)")
    add(
        "--min-cosine",
        metavar="X",
        type=_parse_cosine,
        help="accept answers this close to the reference, and record it",
    )
    add("--trust-remote-code", action="store_true", help="run the checkpoint's own Python code while exporting")
    add("--force", action="store_true", help="replace an artifact that is there already")
    _add_json(parser)


def _run_export(args: argparse.Namespace) -> int:
    from poolgraph.export.exporter import export_model

    output = args.output or Path(f"{Path(args.model).resolve().name}.poolgraph")
    with print_stages(sys.stderr) as on_stage:
        result = export_model(
            args.model,
            output,
            task=args.task,
            revision=args.revision,
            precisions=args.precision,
            targets=args.target,
            min_cosine=args.min_cosine,
            trust_remote_code=args.trust_remote_code,
            overwrite=args.force,
            on_stage=on_stage,
        )
    if args.json:
        _print_json({"path": str(result.path), "seconds": result.seconds, "report": result.report})
        return DONE
    _print_verification(result.report, as_json=False)
    print(f"\nWritten to {result.path} in {sum(result.seconds.values()):.1f} s. Next:")
    print(f"  poolgraph embed {result.path} texts.txt -o vectors.npy")
    return DONE


def _add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="an artifact, a checkpoint folder or a hub id")
    add("input", metavar="INPUT", help="a .txt (a text a line), .jsonl, .csv or .parquet file, or - for standard input")
    add("--field", metavar="NAME", help='the field with the text in jsonl, csv, parquet (default: "text")')
    add("--format", choices=("txt", "jsonl", "csv", "parquet"), help="read INPUT so, whatever its suffix")
    add("-o", "--output", metavar="OUT", type=Path, help=".npy, .jsonl or .parquet (default: JSON lines to the screen)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue where an interrupted run stopped")
    again.add_argument("--force", action="store_true", help="start over, and replace OUT if it is there")
    add("--prompt-name", metavar="NAME", help="put the artifact's prompt of this name before each text")
    add("--prompt", metavar="TEXT", help="put this before each text")
    add("--dimensions", metavar="N", type=int, help="shorten the embeddings, for models trained for that")
    add("--no-normalize", dest="normalize", action="store_const", const=False, help="leave out the normalization")
    add("--truncate", action="store_true", help="cut texts that are too long instead of refusing them")
    add("--provider", help="cpu or cuda (default: the best that loads)")
    add("--precision", metavar="P", help="fp32, ... (default: the artifact's first that runs here)")
    add("--threads", metavar="N", type=int, help="threads of one run (default: chosen for this machine)")
    _add_json(parser)


def _run_embed(args: argparse.Namespace) -> int:
    from poolgraph.runtime.embed_file import check_output, embed_file, embed_texts
    from poolgraph.runtime.embed_state import EmbedOptions, TextSource
    from poolgraph.runtime.model import PoolingModel
    from poolgraph.runtime.text_files import count_texts
    from poolgraph.runtime.vector_files import JsonlStream

    keywords = ("prompt_name", "prompt", "dimensions", "normalize", "truncate")
    options = EmbedOptions(**{name: getattr(args, name) for name in keywords})
    source = TextSource(path=args.input, field=args.field, file_format=args.format)
    if args.output is not None:
        check_output(args.output, overwrite=args.force)
    elif args.json or args.resume or args.force:
        raise InputError("--json, --resume and --force need -o OUT; without it the vectors go to standard output")
    else:
        _require_output()
    total = count_texts(args.input, field=args.field, file_format=args.format)
    model = PoolingModel.load(args.model, provider=args.provider, precision=args.precision, threads=args.threads)
    with model, print_progress(total, sys.stderr) as on_progress:
        if args.output is None:
            on_progress(0)
            embed_texts(model, source.read(), JsonlStream(sys.stdout.buffer), options=options, on_chunk=on_progress)
            return DONE
        summary = embed_file(
            model,
            source,
            args.output,
            options=options,
            resume=args.resume,
            overwrite=args.force,
            on_progress=on_progress,
        )
    if args.json:
        _print_json({"path": str(args.output), "summary": summary})
        return DONE
    resumed = f" ({summary.num_resumed} of them before)" if summary.num_resumed else ""
    print(f"{summary.num_texts} texts{resumed} in {summary.seconds:.1f} s, written to {args.output}")
    return DONE


def _add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="DIR", type=Path, help="an artifact")
    _add_json(parser)


def _run_inspect(args: argparse.Namespace) -> int:
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.graphs.manifest import encode_manifest
    from poolgraph.runtime.inspect import describe

    _require_output()
    manifest = open_artifact(args.artifact)
    print(encode_manifest(manifest).decode().rstrip() if args.json else describe(manifest, args.artifact))
    return DONE


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="DIR", type=Path, help="an artifact")
    parser.add_argument("--checkpoint", metavar="PATH", help="compare with this checkpoint, not with stored answers")
    _add_json(parser)


def _run_verify(args: argparse.Namespace) -> int:
    from poolgraph.graphs.manifest import CheckRow, Report
    from poolgraph.runtime.verify import verify_artifact

    rows: list[CheckRow] = []
    try:
        report = verify_artifact(args.artifact, checkpoint=args.checkpoint, on_row=rows.append)
    except VerificationError:
        _print_verification(Report(reference="the reference", rows=tuple(rows)), as_json=args.json)
        raise
    _print_verification(report, as_json=args.json)
    return DONE


def _run_doctor(args: argparse.Namespace) -> int:
    from poolgraph.runtime.doctor import examine, format_doctor

    _require_output()
    report = examine()
    if args.json:
        _print_json(report)
    else:
        print(format_doctor(report))
    return DONE


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, for programs")


COMMANDS: Final = (
    Command(
        name="export",
        help="compile a checkpoint into a verified artifact",
        add_arguments=_add_export_arguments,
        run=_run_export,
    ),
    Command(
        name="embed",
        help="turn the texts of a file into vectors",
        add_arguments=_add_embed_arguments,
        run=_run_embed,
    ),
    Command(
        name="inspect",
        help="show what an artifact is and what was verified",
        add_arguments=_add_inspect_arguments,
        run=_run_inspect,
    ),
    Command(
        name="verify",
        help="run an artifact on this machine and compare it with the reference",
        add_arguments=_add_verify_arguments,
        run=_run_verify,
    ),
    Command(
        name="doctor",
        help="show what this machine offers and what would be picked",
        add_arguments=_add_json,
        run=_run_doctor,
    ),
)


def _print_verification(report: Report, *, as_json: bool) -> None:
    from poolgraph.runtime.inspect import format_report

    if as_json:
        _print_json(report)
        return
    print(f"Compared with {report.reference}:")
    print(format_report(report))


def _print_json(value: object) -> None:
    import msgspec

    _require_output()
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        say(f"poolgraph: warning: {message}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line), stream=file, end="")


def _parse_list(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names with commas between them")
    return names


def _parse_cosine(text: str) -> float:
    try:
        cosine = float(text)
    except ValueError:
        cosine = math.nan
    if not 0.0 <= cosine <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return cosine


def _require_output() -> None:
    if sys.stdout is None:
        raise InputError("standard output is closed, so there is nowhere to print to")


def _complain(problem: object, code: int) -> int:
    say(f"poolgraph: error: {problem}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
