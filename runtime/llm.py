"""``LLM``: vLLM's offline interface over a compiled pooling model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from poolgraph.config import PoolerConfig, PoolingParams, parse_pooler_config
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.cache import resolve_artifact
from poolgraph.runtime.embeddings import check_dimensions
from poolgraph.runtime.engine_args import (
    check_engine_args,
    plan_export_options,
    resolve_default_task,
    resolve_precision,
    resolve_requested_task,
)
from poolgraph.runtime.manifest_overrides import check_pooler_config, override_manifest
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from poolgraph.runtime.prompts import ParsedPrompt, Prompts, parse_prompts
from poolgraph.runtime.requests import Params, RequestOptions, RequestRunner, UseTqdm
from poolgraph.runtime.score_pairs import cosine_scores, plan_pairs
from poolgraph.runtime.tokenizer import TextTokenizer

_TASK_REQUIRED: Final = (
    "pooling_task required for `LLM.encode`. Please use one of the more specific methods or set the pooling_task when "
    'using `LLM.encode`: - For embeddings, use `LLM.embed(...)` or `pooling_task="embed"`. - For token embeddings, use '
    '`pooling_task="token_embed"`. - For classification, use `LLM.classify(...)` or `pooling_task="classify"`. - For '
    'token rewards, use `LLM.reward(...)` or `pooling_task="token_classify"`.'
)


class LLM:
    """A compiled pooling model behind the methods and argument names of vLLM's ``LLM``.

    As in vLLM, no prompt is put before the texts, and a prompt that is too long is an error unless truncation is asked
    for with ``tokenization_kwargs={"truncate_prompt_tokens": N}`` (-1 for the model's limit). Safe to use from several
    threads.

    Args:
        model: An artifact directory; or a checkpoint folder or hub id, exported once into the cache.
        task: The default task; older spelling of ``pooler_config.task``.
        runner: ``auto`` or ``pooling``.
        convert: ``auto``, ``none``, ``embed`` or ``classify``: what a checkpoint without a task is made into.
        tokenizer: Only the model itself: an artifact carries its own tokenizer.
        revision: Branch, tag or commit of a hub id.
        dtype: ``auto``, or the precision to run: ``float32``, ``float16``, ``bfloat16``.
        trust_remote_code: Let a checkpoint's own code run while it is exported; of no effect on an artifact.
        hf_overrides: ``is_matryoshka`` and ``matryoshka_dimensions``.
        pooler_config: A ``PoolerConfig``, a mapping or JSON text.
        override_pooler_config: Older spelling of ``pooler_config``.
        max_model_len: A lower limit on the tokens of a prompt than the model's own.
        **engine_args: vLLM's other arguments (see ``engine_args.WITHOUT_EFFECT``) are accepted and change nothing.

    Raises:
        InputError: an unknown argument or value, or a pooling that the artifact was not compiled with.
        TaskNotSupported: a default task that the artifact does not support.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        task: str | None = None,
        runner: str = "auto",
        convert: str = "auto",
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        dtype: object = "auto",
        trust_remote_code: bool = False,
        hf_overrides: Mapping[str, Any] | None = None,
        pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None,
        override_pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None,
        max_model_len: int | None = None,
        **engine_args: object,
    ) -> None:
        check_engine_args(engine_args)
        _check_tokenizer(tokenizer, model)
        config = _resolve_pooler_config(pooler_config, override_pooler_config)
        precision = resolve_precision(dtype)
        wanted = resolve_requested_task(runner, convert, task, config)
        options = plan_export_options(wanted, trust_remote_code=trust_remote_code)
        artifact = resolve_artifact(model, revision=revision, options=options, on_line=_show_line)
        loaded = PoolingModel.load(artifact, precision=precision)
        manifest = override_manifest(loaded.manifest, hf_overrides, max_model_len)
        check_pooler_config(config, manifest)
        check_dimensions(manifest, config.dimensions, str(model))
        same_limits = manifest.limits == loaded.manifest.limits
        self._default_task = resolve_default_task(manifest, wanted)
        self._request_ids = count()
        self._runner = RequestRunner(
            name=str(model),
            model=loaded,
            manifest=manifest,
            tokenizer=loaded.tokenizer if same_limits else TextTokenizer(loaded.path, manifest),
            config=config,
        )

    def get_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer that prompts go through."""
        return self._runner.tokenizer

    def embed(
        self,
        prompts: Prompts,
        *,
        use_tqdm: UseTqdm = True,
        pooling_params: Params = None,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Embed prompts.

        Args:
            prompts: A text, a list of token ids, ``{"prompt": str}``, ``{"prompt_token_ids": [...]}``, or a sequence of
                those, mixed as you like.
            use_tqdm: Whether to show a progress bar on a terminal, or what to call to make one.
            pooling_params: For all prompts, or one for each.
            lora_request: Not supported; None.
            tokenization_kwargs: ``truncate_prompt_tokens``, ``truncation_side``, ``add_special_tokens``.
            truncate_prompt_tokens: Older spelling of the key of that name.

        Returns:
            One answer a prompt, in their order.

        Raises:
            InputError: a prompt or parameter is not acceptable.
            TaskNotSupported: the artifact does not embed.
        """
        options = RequestOptions(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        answers = self._run(self._parse(prompts), "embed", options)
        return [EmbeddingRequestOutput.from_base(answer) for answer in answers]

    def encode(
        self,
        prompts: Prompts,
        pooling_params: Params = None,
        *,
        use_tqdm: UseTqdm = True,
        lora_request: object = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Do any task that the artifact supports and return the values as arrays, in ``outputs.data``.

        Args:
            prompts: As in ``embed``.
            pooling_params: For all prompts, or one for each.
            use_tqdm: As in ``embed``.
            lora_request: Not supported; None.
            pooling_task: ``embed`` or ``token_embed``; None is the artifact's default task.
            tokenization_kwargs: As in ``embed``.
            truncate_prompt_tokens: As in ``embed``.

        Returns:
            One answer a prompt, in their order.

        Raises:
            InputError: a prompt or parameter is not acceptable, or no task is known.
            TaskNotSupported: the artifact does not support the task.
        """
        task = pooling_task or _shared_task(pooling_params) or self._default_task
        if task is None:
            raise InputError(_TASK_REQUIRED, parameter="pooling_task")
        options = RequestOptions(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._run(self._parse(prompts), task, options)

    def score(
        self,
        data_1: Prompts,
        data_2: Prompts,
        /,
        *,
        use_tqdm: UseTqdm = True,
        pooling_params: PoolingParams | None = None,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score pairs of texts by the cosine of their embeddings: 1:1, 1:N or N:N.

        Args:
            data_1: The query, or one query for each document.
            data_2: The documents.
            use_tqdm: As in ``embed``.
            pooling_params: For all texts.
            lora_request: Not supported; None.
            tokenization_kwargs: As in ``embed``.
            truncate_prompt_tokens: As in ``embed``.

        Returns:
            One answer a pair, in the documents' order.

        Raises:
            InputError: lengths that do not pair, or a text or parameter that is not acceptable.
            TaskNotSupported: the artifact does not embed.
        """
        if "embed" not in self._runner.manifest.tasks:
            raise TaskNotSupported("This model does not support the Scoring API.")
        queries, documents = self._parse(data_1, allow_none=True), self._parse(data_2, allow_none=True)
        pairs = plan_pairs(len(queries), len(documents))
        options = RequestOptions(
            pooling_params=replace(_check_lone(pooling_params), use_activation=True),
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        answers = self._run([*queries, *documents], "embed", options)
        return self._score(answers[: len(queries)], answers[len(queries) :], pairs)

    def classify(
        self,
        prompts: Prompts,
        *,
        pooling_params: Params = None,
        use_tqdm: UseTqdm = True,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[ClassificationRequestOutput]:
        """Classify prompts; the arguments are those of ``embed``.

        Raises:
            TaskNotSupported: the artifact does not classify.
        """
        options = RequestOptions(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        answers = self._run(self._parse(prompts), "classify", options)
        return [ClassificationRequestOutput.from_base(answer) for answer in answers]

    def reward(
        self,
        prompts: Prompts,
        *,
        pooling_params: Params = None,
        use_tqdm: UseTqdm = True,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Reward every token of prompts; the arguments are those of ``embed``.

        Raises:
            TaskNotSupported: the artifact gives no rewards.
        """
        options = RequestOptions(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._run(self._parse(prompts), "token_classify", options)

    def _parse(self, prompts: Prompts, *, allow_none: bool = False) -> list[ParsedPrompt]:
        if allow_none and isinstance(prompts, list | tuple) and not prompts:
            return []
        return parse_prompts(prompts, architecture=self._runner.manifest.architecture)

    def _run(
        self, prompts: list[ParsedPrompt], task: str, options: RequestOptions
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        return self._runner.run(prompts, task, options, self._request_ids)

    def _score(
        self,
        queries: list[PoolingRequestOutput[PoolingOutput]],
        documents: list[PoolingRequestOutput[PoolingOutput]],
        pairs: list[tuple[int, int]],
    ) -> list[ScoringRequestOutput]:
        scores = cosine_scores(
            np.stack([answer.outputs.data for answer in queries]),
            np.stack([answer.outputs.data for answer in documents]),
            pairs,
        )
        between = [self._runner.manifest.tokenization.pad_token_id]
        return [
            ScoringRequestOutput(
                request_id=f"{queries[query].request_id}_{documents[document].request_id}",
                outputs=ScoringOutput(float(score)),
                prompt_token_ids=queries[query].prompt_token_ids + between + documents[document].prompt_token_ids,
                num_truncated_tokens=queries[query].num_truncated_tokens + documents[document].num_truncated_tokens,
            )
            for (query, document), score in zip(pairs, scores, strict=True)
        ]


def _check_tokenizer(tokenizer: str | Path | None, model: str | Path) -> None:
    if tokenizer is not None and str(tokenizer) != str(model):
        raise InputError(
            "an artifact carries its own tokenizer; leave tokenizer out, or export a checkpoint that has the other one",
            parameter="tokenizer",
            value=str(tokenizer),
        )


def _resolve_pooler_config(
    config: PoolerConfig | Mapping[str, Any] | str | None, older: PoolerConfig | Mapping[str, Any] | str | None
) -> PoolerConfig:
    if config is not None and older is not None:
        raise InputError("pooler_config and override_pooler_config mean the same; give one", parameter="pooler_config")
    return parse_pooler_config(older if config is None else config)


def _check_lone(params: PoolingParams | None) -> PoolingParams:
    if params is not None and not isinstance(params, PoolingParams):
        raise InputError("score takes one PoolingParams for all texts", parameter="pooling_params")
    return params or PoolingParams()


def _shared_task(params: Params) -> str | None:
    return params.task if isinstance(params, PoolingParams) else None


def _show_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
