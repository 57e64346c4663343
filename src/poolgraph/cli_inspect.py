"""The commands that show: inspect, verify, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolgraph.cli_command import DONE, JSON, Argument, Command, add_arguments, print_json, require_output
from poolgraph.cli_options import FORMATS
from poolgraph.errors import ArtifactError, InputError, PoolgraphError, VerificationError
from poolgraph.progress import say

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Report
    from poolgraph.runtime.fidelity_corpus import Corpus

_ARTIFACT: Final = Argument("artifact", metavar="DIR", type=Path, help="an artifact")


def print_verification(report: Report, *, as_json: bool) -> None:
    """Print a report of verification."""
    from poolgraph.runtime.inspect import format_fidelity, format_report

    if as_json:
        print_json(report)
        return
    print(f"Compared with {report.reference}:")
    print(format_report(report))
    if report.fidelity is not None:
        print(f"\n{format_fidelity(report.fidelity)}")


def _run_inspect(args: argparse.Namespace) -> int:
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.graphs.manifest import encode_manifest
    from poolgraph.runtime.inspect import describe
    from poolgraph.runtime.tuning import read_tuning

    require_output()
    manifest = open_artifact(args.artifact)
    if args.json:
        print(encode_manifest(manifest).decode().rstrip())
        return DONE
    try:
        tuned = read_tuning(args.artifact)
    except ArtifactError as error:
        say(f"poolgraph: warning: {error}")
        tuned = ()
    print(describe(manifest, args.artifact, tuned))
    return DONE


def _run_verify(args: argparse.Namespace) -> int:
    import msgspec

    from poolgraph.graphs.manifest import CheckRow, Report
    from poolgraph.runtime.fidelity_report import report_fidelity
    from poolgraph.runtime.verify import verify_artifact

    corpus = _read_corpus(args)
    rows: list[CheckRow] = []
    try:
        report = verify_artifact(args.artifact, checkpoint=args.checkpoint, on_row=rows.append)
    except VerificationError:
        print_verification(Report(reference="the reference", rows=tuple(rows)), as_json=args.json)
        raise
    try:
        fidelity, note = report_fidelity(args.artifact, corpus=corpus, checkpoint=args.checkpoint)
    except PoolgraphError:
        print_verification(report, as_json=args.json)
        raise
    print_verification(msgspec.structs.replace(report, fidelity=fidelity), as_json=args.json)
    if note:
        say(f"poolgraph: fidelity: {note}")
    say_unverified(args.artifact)
    return DONE


def say_unverified(directory: Path) -> None:
    """Name what no verification has passed yet, on this machine or any other."""
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.runtime.providers import list_needs

    variants = [variant for variant in open_artifact(directory).variants if not variant.verified]
    if variants:
        needs = ["/".join(variant.providers) + "".join(f", {it}" for it in list_needs(variant)) for variant in variants]
        names = ", ".join(f"{variant.name} ({need})" for variant, need in zip(variants, needs, strict=True))
        say(f"poolgraph: not verified, since it does not run here: {names}")


def _read_corpus(args: argparse.Namespace) -> Corpus | None:
    """Read the user's corpus first of all, so that what is wrong with it is said before anything runs."""
    from poolgraph.runtime.fidelity_corpus import read_corpus
    from poolgraph.runtime.file_readers import Field
    from poolgraph.runtime.file_sources import FileSource

    if args.corpus is None:
        unused = next((name for name in ("field", "format") if getattr(args, name) is not None), None)
        if unused is not None:
            raise InputError(f"--{unused} is about the file of --corpus; give one, or leave it out")
        return None
    return read_corpus(FileSource(path=args.corpus, fields=(Field(name=args.field),), file_format=args.format))


def _run_doctor(args: argparse.Namespace) -> int:
    from poolgraph.runtime.doctor import examine, format_doctor

    require_output()
    report = examine()
    if args.json:
        print_json(report)
    else:
        print(format_doctor(report))
    return DONE


INSPECT_COMMANDS: Final = (
    Command(
        name="inspect",
        help="show what an artifact is and what was verified",
        add_arguments=add_arguments(_ARTIFACT, JSON),
        run=_run_inspect,
    ),
    Command(
        name="verify",
        help="run an artifact on this machine and compare it with the reference",
        add_arguments=add_arguments(
            _ARTIFACT,
            Argument("--checkpoint", metavar="PATH", help="compare with this checkpoint, not with stored answers"),
            Argument(
                "--corpus",
                metavar="FILE",
                help="texts on which precisions are compared, - for standard input (default: passages that ship)",
            ),
            Argument("--field", metavar="NAME", help="field of the corpus that holds the text (default: text)"),
            Argument("--format", choices=FORMATS, help="read the corpus so, whatever its suffix"),
            JSON,
        ),
        run=_run_verify,
    ),
    Command(
        name="doctor",
        help="show what this machine offers and what would be picked",
        add_arguments=add_arguments(JSON),
        run=_run_doctor,
    ),
)
