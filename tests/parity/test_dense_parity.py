"""Dense modules whose activation has weights or an axis, against SentenceTransformer as it saves and loads them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_table import TOLERANCE, largest_difference, record
from tiny_colbert import save_native
from tiny_heads import change_json, save_model
from tiny_models import SIZES
from torch import nn

from poolgraph import PoolingModel, export_model
from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.late_interaction import parse_late_interaction
from poolgraph.export.probes import PROBE_SENTENCES


def save_dense(folder: Path, source: Path, activation: nn.Module) -> Path:
    """Save a backbone with mean pooling and a Dense module."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = Transformer(str(source))
        dense = Dense(SIZES["hidden_size"], 12, activation_function=activation)
        modules = [backbone, Pooling(SIZES["hidden_size"], "mean"), dense]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    "activation",
    [nn.PReLU(init=0.1), nn.Softmax(dim=-1), nn.LogSoftmax(dim=-1), nn.Softmin(dim=-1)],
    ids=lambda module: type(module).__name__,
)
def test_embeddings_equal_sentence_transformers(activation: nn.Module, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    source = save_model(tmp_path / "source", "BertModel", "BertModel")
    checkpoint = save_dense(tmp_path / "checkpoint", source, activation)
    texts = list(PROBE_SENTENCES[:8])
    with warnings.catch_warnings():
        # torch warns of an axis that it chooses itself.
        warnings.simplefilter("ignore")
        oracle = SentenceTransformer(str(checkpoint), device="cpu")
        expected = np.stack([oracle.encode([text], show_progress_bar=False)[0] for text in texts])
    assert np.ptp(expected) > 100 * TOLERANCE
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        found = model.embed(texts)
    name = type(activation).__name__
    difference = largest_difference(list(expected), list(found))
    record("embed", f"Dense with {name}", "sentence-transformers", difference)
    assert difference <= TOLERANCE, (name, difference)


def test_a_softmax_of_token_embeddings_is_refused(tmp_path: Path) -> None:
    """Of three axes torch takes the first, the batch: a token's vector would depend on other texts."""
    name = "torch.nn.modules.activation.Softmax"
    folder = save_native(tmp_path / "checkpoint")
    change_json(folder / "1_Dense" / "config.json", activation_function=name)
    with pytest.raises(ExportError, match=f"Dense at '1_Dense' has the activation {name}, whose axis"):
        parse_late_interaction(Checkpoint(folder=folder, model="m", revision=None))
