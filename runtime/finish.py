"""The parameters of one request, merged with all defaults, and what they make of the raw answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest, Pooler
from poolgraph.runtime.activations import choose_activation, finish_logits
from poolgraph.runtime.embeddings import at_token_width, check_dimensions, divides_kept, finish_embeddings
from poolgraph.runtime.late_chunking import average_chunks
from poolgraph.runtime.steps import resolve_columns, resolve_step_tag, select_steps
from poolgraph.runtime.tokenizer import EncodedText

EMBED_TASKS: Final = ("embed", "token_embed")

TASK_PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "embed": ("dimensions", "use_activation"),
    "classify": ("use_activation",),
    "token_embed": ("dimensions", "use_activation", "late_chunking_params"),
    "token_classify": ("use_activation",),
}
"""The parameters that mean something to each task, beside those of STEP pooling."""

_STEP_PARAMETERS: Final = ("step_tag_id", "returned_token_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Which rows and columns of a text's token rows are kept.

    Attributes:
        step_tag_id: Token whose rows are kept; None keeps all.
        columns: Columns that are kept, in this order; None keeps all.
    """

    step_tag_id: int | None
    columns: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is done to one raw answer, in this order: steps, chunks, then the width and norm or the activation.

    Attributes:
        embeds: Whether the answer is an embedding; else it is logits.
        normalize: Divide embeddings by their norm.
        to_unit: Divide by the norm of the values that are kept, which the caller asks for, not of all.
        dimensions: Leading values of embeddings that are kept, None for all.
        max_active_dims: The largest values of sparse embeddings that are kept, None for all.
        activation: Applied to logits, None for none.
        steps: What a STEP pooler keeps; None for ALL.
        edges: Tokens at the start and at the end of a text whose rows are left out; None for none.
        chunk_size: Tokens over which token rows are averaged, None for no averaging.
    """

    embeds: bool
    normalize: bool = False
    to_unit: bool = False
    dimensions: int | None = None
    max_active_dims: int | None = None
    activation: str | None = None
    steps: Steps | None = None
    edges: tuple[int | None, int | None] = (None, None)
    chunk_size: int | None = None


def plan_finish(
    params: PoolingParams, task: str, *, manifest: Manifest, dimensions: int | None = None, model: str
) -> Finish:
    """Merge a request's parameters with the defaults, field by field.

    Args:
        params: The request's parameters; they win.
        task: The task they are used for.
        manifest: The artifact's, with the overrides of the caller's ``PoolerConfig``.
        dimensions: Width of embeddings unless the request names one.
        model: The model's name, for messages.

    Raises:
        InputError: another task is named in ``params``, or a value that the task or the artifact does not take.
    """
    if params.task is not None and params.task != task:
        raise InputError(f"You cannot overwrite pooling_params.task={params.task!r} with pooling_task={task!r}!")
    is_step = manifest.pooler.tok_pooling_type == "STEP" and task.startswith("token_")
    _check_step_parameters(params, task, is_step=is_step)
    _check_late_chunking(params, task, is_step=is_step)
    steps = _plan_steps(params, manifest) if is_step else None
    weights = manifest.pooler.token_weights
    if task not in EMBED_TASKS:
        _check_parameters(params, task)
        activation = choose_activation(manifest.pooler, params.use_activation)
        if weights is None:
            return Finish(embeds=False, activation=activation, steps=steps)
        edges = (weights.first_token_id, weights.last_token_id)
        return Finish(embeds=False, activation=activation, steps=_take_weights(manifest.pooler), edges=edges)
    width = dimensions if params.dimensions is None else params.dimensions
    check_dimensions(manifest if task == "embed" else at_token_width(manifest), width, model)
    if task == "token_embed" and weights is not None and width is None:
        width = manifest.pooler.token_embedding_size
    chunking = params.late_chunking_params
    return Finish(
        embeds=True,
        normalize=manifest.pooler.normalize if params.use_activation is None else params.use_activation,
        to_unit=divides_kept(manifest, params.use_activation) and manifest.pooler.max_active_dims is not None,
        dimensions=width,
        max_active_dims=manifest.pooler.max_active_dims,
        steps=steps,
        edges=(weights.first_token_id, None) if task == "token_embed" and weights is not None else (None, None),
        chunk_size=None if chunking is None else chunking.chunk_size,
    )


def finish_rows(raw: NDArray[np.float32], finish: Finish) -> NDArray[np.float32]:
    """Finish rows of the sequence graph, (num_texts, size); a row's bits do not depend on the other rows."""
    if finish.embeds:
        return finish_embeddings(
            raw,
            normalize=finish.normalize,
            dimensions=finish.dimensions,
            max_active_dims=finish.max_active_dims,
            to_unit=finish.to_unit,
        )
    return finish_logits(raw, finish.activation)


