"""BGE-M3: a vector a text, a vector a token and a weight a word, from one artifact, against plain torch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity_table import TOLERANCE, largest_difference, make_texts
from tiny_bge_m3 import OVERRIDES, answer_bge_m3, save_bge_m3

from poolgraph import LLM, PoolingModel, export_model
from poolgraph.errors import ExportError, TaskNotSupported
from poolgraph.graphs.probe_files import load_probes
from poolgraph.runtime.verify import check_model


@pytest.fixture(scope="module")
def bge_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its artifact, side by side."""
    folder = tmp_path_factory.mktemp("bge_m3")
    save_bge_m3(folder / "checkpoint")
    export_model(folder / "checkpoint", folder / "artifact", hf_overrides=OVERRIDES)
    return folder


def test_three_answers_of_one_artifact(bge_m3: Path) -> None:
    with PoolingModel.load(bge_m3 / "artifact") as model:
        assert model.manifest.tasks == ("embed", "token_embed", "token_classify")
        assert model.manifest.default_task == "embed"
        rows = {row.variant: row for row in model.manifest.report.rows if row.check == "weights of words"}
        assert rows.keys() == {variant.name for variant in model.manifest.variants}
        assert all(0 < row.max_difference < row.allowed_difference == 1e-4 for row in rows.values())
        texts = make_texts(model.count_tokens, 100)
        expected = answer_bge_m3(bge_m3 / "checkpoint", texts)
        dense, vectors, weights = model.embed(texts), model.token_embed(texts), model.token_classify(texts)
        words = model.embed_sparse(texts)
        (few,) = model.embed_sparse(texts[-1], max_active_dims=2)
        assert model.decode(few) == model.decode(words[-1], top_k=2)
    assert largest_difference([answer.dense for answer in expected], list(dense)) <= TOLERANCE
    assert largest_difference([answer.vectors for answer in expected], vectors) <= TOLERANCE
    scale = max(float(answer.weights.max(initial=0)) for answer in expected)
    found = [rows[:, 0] for rows in weights]
    assert largest_difference([answer.weights for answer in expected], found) <= TOLERANCE * scale
    for answer, embedding in zip(expected, words, strict=True):
        assert embedding.to_dict().keys() == answer.words.keys()
        assert embedding.to_dict() == pytest.approx(answer.words, abs=TOLERANCE * scale)
    assert sum(len(answer.words) > 0 for answer in expected) > len(texts) / 3
    assert sum((answer.weights == 0).any() for answer in expected) > len(texts) / 2
    assert any(len(answer.words) < (answer.weights > 0).sum() for answer in expected), "no word is there twice"


def test_the_tasks_of_vllm(bge_m3: Path) -> None:
    texts = ["the lazy dog", "a fox"]
    llm = LLM(str(bge_m3 / "artifact"))
    with PoolingModel.load(bge_m3 / "artifact") as model:
        for task, expected in (
            ("embed", model.embed(texts)),
            ("token_embed", model.token_embed(texts)),
            ("token_classify", model.token_classify(texts)),
        ):
            found = [output.outputs.data for output in llm.encode(texts, pooling_task=task, use_tqdm=False)]
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True)), task
        ids = model.tokenizer.encode(["the lazy dog"])[0].input_ids[1:-1].tolist()
    (plain,) = llm.encode([{"prompt_token_ids": ids}], pooling_task="token_classify", use_tqdm=False)
    assert plain.outputs.data.shape == (len(ids), 1), "there is no special token to leave out"


def test_int8_weighs_words_too(bge_m3: Path, tmp_path: Path) -> None:
    export_model(bge_m3 / "checkpoint", tmp_path / "artifact", hf_overrides=OVERRIDES, precisions=("int8",))
    with PoolingModel.load(bge_m3 / "artifact") as full, PoolingModel.load(tmp_path / "artifact") as model:
        assert model.variant.precision == "int8"
        texts = make_texts(model.count_tokens, 100)
        left, right = (
            np.concatenate([embedding.to_dense() for embedding in one.embed_sparse(texts)]) for one in (full, model)
        )
    assert float(left @ right) > 0.98 * float(np.linalg.norm(left) * np.linalg.norm(right))


def test_weights_that_differ_are_seen(bge_m3: Path, tmp_path: Path) -> None:
    shutil.copytree(bge_m3 / "artifact", tmp_path / "artifact")
    probes = load_probes(tmp_path / "artifact")
    changed = {
        index: np.hstack([rows[:, :-1], rows[:, -1:] * np.float32(1.01)]) for index, rows in probes.token.items()
    }
    with PoolingModel.load(tmp_path / "artifact") as model:
        rows = list(check_model(model, replace(probes, token=changed), families=("token",)))
    assert "weights of words" in [row.check for row in rows if not row.passed]


def test_what_is_missing_is_named(bge_m3: Path, tmp_path: Path) -> None:
    checkpoint = save_bge_m3(tmp_path / "checkpoint")
    (checkpoint / "sparse_linear.pt").unlink()
    with pytest.raises(ExportError, match=r"BgeM3EmbeddingModel needs \['sparse_linear.pt'\] beside its config.json"):
        export_model(checkpoint, tmp_path / "artifact", hf_overrides=OVERRIDES)
    with pytest.raises(TaskNotSupported, match="embeds texts and tokens, and classifies no text"):
        export_model(bge_m3 / "checkpoint", tmp_path / "artifact", hf_overrides=OVERRIDES, task="classify")
