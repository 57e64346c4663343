"""The command ``export``; ``optimum-cli export poolgraph`` has the same options and runs the same function."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolgraph.cli_command import DONE, JSON, NAMES, Argument, Command, add_arguments, parse_object, print_json
from poolgraph.cli_inspect import print_verification, say_unverified
from poolgraph.errors import InputError
from poolgraph.progress import print_stages
from poolgraph.tasks import CONVERSIONS, EXPORT_TASKS, RUNNERS

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Manifest


def _parse_cosine(text: str) -> float:
    try:
        cosine = float(text)
    except ValueError:
        cosine = math.nan
    if not 0.0 <= cosine <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return cosine


def _parse_memory(text: str) -> float:
    try:
        memory = float(text)
    except ValueError:
        memory = math.nan
    if not 0.0 < memory < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB above 0")
    return memory


EXPORT_OPTIONS: Final = (
    Argument("--task", choices=EXPORT_TASKS, default="auto", help="what the model answers; auto reads the checkpoint"),
    Argument(
        "--convert",
        choices=CONVERSIONS,
        default="auto",
        help="drop the model's head and embed, or give it a classifier's head; auto does what --task asks",
    ),
    Argument("--runner", choices=RUNNERS, default="auto", help="vLLM's option; pooling is all there is"),
    Argument(
        "--pooler-config",
        "--override-pooler-config",
        metavar="JSON",
        type=parse_object,
        help='beats the checkpoint\'s own pooling, as in {"pooling_type": "MEAN", "use_activation": false}',
    ),
    Argument(
        "--hf-overrides",
        metavar="JSON",
        type=parse_object,
        help='fields to change in config.json, as in {"architectures": ["BertForSequenceClassification"]}',
    ),
    Argument(
        "--score-template",
        metavar="NAME|FILE",
        help="the prompt of a reranker: a template of poolgraph's or a file (default: what the model is known to need)",
    ),
    Argument("--revision", help="branch, tag or commit of a hub id"),
    Argument(
        "--precision",
        metavar="P[,P]",
        **NAMES,
        help="fp32, int8, bf16; for cuda fp16, bf16; the first that runs on a machine is used unless told (default: "
        "each target's own: fp32, for cuda and cublaslt fp16, or bf16 where the model's numbers are beyond fp16)",
    ),
    Argument(
        "--target",
        metavar="T[,T]",
        **NAMES,
        default=("cpu",),
        help="cpu (default), cuda, cublaslt (cuda with products of our own), portable",
    ),
    Argument(
        "--min-cosine",
        metavar="X",
        type=_parse_cosine,
        help="accept answers this close to the reference, and record it",
    ),
    Argument(
        "--max-memory",
        metavar="GIB",
        type=_parse_memory,
        help="memory for verification; a checkpoint too large for it is verified on its first layers, and all its "
        "stored tensors are compared (default: half of what is free)",
    ),
    Argument(
        "--calibration",
        metavar="FILE",
        help="texts by which int8 scales are chosen: txt, jsonl, csv or parquet (default: those that ship with it)",
    ),
    Argument("--trust-remote-code", action="store_true", help="run the checkpoint's own Python code while exporting"),
    Argument("--force", action="store_true", help="replace an artifact that is there already"),
    JSON,
)
"""Every option of an export but where it reads and writes."""

_NEXT_SCORING: Final = {
    "cross_encoder": 'rerank {path} documents.txt --query "..."',
    "late_interaction": 'rerank {path} documents.txt --query "..."',
}
_NEXT_TASK: Final = {
    "embed": "embed {path} texts.txt -o vectors.npy",
    "classify": "classify {path} texts.txt -o labels.jsonl",
    "token_classify": "encode {path} texts.txt --task token_classify -o tokens.jsonl",
    "token_embed": "encode {path} texts.txt --task token_embed -o tokens.parquet",
}


def run_command(args: argparse.Namespace) -> int:
    """Export a checkpoint, or print the support table.

    Raises:
        InputError: There is neither MODEL nor ``--list``, or both.
    """
    if args.list and args.model is None:
        return print_support(as_json=args.json)
    if args.list:
        raise InputError("--list prints the support table and exports nothing: leave MODEL out")
    if args.model is None:
        raise InputError("export needs MODEL, a checkpoint folder or a hub id; --list prints what is supported")
    return run_export(args)


def print_support(*, as_json: bool) -> int:
    """Print the rows of the support table; torch is not needed."""
    from poolgraph.export.support import read_support, render_text

    entries = read_support()
    if as_json:
        print_json(entries)
    else:
        print(render_text(entries))
    return DONE


def run_export(args: argparse.Namespace) -> int:
    """Export ``args.model`` to ``args.output`` with the options of ``EXPORT_OPTIONS``."""
    from poolgraph.export.exporter import export_model

    output = args.output or Path(f"{Path(args.model).resolve().name}.poolgraph")
    with print_stages(sys.stderr) as on_stage:
        result = export_model(
            args.model,
            output,
            task=args.task,
            convert=args.convert,
            runner=args.runner,
            pooler_config=args.pooler_config,
            hf_overrides=args.hf_overrides,
            score_template=args.score_template,
            revision=args.revision,
            precisions=args.precision,
            targets=args.target,
            min_cosine=args.min_cosine,
            max_memory=args.max_memory,
            calibration=args.calibration,
            trust_remote_code=args.trust_remote_code,
            overwrite=args.force,
            on_stage=on_stage,
        )
    if args.json:
        print_json({"path": str(result.path), "seconds": result.seconds, "report": result.report})
        return DONE
    print_verification(result.report, as_json=False)
    say_unverified(result.path)
    print(f"\nWritten to {result.path} in {sum(result.seconds.values()):.1f} s. Next:")
    print(f"  poolgraph {_suggest(result.path)}")
    return DONE


def _suggest(path: Path) -> str:
    from poolgraph.graphs.artifact import open_artifact

    return suggest_command(open_artifact(path)).format(path=path)


def suggest_command(manifest: Manifest) -> str:
    """Return the command that an artifact is most likely made for, with ``{path}`` in the artifact's place."""
    if manifest.scoring is not None and manifest.scoring.kind in _NEXT_SCORING:
        return _NEXT_SCORING[manifest.scoring.kind]
    lone_label = "classify" in manifest.tasks and manifest.pooler.embedding_size == 1
    if lone_label or manifest.pooler.tok_pooling_type == "STEP":
        return "reward {path} texts.txt -o rewards.jsonl"
    if manifest.tasks == ("token_classify",) and any(label.startswith("B-") for label in manifest.labels):
        return "encode {path} texts.txt --entities -o entities.jsonl"
    return next(_NEXT_TASK[task] for task in (manifest.default_task, *manifest.tasks) if task in _NEXT_TASK)


EXPORT_COMMAND: Final = Command(
    name="export",
    help="compile a checkpoint into a verified artifact",
    add_arguments=add_arguments(
        Argument("model", metavar="MODEL", nargs="?", help="a checkpoint folder or a hub id"),
        Argument(
            "-o", "--output", metavar="DIR", type=Path, help="the artifact to make (default: MODEL's name + .poolgraph)"
        ),
        Argument("--list", action="store_true", help="print the architectures that tests verify, and export nothing"),
        *EXPORT_OPTIONS,
    ),
    run=run_command,
)
