"""The command ``serve``: models behind an HTTP API."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolgraph.cli_command import Argument, Command, add_arguments, given_options, parse_count, parse_object
from poolgraph.cli_options import LOADING
from poolgraph.errors import InputError
from poolgraph.tasks import CONVERSIONS, EXPORT_TASKS, RUNNERS

if TYPE_CHECKING:
    from poolgraph.runtime.model_arguments import ModelArguments
    from poolgraph.serving.settings import ServeSettings

KEY_VARIABLE: Final = "POOLGRAPH_API_KEY"
_SIZE: Final = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Read a number of bytes: digits, and K, M, G or T for powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or 64K, 512M, 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_seconds(text: str) -> float:
    """Read a number of seconds that is at least 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def parse_whole(text: str) -> int:
    """Read an integer that is at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


MODEL_OPTIONS: Final = (
    Argument("--task", choices=EXPORT_TASKS, help="what the models answer (default: auto, what they were made for)"),
    Argument(
        "--convert",
        choices=CONVERSIONS,
        help="drop a checkpoint's head and embed, or give it a classifier's head (default: auto)",
    ),
    Argument("--runner", choices=RUNNERS, help="vLLM's option; pooling is all there is (default: auto)"),
    Argument(
        "--pooler-config",
        metavar="JSON",
        type=parse_object,
        help='beats the model\'s own pooling, as in {"use_activation": false}',
    ),
    Argument("--override-pooler-config", metavar="JSON", type=parse_object, help="older name of --pooler-config"),
    Argument("--hf-overrides", metavar="JSON", type=parse_object, help="fields to change in config.json"),
    Argument(
        "--trust-remote-code",
        action="store_const",
        const=True,
        help="run a checkpoint's own Python code while it is exported; never while serving",
    ),
    Argument("--revision", help="branch, tag or commit of a hub id"),
    Argument("--chat-template", metavar="NAME|FILE", help="score template of a reranker, chat template of all others"),
    Argument("--max-model-len", metavar="N", type=parse_count, help="a lower limit of tokens than the model's own"),
    *LOADING,
)
"""How models are loaded; with several models, for each."""

ENGINE_OPTIONS: Final = (
    Argument(
        "--max-queue-tokens",
        metavar="N",
        type=parse_count,
        help="tokens that may wait for a model; then requests are answered 429",
    ),
    Argument("--max-batch-tokens", metavar="N", type=parse_count, help="tokens of a batch (default: the tuned budget)"),
    Argument(
        "--max-answer",
        dest="max_answer_bytes",
        metavar="SIZE",
        type=parse_size,
        help="memory for the answers of one request that has a row a token (default: 512M)",
    ),
    Argument(
        "--max-wait-ms",
        metavar="MS",
        type=parse_seconds,
        help="how long a lone text waits for others to share its batch",
    ),
    Argument(
        "--tokenizer-threads",
        dest="num_tokenizer_threads",
        metavar="N",
        type=parse_count,
        help="threads that tokenize long requests",
    ),
    Argument(
        "--long-text",
        choices=("error", "truncate", "chunk"),
        help="refuse texts that are too long, cut them, or embed them in parts and average (default: error)",
    ),
    Argument(
        "--chunk-overlap", metavar="N", type=parse_whole, help="with --long-text chunk: tokens that two parts share"
    ),
    Argument(
        "--cache",
        dest="cache_bytes",
        metavar="SIZE",
        type=parse_size,
        help="keep answers to texts that come again, as 512M (default: none)",
    ),
    Argument(
        "--cache-path",
        metavar="FILE",
        type=Path,
        help="keep them in this SQLite file too, over restarts (default: in memory alone)",
    ),
    Argument(
        "--cache-disk",
        dest="cache_disk_bytes",
        metavar="SIZE",
        type=parse_size,
        help="size up to which that file keeps answers (default: 1G)",
    ),
    Argument(
        "--warm-up",
        dest="warm_up_seconds",
        metavar="S",
        type=parse_seconds,
        help="seconds for running texts of several shapes before the first request (default: 1)",
    ),
)
"""Queue, batches and cache."""

SERVER_OPTIONS: Final = (
    Argument("--host", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)"),
    Argument("--port", type=parse_whole, help="port to listen on; 0 for a free one (default: 8000)"),
    Argument(
        "--served-model-name",
        dest="served_model_names",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="names by which requests choose the model; with several models, one for each (default: as given)",
    ),
    Argument(
        "--public-route",
        dest="public_routes",
        metavar="PATH",
        action="append",
        help="a route that needs no key: /ready, /metrics or /version; /health and /ping never do",
    ),
    Argument("--max-body", dest="max_body_bytes", metavar="SIZE", type=parse_size, help="of a request (default: 32M)"),
    Argument("--max-texts", metavar="N", type=parse_count, help="texts of a request (default: 8192)"),
    Argument("--max-text-chars", metavar="N", type=parse_count, help="characters of a text (default: 1048576)"),
    Argument(
        "--max-header-bytes",
        metavar="SIZE",
        type=parse_size,
        help="of a request's URL and headers (default: 16K)",
    ),
    Argument("--max-headers", metavar="N", type=parse_count, help="headers of a request (default: 64)"),
    Argument("--max-connections", metavar="N", type=parse_count, help="open at the same time (default: 1024)"),
    Argument("--read-timeout", metavar="S", type=parse_seconds, help="seconds for a request to arrive (default: 30)"),
    Argument("--keep-alive", metavar="S", type=parse_count, help="seconds an idle connection is kept (default: 75)"),
    Argument(
        "--request-timeout", metavar="S", type=parse_seconds, help="seconds for a request to be answered (default: 300)"
    ),
    Argument("--grace", metavar="S", type=parse_seconds, help="seconds to finish after SIGTERM (default: 30)"),
    Argument(
        "--cors-origin",
        dest="cors_origins",
        metavar="ORIGIN",
        action="append",
        help="let pages of this origin read answers; * for all (default: none)",
    ),
    Argument(
        "--trust-request-chat-template",
        action="store_const",
        const=True,
        help="let requests bring their own chat template",
    ),
    Argument(
        "--no-docs", dest="allow_docs", action="store_const", const=False, help="leave out /docs and /openapi.json"
    ),
    Argument("--log-format", choices=("text", "json"), help="of the logs on standard error (default: text)"),
    Argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="the least that is logged; a line a request is info (default: info)",
    ),
    Argument("--otlp-endpoint", metavar="URL", help="send OpenTelemetry spans to this collector (default: none)"),
)
"""The HTTP server."""

KEY_OPTIONS: Final = (
    Argument(
        "--api-key",
        metavar="KEY",
        action="append",
        help=f"a key for every route but /health and /ping; can be given again; also ${KEY_VARIABLE}",
    ),
    Argument("--api-key-file", metavar="FILE", help="a file with a key a line"),
)


def run_command(args: argparse.Namespace) -> int:
    """Serve until a signal ends it.

    Raises:
        PoolgraphError: a setting, a key or a model that cannot be used.
    """
    models, settings = read_arguments(args)
    from poolgraph.serving.server import serve

    return serve(models, settings)


def read_arguments(args: argparse.Namespace) -> tuple[list[ModelArguments], ServeSettings]:
    """Return the models and the settings that the command line asks for."""
    from poolgraph.runtime.model_arguments import ModelArguments
    from poolgraph.serving.engine_settings import EngineSettings
    from poolgraph.serving.settings import ServeSettings

    settings = ServeSettings(
        engine=EngineSettings(**given_options(args, ENGINE_OPTIONS)),
        api_keys=read_api_keys(args.api_key, args.api_key_file, os.environ),
        **given_options(args, SERVER_OPTIONS),
    )
    options = given_options(args, MODEL_OPTIONS)
    return [ModelArguments(model=model, **options) for model in args.model], settings


def read_api_keys(given: Sequence[str] | None, file: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return all keys, each once: of the options, of the file, of the environment.

    Raises:
        InputError: the file cannot be read or holds no key, or a source of keys is empty: a server that was to have
            keys must not start without.
    """
    keys = list(given or ())
    if file is not None:
        found = [line.strip() for line in _read_text(file).splitlines() if line.strip()]
        if not found:
            raise InputError(f"--api-key-file {file} holds no key; write a key a line")
        keys += found
    if KEY_VARIABLE in environment:
        if not environment[KEY_VARIABLE].strip():
            raise InputError(f"${KEY_VARIABLE} is empty; set it to a key, or unset it to serve without keys")
        keys += environment[KEY_VARIABLE].split()
    return tuple(dict.fromkeys(keys))


def _read_text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"--api-key-file {file} cannot be read: {reason}") from error


SERVE_COMMAND: Final = Command(
    name="serve",
    help="answer requests over HTTP",
    add_arguments=add_arguments(
        Argument("model", metavar="MODEL", nargs="+", help="artifacts, checkpoint folders or hub ids"),
        *MODEL_OPTIONS,
        *ENGINE_OPTIONS,
        *SERVER_OPTIONS,
        *KEY_OPTIONS,
    ),
    run=run_command,
)
