"""Routers that are refused, and tables that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_router import save_router

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.export.sentence_transformers import parse_sentence_transformers
from poolgraph.export.static_query import save_static_query

QUERY = "query_0_SparseStaticEmbedding"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_router(tmp_path_factory.mktemp("router") / "checkpoint")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def resolve(folder: Path) -> ExportPlan:
    options = ExportOptions()
    return resolve_plan(
        open_checkpoint(folder), options=options, precisions=("fp32",), targets=("cpu",), trust_remote_code=False
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "router_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_table_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    plan = resolve(checkpoint)
    assert plan.static is not None
    assert (plan.static.record.max_tokens, plan.static.record.default_route) == (40, "document")
    save_static_query(plan.static, tmp_path)
    assert np.array_equal(np.load(tmp_path / "query_weights.npy", allow_pickle=False), plan.static.weights)


def test_older_names(checkpoint: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["types"] = {
            name: "sentence_transformers.sparse_encoder.models." + kind.rpartition(".")[2]
            for name, kind in content["types"].items()
        }

    edit(checkpoint, rename)
    (checkpoint / "router_config.json").rename(checkpoint / "config.json")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Asym"}]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    assert resolve(checkpoint).static is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it["structure"].pop("query"), r"Router with the routes .* cannot be compiled; what can be"),
        (lambda it: it["structure"].update(image=[QUERY]), "with the routes .*image"),
        (lambda it: it["structure"].update(query=it["structure"]["document"]), "cannot be compiled; what can be"),
        (lambda it: it["structure"].update(document=[QUERY]), "cannot be compiled; what can be"),
        (lambda it: it["structure"].update(query=["gone"]), r"names \['gone'\], which are no modules"),
        (lambda it: it["parameters"].update(default_route="gone"), "default_route is 'gone', but its routes are"),
        (lambda it: it["parameters"].update(route_mappings={"('query', 'text')": "document"}), "has route_mappings"),
    ],
)
def test_routes_that_are_refused(checkpoint: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(checkpoint, change)
    with pytest.raises(ExportError, match=message):
        parse_sentence_transformers(open_checkpoint(checkpoint))


def test_router_without_its_file(checkpoint: Path) -> None:
    (checkpoint / "router_config.json").unlink()
    with pytest.raises(ExportError, match="a Router without its file; looked for"):
        parse_sentence_transformers(open_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(7)}, r"weights of shape \(7,\), its tokenizer a vocabulary of"),
        ({"other": torch.ones(7)}, "has no tensor 'weight'"),
        (None, "no weights in query_0_SparseStaticEmbedding"),
    ],
)
def test_tables_that_do_not_fit(checkpoint: Path, tensors: dict[str, torch.Tensor] | None, message: str) -> None:
    file = checkpoint / QUERY / "model.safetensors"
    file.unlink()
    if tensors is not None:
        save_file(tensors, file)
    with pytest.raises(ExportError, match=message):
        resolve(checkpoint)


def test_weights_that_are_no_numbers(checkpoint: Path) -> None:
    plan = resolve(checkpoint)
    assert plan.static is not None
    weights = torch.from_numpy(plan.static.weights.copy())
    weights[3] = float("nan")
    (checkpoint / QUERY / "model.safetensors").unlink()
    save_file({"weight": weights}, checkpoint / QUERY / "model.safetensors")
    with pytest.raises(ExportError, match="has the weight nan for token id 3"):
        resolve(checkpoint)


def test_another_tokenizer(checkpoint: Path) -> None:
    file = checkpoint / QUERY / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = None
    file.write_text(json.dumps(content))
    with pytest.raises(ExportError, match="is not that of documents; an artifact has one for both"):
        resolve(checkpoint)


def test_dense_routes_are_refused_by_name(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
    from transformers import AutoTokenizer

    saved = save_router(tmp_path / "sparse")
    document = Transformer(str(saved / "document_0_Transformer"))
    tokenizer = AutoTokenizer.from_pretrained(saved / QUERY)
    routes = Router.for_query_document(
        query_modules=[StaticEmbedding(tokenizer, embedding_dim=8)],
        document_modules=[document, Pooling(document.get_embedding_dimension())],
    )
    SentenceTransformer(modules=[routes]).save_pretrained(str(tmp_path / "dense"))
    with pytest.raises(ExportError, match=r"routes .*'query': \['StaticEmbedding'\].* cannot be compiled; what can be"):
        parse_sentence_transformers(open_checkpoint(tmp_path / "dense"))
