"""Sentence-transformers' files: the chain of modules, prompts and limits, read into frozen values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.router import Module, StaticRoute, read_router
from poolgraph.export.sparse_encoder import AutoEncoder, Splade, read_auto_encoder, read_splade
from poolgraph.export.transformer_options import read_form, read_transformer
from poolgraph.graphs.manifest import Positive
from poolgraph.runtime.similarity import SIMILARITY_FUNCTIONS
from poolgraph.tasks import SIDES

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older pooling configurations, in the order in which sentence-transformers concatenates their results."""

COMPILED_MODULES = (
    "Transformer",
    "MLMTransformer",
    "Pooling",
    "SpladePooling",
    "Dense",
    "LayerNorm",
    "Normalize",
    "Dropout",
    "SparseAutoEncoder",
)

TRANSFORMERS = ("Transformer", "MLMTransformer")
POOLINGS = ("Pooling", "SpladePooling")
"""Modules that a chain starts with; MLMTransformer is the older name of a Transformer with the task fill-mask."""

MULTI_VECTOR_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "MultiVectorMask")
"""What is compiled of a MultiVectorEncoder, whose modules work on token embeddings; its Pooling has no effect there."""

PUBLISHED_CODE = frozenset({"custom_st.Transformer"})
"""Modules of a checkpoint's own that do what sentence-transformers' of that name does (jina-embeddings-v3: it chooses
the adapter, which is chosen at export here)."""


class _Settings(msgspec.Struct, frozen=True):
    """What is read of config_sentence_transformers.json."""

    truncate_dim: Positive | None = None
    max_active_dims: Positive | None = None
    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadModule:
    """One module after the pooling: its class name, its folder in the checkpoint and its configuration."""

    kind: str
    path: str
    config: Mapping[str, Any]

    @property
    def features(self) -> tuple[str | None, str | None]:
        """What it reads and writes, None where the configuration does not say."""
        source = self.config.get("module_input_name")
        return source, self.config.get("module_output_name") or source


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformer:
    """What a sentence-transformers checkpoint says beyond the backbone.

    Attributes:
        transformer_path: Folder of the backbone, "" for the checkpoint's own.
        pooling: Pooling modes in the order of their concatenation, empty where the files have no Pooling.
        splade: How scores of words are pooled to an embedding of a weight a word (SparseEncoder); None for others.
        static_query: The route of queries of an inference-free SPLADE; None for others.
        max_active_dims: The most weights that a sparse embedding keeps, None for all.
        include_prompt: False when the prompt's tokens are left out of the pooling.
        head: The modules after the pooling.
        max_seq_length: Limit in tokens, None where the files do not say.
        do_lower_case: Whether texts are lower-cased before they are tokenized.
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that is applied when none is asked for.
        similarity_fn_name: cosine, dot, euclidean or manhattan.
        config_options: Fields of config.json that the files change.
        tokenizer_options: Arguments of the tokenizer that the files change.
    """

    transformer_path: str = ""
    pooling: tuple[str, ...] = ()
    splade: Splade | None = None
    static_query: StaticRoute | None = None
    max_active_dims: int | None = None
    include_prompt: bool = True
    head: tuple[HeadModule, ...] = ()
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    config_options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)


