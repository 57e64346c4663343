"""What ``LLM``'s arguments ask of a model: its task, and the options that a checkpoint is exported with for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.engine_args import check_choice
from poolgraph.runtime.manifest_overrides import RUNTIME_OVERRIDES
from poolgraph.tasks import RUNNERS

_CONVERSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "auto": (),
    "none": (),
    "embed": ("embed", "token_embed"),
    "classify": ("classify", "token_classify"),
}
"""The tasks of what each conversion makes; none where it leaves them open."""

_TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "embed": ("embed",),
    "embedding": ("embed",),
    "classify": ("classify",),
    "score": ("classify", "embed", "token_embed"),
    "reward": ("classify", "token_classify"),
    "token_embed": ("token_embed",),
    "token_classify": ("token_classify",),
}
"""What each spelling of a task may mean; the first that the artifact supports holds."""

_EXPORT_TASKS: Final[Mapping[str, str]] = {"embedding": "embed"}

_GRAPH_FIELDS: Final = (
    "seq_pooling_type",
    "tok_pooling_type",
    "logit_mean",
    "logit_sigma",
    "step_tag_id",
    "returned_token_ids",
)
"""Fields of a PoolerConfig that decide what is compiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWish:
    """What the constructor's arguments ask of a model, None and ``auto`` where they leave it open.

    Attributes:
        task: In the caller's spelling.
        convert: ``auto``, ``none``, ``embed`` or ``classify``.
    """

    task: str | None = None
    convert: str = "auto"


def resolve_wish(runner: str, convert: str, task: str | None, config: PoolerConfig) -> TaskWish:
    """Read the arguments that say what a model is for; the config's task wins over the older argument.

    Raises:
        InputError: a runner that generates text, or an unknown convert type or task.
    """
    if runner not in RUNNERS:
        raise InputError(
            f"runner {runner!r} is not supported: poolgraph runs pooling models; allowed are {list(RUNNERS)}",
            parameter="runner",
            value=runner,
        )
    check_choice("convert", convert, _CONVERSIONS)
    named = None if task is None or task == "auto" else check_choice("task", task, _TASKS)
    return TaskWish(task=config.task or named, convert=convert)


def plan_export_options(
    wish: TaskWish,
    *,
    config: PoolerConfig,
    hf_overrides: Mapping[str, Any] | None,
    score_template: str | None,
    trust_remote_code: bool,
) -> dict[str, str]:
    """Return the options that a checkpoint is exported with when there is no artifact yet.

    What takes effect at run time is left out, so that it makes no second artifact; so is the runner, of which there is
    only one.

    Args:
        wish: Task and conversion.
        config: Its fields that decide what is compiled are handed on.
        hf_overrides: All but ``RUNTIME_OVERRIDES`` are handed on.
        score_template: Name or file of a score template.
        trust_remote_code: Let the checkpoint's own code run.

    Raises:
        InputError: overrides that are no mapping, or that JSON has no form for.
    """
    pooler = {name: getattr(config, name) for name in _GRAPH_FIELDS if getattr(config, name) is not None}
    options = {
        "task": _EXPORT_TASKS.get(wish.task or "", wish.task or ""),
        "convert": "" if wish.convert == "auto" else wish.convert,
        "pooler-config": _to_json("pooler_config", pooler),
        "hf-overrides": _to_json("hf_overrides", _compiled_overrides(hf_overrides)),
        "score-template": score_template or "",
        "trust-remote-code": "true" if trust_remote_code else "",
    }
    return {name: value for name, value in options.items() if value}


def resolve_default_task(manifest: Manifest, wish: TaskWish) -> str | None:
    """Return the task that ``encode`` does when none is named.

    Raises:
        TaskNotSupported: a task or conversion was asked for that the artifact does not support.
    """
    meanings = _TASKS[wish.task] if wish.task is not None else _CONVERSIONS[wish.convert]
    if not meanings or (wish.task is None and manifest.default_task in meanings):
        return manifest.default_task
    for meaning in meanings:
        if meaning in manifest.tasks:
            return meaning
    option, value = ("task", wish.task) if wish.task is not None else ("convert", wish.convert)
    raise TaskNotSupported(
        f"the artifact does not support {option} {value!r}; it supports {list(manifest.tasks)}. "
        f"Export the checkpoint with --{option} {_EXPORT_TASKS.get(str(value), value)}"
    )


def _compiled_overrides(hf_overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    if hf_overrides is not None and not isinstance(hf_overrides, Mapping):
        raise InputError(f"hf_overrides must be a mapping, not {type(hf_overrides).__name__}", parameter="hf_overrides")
    return {key: value for key, value in (hf_overrides or {}).items() if key not in RUNTIME_OVERRIDES}


def _to_json(name: str, value: Mapping[str, Any]) -> str:
    """Return the text of a JSON object, the same for equal mappings; nothing for an empty one."""
    try:
        return json.dumps(value, sort_keys=True) if value else ""
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} has no form in JSON: {error}", parameter=name, value=dict(value)) from error
