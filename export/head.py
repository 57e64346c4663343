"""The head of a plan: described as steps whose tensors are named, built as torch modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import WeightFolder
from poolgraph.export.head_activations import DEFAULT_ACTIVATION, build_activation
from poolgraph.export.layouts import Weights
from poolgraph.export.sentence_transformers import HeadModule
from poolgraph.graphs.families import AnswerKind
from poolgraph.poolers.head import (
    Dense,
    Head,
    LayerNorm,
    LogSaturation,
    Normalize,
    Standardize,
    Truncate,
    WeightedVectors,
    drop_finish,
)
from poolgraph.poolers.sparse_auto_encoder import KeepLargest, SparseAutoEncoder

OTHER_NAMES = {
    "linear.weight": ("weight", "dense.weight"),
    "linear.bias": ("bias", "dense.bias"),
    "activation.weight": ("activation_function.weight",),
    "encoder.weight": ("decoder.linear.weight",),
}
"""Other names that files use for the same tensors; a sparse auto-encoder's decoder is its encoder, transposed."""


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that stand for themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A parameter's tensor in a checkpoint.

    Attributes:
        folder: Folder of the weights.
        name: Name there.
        rows: Rows that are taken, in this order; None for all.
        difference: Subtract the first of the two rows from the second instead (vLLM's from_2_way_softmax).
    """

    folder: Path
    name: str
    rows: tuple[int, ...] | None = None
    difference: bool = False

    def load(self, folder: Weights) -> torch.Tensor:
        """Read the tensor in float32; (1, hidden_size) for a difference.

        Raises:
            ExportError: it is stored in integers or in 8 bits, whose scale is another tensor's matter.
        """
        tensor = folder.load(self.name)
        if tensor.dtype not in FLOATS:
            raise ExportError(
                f"{self.name} is stored as {tensor.dtype}, whose scale nothing here reads: export a checkpoint whose "
                "weights are floats of 16 bits or more"
            )
        tensor = tensor.float()
        if self.rows is None:
            return tensor
        taken = tensor[list(self.rows)]
        return taken[1:] - taken[:1] if self.difference else taken


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStep:
    """One module of a head.

    Attributes:
        kind: A key of BUILDERS.
        config: What its builder takes.
        tensors: Its parameters' names to where they are stored.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)

    def output_size(self, input_size: int) -> int:
        """Return the width of the result for an input of ``input_size``."""
        widths = {"Dense": "out_features", "WeightedVectors": "out_features", "SparseAutoEncoder": "hidden_dim"}
        if self.kind in widths:
            return int(self.config[widths[self.kind]])
        return min(input_size, int(self.config["size"])) if self.kind == "Truncate" else input_size

    @property
    def input_size(self) -> int | None:
        """The width that the step takes, None when any fits."""
        names = {"Dense": "in_features", "LayerNorm": "dimension", "SparseAutoEncoder": "input_dim"}
        return int(self.config[names[self.kind]]) if self.kind in names else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """What follows the backbone.

    Attributes:
        kind: What the answers are.
        pooling: Pooling modes of the sequence family; None where there is only the token family.
        rows: Steps of the backbone's rows before they are pooled, of the backbone's precision: a masked language
            model's head, which makes scores of words of them, or a layer of EuroBERT's classifiers. There is no token
            family then.
        pooled: Steps of pooled vectors alone.
        shared: Steps of pooled vectors and of token rows.
        tokens: Steps of token rows in the place of ``shared``: vectors that end with the weight of the token's word.
        activation: For logits, a key of ``runtime.activations.ACTIVATIONS``.
        use_activation: Whether a request that does not say gets it.
        column_token_ids: Vocabulary ids of the columns, where they are rows of a language-model head.
        converted: Whether the head is made here, so that no class of transformers has it.
    """

    kind: AnswerKind
    pooling: tuple[str, ...] | None
    rows: tuple[HeadStep, ...] = ()
    pooled: tuple[HeadStep, ...] = ()
    shared: tuple[HeadStep, ...] = ()
    tokens: tuple[HeadStep, ...] = ()
    activation: str | None = None
    use_activation: bool = True
    column_token_ids: tuple[int, ...] = ()
    converted: bool = False

    @property
    def normalize(self) -> bool:
        """Whether the finished value is the raw one divided by its norm."""
        return any(step.kind == "Normalize" for step in self.finish)

    @property
    def finish(self) -> tuple[HeadStep, ...]:
        """Steps at the end that make the finished value of the raw one, of each kind one at most."""
        kinds: list[str] = []
        for step in reversed(self.shared):
            if step.kind not in ("KeepLargest", "Normalize") or step.kind in kinds:
                break
            kinds.append(step.kind)
        return self.shared[len(self.shared) - len(kinds) :]

    @property
    def is_sparse(self) -> bool:
        """Whether answers are weights, of words or of an auto-encoder's features, most of them 0."""
        return any(step.kind in ("LogSaturation", "SparseAutoEncoder") for step in (*self.rows, *self.shared))

    @property
    def scores_words(self) -> bool:
        """Whether a masked language model's head makes scores of words of the rows."""
        return bool(self.rows) and self.kind != "logits"

    @property
    def normalizes_kept(self) -> bool:
        """Whether the norm is that of the largest values alone, which are kept."""
        return [step.kind for step in self.finish] == ["KeepLargest", "Normalize"]

    def sequence_size(self, hidden_size: int) -> int | None:
        """Return the width of a text's finished vector, None without the sequence family."""
        if self.pooling is None:
            return None
        pooled_size = len(self.pooling) * _width_after(self.rows, hidden_size)
        return _width_after((*self.pooled, *self.shared), pooled_size)

    def token_size(self, hidden_size: int) -> int | None:
        """Return the width of a token's finished vector, None where the shared steps do not fit the backbone's rows."""
        return _width_after(self.tokens or self.shared, hidden_size) if self.takes_rows(hidden_size) else None

    def takes_rows(self, hidden_size: int) -> bool:
        """Whether the shared steps fit the backbone's own rows."""
        if self.rows or self.is_sparse or self.tokens:
            return bool(self.tokens)
        width = next((step.input_size for step in self.shared if step.input_size is not None), None)
        return width in (None, hidden_size)

    def tensors(self) -> dict[str, StoredTensor]:
        """Return where each parameter of the built head is stored, by its name in the pooling module."""
        parts = (
            ("backbone.row_head", self.rows),
            ("head.pooled", self.pooled),
            ("head.chain", self.shared),
            ("head.tokens", self.tokens),
        )
        return {
            f"{prefix}.{index}.{name}": stored
            for prefix, steps in parts
            for index, step in enumerate(steps)
            for name, stored in step.tensors.items()
        }


def _width_after(steps: Iterable[HeadStep], width: int) -> int:
    for step in steps:
        width = step.output_size(width)
    return width


def build_head(plan: HeadPlan) -> Head:
    """Build the head's modules; their parameters are not loaded."""
    return Head(build_steps(plan.shared), build_steps(plan.pooled), build_steps(plan.tokens))


def build_steps(steps: Iterable[HeadStep]) -> list[nn.Module]:
    """Build the modules of steps."""
    return [_build(step) for step in steps]


def load_steps(steps: Iterable[HeadStep]) -> list[nn.Module]:
    """Build the modules of steps with their real weights in float32, those that finish the raw value left out."""
    modules = []
    for step in steps:
        module = _build(step)
        folders = {stored.folder: WeightFolder(stored.folder) for stored in step.tensors.values()}
        module.load_state_dict({name: stored.load(folders[stored.folder]) for name, stored in step.tensors.items()})
        modules.append(module.eval())
    return drop_finish(modules)


def describe_modules(modules: Iterable[HeadModule], folder: Path) -> tuple[HeadStep, ...]:
    """Turn sentence-transformers' head modules into steps, their tensors looked up in the modules' own folders.

    Raises:
        ExportError: a module lacks a tensor or a part of its configuration.
    """
    return tuple(_describe_module(module, folder / module.path) for module in modules)


def _describe_module(module: HeadModule, folder: Path) -> HeadStep:
    step = HeadStep(kind=module.kind, config=module.config)
    with torch.device("meta"):
        names = [name for name, _ in _build(step).named_parameters()]
    if not names:
        return step
    stored = WeightFolder(folder).names
    tensors = {}
    for name in names:
        found = next((n for n in (name, *OTHER_NAMES.get(name, ())) if n in stored), None)
        if found is None:
            raise ExportError(f"{module.kind} at {module.path!r} lacks the tensor {name}; it has {sorted(stored)}")
        tensors[name] = StoredTensor(folder=folder, name=found)
    return HeadStep(kind=module.kind, config=module.config, tensors=tensors)


def _build(step: HeadStep) -> nn.Module:
    try:
        return BUILDERS[step.kind](step.config)
    except KeyError as error:
        raise ExportError(f"the configuration of {step.kind} in the head lacks {error}") from error


def _build_dense(config: Mapping[str, Any]) -> Dense:
    name, width = config.get("activation_function", DEFAULT_ACTIVATION), int(config["out_features"])
    activation = build_activation(name)
    if isinstance(activation, nn.GLU):
        raise ExportError(f"the activation {name} of a Dense module halves its width, which is not compiled")
    return Dense(
        int(config["in_features"]),
        width,
        bias=bool(config.get("bias", True)),
        activation=activation,
        use_residual=bool(config.get("use_residual", False)),
    )


def _build_layer_norm(config: Mapping[str, Any]) -> LayerNorm:
    return LayerNorm(int(config["dimension"]), eps=float(config.get("eps", 1e-5)), bias=bool(config.get("bias", True)))


def _build_auto_encoder(config: Mapping[str, Any]) -> SparseAutoEncoder:
    return SparseAutoEncoder(
        int(config["input_dim"]), int(config.get("hidden_dim", 512)), normalize=bool(config.get("normalize", False))
    )


BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = MappingProxyType(
    {
        "Dense": _build_dense,
        "LayerNorm": _build_layer_norm,
        "Normalize": lambda config: Normalize(),
        "Dropout": lambda config: nn.Identity(),
        "Truncate": lambda config: Truncate(int(config["size"])),
        "LogSaturation": lambda config: LogSaturation(int(config["times"])),
        "WeightedVectors": lambda config: WeightedVectors(int(config["in_features"]), int(config["out_features"])),
        "SparseAutoEncoder": _build_auto_encoder,
        "KeepLargest": lambda config: KeepLargest(int(config["k"])),
        "Standardize": lambda config: Standardize(config["mean"], config["sigma"]),
    }
)
"""How each kind of step is built from its configuration."""
