"""The workloads of an artifact: built-in texts of exact token counts and of mixed lengths, or the user's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from poolgraph.errors import InputError
from poolgraph.runtime.bench_corpus import read_passages
from poolgraph.runtime.bench_tasks import BENCH_TASKS, BenchTask
from poolgraph.runtime.bench_workloads import (
    MIXED,
    NUM_MIXED,
    Workload,
    build_texts,
    find_words,
    pair_passages,
    parse_shape,
    select_evenly,
)
from poolgraph.runtime.file_readers import Field
from poolgraph.runtime.file_sources import FileSource

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel

_MOST_QUERY_WORDS: Final = 8
_LONGEST_QUERY_WORD: Final = 4


def build_workloads(
    model: PoolingModel,
    task: str,
    names: Sequence[str],
    texts: str | None,
    *,
    strict: bool,
    say: Callable[[str], None],
) -> tuple[Workload, ...]:
    """Build workloads for a model.

    Args:
        model: The artifact; only its tokenizer is used.
        task: A key of ``BENCH_TASKS``.
        names: Names of workloads.
        texts: File with the texts of the mixed workload, or the queries and documents; None for the built-in ones.
        strict: Refuse workloads that do not fit the model, instead of leaving them out.
        say: Told of those left out.

    Raises:
        InputError: a name of no workload, one that does not fit, or a file that cannot be read.
    """
    row = BENCH_TASKS[task]
    shapes = {name: parse_shape(name) for name in names}
    if texts is not None and MIXED not in shapes:
        raise InputError(f"--texts are the texts of the workload {MIXED}, which is not asked for", parameter="texts")
    found: list[Workload] = []
    for name, shape in shapes.items():
        workload = _build_mixed(model, row, texts) if shape is None else _build_uniform(model, row, *shape)
        if workload is not None:
            found.append(workload)
        elif strict:
            raise InputError(f"workload {name} does not fit this model, whose limit is {_limit(model)}")
        else:
            say(f"workload {name} does not fit this model and is left out")
    if not found:
        raise InputError(f"none of {', '.join(names)} fits this model, whose limit is {_limit(model)}")
    return tuple(found)


def _limit(model: PoolingModel) -> str:
    return f"{model.manifest.limits.max_model_len} tokens"


@lru_cache(maxsize=1)
def _read_passages() -> tuple[str, ...]:
    return tuple(read_passages())


def _build_mixed(model: PoolingModel, row: BenchTask, file: str | None) -> Workload:
    queries: tuple[str, ...] = ()
    if file is not None:
        queries, texts = _read_file(file, row)
    else:
        passages = _read_passages()
        texts = select_evenly(passages, min(NUM_MIXED, len(passages)))
        if row.takes_pairs:
            queries, texts = pair_passages(texts)
    lengths = tuple(text.num_tokens for text in row.encode(model, texts, queries))
    return Workload(name=MIXED, texts=texts, queries=queries, lengths=lengths)


def _read_file(file: str, row: BenchTask) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return queries and texts, the former only of a task that takes pairs."""
    if not row.takes_pairs:
        return (), tuple(str(text) for (text,) in FileSource(path=file).read())
    fields = (Field(default="query", option="--texts"), Field(default="document", option="--texts"))
    pairs = [(str(query), str(document)) for query, document in FileSource(path=file, fields=fields).read()]
    return tuple(query for query, _ in pairs), tuple(document for _, document in pairs)


def _build_uniform(model: PoolingModel, row: BenchTask, num_texts: int, num_tokens: int) -> Workload | None:
    """Build ``num_texts`` inputs of exactly ``num_tokens`` tokens; None where the model has none of that length."""
    words = find_words(_read_passages())
    short = [word for word in words if len(word) <= _LONGEST_QUERY_WORD]
    query = " ".join(short[: max(1, min(_MOST_QUERY_WORDS, num_tokens // 8))])

    def count(texts: Sequence[str]) -> list[int]:
        queries = [query] * len(texts) if row.takes_pairs else []
        return [text.num_tokens + text.num_truncated_tokens for text in row.encode(model, texts, queries)]

    if num_tokens > model.manifest.limits.max_model_len:
        return None
    texts = build_texts(count, words, num_texts=num_texts, num_tokens=num_tokens)
    if texts is None:
        return None
    queries = (query,) * num_texts if row.takes_pairs else ()
    encoded = row.encode(model, texts, queries)
    if any(text.num_truncated_tokens for text in encoded):
        return None
    return Workload(
        name=f"{num_texts}x{num_tokens}", texts=tuple(texts), queries=queries, lengths=(num_tokens,) * num_texts
    )