def parse_sentence_transformers(checkpoint: Checkpoint, *, multi_vector: bool = False) -> SentenceTransformer | None:
    """Read the sentence-transformers files; None for a checkpoint without ``modules.json``.

    Args:
        checkpoint: The checkpoint.
        multi_vector: Read them as MultiVectorEncoder does: modules may work on token embeddings, nothing is pooled.

    Raises:
        ExportError: a module that cannot be compiled, named with those that can.
    """
    modules, static_query = _read_modules(checkpoint, multi_vector=multi_vector)
    if modules is None:
        return None
    kinds = [_module_kind(module, MULTI_VECTOR_MODULES if multi_vector else COMPILED_MODULES) for module in modules]
    _check_order(kinds)
    pooling_path = modules[kinds.index("Pooling")].path if "Pooling" in kinds else None
    pooling = (read_form(checkpoint, f"{pooling_path}/config.json", dict[str, Any]) or {}) if pooling_path else {}
    task = "fill-mask" if {"SpladePooling", "MLMTransformer"} & set(kinds) else "feature-extraction"
    transformer = read_transformer(checkpoint, modules[0].path, task=task, multi_vector=multi_vector)
    splade = read_splade(checkpoint, modules, kinds, transformer)
    settings = read_form(checkpoint, "config_sentence_transformers.json", _Settings) or _Settings()
    if multi_vector:
        # MultiVectorEncoder always has these two prompts, and knows no truncate_dim.
        prompts = {"query": None, "document": None, **(settings.prompts or {})}
        settings = msgspec.structs.replace(settings, prompts=prompts, truncate_dim=None)
    auto_encoder = read_auto_encoder(checkpoint, modules, kinds, settings.max_active_dims)
    is_sparse = splade is not None or auto_encoder is not None
    if is_sparse:
        settings = msgspec.structs.replace(settings, truncate_dim=None)  # which SparseEncoder does not know
    _check_default_prompt(settings)
    return SentenceTransformer(
        transformer_path=modules[0].path,
        pooling=parse_pooling(pooling) if pooling_path else (),
        splade=splade,
        static_query=static_query,
        max_active_dims=_choose_active_dims(settings, splade, auto_encoder),
        include_prompt=bool(pooling.get("include_prompt", True)),
        head=(*_read_head(checkpoint, modules, kinds, auto_encoder, multi_vector=multi_vector), *_truncation(settings)),
        max_seq_length=transformer.limit,
        do_lower_case=bool(transformer.do_lower_case),
        prompts=_name_prompts(settings),
        default_prompt_name=settings.default_prompt_name,
        similarity_fn_name=(
            settings.similarity_fn_name or "cosine"
            if multi_vector
            else _choose_similarity(settings, "dot" if is_sparse else "cosine")
        ),
        config_options=transformer.config_options,
        tokenizer_options=transformer.tokenizer_options,
    )


def _read_modules(checkpoint: Checkpoint, *, multi_vector: bool) -> tuple[list[Module] | None, StaticRoute | None]:
    """Return the modules, of a Router those of documents, and the route of queries."""
    modules = read_form(checkpoint, "modules.json", list[Module])
    routed = None if modules is None or multi_vector else read_router(checkpoint, modules)
    return (modules, None) if routed is None else routed


def add_task_instructions(sentence: SentenceTransformer, instructions: object) -> SentenceTransformer:
    """Take the instructions of config.json, by task, as prompts beside those of sentence-transformers' files.

    vLLM reads them there (``task_instructions``) for the input types of its ``/v2/embed``. A prompt of that name in
    sentence-transformers' files stays, and the default prompt with it.

    Raises:
        ExportError: they are not texts by name.
    """
    if instructions is None:
        return sentence
    try:
        texts = msgspec.convert(instructions, dict[str, str])
    except msgspec.ValidationError as error:
        raise ExportError(f"task_instructions of config.json are not what they should be: {error}") from error
    return replace(sentence, prompts={**texts, **sentence.prompts})


