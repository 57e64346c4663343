"""What each command over files asks of a model: one row a task, from items to columns of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

_RANKED: Final = {"index": "int64", "score": "float32", "text": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """How items become columns of answers.

    Attributes:
        name: Its name in the record of a job.
        needs: The pooling tasks of which the artifact must have one; empty for those that score.
        options: The keywords that ``answer`` takes.
        answer: What is asked of the model.
        array: The column that an npy file holds; None where no column is one array.
        chunk_items: Items of a chunk at most.
        chunk_characters: A chunk ends when its texts reach that many characters, so that long documents are recorded as
            often as short ones.
    """

    name: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...]
    answer: Answer
    array: str | None = None
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


def _embed(column: str) -> Answer:
    def answer(
        model: PoolingModel, items: Sequence[Row], options: Options, first_index: int
    ) -> tuple[Answers, int]:
        vectors, num_cut = model.embed_chunk(_texts(items), first_index=first_index, **options)
        return {column: Numbers(vectors)}, num_cut

    return answer


def _ask(method: str, column: str) -> Answer:
    def answer(
        model: PoolingModel, items: Sequence[Row], options: Options, first_index: int
    ) -> tuple[Answers, int]:
        call = getattr(model, method)
        values, num_cut = call_counting_cuts(lambda: call(_texts(items), **options), first_index)
        return {column: _as_column(values)}, num_cut

    return answer


def _classify(
    model: PoolingModel, items: Sequence[Row], options: Options, first_index: int
) -> tuple[Answers, int]:
    probs, num_cut = call_counting_cuts(lambda: model.classify(_texts(items), **options), first_index)
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
    scores, num_cut = call_counting_cuts(lambda: model.score(list(queries), list(documents), **options), first_index)
    return {"score": Numbers(scores)}, num_cut


def _rerank(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    results: list[list[dict[str, Any]]] = []
    total_cut = 0
    for index, (query, documents) in enumerate(items, first_index):
        ranked, num_cut = call_counting_cuts(lambda q=query, d=documents: model.rerank(q, d, **options), index)
        results.append([{"index": row.index, "score": row.score, "text": row.text} for row in ranked])
        total_cut += num_cut
    return {"query": Texts([str(query) for query, _ in items]), "results": Records(results, _RANKED)}, total_cut


def _texts(items: Sequence[Row]) -> list[str]:
    return [str(text) for (text,) in items]


def _as_column(values: Any) -> Column:
    return Numbers(values) if isinstance(values, np.ndarray) else Ragged(values)


_ENCODE_EMBED: Final = ("prompt_name", "prompt", "dimensions", "normalize", "truncate")
