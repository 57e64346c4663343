"""Sentence-transformers' files: the chain of modules, prompts and limits, read into frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

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
    modules = checkpoint.read_json("modules.json")
    if modules is None:
        return None
    kinds = [_module_kind(module) for module in modules]
    _check_order(kinds)
    pooling_path = modules[kinds.index("Pooling")]["path"] if "Pooling" in kinds else None
    pooling = checkpoint.read_json(f"{pooling_path}/config.json") if pooling_path else {}
    limits = _read_limits(checkpoint, modules[0]["path"])
    settings = checkpoint.read_json("config_sentence_transformers.json") or {}
    return SentenceTransformer(
        transformer_path=modules[0]["path"],
        pooling=parse_pooling(pooling or {}) if pooling_path else (),
        include_prompt=bool((pooling or {}).get("include_prompt", True)),
        head=tuple(
            _head_module(checkpoint, m, k)
            for m, k in zip(modules, kinds, strict=True)
            if k not in ("Transformer", "Pooling")
        ),
        max_seq_length=limits.get("max_seq_length"),
        do_lower_case=bool(limits.get("do_lower_case", False)),
        prompts=settings.get("prompts") or {},
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name") or "cosine",
    )


def parse_pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the pooling modes of ``1_Pooling/config.json``, in the older and the current spelling."""
    mode = config.get("pooling_mode")
    if mode is None:
        mode = tuple(name for flag, name in POOLING_FLAGS.items() if config.get(flag)) or "mean"
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    unknown = [name for name in modes if name not in POOLING_FLAGS.values()]
    if unknown:
        raise ExportError(
            f"pooling modes {unknown} cannot be compiled; the known ones are {list(POOLING_FLAGS.values())}"
        )
    return modes


def _module_kind(module: Mapping[str, Any]) -> str:
    dotted = str(module.get("type", ""))
    kind = dotted.rpartition(".")[2]
    if kind not in COMPILED_MODULES or not re.match(r"(sentence_transformers|pylate)\.", dotted):
        raise ExportError(
            f"modules.json has a module of type {dotted!r} at {module.get('path')!r}, which cannot be compiled "
            f"into the graph; those that can are {list(COMPILED_MODULES)}"
        )
    _check_path(str(module.get("path", "")))
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


def _head_module(checkpoint: Checkpoint, module: Mapping[str, Any], kind: str) -> HeadModule:
    config = checkpoint.read_json(f"{module['path']}/config.json") or {}
    _check_features(config, kind, module["path"])
    return HeadModule(kind=kind, path=module["path"], config=config)


def _check_features(config: Mapping[str, Any], kind: str, path: str) -> None:
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise ExportError(
            f"module {kind} at {path!r} reads {source!r} and writes {target!r}; only sentence_embedding can be compiled"
        )


def _read_limits(checkpoint: Checkpoint, path: str) -> Mapping[str, Any]:
    for name in LIMIT_FILES:
        found: Mapping[str, Any] | None = checkpoint.read_json(f"{path}/{name}" if path else name)
        if found is not None:
            return found
    return {}
