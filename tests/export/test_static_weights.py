"""Weights of queries in a JSON file, as SparseStaticEmbedding.from_json reads them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SparseEncoder
from tiny_router import save_router
from transformers import AutoTokenizer

from poolgraph import PoolingModel, export_model
from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.resolve import resolve_plan

QUERY = "query_0_SparseStaticEmbedding"
TEXTS = ["the lazy dog", "fox fox a fox", "", "a ₿ fox", "quick brown jumps over"]
WEIGHTS = {"fox": 0.5, "the": 3, "dog": -1.25, "lazy": 1e-3, "nowhere to be found": 7.5, "never seen": 2.5, "a": 0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_router(tmp_path_factory.mktemp("router") / "checkpoint")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def name_file(checkpoint: Path, path: Any, content: Any = WEIGHTS, place: str = QUERY) -> None:
    """Let the module name a file of weights, and write it."""
    (checkpoint / QUERY / "config.json").write_text(json.dumps({"frozen": True, "path": path}))
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (checkpoint / place / path).write_text(text)


def resolve(folder: Path) -> np.ndarray:
    plan = resolve_plan(
        open_checkpoint(folder),
        options=ExportOptions(),
        precisions=("fp32",),
        targets=("cpu",),
        trust_remote_code=False,
    )
    assert plan.static is not None
    return plan.static.weights


def ask(checkpoint: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = SparseEncoder(str(checkpoint), device="cpu")
        return encoder.encode_query(TEXTS, convert_to_sparse_tensor=False).numpy()


def test_queries_equal_sentence_transformers(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_file(checkpoint, "idf.json")
    (checkpoint / QUERY / "model.safetensors").unlink()
    monkeypatch.chdir(checkpoint / QUERY)  # sentence-transformers looks there
    expected = ask(checkpoint)
    monkeypatch.chdir(tmp_path)
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert np.array_equal(model.encode_query(TEXTS), expected)
        vocabulary = model.tokenizer.backend.get_vocab()
    assert expected[0, vocabulary["the"]] == 3
    assert expected[3, vocabulary["[UNK]"]] == 2.5, "the last token that is unknown"
    assert not expected[4].any()


def test_the_modules_own_folder_goes_before_the_checkpoints(checkpoint: Path) -> None:
    vocabulary = AutoTokenizer.from_pretrained(checkpoint / QUERY).get_vocab()
    name_file(checkpoint, "idf.json", {"fox": 2}, place="")
    assert resolve(checkpoint)[vocabulary["fox"]] == 2
    name_file(checkpoint, "idf.json", {"fox": 4})
    assert resolve(checkpoint)[vocabulary["fox"]] == 4


@pytest.mark.parametrize("path", [None, "idf.txt", 7, ""])
def test_a_path_to_something_else_means_the_tensor(saved: Path, checkpoint: Path, path: object) -> None:
    name_file(checkpoint, path, None)
    assert np.array_equal(resolve(checkpoint), resolve(saved))


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/etc/idf.json", None, "outside the checkpoint; copy that file into .* and name it 'idf.json' there"),
        ("../../idf.json", None, "outside the checkpoint"),
        ("idf.json", None, r"names the weights 'idf.json', and there is none of \['query_0.*', 'idf.json'\]"),
        ("idf.json", "{", "is not valid JSON"),
        ("idf.json", {}, "must be a JSON object of tokens and their weights, at least one"),
        ("idf.json", [1, 2], "must be a JSON object of tokens and their weights"),
        ("idf.json", {"fox": 1, "dog": "2", "a": None}, r"that of 'dog' is '2' \(2 of 3 are none\)"),
        ("idf.json", {"fox": True}, "that of 'fox' is True"),
        ("idf.json", '{"fox": NaN}', "has the weight nan for token id"),
        ("idf.json", {"fox": 1e39}, "has the weight inf for token id"),
        ("idf.json", {"fox": 10**400}, "has the weight inf for token id"),
    ],
)
def test_files_that_are_refused(checkpoint: Path, path: str, content: Any, message: str) -> None:
    name_file(checkpoint, path, content)
    with pytest.raises(ExportError, match=message):
        resolve(checkpoint)


def test_tokens_that_a_tokenizer_without_an_unknown_token_does_not_have(checkpoint: Path) -> None:
    for folder in (checkpoint / QUERY, checkpoint / "document_0_Transformer"):
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text()) | {"unk_token": None}
        file.write_text(json.dumps(config))
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["unk_token"] = "[NONE]" if content["model"]["type"] == "WordPiece" else None
        (folder / "tokenizer.json").write_text(json.dumps(content))
    name_file(checkpoint, "idf.json")
    with pytest.raises(ExportError, match=r"weighs 2 tokens that the tokenizer .* does not have, among them"):
        resolve(checkpoint)
