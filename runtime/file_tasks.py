"""The tasks over files: one row a task, with its options, its check and what it asks of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from poolgraph.errors import InputError
from poolgraph.runtime.file_answers import (
    Answer,
    Options,
    ask_chunk,
    classify,
    embed_sparse,
    embed_tokens,
    find_entities,
    rerank,
    score,
    with_activation,
)
from poolgraph.runtime.late_interaction import resolve_side
from poolgraph.tasks import Side

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel

_TEXTS_CUT: Final = "{num_cut} of {num_items} texts were longer than {limit} tokens and were cut"
_INPUTS_CUT: Final = "{num_cut} inputs were longer than the model takes and were cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """How items become columns of answers.

    Attributes:
        name: Its name in messages and in the record of a job.
        options: The keywords that ``answer`` takes.
        check_model: Raises what is wrong with the model or with options, whatever the items; takes ``checked`` options.
        checked: The options that ``check_model`` takes.
        answer: What is asked of the model.
        array: The column that an npy file holds; None where no column is one array.
        cut_warning: What is said of texts that were cut, with places for ``num_cut``, ``num_items`` and ``limit``.
        chunk_items: Items of a chunk at most.
        chunk_characters: A chunk ends when its texts reach that many characters, so that long documents are recorded as
            often as short ones.
    """

    name: str
    options: tuple[str, ...]
    check_model: Callable[..., object]
    checked: tuple[str, ...] = ()
    answer: Answer
    array: str | None = None
    cut_warning: str = _TEXTS_CUT
    chunk_items: int = 2048
    chunk_characters: int = 1_000_000

    def check(self, model: PoolingModel, options: Options) -> None:
        """Check what does not depend on the items.

        Raises:
            TaskNotSupported: the model cannot do this.
            InputError: an option that the task does not take, or a value that the model does not.
        """
        self.select(options)
        self.check_model(model, **{name: options[name] for name in self.checked if name in options})

    def select(self, options: Options) -> dict[str, Any]:
        """Return the options that the task takes.

        Raises:
            InputError: another one is given, not None.
        """
        for name, value in options.items():
            if name not in self.options and value is not None:
                raise InputError(
                    f"{self.name} takes no such option; it takes {', '.join(self.options)}",
                    parameter=name,
                    value=value,
                )
        return {name: value for name, value in options.items() if name in self.options}


def choose_encode_task(name: str | None, *, entities: bool = False, model: PoolingModel | None = None) -> FileTask:
    """Return the row of ``encode``.

    Args:
        name: A key of ``ENCODE_TASKS``; None is the model's default task.
        entities: Whether token labels are wanted as entities.
        model: The model; None while it is not known, and then a row that promises no less than the final one.

    Raises:
        InputError: the model has no default task, or ``entities`` of another task.
    """
    if entities and name not in (None, "token_classify"):
        raise InputError("entities are found by token_classify", parameter="task", value=name)
    if entities:
        return ENTITIES
    chosen = name or (model.manifest.default_task if model is not None else "embed")
    if chosen is None or chosen not in ENCODE_TASKS:
        assert model is not None
        source, tasks = model.manifest.source.model, list(model.manifest.tasks)
        raise InputError(f"{source!r} has no default task; name one of {tasks}", parameter="task", value=name)
    return ENCODE_TASKS[chosen]


def fit_task(task: FileTask, model: PoolingModel) -> FileTask:
    """Return the task as this model answers it: rewards are one array only of models that reward whole texts."""
    if task in (FILE_TASKS["reward"], ENCODE_TASKS["reward"]) and "classify" not in model.manifest.tasks:
        return _by_token(task)
    return task


def _by_token(task: FileTask) -> FileTask:
    """Return a task in chunks for answers that are as many rows as the texts have tokens."""
    return replace(task, array=None, chunk_items=256, chunk_characters=32_768)


def _check_token_embed(
    model: PoolingModel, *, side: Side | None = None, prompt_name: str | None = None, prompt: str | None = None
) -> None:
    model.check_task("token_embed")
    if side is not None:
        resolve_side(model.manifest, side, prompt_name=prompt_name, prompt=prompt)


def _check_entities(model: PoolingModel, **_options: object) -> None:
    model.check_task("token_classify")


_PROMPT_OPTIONS: Final = ("prompt_name", "prompt", "dimensions")
_EMBED_OPTIONS: Final = (*_PROMPT_OPTIONS, "side")
_SCORE_OPTIONS: Final = (
    "prompt_name",
    "prompt",
    "instruction",
    "template",
    "use_activation",
    "max_tokens_per_query",
    "max_tokens_per_doc",
    "plain",
    "truncate",
)
_STEP_OPTIONS: Final = ("use_activation", "step_tag_id", "returned_token_ids")

FILE_TASKS: Final[Mapping[str, FileTask]] = {
    "embed": FileTask(
        name="embed",
        options=(*_EMBED_OPTIONS, "normalize", "truncate"),
        check_model=lambda model, **options: model.check_embed_options(**options),
        checked=_EMBED_OPTIONS,
        answer=ask_chunk("embed_chunk", "embedding"),
        array="embedding",
    ),
    "embed_sparse": FileTask(
        name="embed --sparse",
        options=("prompt_name", "prompt", "max_active_dims", "side", "truncate"),
        check_model=lambda model, **options: model.check_sparse_options(**options),
        checked=("prompt_name", "prompt", "max_active_dims", "side"),
        answer=embed_sparse,
        chunk_items=256,
    ),
    "classify": FileTask(
        name="classify",
        options=("use_activation", "truncate"),
        check_model=lambda model, **options: model.check_classify_options(**options),
        checked=("use_activation",),
        answer=classify,
        array="probs",
    ),
    "score": FileTask(
        name="score",
        options=_SCORE_OPTIONS,
        check_model=lambda model, **options: model.check_scoring(**options),
        checked=("template",),
        answer=score,
        array="score",
        cut_warning=_INPUTS_CUT,
    ),
    "rerank": FileTask(
        name="rerank",
        options=(*_SCORE_OPTIONS, "top_n", "omit_texts"),
        check_model=lambda model, **options: model.check_scoring(**options),
        checked=("template",),
        answer=rerank,
        cut_warning=_INPUTS_CUT,
    ),
    "reward": FileTask(
        name="reward",
        options=(*_STEP_OPTIONS, "truncate"),
        check_model=lambda model, **options: model.check_reward_options(**options),
        checked=_STEP_OPTIONS,
        answer=ask_chunk("reward_chunk", "reward"),
        array="reward",
    ),
}
"""The commands over files that have one task, by name."""

ENTITIES: Final = _by_token(
    FileTask(
        name="entities",
        options=("aggregation_strategy", "stride", "truncate"),
        check_model=_check_entities,
        answer=find_entities,
    )
)

ENCODE_TASKS: Final[Mapping[str, FileTask]] = {
    "embed": replace(
        FILE_TASKS["embed"],
        name="encode embed",
        options=(*_EMBED_OPTIONS, "use_activation", "truncate"),
        answer=with_activation(ask_chunk("embed_chunk", "data")),
        array="data",
    ),
    "classify": replace(
        FILE_TASKS["classify"], name="encode classify", answer=ask_chunk("classify_chunk", "data"), array="data"
    ),
    "token_embed": _by_token(
        FileTask(
            name="token_embed",
            options=(*_EMBED_OPTIONS, "use_activation", "truncate"),
            check_model=_check_token_embed,
            checked=("side", "prompt_name", "prompt"),
            answer=with_activation(embed_tokens),
        )
    ),
    "token_classify": _by_token(
        FileTask(
            name="token_classify",
            options=("use_activation", "truncate"),
            check_model=lambda model, **options: model.check_token_options(**options),
            checked=("use_activation",),
            answer=ask_chunk("token_classify_chunk", "data"),
        )
    ),
    "reward": replace(
        FILE_TASKS["reward"], name="encode reward", answer=ask_chunk("reward_chunk", "data"), array="data"
    ),
}
"""The rows of ``encode``, whose answers are one column ``data``, by the task's name."""
