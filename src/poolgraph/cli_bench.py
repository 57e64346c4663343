"""The command ``bench``: an artifact's speed and fidelity beside other engines, and the plan that is fastest here."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolgraph.cli_command import (
    DONE,
    JSON,
    NAMES,
    Argument,
    Command,
    add_arguments,
    parse_count,
    print_json,
    require_output,
)
from poolgraph.errors import InputError
from poolgraph.progress import say

if TYPE_CHECKING:
    from poolgraph.graphs.manifest import Manifest, Variant
    from poolgraph.runtime.bench_engines import EngineRequest
    from poolgraph.runtime.bench_timing import Timing
    from poolgraph.runtime.bench_workloads import Workload
    from poolgraph.runtime.cpu import CpuInfo

BENCH_TASKS: Final = ("embed", "token_embed", "classify", "token_classify", "score", "reward")
PEERS: Final = ("torch", "torch-bf16", "openvino", "openvino-bf16", "portable")

_LONGEST_SHARE: Final = 10 / 3
"""Nothing is repeated for longer than this many times the seconds asked for."""


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def run_command(args: argparse.Namespace) -> int:
    """Measure an artifact, or find its fastest plan with ``--tune``."""
    from poolgraph.graphs.artifact import open_artifact
    from poolgraph.runtime.bench_engines import EngineRequest, choose_variants
    from poolgraph.runtime.bench_tasks import choose_task
    from poolgraph.runtime.cpu import read_cpu_info
    from poolgraph.runtime.loading import working_machine

    _check_options(args)
    manifest = open_artifact(args.artifact)
    cpu = read_cpu_info()
    variants = choose_variants(manifest, args.precision, working_machine(cpu))
    request = EngineRequest(directory=args.artifact, task=choose_task(manifest, args.task), threads=args.threads)
    if args.tune:
        return _tune(args, manifest, request, variants, cpu)
    return _bench(args, manifest, request, variants)


def _check_options(args: argparse.Namespace) -> None:
    """Check, before anything is measured, what does not depend on the artifact."""
    from poolgraph.runtime.bench_chart import check_plot
    from poolgraph.runtime.bench_engines import check_peers

    require_output()
    if args.tune and (args.against or args.checkpoint or args.plot or args.threads):
        raise InputError("--tune measures the artifact alone, without --against, --checkpoint, --plot and --threads")
    check_peers(args.against)
    if args.plot is not None:
        check_plot(args.plot)
    for file in (args.output, args.plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"there is no folder {file.absolute().parent} to write {file.name} into")


def _bench(args: argparse.Namespace, manifest: Manifest, request: EngineRequest, variants: list[Variant]) -> int:
    from dataclasses import replace

    import msgspec

    from poolgraph.runtime.bench_chart import draw_plot
    from poolgraph.runtime.bench_engines import PEERS
    from poolgraph.runtime.bench_results import format_bench
    from poolgraph.runtime.bench_run import BenchPlan, run_bench
    from poolgraph.runtime.bench_workloads import DEFAULT_WORKLOADS

    if any(PEERS[name].needs_checkpoint for name in args.against):
        from poolgraph.export.bench_checkpoint import find_checkpoint

        request = replace(request, checkpoint=find_checkpoint(manifest, args.checkpoint))
    elif args.checkpoint is not None:
        raise InputError("--checkpoint is for engines that run it, such as --against torch")
    plan = BenchPlan(
        request=request,
        manifest=manifest,
        engines=(*(variant.name for variant in variants), *args.against),
        workloads=_build_workloads(args, request, DEFAULT_WORKLOADS),
        rounds=args.rounds,
        timing=_timing(args),
    )
    result = run_bench(plan, say=say)
    if args.output is not None:
        args.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    if args.plot is not None:
        draw_plot(result, args.plot)
    if args.json:
        print_json(result)
    else:
        print(format_bench(result))
    return DONE


def _tune(
    args: argparse.Namespace, manifest: Manifest, request: EngineRequest, variants: list[Variant], cpu: CpuInfo
) -> int:
    import msgspec

    from poolgraph.runtime.bench_tune import format_tune, tune_variant
    from poolgraph.runtime.bench_workloads import MIXED
    from poolgraph.runtime.tuning import TUNING_FILE, check_storable, store_entry

    check_storable(args.artifact)
    workloads = _build_workloads(args, request, (MIXED,))
    if len(workloads) != 1:
        raise InputError("--tune finds the plan for one workload: give one with --workloads")
    results = []
    for variant in variants:
        result = tune_variant(
            request, manifest, variant.name, workloads[0], cpu=cpu, rounds=args.rounds, timing=_timing(args), say=say
        )
        store_entry(args.artifact, result.entry)
        results.append(result)
        if not args.json:
            print(f"{format_tune(result)}\n")
    if args.output is not None:
        args.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    if args.json:
        print_json(results)
    else:
        print(f"Stored in {args.artifact / TUNING_FILE}")
    return DONE


def _build_workloads(
    args: argparse.Namespace, request: EngineRequest, default: tuple[str, ...]
) -> tuple[Workload, ...]:
    """Build the workloads asked for; of the default ones those that do not fit the model are left out."""
    from poolgraph.runtime.bench_inputs import build_workloads
    from poolgraph.runtime.model import PoolingModel

    with PoolingModel.load(request.directory, allow_unverified=True) as model:
        return build_workloads(
            model, request.task, args.workloads or default, args.texts, strict=args.workloads is not None, say=say
        )


def _timing(args: argparse.Namespace) -> Timing:
    from poolgraph.runtime.bench_timing import Timing

    return Timing(min_s=args.seconds, max_s=args.seconds * _LONGEST_SHARE)


BENCH_COMMAND: Final = Command(
    name="bench",
    help="measure speed and fidelity on this machine, beside other engines, or find the fastest plan",
    add_arguments=add_arguments(
        Argument("artifact", metavar="DIR", type=Path, help="an artifact"),
        Argument(
            "--workloads",
            metavar="W[,W]",
            **NAMES,
            help="texts times tokens such as 8x128, or mixed (default: 1x16,1x128,8x128,32x128,8x512,mixed as far as "
            "they fit; with --tune: mixed)",
        ),
        Argument(
            "--texts",
            metavar="FILE",
            help="the texts of the workload mixed, for scorers with fields query and document: txt, jsonl, csv or "
            "parquet (default: passages of installed documentation)",
        ),
        Argument("--task", choices=BENCH_TASKS, help="what is asked (default: what the artifact was made for)"),
        Argument("--precision", metavar="P[,P]", **NAMES, help="which variants (default: all that run here)"),
        Argument("--against", metavar="E[,E]", **NAMES, default=(), help=f"other engines: {', '.join(PEERS)}"),
        Argument("--checkpoint", metavar="PATH", help="the checkpoint for torch (default: what the artifact names)"),
        Argument("--rounds", metavar="N", type=parse_count, default=3, help="processes an engine (default: 3)"),
        Argument(
            "--seconds",
            metavar="S",
            type=_parse_seconds,
            default=1.5,
            help="repeat each workload for so long in each of them (default: 1.5)",
        ),
        Argument("--threads", metavar="N", type=parse_count, help="threads of one run of the artifact's variants"),
        Argument("--tune", action="store_true", help="find the fastest plan and store it beside the artifact"),
        Argument("-o", "--output", metavar="FILE", type=Path, help="write everything that was measured as JSON"),
        Argument("--plot", metavar="FILE", type=Path, help="draw speed against fidelity: .png, .svg or .pdf"),
        JSON,
    ),
    run=run_command,
)
