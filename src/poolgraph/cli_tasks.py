"""The commands over files, one row a task: embed, classify, score, rerank, reward, encode."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poolgraph.cli_command import DONE, JSON, Argument, Command, given_options, print_json, require_output
from poolgraph.cli_options import (
    ENCODE_TASKS,
    LOADING,
    MODEL,
    OPTIONS,
    PAIRS,
    PROMPT,
    RANKINGS,
    SCORING,
    STEPS,
    TEXTS,
    Input,
)
from poolgraph.errors import InputError
from poolgraph.progress import print_progress, print_warm_up

if TYPE_CHECKING:
    from poolgraph.runtime.file_columns import Answers
    from poolgraph.runtime.file_job import FileSummary
    from poolgraph.runtime.file_sources import FileSource
    from poolgraph.runtime.file_tasks import FileTask
    from poolgraph.runtime.model import PoolingModel

_TABLE_WIDTH: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCommand:
    """A command over files.

    Attributes:
        name: Its name.
        help: What it does.
        input: What it reads.
        options: Keys of ``OPTIONS`` that it has.
        arguments: Further arguments.
        suffixes: What it writes.
    """

    name: str
    help: str
    input: Input
    options: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    suffixes: str = ".npy, .jsonl or .parquet"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add all arguments to the command's parser."""
        output = f"{self.suffixes} (default: JSON lines to the screen)"
        for argument in (
            MODEL,
            *self.input.all_arguments(),
            Argument("-o", "--output", metavar="OUT", type=Path, help=output),
        ):
            argument.add_to(parser)
        again = parser.add_mutually_exclusive_group()
        again.add_argument("--resume", action="store_true", help="continue where an interrupted run stopped")
        again.add_argument("--force", action="store_true", help="start over, and replace OUT if it is there")
        for argument in (*self.arguments, *(OPTIONS[name] for name in self.options), *LOADING, JSON):
            argument.add_to(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Answer the items of INPUT, into OUT or onto the screen."""
        from poolgraph.runtime.file_job import check_output
        from poolgraph.runtime.model import PoolingModel

        source = self.read_source(args)
        promised = self.choose_task(args)
        if args.output is not None:
            check_output(args.output, array=promised.array, overwrite=args.force)
        elif args.resume or args.force or (args.json and source.query is None):
            raise InputError("--json, --resume and --force need -o OUT; without it the answers go to standard output")
        else:
            require_output()
        options = self.read_options(args)
        total = source.count()
        loading = given_options(args, LOADING)
        with PoolingModel.load(args.model, on_warm_up=print_warm_up(sys.stderr), **loading) as model:
            task = self.choose_task(args, model)
            job = FileWork(model=model, task=task, source=source, options=task.select(options))
            if args.output is None:
                print_answers(job, total, as_table=source.query is not None and not args.json and sys.stdout.isatty())
                return DONE
            summary = write_answers(job, total, args)
        if args.json:
            print_json({"path": str(args.output), "summary": summary})
            return DONE
        resumed = f" ({summary.num_resumed} of them before)" if summary.num_resumed else ""
        items = f"{summary.num_rows} {self.input.item if summary.num_rows == 1 else self.input.items}"
        print(f"{items}{resumed} in {summary.seconds:.1f} s, written to {args.output}")
        return DONE

    def choose_task(self, args: argparse.Namespace, model: PoolingModel | None = None) -> FileTask:
        """Return what is answered; without the model, as far as that is known."""
        from poolgraph.runtime.file_tasks import FILE_TASKS, choose_encode_task, fit_task

        if getattr(args, "sparse", False):
            task = FILE_TASKS["embed_sparse"]
        elif self.name in FILE_TASKS:
            task = FILE_TASKS[self.name]
        else:
            task = choose_encode_task(args.task, entities=args.aggregation_strategy is not None, model=model)
        return task if model is None else fit_task(task, model)

    def read_options(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the options that change the answers, a score template as its text."""
        options = {name: getattr(args, name) for name in self.options}
        if options.get("template") is not None:
            from poolgraph.runtime.score_template import resolve_template

            options["template"] = resolve_template(options["template"]).source
        return options

    def read_source(self, args: argparse.Namespace) -> FileSource:
        """Return where the items are."""
        from poolgraph.runtime.file_readers import Field
        from poolgraph.runtime.file_sources import FileSource

        query = getattr(args, "query", None)
        given = {option: getattr(args, option[2:].replace("-", "_")) for option in self.input.fields}
        if query is not None:
            if given["--query-field"] is not None:
                raise InputError("--query and --query-field exclude each other")
            document = Field(name=given["--document-field"], option="--document-field")
            return FileSource(path=args.input, fields=(document,), file_format=args.format, query=query)
        fields = tuple(
            Field(default=default, name=given[option], option=option, is_list=is_list)
            for option, (default, is_list) in self.input.fields.items()
        )
        return FileSource(path=args.input, fields=fields, file_format=args.format)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWork:
    """A loaded model and what it is asked."""

    model: PoolingModel
    task: FileTask
    source: FileSource
    options: Mapping[str, Any]


class RankedTable:
    """A writer that prints ranked documents as a table."""

    def append(self, answers: Answers) -> None:
        """Print each query's documents, the best first."""
        from poolgraph.runtime.file_columns import Records
        from poolgraph.runtime.inspect import format_table

        column = answers["results"]
        assert isinstance(column, Records)
        for results in column.values:
            rows = [
                (str(rank), str(row["index"]), f"{row['score']:.4f}", _shorten(row.get("text", "")))
                for rank, row in enumerate(results, start=1)
            ]
            print(format_table(("rank", "index", "score", "document"), rows))

    def close(self) -> None:
        """Leave standard output open."""


def print_answers(work: FileWork, total: int | None, *, as_table: bool) -> None:
    """Answer onto standard output: JSON lines, or a table of ranked documents."""
    from poolgraph.runtime.file_job import answer_items
    from poolgraph.runtime.file_writers import JsonlStream

    items = work.source.read()
    if as_table:
        answer_items(work.model, work.task, items, RankedTable(), options=work.options)
        return
    with print_progress(total, sys.stderr) as on_progress:
        on_progress(0)
        stream = JsonlStream(sys.stdout.buffer)
        answer_items(work.model, work.task, items, stream, options=work.options, on_chunk=on_progress)


def write_answers(work: FileWork, total: int | None, args: argparse.Namespace) -> FileSummary:
    """Answer into OUT."""
    from poolgraph.runtime.file_job import answer_file

    with print_progress(total, sys.stderr) as on_progress:
        return answer_file(
            work.model,
            work.task,
            work.source,
            args.output,
            options=work.options,
            resume=args.resume,
            overwrite=args.force,
            on_progress=on_progress,
        )


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TABLE_WIDTH else line[: _TABLE_WIDTH - 1] + "…"


FILE_COMMANDS: Final = (
    FileCommand(
        name="embed",
        help="turn the texts of a file into vectors",
        input=TEXTS,
        options=(*PROMPT, "max_active_dims", "side", "normalize", "truncate"),
        arguments=(
            Argument("--sparse", action="store_true", help="the weights that are not 0, by index (sparse encoders)"),
        ),
    ),
    FileCommand(
        name="classify",
        help="label the texts of a file",
        input=TEXTS,
        options=("use_activation", "truncate"),
    ),
    FileCommand(
        name="score",
        help="score each pair of a query and a document of a file",
        input=PAIRS,
        options=SCORING,
    ),
    FileCommand(
        name="rerank",
        help="order documents by their scores against a query",
        input=RANKINGS,
        options=("top_n", "omit_texts", *SCORING),
        suffixes=".jsonl or .parquet",
    ),
    FileCommand(
        name="reward",
        help="reward the texts of a file, whole, by token or by step",
        input=TEXTS,
        options=("use_activation", *STEPS, "truncate"),
    ),
    FileCommand(
        name="encode",
        help="answer any pooling task for the texts of a file, tokens included",
        input=TEXTS,
        options=(*PROMPT, "side", "use_activation", *STEPS, "aggregation_strategy", "stride", "truncate"),
        arguments=(
            Argument("--task", choices=ENCODE_TASKS, help="what the model answers (default: what it was made for)"),
        ),
        suffixes=".jsonl, .parquet, or .npy where each text has one answer",
    ),
)

TASK_COMMANDS: Final = tuple(
    Command(name=row.name, help=row.help, add_arguments=row.add_arguments, run=row.run) for row in FILE_COMMANDS
)
