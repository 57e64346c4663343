"""Sparse encoders of sentence-transformers: a SpladePooling or a SparseAutoEncoder among the modules."""

from __future__ import annotations

from typing import Literal

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.router import Module
from poolgraph.export.transformer_options import TransformerOptions, read_form
from poolgraph.graphs.manifest import Positive

BEHIND = ("Normalize", "Dropout")
"""What may follow, for it leaves zeros what they are."""


class Splade(msgspec.Struct, frozen=True):
    """What is read of a SpladePooling's configuration."""

    strategy: Literal["max", "sum"] = msgspec.field(default="max", name="pooling_strategy")
    activation: Literal["relu", "log1p_relu"] = msgspec.field(default="relu", name="activation_function")


class AutoEncoder(msgspec.Struct, frozen=True):
    """What is read of a SparseAutoEncoder's configuration.

    Attributes:
        hidden_dim: Number of features.
        number: How many of them are kept.
    """

    hidden_dim: Positive = 512
    number: Positive = msgspec.field(default=8, name="k")


def read_splade(
    checkpoint: Checkpoint, modules: list[Module], kinds: list[str], transformer: TransformerOptions
) -> Splade | None:
    """Return the configuration of the SpladePooling, None where there is none.

    Raises:
        ExportError: modules around it that cannot be compiled.
    """
    if "SpladePooling" not in kinds:
        if "MLMTransformer" in kinds:
            raise ExportError("modules.json has an MLMTransformer without a SpladePooling, which cannot be compiled")
        return None
    if kinds[0] == "Transformer" and transformer.transformer_task is None:
        raise ExportError(
            "modules.json has a SpladePooling behind a Transformer without transformer_task, of which "
            "sentence-transformers pools the last hidden states and not scores of words; write 'fill-mask' into its "
            "sentence_bert_config.json"
        )
    _check_behind("SpladePooling", kinds, "weights of words")
    return read_form(checkpoint, f"{modules[kinds.index('SpladePooling')].path}/config.json", Splade) or Splade()


def read_auto_encoder(
    checkpoint: Checkpoint, modules: list[Module], kinds: list[str], max_active_dims: int | None
) -> AutoEncoder | None:
    """Return the configuration of the SparseAutoEncoder, None where there is none.

    Args:
        checkpoint: The checkpoint.
        modules: Its modules.
        kinds: What they are.
        max_active_dims: The SparseEncoder's own number of features that are kept, which goes before the module's.

    Raises:
        ExportError: modules around it that cannot be compiled, or more features kept than there are.
    """
    if "SparseAutoEncoder" not in kinds:
        return None
    if "Pooling" not in kinds:
        raise ExportError("modules.json has a SparseAutoEncoder without a Pooling, whose vectors it reads, before it")
    _check_behind("SparseAutoEncoder", kinds, "weights of its features")
    path = f"{modules[kinds.index('SparseAutoEncoder')].path}/config.json"
    found = read_form(checkpoint, path, AutoEncoder) or AutoEncoder()
    number = max_active_dims or found.number
    if number > found.hidden_dim:
        raise ExportError(
            f"{path} has {found.hidden_dim} features (hidden_dim), of which {number} are to be kept; "
            "sentence-transformers keeps no more than there are"
        )
    return msgspec.structs.replace(found, number=number)


def _check_behind(name: str, kinds: list[str], weights: str) -> None:
    behind = [kind for kind in kinds[kinds.index(name) + 1 :] if kind not in BEHIND]
    if behind:
        raise ExportError(
            f"modules.json has {behind} behind its {name}, after which embeddings are {weights} no more; "
            f"only {' and '.join(BEHIND)} can be compiled there"
        )
