"""What each command over files asks of a model: one row a task, from items to columns of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from poolgraph.errors import InputError
from poolgraph.runtime.file_columns import Answers, Column, Numbers, Ragged, Records, Texts
from poolgraph.runtime.file_cuts import call_counting_cuts
from poolgraph.runtime.file_readers import Row

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel

Options: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Callable[["PoolingModel", Sequence[Row], Options, int], tuple[Answers, int]]
"""Of a model, a chunk of items, the task's options and the index of the chunk's first item: the answers, and how many
texts were cut."""

EMBED_OPTIONS: Final = ("prompt_name", "prompt", "dimensions", "normalize", "truncate")
SCORE_OPTIONS: Final = (
    "instruction",
    "template",
    "use_activation",
    "max_tokens_per_query",
    "max_tokens_per_doc",
    "truncate",
)

_VECTOR_OPTIONS: Final = ("prompt_name", "prompt", "dimensions", "use_activation", "truncate")

_RANKED: Final = {"index": "int64", "score": "float32", "text": "string"}
_SPAN: Final = {"word": "string", "start": "int64", "end": "int64"}
_ENTITY: Final = {"entity_group": "string", "score": "float32", **_SPAN}
_TOKEN: Final = {"entity": "string", "score": "float32", "index": "int64", **_SPAN}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """How items become columns of answers.

    Attributes:
        name: Its name in the record of a job.
        needs: The pooling tasks of which the artifact must have one; empty for those that score.
        options: The keywords that ``answer`` takes.
        answer: What is asked of the model.
        array: The column that an npy file holds; None where no column is one array.
        cut_warning: What is said of texts that were cut, with places for ``num_cut``, ``num_items`` and ``limit``.
        chunk_items: Items of a chunk at most.
        chunk_characters: A chunk ends when its texts reach that many characters, so that long documents are recorded as
            often as short ones.
    """

    name: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...]
    answer: Answer
    array: str | None = None
    cut_warning: str = "{num_cut} of {num_items} texts were longer than {limit} tokens and were cut"
    chunk_items: int = 2048
    chunk_characters: int = 1_000_000

    def check(self, model: PoolingModel, options: Options) -> None:
        """Check what does not depend on the items.

        Raises:
            TaskNotSupported: the model cannot do this.
            InputError: an option that the task does not take, or a value that the model does not.
        """
        for name, value in options.items():
            if name not in self.options and value not in (None, False):
                raise InputError(f"{self.name} takes no {name}; its options are {', '.join(self.options)}")
        if not self.needs:
            model.check_scoring()
        elif not any(task in model.manifest.tasks for task in self.needs):
            model.check_task(self.needs[0])
        if self.needs == ("embed",):
            names = ("prompt_name", "prompt", "dimensions")
            model.check_embed_options(**{name: options.get(name) for name in names})

    def select(self, options: Options) -> dict[str, Any]:
        """Return the options that ``answer`` takes."""
        return {name: value for name, value in options.items() if name in self.options}


def choose_encode_task(model: PoolingModel, name: str | None) -> FileTask:
    """Return the row of ``encode`` for a task, None for the artifact's default.

    Raises:
        InputError: the artifact has no default task, or no row has that name.
    """
    name = name or model.manifest.default_task
    if name not in ENCODE_TASKS:
        raise InputError(
            f"name the task of {model.manifest.source.model!r}; its tasks are {list(model.manifest.tasks)}",
            parameter="task",
            value=name,
        )
    if name == "reward" and "classify" not in model.manifest.tasks:
        return TOKEN_REWARD
    return ENCODE_TASKS[name]


def _as_activation(answer: Answer) -> Answer:
    """Take ``use_activation``, which for embeddings is ``normalize``."""

    def renamed(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
        names = {"use_activation": "normalize"}
        return answer(model, items, {names.get(name, name): value for name, value in options.items()}, first_index)

    return renamed


def _chunk(method: str, column: str) -> Answer:
    """Ask a method that is made for parts of a longer list."""

    def answer(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
        values, num_cut = getattr(model, method)(_texts(items), first_index=first_index, **options)
        return {column: _as_column(values)}, num_cut

    return answer


def _token_embed(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    rows, num_cut = call_counting_cuts(partial(model.token_embed, _texts(items), **options), first_index)
    return {"data": Ragged(rows)}, num_cut


def _classify(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    probs, num_cut = model.classify_chunk(_texts(items), first_index=first_index, **options)
    best = probs.argmax(axis=1)
    labels = model.manifest.labels
    answers = {
        "label": Texts([labels[index] if labels else None for index in best]),
        "score": Numbers(probs[np.arange(len(best)), best]),
        "probs": Numbers(probs),
    }
    return answers, num_cut


def _score(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    queries, documents = zip(*items, strict=True)
    scores, num_cut = call_counting_cuts(partial(model.score, list(queries), list(documents), **options), first_index)
    return {"score": Numbers(scores)}, num_cut


def _rerank(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    keywords = {name: value for name, value in options.items() if name != "omit_texts"}
    kinds = {name: kind for name, kind in _RANKED.items() if name != "text" or not options.get("omit_texts")}
    results: list[list[dict[str, Any]]] = []
    total_cut = 0
    for index, (query, documents) in enumerate(items, first_index):
        ranked, num_cut = call_counting_cuts(partial(model.rerank, query, documents, **keywords), index)
        results.append([{name: getattr(row, name) for name in kinds} for row in ranked])
        total_cut += num_cut
    texts = {} if options.get("omit_texts") else {"query": Texts([str(query) for query, _ in items])}
    return {**texts, "results": Records(results, kinds)}, total_cut


def _texts(items: Sequence[Row]) -> list[str]:
    return [str(text) for (text,) in items]


def _as_column(values: Any) -> Column:
    return Numbers(values) if isinstance(values, np.ndarray) else Ragged(values)


def _entities(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    found, num_cut = model.entities_chunk(_texts(items), first_index=first_index, **options)
    kinds = _TOKEN if options.get("aggregation_strategy") == "none" else _ENTITY
    return {"entities": Records([[entity.to_dict() for entity in entities] for entities in found], kinds)}, num_cut


_INPUTS_CUT: Final = "{num_cut} inputs were longer than the model takes and were cut"

EMBED: Final = FileTask(
    name="embed", needs=("embed",), options=EMBED_OPTIONS, answer=_chunk("embed_chunk", "embedding"), array="embedding"
)
CLASSIFY: Final = FileTask(
    name="classify", needs=("classify",), options=("use_activation", "truncate"), answer=_classify, array="probs"
)
SCORE: Final = FileTask(name="score", options=SCORE_OPTIONS, answer=_score, array="score", cut_warning=_INPUTS_CUT)
RERANK: Final = FileTask(
    name="rerank", options=(*SCORE_OPTIONS, "top_n", "omit_texts"), answer=_rerank, cut_warning=_INPUTS_CUT
)
REWARD: Final = FileTask(
    name="reward",
    needs=("classify", "token_classify"),
    options=("use_activation", "step_tag_id", "returned_token_ids", "truncate"),
    answer=_chunk("reward_chunk", "data"),
    array="data",
)

_TOKEN_CHUNK: Final = {"chunk_items": 256, "chunk_characters": 100_000}
"""Answers of token tasks are as many rows as the texts have tokens."""

TOKEN_REWARD: Final = replace(REWARD, array=None, **_TOKEN_CHUNK)
ENTITIES: Final = FileTask(
    name="entities",
    needs=("token_classify",),
    options=("aggregation_strategy", "stride", "truncate"),
    answer=_entities,
    **_TOKEN_CHUNK,
)

ENCODE_TASKS: Final[Mapping[str, FileTask]] = {
    "embed": replace(
        EMBED, options=_VECTOR_OPTIONS, answer=_as_activation(_chunk("embed_chunk", "data")), array="data"
    ),
    "classify": replace(CLASSIFY, answer=_chunk("classify_chunk", "data"), array="data"),
    "token_embed": FileTask(
        name="token_embed",
        needs=("token_embed",),
        options=_VECTOR_OPTIONS,
        answer=_as_activation(_token_embed),
        **_TOKEN_CHUNK,
    ),
    "token_classify": FileTask(
        name="token_classify",
        needs=("token_classify",),
        options=("use_activation", "truncate"),
        answer=_chunk("token_classify_chunk", "data"),
        **_TOKEN_CHUNK,
    ),
    "reward": REWARD,
}
"""The rows of ``encode``, whose answers are one column ``data``, by the task's name."""
