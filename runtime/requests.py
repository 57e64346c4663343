"""Prompts and their parameters to answers: what every method of ``LLM`` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from poolgraph.config import PoolerConfig, PoolingParams
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.finish import Finish, finish_rows, finish_sequences, finish_tokens, plan_finish
from poolgraph.runtime.late_chunking import LateChunking, check_late_chunking, plan_chunks
from poolgraph.runtime.long_texts import ChunkedText, LongTexts, chunk_ids, chunk_texts, whole_text
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt, encode_prompts
from poolgraph.runtime.sided_prompts import encode_sides, finish_sides, plan_sides, run_sides
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenization import TokenizationOptions, parse_tokenization_kwargs
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.runtime.work import Answers, Run, UseTqdm, Work
from poolgraph.tasks import TASK_FAMILY

Params: TypeAlias = PoolingParams | Sequence[PoolingParams] | None

_NO_EMBEDDING: Final = "Embedding API is not supported by this model. Try converting the model using `--convert embed`."
_NO_CLASSIFICATION: Final = (
    "Classification API is not supported by this model. Try converting the model using `--convert classify`."
)
_NO_PARAMS: Final = PoolingParams()

_REFUSALS: Final[Mapping[str, str]] = {
    "embed": _NO_EMBEDDING,
    "token_embed": _NO_EMBEDDING,
    "classify": _NO_CLASSIFICATION,
    "token_classify": _NO_CLASSIFICATION,
    "score": "`score` task was removed; use `classify` instead.",
    "encode": "`encode` task was removed; use `token_embed` or `token_classify` instead.",
    "plugin": "No IOProcessor plugin installed. poolgraph has no plugins.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """The options that every method of ``LLM`` takes.

    Attributes:
        pooling_params: For all prompts, or one for each.
        use_tqdm: Whether to show progress.
        tokenization: How prompts become tokens.
        prefix: The model's prompt, put before each text; ``LLM`` itself puts none.
        side: ``query`` or ``document``, of models that have a route for each; None leaves it to each prompt's
            parameters, then to the model.
    """

    pooling_params: Params
    use_tqdm: UseTqdm
    tokenization: TokenizationOptions
    prefix: str = ""
    side: str | None = None


def read_options(
    *,
    pooling_params: Params,
    use_tqdm: UseTqdm,
    lora_request: object,
    tokenization_kwargs: Mapping[str, Any] | None,
    truncate_prompt_tokens: int | None,
) -> RequestOptions:
    """Read the options as a method of ``LLM`` got them; its caller is warned of those without effect.

    Raises:
        InputError: an adapter, a wrong value, or two different truncations.
    """
    if lora_request is not None:
        raise InputError(
            "lora_request is not supported; merge the adapter into the checkpoint before exporting it",
            parameter="lora_request",
            value=lora_request,
        )
    tokenization = parse_tokenization_kwargs(tokenization_kwargs, truncate_prompt_tokens=truncate_prompt_tokens)
    return RequestOptions(pooling_params=pooling_params, use_tqdm=use_tqdm, tokenization=tokenization)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRunner:
    """Answers prompts with one model.

    Attributes:
        name: The model as the caller named it, for messages.
        model: The loaded model.
        manifest: Its manifest with the caller's overrides.
        tokenizer: Its tokenizer with the caller's limit.
        config: The caller's pooler config.
        default_task: What is done where no task is named; None where nothing says it.
        chat_template: The caller's score template; of a model that reads no pairs, the server's chat template.
        long_texts: What is done with texts longer than the limit.
    """

    name: str
    model: PoolingModel
    manifest: Manifest
    tokenizer: TextTokenizer
    config: PoolerConfig
    default_task: str | None = None
    chat_template: str | None = None
    long_texts: LongTexts = field(default_factory=LongTexts)

    @property
    def embed_task(self) -> str:
        """What ``embed`` does: ``token_embed`` of models that are for that, as in vLLM."""
        tokens = self.default_task == "token_embed" or self.manifest.tasks == ("token_embed",)
        return "token_embed" if tokens else "embed"

    @property
    def reward_task(self) -> str:
        """What ``reward`` does: the default task if it rewards, else the sequence head's where there is one."""
        if self.default_task in ("classify", "token_classify"):
            return self.default_task
        return "classify" if "classify" in self.manifest.tasks else "token_classify"

    def answer_prompts(
        self, prompts: Sequence[ParsedPrompt], task: str, options: RequestOptions, request_ids: Iterator[int]
    ) -> Work[list[PoolingRequestOutput[PoolingOutput]]]:
        """Answer prompts in their order; ``request_ids`` gives each its number.

        Raises:
            TaskNotSupported: the artifact does not support the task.
            InputError: a prompt or parameter is not acceptable.
        """
        self.check_task(task)
        params = match_params(options.pooling_params, len(prompts))
        finishes = self.plan_finishes(params, task)
        truncations = self._plan_truncations(params, options.tokenization)
        sides = plan_sides(params, task, self.manifest, options.side)
        if task == "embed" and self.long_texts.kind == "chunk" and "query" not in sides:
            return (yield from self._answer_chunked(prompts, truncations, finishes, options, request_ids))
        finishes = finish_sides(finishes, params, sides, self.config)
        encoded = encode_sides(
            self.tokenizer, self.manifest, prompts, sides, options.tokenization, truncations, prefix=options.prefix
        )
        raw = yield from run_sides(TASK_FAMILY[task], encoded, sides)
        answers = _finish(task, raw, encoded, finishes)
        return [
            PoolingRequestOutput(
                request_id=str(next(request_ids)),
                outputs=PoolingOutput(answer),
                prompt_token_ids=text.input_ids.tolist(),
                num_truncated_tokens=text.num_truncated_tokens,
                late_chunking=self._describe_chunks(prompt, text, finish, options.tokenization),
            )
            for prompt, text, finish, answer in zip(prompts, encoded, finishes, answers, strict=True)
        ]

    def _plan_truncations(self, params: Sequence[PoolingParams], tokenization: TokenizationOptions) -> list[int | None]:
        """Return how many tokens are kept of each prompt: as it says, else its request, else by the rule."""
        rule = TO_MODEL_LIMIT if self.long_texts.kind == "truncate" else None
        asked = tokenization.truncate_prompt_tokens
        default = rule if asked is None else asked
        return [default if one.truncate_prompt_tokens is None else one.truncate_prompt_tokens for one in params]

    def _answer_chunked(
        self,
        prompts: Sequence[ParsedPrompt],
        truncations: Sequence[int | None],
        finishes: Sequence[Finish],
        options: RequestOptions,
        request_ids: Iterator[int],
    ) -> Work[list[PoolingRequestOutput[PoolingOutput]]]:
        """Embed prompts, those of them in windows that are longer than the limit and not to be truncated."""
        texts = [self._chunk(*row, index, options) for index, row in enumerate(zip(prompts, truncations, strict=True))]
        for text in texts:
            self.long_texts.check(text.whole.num_tokens)
        windows = [window for text in texts for window in text.windows]
        raw = cast("NDArray[np.float32]", (yield Run(family="sequence", encoded=windows)))
        stops = np.cumsum([len(text.windows) for text in texts])
        of_windows = [finish for text, finish in zip(texts, finishes, strict=True) for _ in text.windows]
        vectors = finish_sequences(raw, of_windows)
        answers = [
            _join_windows(text, vectors[stop - len(text.windows) : stop], finish)
            for text, stop, finish in zip(texts, stops, finishes, strict=True)
        ]
        return [
            PoolingRequestOutput(
                request_id=str(next(request_ids)),
                outputs=PoolingOutput(answer),
                prompt_token_ids=text.whole.input_ids.tolist(),
                num_truncated_tokens=text.whole.num_truncated_tokens,
                text_chunks=text.report,
            )
            for text, answer in zip(texts, answers, strict=True)
        ]

    def _chunk(self, prompt: ParsedPrompt, truncate_to: int | None, index: int, options: RequestOptions) -> ChunkedText:
        """Tokenize one prompt; what is truncated, and texts without special tokens, stay whole."""
        overlap = self.long_texts.overlap
        if not isinstance(prompt, str) and truncate_to is None:
            return chunk_ids(self.tokenizer, prompt, overlap=overlap)
        if isinstance(prompt, str) and truncate_to is None and options.tokenization.add_special_tokens:
            chunks = chunk_texts(self.tokenizer, [prompt], prompt=options.prefix, overlap=overlap, first_index=index)
            return chunks[0]
        encoded = encode_prompts(self.tokenizer, [prompt], options.tokenization, [truncate_to], prefix=options.prefix)
        return whole_text(encoded[0])

    def check_task(self, task: str) -> None:
        """Check that the artifact supports a task.

        Raises:
            TaskNotSupported: it does not.
        """
        supported = self.manifest.tasks
        if task in supported:
            return
        if not isinstance(task, str) or task not in _REFUSALS:
            raise TaskNotSupported(f"Unsupported task: {task!r} Supported tasks: {supported}")
        cure = f" This artifact supports {list(supported)}." if task in TASK_FAMILY else ""
        raise TaskNotSupported(_REFUSALS[task] + cure)

    def plan_finishes(self, params: Sequence[PoolingParams], task: str) -> list[Finish]:
        """Merge each request's parameters with the defaults.

        Raises:
            InputError: a parameter that the task or the artifact does not take.
        """
        plan = partial(
            plan_finish, task=task, manifest=self.manifest, dimensions=self.config.dimensions, model=self.name
        )
        plans = {one: plan(one) for one in dict.fromkeys(params)}
        if any(finish.chunk_size is not None for finish in plans.values()):
            check_late_chunking(self.model.path)
        return [plans[one] for one in params]

    def _describe_chunks(
        self, prompt: ParsedPrompt, text: EncodedText, finish: Finish, tokenization: TokenizationOptions
    ) -> LateChunking | None:
        if finish.chunk_size is None:
            return None
        known = isinstance(prompt, str) and tokenization.add_special_tokens
        offsets = self._find_offsets(str(prompt), text) if known else None
        return plan_chunks(text.num_tokens, finish.chunk_size, offsets)

    def _find_offsets(self, prompt: str, text: EncodedText) -> Sequence[tuple[int, int]] | None:
        """Return where each token lies in the prompt; None where it was cut on another side than the model's own."""
        located = self.tokenizer.locate([prompt], truncate_to=text.num_tokens)[0][0]
        return located.offsets if np.array_equal(located.input_ids, text.input_ids) else None