def finish_sequences(raw: NDArray[np.float32], finishes: Sequence[Finish]) -> list[NDArray[np.float32]]:
    """Finish each row of ``raw`` (num_texts, size) in its own way, rows alike together."""
    if all(finish is finishes[0] for finish in finishes):
        return list(finish_rows(raw, finishes[0])) if finishes else []
    answers: dict[int, NDArray[np.float32]] = {}
    rows_of: dict[Finish, list[int]] = {}
    for row, finish in enumerate(finishes):
        rows_of.setdefault(finish, []).append(row)
    for finish, rows in rows_of.items():
        answers.update(zip(rows, finish_rows(raw[rows], finish), strict=True))
    return [answers[row] for row in range(len(finishes))]


def finish_tokens(raw: NDArray[np.float32], text: EncodedText, finish: Finish) -> NDArray[np.float32]:
    """Finish the token rows of one text.

    Args:
        raw: (num_tokens, size), left as they are.
        text: The text they belong to.
        finish: What to do.

    Returns:
        (num_rows, size): a row for each token, step or chunk.
    """
    kept = cut_edges(text.input_ids, *finish.edges)
    rows, input_ids = raw[kept], text.input_ids[kept]
    if finish.steps is not None:
        steps = finish.steps
        rows = select_steps(rows, input_ids, step_tag_id=steps.step_tag_id, columns=steps.columns)
    if finish.chunk_size is not None:
        rows = average_chunks(rows, finish.chunk_size)
    return finish_rows(rows, finish)


def cut_edges(input_ids: NDArray[np.int64], first: int | None, last: int | None) -> slice:
    """Return the rows between a text's special tokens, those of them that are there."""
    start = int(first is not None and len(input_ids) > 0 and input_ids[0] == first)
    stop = len(input_ids) - int(last is not None and len(input_ids) > start and input_ids[-1] == last)
    return slice(start, stop)


def _take_weights(pooler: Pooler) -> Steps:
    """The weights of words stand behind the vectors of tokens."""
    assert pooler.token_embedding_size is not None
    return Steps(step_tag_id=None, columns=(pooler.token_embedding_size,))


def _plan_steps(params: PoolingParams, manifest: Manifest) -> Steps:
    return Steps(
        step_tag_id=resolve_step_tag(manifest, params.step_tag_id),
        columns=resolve_columns(manifest.pooler, params.returned_token_ids),
    )


def _check_step_parameters(params: PoolingParams, task: str, *, is_step: bool) -> None:
    refused = [] if is_step else _set_parameters(params, _STEP_PARAMETERS)
    if refused:
        # vLLM has no quotes round the task in this one.
        raise InputError(_refusal(task, task, refused), parameter=refused[0], value=getattr(params, refused[0]))


def _check_late_chunking(params: PoolingParams, task: str, *, is_step: bool) -> None:
    if params.late_chunking_params is None:
        return
    if task != "token_embed":
        raise InputError(f"Late chunking requires token_embed, not {task}", parameter="late_chunking_params")
    if is_step:
        raise InputError("Late chunking requires all token rows", parameter="late_chunking_params")


def _check_parameters(params: PoolingParams, task: str) -> None:
    names = [name for name in TASK_PARAMETERS["token_embed"] if name not in TASK_PARAMETERS[task]]
    if refused := _set_parameters(params, names):
        raise InputError(_refusal(repr(task), task, refused), parameter=refused[0], value=getattr(params, refused[0]))


def _set_parameters(params: PoolingParams, names: Sequence[str]) -> list[str]:
    return [name for name in names if getattr(params, name) is not None]


def _refusal(shown: str, task: str, refused: Sequence[str]) -> str:
    allowed = list(TASK_PARAMETERS[task])
    return f"Task {shown} only supports {allowed} parameters, does not support {list(refused)} parameters"
