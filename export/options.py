"""What a caller asks of an export beyond the checkpoint: task, conversion, pooler and overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from poolgraph.config import PoolerConfig, parse_pooler_config
from poolgraph.errors import InputError
from poolgraph.tasks import CONVERSIONS, EXPORT_TASKS, RUNNERS

_CHOICES = {"task": EXPORT_TASKS, "convert": CONVERSIONS, "runner": RUNNERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options that decide what is compiled; those of ``LLM`` and of the command line have the same names.

    Attributes:
        task: What the artifact is for; ``auto`` reads the checkpoint.
        convert: What a model is made into: ``embed`` drops its head, ``classify`` gives it one.
        runner: ``auto`` or ``pooling``.
        pooler_config: Beats the sentence-transformers files, which beat the architecture's default, field by field.
        hf_overrides: Fields of ``config.json``, changed before anything else is decided.
        score_template: Name of a shipped score template, a file, or None for the checkpoint's own.

    Raises:
        InputError: an unknown task, conversion or runner, or overrides that are no JSON object.
    """

    task: str = "auto"
    convert: str = "auto"
    runner: str = "auto"
    pooler_config: PoolerConfig = field(default_factory=PoolerConfig)
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    score_template: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"--{name} {value} is unknown; choose one of {', '.join(allowed)}")
        if not isinstance(self.hf_overrides, Mapping):
            raise InputError(
                f"hf_overrides must be a mapping, not {type(self.hf_overrides).__name__}", parameter="hf_overrides"
            )

    def to_record(self) -> dict[str, str]:
        """Return what differs from the default as text, for the manifest."""
        record = {name: getattr(self, name) for name in _CHOICES if getattr(self, name) != "auto"}
        pooler = {
            item.name: getattr(self.pooler_config, item.name)
            for item in fields(self.pooler_config)
            if getattr(self.pooler_config, item.name) is not None
        }
        record |= {"pooler_config": json.dumps(pooler, sort_keys=True)} if pooler else {}
        overrides = dict(self.hf_overrides)
        return record | ({"hf_overrides": json.dumps(overrides, sort_keys=True)} if overrides else {})

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> ExportOptions:
        """Read the options back from a manifest's."""
        known = {name: record[name] for name in _CHOICES if name in record}
        return cls(
            **known,
            pooler_config=PoolerConfig.from_json(record.get("pooler_config", "{}")),
            hf_overrides=json.loads(record.get("hf_overrides", "{}")),
        )


def parse_overrides(value: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """Read ``hf_overrides`` from a mapping or the text of a JSON object.

    Raises:
        InputError: it is neither.
    """
    if value is None:
        return {}
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"hf_overrides is not JSON: {error}", parameter="hf_overrides", value=value) from error
    if not isinstance(parsed, Mapping):
        raise InputError("hf_overrides must be a JSON object", parameter="hf_overrides", value=value)
    return parsed


def make_options(
    task: str,
    convert: str,
    runner: str,
    pooler_config: PoolerConfig | Mapping[str, Any] | str | None,
    hf_overrides: Mapping[str, Any] | str | None,
    score_template: str | None,
) -> ExportOptions:
    """Make options of what a caller may give as an object, a mapping or JSON text.

    Raises:
        InputError: a value that is none of these, or not allowed.
    """
    return ExportOptions(
        task=task,
        convert=convert,
        runner=runner,
        pooler_config=parse_pooler_config(pooler_config),
        hf_overrides=parse_overrides(hf_overrides),
        score_template=score_template,
    )
