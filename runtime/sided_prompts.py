"""Prompts of ``LLM`` and of requests as queries or documents, for models that answer the two differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from poolgraph.config import PoolerConfig, PoolingParams
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.finish import Finish
from poolgraph.runtime.prompts import ParsedPrompt, encode_prompts
from poolgraph.runtime.static_query import choose_route, encode_queries, encode_query_ids
from poolgraph.runtime.tokenization import TokenizationOptions
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.runtime.work import Answers, Run, Work
from poolgraph.tasks import GraphFamily, RunFamily, Side

_KEY = "side"
"""Of a request's ``extra_kwargs``."""

Sides = list[Side | None]
"""Which side each prompt is of; None of models that answer both alike."""


def plan_sides(params: Sequence[PoolingParams], task: str, manifest: Manifest, side: str | None) -> Sides:
    """Decide which side each prompt is of: as its own parameters say, else the request, else the model.

    Args:
        params: Of each prompt; ``side`` among their ``extra_kwargs``.
        task: The task; but for ``embed`` there are no sides.
        manifest: The model's.
        side: What the request says, None for nothing.

    Returns:
        A side a prompt: the model's default route where nobody says it, that of documents where it has none.

    Raises:
        InputError: another word, or a side where there are none.
    """
    named = [side if one.extra_kwargs is None else one.extra_kwargs.get(_KEY, side) for one in params]
    if task == "embed":
        has_routes = manifest.static_query is not None
        return [choose_route(manifest, name) if has_routes or name is not None else None for name in named]
    if given := [name for name in named if name is not None]:
        raise InputError(f"side is for the task embed, not for {task}", parameter=_KEY, value=given[0])
    return [None] * len(named)


def finish_sides(
    finishes: list[Finish], params: Sequence[PoolingParams], sides: Sides, config: PoolerConfig
) -> list[Finish]:
    """Return what is done to each answer: a query's weights are divided by their norm only where that is asked for.

    Args:
        finishes: Of each prompt, as for documents.
        params: Of each prompt.
        sides: Of each prompt.
        config: The caller's pooler config.
    """
    if "query" not in sides:
        return finishes
    asked = [config.use_activation if one.use_activation is None else one.use_activation for one in params]
    return [
        replace(finish, normalize=bool(own)) if side == "query" else finish
        for finish, own, side in zip(finishes, asked, sides, strict=True)
    ]


def encode_sides(
    tokenizer: TextTokenizer,
    manifest: Manifest,
    prompts: Sequence[ParsedPrompt],
    sides: Sides,
    options: TokenizationOptions,
    truncations: Sequence[int | None],
    *,
    prefix: str = "",
) -> list[EncodedText]:
    """Tokenize prompts of both sides, in their order; arguments and errors as of ``encode_prompts``.

    Args:
        tokenizer: The model's tokenizer.
        manifest: Its manifest.
        prompts: Texts and token ids.
        sides: Of each prompt.
        options: What holds for all of them.
        truncations: Of each prompt.
        prefix: Put before each text.
    """
    if "query" not in sides:
        return encode_prompts(tokenizer, prompts, options, truncations, prefix=prefix)
    encoded: list[EncodedText] = []
    for is_query, rows in groupby(zip(prompts, sides, truncations, strict=True), lambda row: row[1] == "query"):
        together = list(rows)
        texts, keeps = [row[0] for row in together], [row[2] for row in together]
        first = len(encoded)
        if is_query:
            encoded += _encode_queries(tokenizer, manifest, texts, options, keeps, prefix, first)
        else:
            encoded += encode_prompts(tokenizer, texts, options, keeps, prefix=prefix, first_index=first)
    return encoded


def _encode_queries(
    tokenizer: TextTokenizer,
    manifest: Manifest,
    prompts: Sequence[ParsedPrompt],
    options: TokenizationOptions,
    truncations: Sequence[int | None],
    prefix: str,
    first_index: int,
) -> list[EncodedText]:
    encoded: list[EncodedText] = []
    side = options.truncation_side
    for (is_text, own), rows in groupby(
        zip(prompts, truncations, strict=True), lambda row: (isinstance(row[0], str), row[1])
    ):
        keep = options.truncate_prompt_tokens if own is None else own
        together = [prompt for prompt, _ in rows]
        first = first_index + len(encoded)
        if is_text:
            texts = [prompt for prompt in together if isinstance(prompt, str)]
            encoded += encode_queries(
                tokenizer, manifest, texts, prompt=prefix, truncate_to=keep, truncation_side=side, first_index=first
            )
            continue
        encoded += [
            encode_query_ids(tokenizer, manifest, ids, truncate_to=keep, truncation_side=side, index=index)
            for index, ids in enumerate(together, first)
            if not isinstance(ids, str)
        ]
    return encoded


def run_sides(family: GraphFamily, encoded: Sequence[EncodedText], sides: Sides) -> Work[Answers]:
    """Ask for the answers to prompts: to queries from the table, to others from the graph; the order stays."""
    families: list[RunFamily] = ["query" if side == "query" else family for side in sides]
    if len({*families}) < 2:
        return (yield Run(family=families[0] if families else family, encoded=encoded))
    rows: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(encoded)
    for each in dict.fromkeys(families):
        places = [place for place, own in enumerate(families) if own == each]
        found = yield Run(family=each, encoded=[encoded[place] for place in places])
        for place, row in zip(places, found, strict=True):
            rows[place] = row
    return np.stack(rows)