def parse_pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the pooling modes of ``1_Pooling/config.json``, in the older and the current spelling.

    Raises:
        ExportError: one of them is unknown.
    """
    mode = config.get("pooling_mode")
    if mode is None:
        mode = tuple(name for flag, name in POOLING_FLAGS.items() if config.get(flag)) or "mean"
    modes = tuple(mode) if isinstance(mode, list | tuple) else (mode,)
    unknown = [name for name in modes if name not in POOLING_FLAGS.values()]
    if unknown:
        raise ExportError(
            f"pooling modes {unknown} cannot be compiled; the known ones are {list(POOLING_FLAGS.values())}"
        )
    return modes


def _check_default_prompt(settings: _Settings) -> None:
    """Check that the default prompt is there; sentence-transformers has those of the sides of every model."""
    name = settings.default_prompt_name
    if name is not None and name not in (*SIDES, *(settings.prompts or ())):
        raise ExportError(
            f"config_sentence_transformers.json names the default prompt {name!r}, but has only the prompts "
            f"{sorted(settings.prompts or {})}"
        )


def _name_prompts(settings: _Settings) -> dict[str, str]:
    default = settings.default_prompt_name
    always: dict[str, str | None] = {name: None for name in SIDES if name == default}
    return {name: prompt or "" for name, prompt in {**always, **(settings.prompts or {})}.items()}


def _choose_similarity(settings: _Settings, default: str) -> str:
    """Return the name of the similarity; of one that it does not know sentence-transformers takes its default."""
    name = settings.similarity_fn_name
    if name is None or name in SIMILARITY_FUNCTIONS:
        return name or default
    warnings.warn(
        f"similarity_fn_name {name!r} is none of {list(SIMILARITY_FUNCTIONS)}; "
        f"{default} is taken, as by sentence-transformers",
        UserWarning,
        stacklevel=2,
    )
    return default


def _module_kind(module: Module, compiled: tuple[str, ...]) -> str:
    dotted = module.type
    kind = dotted.rpartition(".")[2]
    if kind not in compiled or not (re.match(r"(sentence_transformers|pylate)\.", dotted) or dotted in PUBLISHED_CODE):
        raise ExportError(
            f"modules.json has a module of type {dotted!r} at {module.path!r}, which cannot be compiled "
            f"into the graph; those that can are {list(compiled)}"
        )
    _check_path(module.path)
    return kind


def _check_path(path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ExportError(f"modules.json names the path {path!r}, which leaves the checkpoint")


def _check_order(kinds: list[str]) -> None:
    if not kinds or kinds[0] not in TRANSFORMERS or sum(kind in TRANSFORMERS for kind in kinds) > 1:
        raise ExportError(f"modules.json must start with its only Transformer module to be compiled; it has {kinds}")
    if any(kind in POOLINGS for kind in (*kinds[:1], *kinds[2:])):
        raise ExportError(
            f"modules.json must have its Pooling right after the Transformer to be compiled; it has {kinds}"
        )


def _choose_active_dims(settings: _Settings, splade: Splade | None, auto_encoder: AutoEncoder | None) -> int | None:
    if auto_encoder is not None:
        return auto_encoder.number
    return None if splade is None else settings.max_active_dims


def _read_head(
    checkpoint: Checkpoint,
    modules: list[Module],
    kinds: list[str],
    auto_encoder: AutoEncoder | None,
    *,
    multi_vector: bool,
) -> Iterator[HeadModule]:
    """Yield the modules behind the pooling; an auto-encoder's smaller features are left out right behind it."""
    skipped = (*TRANSFORMERS, *POOLINGS, *(() if auto_encoder is None else ("Dropout",)))
    for module, kind in zip(modules, kinds, strict=True):
        if kind in skipped:
            continue
        yield _head_module(checkpoint, module, kind, multi_vector=multi_vector)
        if kind == "SparseAutoEncoder" and auto_encoder is not None:
            yield HeadModule(kind="KeepLargest", path="", config={"k": auto_encoder.number})


def _head_module(checkpoint: Checkpoint, module: Module, kind: str, *, multi_vector: bool) -> HeadModule:
    config = read_form(checkpoint, f"{module.path}/config.json", dict[str, Any]) or {}
    head = HeadModule(kind=kind, path=module.path, config=config)
    if not multi_vector:
        _check_features(head)
    return head


def _check_features(module: HeadModule) -> None:
    source, target = (name or "sentence_embedding" for name in module.features)
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise ExportError(
            f"module {module.kind} at {module.path!r} reads {source!r} and writes {target!r}; only sentence_embedding "
            "can be compiled"
        )


def _truncation(settings: _Settings) -> tuple[HeadModule, ...]:
    """Sentence-transformers cuts finished embeddings to truncate_dim, without normalizing again: one more module."""
    if settings.truncate_dim is None:
        return ()
    return (HeadModule(kind="Truncate", path="", config={"size": settings.truncate_dim}),)
