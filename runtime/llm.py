"""``LLM``: vLLM's offline interface over a compiled pooling model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.llm_score import ScoreMethods
from poolgraph.runtime.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
)
from poolgraph.runtime.prompts import Prompts
from poolgraph.runtime.requests import Params, read_options
from poolgraph.runtime.work import UseTqdm

_TASK_REQUIRED: Final = (
    "pooling_task required for `LLM.encode`. Please use one of the more specific methods or set the pooling_task when "
    'using `LLM.encode`: - For embeddings, use `LLM.embed(...)` or `pooling_task="embed"`. - For token embeddings, use '
    '`pooling_task="token_embed"`. - For classification, use `LLM.classify(...)` or `pooling_task="classify"`. - For '
    'token rewards, use `LLM.reward(...)` or `pooling_task="token_classify"`.'
)


class LLM(ScoreMethods):
    """A compiled pooling model behind the methods and argument names of vLLM's ``LLM``.

    As in vLLM, no prompt is put before the texts, and a prompt that is too long is an error unless truncation is asked
    for with ``tokenization_kwargs={"truncate_prompt_tokens": N}`` (-1 for the model's limit). Safe to use from several
    threads.

    What a request leaves open is taken from ``pooler_config``, and what that leaves open from the artifact, field by
    field.

    Args:
        model: An artifact directory; or a checkpoint folder or hub id, exported once into the cache.
        task: The default task; older spelling of ``pooler_config.task``.
        runner: ``auto`` or ``pooling``.
        convert: ``auto``, ``none``, ``embed`` or ``classify``: what a checkpoint is made into.
        tokenizer: Only the model itself: an artifact carries its own tokenizer.
        revision: Branch, tag or commit of a hub id.
        dtype: ``auto``, or the precision to run: ``float32``, ``float16``, ``bfloat16``; of a checkpoint, to export.
        trust_remote_code: Let a checkpoint's own code run while it is exported; of no effect on an artifact.
        chat_template: Score template of ``score`` and ``rerank``: a shipped name, a file, or the template itself.
        hf_overrides: Fields of ``config.json``. On an artifact ``is_matryoshka`` and ``matryoshka_dimensions`` take
            effect, and others must be those it was exported with.
        pooler_config: A ``PoolerConfig``, a mapping or JSON text. On an artifact, what needs another graph (another
            pooling type, ``logit_mean``, ``logit_sigma``) must be what was compiled.
        override_pooler_config: Older spelling of ``pooler_config``.
        max_model_len: A lower limit on the tokens of a prompt than the model's own.
        enforce_eager: On a GPU, run without CUDA graphs.
        buckets: On a GPU, the shapes that run: a file of ``poolgraph plan``, or the buckets themselves; None takes
            those stored beside the artifact, else plans them. No argument of vLLM's.
        variant: Name of the artifact's variant that runs, or is exported; None takes the best. No argument of vLLM's.
        **engine_args: vLLM's other arguments (see ``engine_args.WITHOUT_EFFECT``) are accepted and change nothing.

    Raises:
        InputError: an unknown argument or value, or something else than what the artifact was compiled with.
        TaskNotSupported: a default task that the artifact does not support.
    """

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
            pooling_params: For all prompts, or one for each. ``PoolingParams(extra_kwargs={"side": "query"})`` and
                ``"document"`` say what prompts are, of models that answer the two differently; else the checkpoint's
                default route answers, that of documents where it has none.
            lora_request: Not supported; None.
            tokenization_kwargs: ``truncate_prompt_tokens``, ``truncation_side``, ``add_special_tokens``.
            truncate_prompt_tokens: Older spelling of the key of that name.

        Returns:
            One answer a prompt, in their order. As in vLLM, a model whose task is ``token_embed`` gives
            ``PoolingRequestOutput``, with a matrix (num_tokens, size) in ``outputs.data``.

        Raises:
            InputError: a prompt or parameter is not acceptable.
            TaskNotSupported: the artifact does not embed.
        """
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        task = self._runner.embed_task
        answers = self._run(prompts, task, options)
        if task == "token_embed":
            return cast("list[EmbeddingRequestOutput]", answers)
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
            pooling_task: ``embed``, ``classify``, ``token_embed`` or ``token_classify``; None is the task that the
                model was loaded for, else the artifact's default task.
            tokenization_kwargs: As in ``embed``.
            truncate_prompt_tokens: As in ``embed``.

        Returns:
            One answer a prompt, in their order: (size,), or (num_rows, size) of the tasks about tokens.

        Raises:
            InputError: a prompt or parameter is not acceptable, or no task is known.
            TaskNotSupported: the artifact does not support the task.
        """
        task = (_shared_task(pooling_params) or self._runner.default_task) if pooling_task is None else pooling_task
        if task is None:
            raise InputError(_TASK_REQUIRED, parameter="pooling_task")
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._run(prompts, task, options)

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

        Returns:
            One answer a prompt, in their order; ``outputs.probs`` has a value for each label.

        Raises:
            InputError: a prompt or parameter is not acceptable.
            TaskNotSupported: the artifact does not classify whole texts.
        """
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return [ClassificationRequestOutput.from_base(answer) for answer in self._run(prompts, "classify", options)]

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
        """Reward prompts; the arguments are those of ``embed``.

        Returns:
            One answer a prompt, in their order. ``outputs.data`` is (num_labels,) of a model with one reward a text,
            and (num_tokens, size), or (num_steps, size) of a process reward model, where tokens have rewards.

        Raises:
            InputError: a prompt or parameter is not acceptable.
            TaskNotSupported: the artifact gives no rewards.
        """
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._run(prompts, self._runner.reward_task, options)


def _shared_task(params: Params) -> str | None:
    return params.task if isinstance(params, PoolingParams) else None
