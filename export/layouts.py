"""Layouts: how checkpoints published with code of their own become a transformers class, its config and its tensors.

Tensors are renamed, split and joined by transformers' own table of conversions (``WeightRenaming``,
``WeightConverter``), which ``from_pretrained`` uses too; what that table lacks, a row of ours adds in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from transformers import PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from poolgraph.errors import UnsupportedArchitecture

Json = Mapping[str, Any]


class Weights(Protocol):
    """Tensors by name: a ``WeightFolder``, or one seen through a layout."""

    @property
    def folder(self) -> Path:
        """Where the files are."""

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def stored_name(self, name: str) -> str:
        """Return the name in the files of a tensor that is stored as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One published layout.

    Attributes:
        model_type: transformers' model type for it.
        recognize: Whether a ``config.json`` is of this layout.
        classes: transformers' names of the classes in ``architectures``; others are kept.
        fields: transformers' names of fields, by the published ones.
        derive: Further fields, from the published configuration; raises for what the class cannot express.
        transforms: Makes conversions of tensors that come before transformers' own.
        view: What the tensors are seen through before any conversion, given the finished configuration.
        backbone: The backbone's class, where it is not transformers' for the model type.
        projection: Name of a matrix that every token's row goes through after the class, where the checkpoint has it.
        must_project: Whether the class has that matrix, so that a checkpoint without it is not whole.
    """

    model_type: str
    recognize: Callable[[Json], bool]
    classes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    derive: Callable[[Json], Json] = lambda _published: {}
    transforms: Callable[[], Sequence[WeightTransform]] = tuple
    view: Callable[[Weights, PretrainedConfig], Weights] | None = None
    backbone: str | None = None
    projection: str | None = None
    must_project: bool = False

    @property
    def is_own(self) -> bool:
        """Whether transformers' ``from_pretrained`` cannot read the tensors by itself."""
        return self.view is not None or bool(self.transforms())

    def translate(self, published: Json) -> dict[str, Any]:
        """Return the fields of transformers' configuration; those of the same name and meaning stay."""
        kept = {name: value for name, value in published.items() if name not in _DROPPED}
        renamed = {new: published[old] for old, new in self.fields.items() if old in published and new not in published}
        classes = [self.classes.get(name, name) for name in published.get("architectures") or ()]
        return {
            **kept,
            **renamed,
            **self.derive(published),
            "model_type": self.model_type,
            "architectures": classes or None,
        }


_DROPPED = frozenset({"auto_map", "rope_theta", "rope_scaling", "transformers_version"})
"""Published fields that mean nothing to the class, or that ``derive`` turns into others."""


def check_fixed(published: Json, fixed: Json) -> None:
    """Check settings that transformers' class fixes; null, 0 and false are the same.

    Raises:
        UnsupportedArchitecture: one of them has another value; all such are named.
    """
    wrong = {
        name: published[name] for name, only in fixed.items() if (published.get(name, only) or None) != (only or None)
    }
    if wrong:
        only = {name: fixed[name] for name in wrong}
        raise UnsupportedArchitecture(
            f"config.json of model_type {published['model_type']!r} has {wrong}; supported is {only}"
        )


def read_rope(published: Json, base: float = 10000.0) -> dict[str, Any]:
    """Return rotary parameters, also those of the older fields ``rope_theta`` and ``rope_scaling``.

    Args:
        published: The configuration.
        base: Where it names none.
    """
    if published.get("rope_parameters"):
        return dict(published["rope_parameters"])
    scaling = dict(published.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    return {"rope_type": kind, "rope_theta": float(published.get("rope_theta") or base), **scaling}


def find_layout(layouts: Iterable[Layout], published: Json) -> Layout | None:
    """Return the layout of a ``config.json``, None for one in transformers' own."""
    return next((layout for layout in layouts if layout.recognize(published)), None)


def convert_weights(weights: Weights, layout: Layout | None, class_name: str, config: PretrainedConfig) -> Weights:
    """Return a checkpoint's tensors under transformers' names.

    Args:
        weights: The tensors as stored.
        layout: The published layout, or None.
        class_name: The transformers class they are for.
        config: Its configuration.
    """
    if layout is not None and layout.view is not None:
        weights = layout.view(weights, config)
    find_table: Callable[[str], Sequence[WeightTransform] | None] = get_checkpoint_conversion_mapping
    table = find_table(class_name) or find_table(config.model_type) or ()
    transforms = (*(layout.transforms() if layout is not None else ()), *table)
    return ConvertedWeights(weights, transforms, config) if transforms else weights


class ConvertedWeights:
    """Tensors under the names that a list of conversions gives them, converted when they are read.

    Args:
        stored: The tensors.
        transforms: All renamings are applied in order, then the first conversion that matches.
        config: Handed to the conversions.
    """

    def __init__(self, stored: Weights, transforms: Sequence[WeightTransform], config: PretrainedConfig) -> None:
        self._stored, self._config = stored, config
        self._renamed: dict[str, str] = {}
        self._converted: dict[str, _Group] = {}
        renamings = [it for it in transforms if isinstance(it, WeightRenaming)]
        converters = [it for it in transforms if isinstance(it, WeightConverter)]
        by_pattern = {pattern: it for it in converters for pattern in it.source_patterns}
        groups: dict[str, _Group] = {}
        for name in sorted(stored.names, key=dot_natural_key):
            new, pattern = rename_source_key(name, renamings, converters)
            if pattern is None:
                self._renamed[new] = name
            else:
                group = groups.setdefault(new, _Group(new, by_pattern[pattern]))
                group.sources.append((pattern, name))
        for group in groups.values():
            self._converted.update(dict.fromkeys(group.targets, group))
        self._names = frozenset((*self._renamed, *self._converted))

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._stored.folder

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors, as transformers calls them."""
        return self._names

    def load(self, name: str) -> torch.Tensor:
        """Read one tensor, with those that it is made of."""
        if name in self._renamed:
            return self._stored.load(self._renamed[name])
        return self._converted[name].load(self._stored, self._config)[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which is read only where it is converted."""
        return self._stored.shape(self._renamed[name]) if name in self._renamed else tuple(self.load(name).shape)

    def stored_name(self, name: str) -> str:
        """Return the name in the files of a tensor that is only renamed."""
        return self._stored.stored_name(self._renamed[name])


@dataclass(frozen=True, slots=True)
class _Group:
    """Stored tensors that one conversion takes together.

    Attributes:
        name: The first name that results.
        converter: The conversion; stateful, so that each reading takes a copy.
        sources: Pattern and stored name of each, in natural order.
    """

    name: str
    converter: WeightConverter
    sources: list[tuple[str, str]] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The names that result."""
        first, *others = self.converter.target_patterns
        return [self.name, *(self.name.replace(first, other, 1) for other in others)]

    def load(self, stored: Weights, config: PretrainedConfig) -> dict[str, torch.Tensor]:
        """Read and convert."""
        tensors: dict[str, list[torch.Tensor]] = {}
        for pattern, name in self.sources:
            tensors.setdefault(pattern, []).append(stored.load(name))
        converter = self.converter
        for operation in converter.operations:
            tensors = operation.convert(
                tensors,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=self.name,
                config=config,
            )
        found = {
            self.name.replace(converter.target_patterns[0], target, 1): tensor for target, tensor in tensors.items()
        }
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in found.items()}
