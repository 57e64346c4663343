"""Sentence-transformers' files: the chain of modules, prompts and limits, read into frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older pooling configurations, in the order in which sentence-transformers concatenates their results."""

COMPILED_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")

LIMIT_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers looks for max_seq_length and do_lower_case, in its order."""


_Form = TypeVar("_Form")


class _Module(msgspec.Struct, frozen=True):
    """A row of modules.json."""

    type: str
    path: str


class _Settings(msgspec.Struct, frozen=True):
    """What is read of config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None


class _Limits(msgspec.Struct, frozen=True):
    """What is read of sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadModule:
    """One module after the pooling: its class name, its folder in the checkpoint and its configuration."""

    kind: str
    path: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformer:
    """What a sentence-transformers checkpoint says beyond the backbone.

    Attributes:
        transformer_path: Folder of the backbone, "" for the checkpoint's own.
        pooling: Pooling modes in the order of their concatenation, empty where the files have no Pooling.
        include_prompt: False when the prompt's tokens are left out of the pooling.
        head: The modules after the pooling.
        max_seq_length: Limit in tokens, None where the files do not say.
        do_lower_case: Whether texts are lower-cased before they are tokenized.
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that is applied when none is asked for.
        similarity_fn_name: cosine, dot, euclidean or manhattan.
    """

    transformer_path: str = ""
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    head: tuple[HeadModule, ...] = ()
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"


def parse_sentence_transformers(checkpoint: Checkpoint) -> SentenceTransformer | None:
    """Read the sentence-transformers files; None for a checkpoint without ``modules.json``.

    Raises:
        ExportError: a module that cannot be compiled, named with those that can.
    """
    modules = _read(checkpoint, "modules.json", list[_Module])
    if modules is None:
        return None
    kinds = [_module_kind(module) for module in modules]
    _check_order(kinds)
    pooling_path = modules[kinds.index("Pooling")].path if "Pooling" in kinds else None
    pooling = (_read(checkpoint, f"{pooling_path}/config.json", dict[str, Any]) or {}) if pooling_path else {}
    limits = _read_limits(checkpoint, modules[0].path)
    settings = _read(checkpoint, "config_sentence_transformers.json", _Settings) or _Settings()
    _check_default_prompt(settings)
    return SentenceTransformer(
        transformer_path=modules[0].path,
        pooling=parse_pooling(pooling) if pooling_path else (),
        include_prompt=bool(pooling.get("include_prompt", True)),
        head=tuple(
            _head_module(checkpoint, m, k)
            for m, k in zip(modules, kinds, strict=True)
            if k not in ("Transformer", "Pooling")
        ),
        max_seq_length=limits.max_seq_length,
        do_lower_case=bool(limits.do_lower_case),
        prompts=settings.prompts or {},
        default_prompt_name=settings.default_prompt_name,
        similarity_fn_name=settings.similarity_fn_name or "cosine",
    )


def parse_pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the pooling modes of ``1_Pooling/config.json``, in the older and the current spelling."""
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


def _read(checkpoint: Checkpoint, name: str, form: type[_Form]) -> _Form | None:
    """Read a JSON file of the checkpoint in the form that sentence-transformers writes; None where there is none."""
    content = checkpoint.read_json(name)
    if content is None:
        return None
    try:
        return msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise ExportError(f"{name} of checkpoint {checkpoint.model!r} is not what it should be: {error}") from error


def _check_default_prompt(settings: _Settings) -> None:
    name = settings.default_prompt_name
    if name is not None and name not in (settings.prompts or {}):
        raise ExportError(
            f"config_sentence_transformers.json names the default prompt {name!r}, but has only the prompts "
            f"{sorted(settings.prompts or {})}"
        )


def _module_kind(module: _Module) -> str:
    dotted = module.type
    kind = dotted.rpartition(".")[2]
    if kind not in COMPILED_MODULES or not re.match(r"(sentence_transformers|pylate)\.", dotted):
        raise ExportError(
            f"modules.json has a module of type {dotted!r} at {module.path!r}, which cannot be compiled "
            f"into the graph; those that can are {list(COMPILED_MODULES)}"
        )
    _check_path(module.path)
    return kind


def _check_path(path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ExportError(f"modules.json names the path {path!r}, which leaves the checkpoint")


def _check_order(kinds: list[str]) -> None:
    if not kinds or kinds[0] != "Transformer" or kinds.count("Transformer") > 1:
        raise ExportError(f"modules.json must start with its only Transformer module to be compiled; it has {kinds}")
    if kinds.count("Pooling") > 1 or ("Pooling" in kinds and kinds.index("Pooling") != 1):
        raise ExportError(
            f"modules.json must have its Pooling right after the Transformer to be compiled; it has {kinds}"
        )


def _head_module(checkpoint: Checkpoint, module: _Module, kind: str) -> HeadModule:
    config = _read(checkpoint, f"{module.path}/config.json", dict[str, Any]) or {}
    _check_features(config, kind, module.path)
    return HeadModule(kind=kind, path=module.path, config=config)


def _check_features(config: Mapping[str, Any], kind: str, path: str) -> None:
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise ExportError(
            f"module {kind} at {path!r} reads {source!r} and writes {target!r}; only sentence_embedding can be compiled"
        )


def _read_limits(checkpoint: Checkpoint, path: str) -> _Limits:
    for name in LIMIT_FILES:
        found = _read(checkpoint, f"{path}/{name}" if path else name, _Limits)
        if found is not None:
            return found
    return _Limits()