def match_params(params: Params, num_prompts: int) -> list[PoolingParams]:
    """Return one ``PoolingParams`` for each prompt.

    Raises:
        InputError: a list of another length, or something that is no ``PoolingParams``.
    """
    if params is None or isinstance(params, PoolingParams):
        return [params or _NO_PARAMS] * num_prompts
    if not isinstance(params, Sequence) or not all(isinstance(one, PoolingParams) for one in params):
        raise InputError("pooling_params must be a PoolingParams or a list of them", parameter="pooling_params")
    if len(params) != num_prompts:
        raise InputError(f"The lengths of prompts ({num_prompts}) and params ({len(params)}) must be the same.")
    return list(params)


def _join_windows(text: ChunkedText, vectors: Sequence[NDArray[np.float32]], finish: Finish) -> NDArray[np.float32]:
    """Average the finished vectors of a text's windows and finish the average; a lone window's stays as it is."""
    return vectors[0] if len(vectors) == 1 else finish_rows(text.average(np.stack(vectors))[None], finish)[0]


def _finish(
    task: str, raw: Answers, encoded: Sequence[EncodedText], finishes: Sequence[Finish]
) -> list[NDArray[np.float32]]:
    if TASK_FAMILY[task] == "sequence":
        return finish_sequences(cast("NDArray[np.float32]", raw), finishes)
    return [finish_tokens(*row) for row in zip(raw, encoded, finishes, strict=True)]
