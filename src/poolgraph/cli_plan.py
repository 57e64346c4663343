"""The command ``plan``: buckets for the user's own texts, and the padding they would waste."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from poolgraph.cli_command import (
    DONE,
    JSON,
    Argument,
    Command,
    add_arguments,
    parse_count,
    print_json,
    require_output,
)
from poolgraph.cli_options import FORMATS, TEXTS
from poolgraph.errors import InputError
from poolgraph.progress import say

LAYOUTS: Final = ("padded", "packed")


def run_command(args: argparse.Namespace) -> int:
    """Propose buckets for the texts of a file."""
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.runtime.bucket_file import encode_buckets
    from poolgraph.runtime.bucket_planner import MAX_BUCKET_TOKENS, MAX_GRAPHS, BucketBudget
    from poolgraph.runtime.bucket_report import advise_layout, choose_layouts, format_plan, plan_report, read_lengths
    from poolgraph.runtime.file_readers import Field
    from poolgraph.runtime.file_sources import FileSource

    _check_outputs(args)
    manifest = open_artifact(args.model, allow_unfinished=True)
    source = FileSource(path=args.input, fields=(Field(name=args.field),), file_format=args.format)
    lengths = read_lengths(args.model, manifest, source)
    budget = BucketBudget(
        max_model_len=lengths.max_model_len,
        max_graphs=args.max_graphs or MAX_GRAPHS,
        max_batch_tokens=args.max_batch_tokens or MAX_BUCKET_TOKENS,
    )
    reports = [plan_report(lengths.lengths, budget, layout) for layout in choose_layouts(manifest, args.layout)]
    if args.output is not None:
        args.output.write_bytes(encode_buckets([bucket for report in reports for bucket in report.buckets]))
    if args.plot is not None:
        from poolgraph.runtime.bench_bucket_chart import draw_buckets

        draw_buckets(reports, lengths, args.plot)
    if args.json:
        print_json(reports)
    else:
        advice = advise_layout(reports, manifest)
        print("\n\n".join([*(format_plan(report, lengths) for report in reports), *([advice] if advice else [])]))
    if args.output is not None:
        say(f"poolgraph: {args.output} is taken from beside the artifact as buckets.json, or by load(buckets=...)")
    return DONE


def _check_outputs(args: argparse.Namespace) -> None:
    """Check, before any text is read, what can be written."""
    from poolgraph.runtime.bench_chart import check_plot
    from poolgraph.runtime.file_readers import STANDARD_INPUT

    require_output()
    if args.plot is not None:
        check_plot(args.plot)
    for file in (args.output, args.plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"there is no folder {file.absolute().parent} to write {file.name} into")
        if file is not None and args.input != STANDARD_INPUT and _is_same(file, Path(args.input)):
            raise InputError(f"{file} is the input itself; name another file")


def _is_same(file: Path, other: Path) -> bool:
    return file.exists() and other.exists() and file.samefile(other)


PLAN_COMMAND: Final = Command(
    name="plan",
    help="propose the shapes (buckets) that a GPU runs your texts in, and show the padding they waste",
    add_arguments=add_arguments(
        Argument("input", metavar="FILE", help=TEXTS.help),
        Argument("--model", metavar="DIR", type=Path, required=True, help="an artifact, whose tokenizer counts"),
        Argument("--layout", choices=LAYOUTS, help="plan for this layout (default: those of the artifact's variants)"),
        Argument("--max-graphs", metavar="N", type=parse_count, help="buckets in all, a CUDA graph each (default: 32)"),
        Argument(
            "--max-batch-tokens", metavar="N", type=parse_count, help="tokens of the largest bucket (default: 16384)"
        ),
        Argument("--field", metavar="NAME", help="the field of FILE that holds the text (default: text)"),
        Argument("--format", choices=FORMATS, help="read FILE so, whatever its suffix"),
        Argument("-o", "--output", metavar="FILE", type=Path, help="write the buckets, for load(buckets=FILE)"),
        Argument("--plot", metavar="FILE", type=Path, help="draw lengths, buckets and padding: .png, .svg or .pdf"),
        JSON,
    ),
    run=run_command,
)
