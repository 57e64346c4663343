"""A model and what a caller says of it, ``LLM``'s arguments as a record, to a runner that answers requests."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
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
from poolgraph.runtime.export_precision import plan_precision
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.manifest_overrides import check_hf_overrides, check_pooler_config, override_manifest
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.model_paths import check_model_path
from poolgraph.runtime.providers import Wish
from poolgraph.runtime.requests import RequestRunner
from poolgraph.runtime.score_template import TEMPLATES, resolve_template
from poolgraph.runtime.task_wish import TaskWish, plan_export_options, resolve_default_task, resolve_wish
from poolgraph.runtime.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArguments:
    """What a caller says of a model; the fields that ``LLM`` has are described there.

    Attributes:
        precision: ``fp32``, ``int8`` and so on; in place of ``dtype``.
        provider: ``cpu``, ``cuda`` or an execution provider's full name; None takes the best that loads.
        variant: Name of one variant of the artifact.
        fallback: Take another provider, with a warning, when the one asked for does not load.
        allow_unverified: Run a variant that verification never passed.
        threads: Threads of a run; None takes the stored plan, or lets the number of batches decide.
        enforce_eager: On a GPU, no CUDA graphs.
        buckets: On a GPU, the shapes that run; None takes the stored plan, or one by the model's limit.
        engine_args: vLLM's other arguments, accepted and without effect.
    """

    model: str | Path
    task: str | None = None
    runner: str = "auto"
    convert: str = "auto"
    tokenizer: str | Path | None = None
    revision: str | None = None
    dtype: object = "auto"
    precision: str | None = None
    provider: str | None = None
    variant: str | None = None
    fallback: bool = False
    allow_unverified: bool = False
    threads: int | None = None
    trust_remote_code: bool = False
    chat_template: str | Path | None = None
    hf_overrides: Mapping[str, Any] | None = None
    pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None
    override_pooler_config: PoolerConfig | Mapping[str, Any] | str | None = None
    max_model_len: int | None = None
    enforce_eager: bool = False
    buckets: str | Path | Sequence[Bucket] | None = None
    engine_args: Mapping[str, object] = field(default_factory=dict)


def load_runner(arguments: ModelArguments) -> RequestRunner:
    """Load a model; a checkpoint is exported into the cache first, its progress shown on standard error.

    What a pooler config asks for without effect is warned about.

    Raises:
        InputError: an unknown argument or value, or something else than what the artifact was compiled with.
        TaskNotSupported: a default task that the artifact does not support.
        ExportError: a checkpoint that cannot become an artifact.
        ArtifactError: an artifact that is damaged, or has no variant of the precision.
        ProviderError: the provider does not load.
    """
    check_engine_args(arguments.engine_args)
    _check_tokenizer(arguments.tokenizer, arguments.model)
    config = _resolve_pooler_config(arguments.pooler_config, arguments.override_pooler_config)
    long_texts = _resolve_long_texts(config)
    precision = _resolve_precision(arguments)
    wish = resolve_wish(arguments.runner, arguments.convert, arguments.task, config)
    loaded = PoolingModel.load(
        _find_artifact(arguments, wish, config, precision),
        provider=arguments.provider,
        precision=precision,
        variant=arguments.variant,
        fallback=arguments.fallback,
        allow_unverified=arguments.allow_unverified,
        threads=arguments.threads,
        buckets=arguments.buckets,
        cuda_graphs=not arguments.enforce_eager,
        on_warm_up=print_warm_up(sys.stderr),
    )
    if is_artifact(check_model_path(arguments.model)):
        check_hf_overrides(arguments.hf_overrides, loaded.manifest)
    return replace(_build_runner(arguments, loaded, config, wish), long_texts=long_texts)


def _find_artifact(arguments: ModelArguments, wish: TaskWish, config: PoolerConfig, precision: str | None) -> Path:
    is_compiled = is_artifact(check_model_path(arguments.model))
    options = plan_export_options(
        wish,
        config=config,
        hf_overrides=arguments.hf_overrides,
        score_template=None if is_compiled else keep_template(arguments.chat_template),
        trust_remote_code=arguments.trust_remote_code,
    )
    if not is_compiled:
        options |= plan_precision(
            Wish(
                provider=arguments.provider,
                precision=precision,
                variant=arguments.variant,
                fallback=arguments.fallback,
            )
        )
    return resolve_artifact(arguments.model, revision=arguments.revision, options=options, on_line=_show_line)


def _build_runner(
    arguments: ModelArguments, loaded: PoolingModel, config: PoolerConfig, wish: TaskWish
) -> RequestRunner:
    name = str(arguments.model)
    check_pooler_config(config, loaded.manifest)
    manifest = override_manifest(loaded.manifest, arguments.hf_overrides, arguments.max_model_len, config)
    check_dimensions(manifest, config.dimensions, name)
    same_limits = manifest.limits == loaded.manifest.limits
    return RequestRunner(
        name=name,
        model=loaded,
        manifest=manifest,
        tokenizer=loaded.tokenizer if same_limits else TextTokenizer(loaded.path, manifest),
        config=config,
        default_task=resolve_default_task(manifest, wish),
        chat_template=None if arguments.chat_template is None else str(arguments.chat_template),
    )


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


def _resolve_precision(arguments: ModelArguments) -> str | None:
    named = resolve_precision(arguments.dtype)
    if named is not None and arguments.precision not in (None, named):
        raise InputError(
            f"dtype {arguments.dtype} means the precision {named}, but {arguments.precision} is asked for; give one",
            parameter="precision",
            value=arguments.precision,
        )
    return arguments.precision or named


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


def _resolve_long_texts(config: PoolerConfig) -> LongTexts:
    """Embed long texts in parts where the pooler config says so; unlike vLLM's, offline too."""
    if config.enable_chunked_processing:
        return LongTexts(kind="chunk", max_tokens=config.max_embed_len)
    if config.max_embed_len is not None:
        message = "pooler_config: max_embed_len has no effect without enable_chunked_processing"
        # The caller of LLM, past load_runner.
        warnings.warn(message, UserWarning, stacklevel=4)
    return LongTexts()


def _show_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
