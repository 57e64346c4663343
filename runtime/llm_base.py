"""How an ``LLM`` is built from its arguments, and the answering that all of its methods share."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from threading import get_ident
from typing import Any

from poolgraph.config import PoolerConfig, parse_pooler_config
from poolgraph.errors import InputError
from poolgraph.graphs.artifact import is_artifact
from poolgraph.progress import print_warm_up
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.cache import cache_dir, resolve_artifact
from poolgraph.runtime.embeddings import check_dimensions
from poolgraph.runtime.engine_args import check_engine_args, resolve_precision
from poolgraph.runtime.manifest_overrides import check_hf_overrides, check_pooler_config, override_manifest
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.model_paths import check_model_path
from poolgraph.runtime.outputs import PoolingOutput, PoolingRequestOutput
from poolgraph.runtime.prompts import Prompts, parse_prompts
from poolgraph.runtime.requests import RequestOptions, RequestRunner
from poolgraph.runtime.score_template import TEMPLATES, resolve_template
from poolgraph.runtime.task_wish import plan_export_options, resolve_default_task, resolve_wish
from poolgraph.runtime.tokenizer import TextTokenizer


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
        **engine_args: object,
    ) -> None:
        check_engine_args(engine_args)
        _check_tokenizer(tokenizer, model)
        config = _resolve_pooler_config(pooler_config, override_pooler_config)
        precision = resolve_precision(dtype)
        wish = resolve_wish(runner, convert, task, config)
        is_compiled = is_artifact(check_model_path(model))
        options = plan_export_options(
            wish,
            config=config,
            hf_overrides=hf_overrides,
            score_template=None if is_compiled else keep_template(chat_template),
            trust_remote_code=trust_remote_code,
        )
        artifact = resolve_artifact(model, revision=revision, options=options, on_line=_show_line)
        loaded = PoolingModel.load(
            artifact,
            precision=precision,
            buckets=buckets,
            cuda_graphs=not enforce_eager,
            on_warm_up=print_warm_up(sys.stderr),
        )
        if is_compiled:
            check_hf_overrides(hf_overrides, loaded.manifest)
        self._runner = _build_runner(str(model), loaded, config, hf_overrides, max_model_len)
        self._default_task = resolve_default_task(self._runner.manifest, wish)
        self._chat_template = None if chat_template is None else str(chat_template)
        self._request_ids = count()

    def get_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer that prompts go through."""
        return self._runner.tokenizer

    def _run(self, prompts: Prompts, task: str, options: RequestOptions) -> list[PoolingRequestOutput[PoolingOutput]]:
        parsed = parse_prompts(prompts, architecture=self._runner.manifest.architecture)
        return self._runner.run(parsed, task, options, self._request_ids)


def keep_template(template: str | Path | None) -> str | None:
    """Return the form in which a score template is handed to an export: a shipped name, or a file named by its content.

    Raises:
        InputError: neither a name, nor a file, nor a template.
    """
    if template is None or str(template) in TEMPLATES:
        return None if template is None else str(template)
    source = resolve_template(str(template)).source.encode()
    path = cache_dir() / "templates" / f"{sha256(source).hexdigest()}.jinja"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: other processes may ask for the same template.
    written = path.with_suffix(f".{os.getpid()}.{get_ident()}")
    written.write_bytes(source)
    written.replace(path)
    return str(path)


def _build_runner(
    name: str,
    loaded: PoolingModel,
    config: PoolerConfig,
    hf_overrides: Mapping[str, Any] | None,
    max_model_len: int | None,
) -> RequestRunner:
    check_pooler_config(config, loaded.manifest)
    manifest = override_manifest(loaded.manifest, hf_overrides, max_model_len, config)
    check_dimensions(manifest, config.dimensions, name)
    same_limits = manifest.limits == loaded.manifest.limits
    return RequestRunner(
        name=name,
        model=loaded,
        manifest=manifest,
        tokenizer=loaded.tokenizer if same_limits else TextTokenizer(loaded.path, manifest),
        config=config,
    )


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


def _show_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
