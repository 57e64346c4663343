"""How an ``LLM`` is built from its arguments, and the answering that all of its methods share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from poolgraph.config import PoolerConfig
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.model_arguments import ModelArguments, load_runner
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.prompts import Prompts, parse_prompts
from poolgraph.runtime.requests import RequestOptions
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.runtime.work import drive


class LoadedLLM:
    """What the methods of ``LLM`` share; its arguments are described there."""

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
        chat_template: str | Path | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None,
        override_pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None,
        max_model_len: int | None = None,
        enforce_eager: bool = False,
        buckets: str | Path | Sequence[Bucket] | None = None,
        variant: str | None = None,
        **engine_args: object,
    ) -> None:
        self._runner = load_runner(
            ModelArguments(
                model=model,
                task=task,
                runner=runner,
                convert=convert,
                tokenizer=tokenizer,
                revision=revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                chat_template=chat_template,
                hf_overrides=hf_overrides,
                pooler_config=pooler_config,
                override_pooler_config=override_pooler_config,
                max_model_len=max_model_len,
                enforce_eager=enforce_eager,
                buckets=buckets,
                variant=variant,
                engine_args=engine_args,
            )
        )
        self._request_ids = count()

    def get_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer that prompts go through."""
        return self._runner.tokenizer

    def _run(self, prompts: Prompts, task: str, options: RequestOptions) -> list[PoolingRequestOutput[PoolingOutput]]:
        parsed = parse_prompts(prompts, architecture=self._runner.manifest.architecture)
        work = self._runner.answer_prompts(parsed, task, options, self._request_ids)
        return drive(self._runner.model, work, use_tqdm=options.use_tqdm)
