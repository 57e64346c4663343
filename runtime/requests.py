"""Prompts and their parameters to answers: what every method of ``LLM`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from poolgraph.config import PoolerConfig, PoolingParams, verify_pooling_params
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.embeddings import check_dimensions, finish_embeddings
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt, encode_prompts, parse_tokenization_kwargs
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

Params: TypeAlias = PoolingParams | Sequence[PoolingParams] | None
UseTqdm: TypeAlias = bool | Callable[..., Any]

_RUNNABLE: Final = ("embed", "token_embed")

_NO_EMBEDDING: Final = "Embedding API is not supported by this model. Try converting the model using `--convert embed`."
_NO_CLASSIFICATION: Final = (
    "Classification API is not supported by this model. Try converting the model using `--convert classify`."
)
_REFUSALS: Final[Mapping[str, str]] = {
    "embed": _NO_EMBEDDING,
    "token_embed": _NO_EMBEDDING,
    "classify": _NO_CLASSIFICATION,
    "token_classify": _NO_CLASSIFICATION,
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
    "plugin": "No IOProcessor plugin installed: the 'plugin' task is not supported.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """The options that every method of ``LLM`` takes, as the caller gave them."""

    pooling_params: Params = None
    use_tqdm: UseTqdm = True
    lora_request: object = None
    tokenization_kwargs: Mapping[str, Any] | None = None
    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What is done to one raw answer."""

    normalize: bool
    dimensions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRunner:
    """Answers prompts with one model.

    Attributes:
        name: The model as the caller named it, for messages.
        model: The loaded model.
        manifest: Its manifest with the caller's overrides.
        tokenizer: Its tokenizer with the caller's limit.
        config: Defaults of the pooling parameters.
    """

    name: str
    model: PoolingModel
    manifest: Manifest
    tokenizer: TextTokenizer
    config: PoolerConfig

    def run(
        self, prompts: Sequence[ParsedPrompt], task: str, options: RequestOptions, request_ids: Iterator[int]
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Answer prompts in their order; ``request_ids`` gives each its number.

        Raises:
            TaskNotSupported: the artifact does not support the task.
            InputError: a prompt or parameter is not acceptable.
        """
        self.check_task(task)
        if options.lora_request is not None:
            raise InputError(
                "lora_request is not supported; merge the adapter into the checkpoint before exporting it",
                parameter="lora_request",
                value=options.lora_request,
            )
        params = match_params(options.pooling_params, len(prompts))
        finishes = self._plan_finishes(params, task)
        tokenization = parse_tokenization_kwargs(
            options.tokenization_kwargs, truncate_prompt_tokens=options.truncate_prompt_tokens
        )
        truncations = [one.truncate_prompt_tokens for one in params]
        encoded = encode_prompts(self.tokenizer, prompts, tokenization, truncations)
        with _progress(options.use_tqdm, len(encoded)) as on_progress:
            data = self._answer(task, encoded, finishes, on_progress)
        return [
            PoolingRequestOutput(
                request_id=str(next(request_ids)),
                outputs=PoolingOutput(answer),
                prompt_token_ids=text.input_ids.tolist(),
                num_truncated_tokens=text.num_truncated_tokens,
            )
            for text, answer in zip(encoded, data, strict=True)
        ]

    def check_task(self, task: str) -> None:
        """Check that the artifact supports a task.

        Raises:
            TaskNotSupported: it does not.
        """
        supported = tuple(name for name in self.manifest.tasks if name in _RUNNABLE)
        if task not in supported:
            raise TaskNotSupported(_REFUSALS.get(task, f"Unsupported task: {task!r} Supported tasks: {supported}"))

    def _plan_finishes(self, params: Sequence[PoolingParams], task: str) -> list[Finish]:
        plans = {one: self._plan_finish(one, task) for one in dict.fromkeys(params)}
        return [plans[one] for one in params]

    def _plan_finish(self, params: PoolingParams, task: str) -> Finish:
        verify_pooling_params(params, task, tok_pooling_type=self.config.tok_pooling_type)
        dimensions = self.config.dimensions if params.dimensions is None else params.dimensions
        check_dimensions(_at_task_width(self.manifest, task), dimensions, self.name)
        normalize = self.config.use_activation if params.use_activation is None else params.use_activation
        return Finish(
            normalize=self.manifest.pooler.normalize if normalize is None else normalize, dimensions=dimensions
        )

    def _answer(
        self,
        task: str,
        encoded: Sequence[EncodedText],
        finishes: Sequence[Finish],
        on_progress: Callable[[int], None] | None,
    ) -> list[NDArray[np.float32]]:
        if task == "embed":
            return finish_rows(self.model.run_sequence(encoded, on_progress=on_progress), finishes)
        raw = self.model.run_token(encoded, on_progress=on_progress)
        return [
            finish_embeddings(rows, normalize=finish.normalize, dimensions=finish.dimensions)
            for rows, finish in zip(raw, finishes, strict=True)
        ]


def match_params(params: Params, num_prompts: int) -> list[PoolingParams]:
    """Return one ``PoolingParams`` for each prompt.

    Raises:
        InputError: a list of another length, or something that is no ``PoolingParams``.
    """
    if params is None or isinstance(params, PoolingParams):
        return [params or PoolingParams()] * num_prompts
    if not isinstance(params, Sequence) or not all(isinstance(one, PoolingParams) for one in params):
        raise InputError("pooling_params must be a PoolingParams or a list of them", parameter="pooling_params")
    if len(params) != num_prompts:
        raise InputError(f"The lengths of prompts ({num_prompts}) and params ({len(params)}) must be the same.")
    return list(params)


def finish_rows(raw: NDArray[np.float32], finishes: Sequence[Finish]) -> list[NDArray[np.float32]]:
    """Finish each row of ``raw`` (num_texts, embedding_size) in its own way, rows alike together."""
    answers: dict[int, NDArray[np.float32]] = {}
    rows_of: dict[Finish, list[int]] = {}
    for row, finish in enumerate(finishes):
        rows_of.setdefault(finish, []).append(row)
    for finish, rows in rows_of.items():
        chosen = raw if len(rows_of) == 1 else raw[rows]
        finished = finish_embeddings(chosen, normalize=finish.normalize, dimensions=finish.dimensions)
        answers.update(zip(rows, finished, strict=True))
    return [answers[row] for row in range(len(finishes))]


def _at_task_width(manifest: Manifest, task: str) -> Manifest:
    """Give the token task's width as the one that dimensions are checked against."""
    width = manifest.pooler.token_embedding_size
    if task == "embed" or width is None:
        return manifest
    return msgspec.structs.replace(manifest, pooler=msgspec.structs.replace(manifest.pooler, embedding_size=width))


@contextmanager
def _progress(use_tqdm: UseTqdm, total: int) -> Iterator[Callable[[int], None] | None]:
    if not use_tqdm:
        yield None
        return
    make = use_tqdm if callable(use_tqdm) else partial(tqdm, disable=None)
    with closing(make(total=total, desc="Processed prompts", dynamic_ncols=True)) as bar:
        yield bar.update
