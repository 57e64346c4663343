"""Scores of pairs against sentence-transformers' CrossEncoder: classifiers, and tokens of a language model."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from parity_table import TOLERANCE, WORDS, largest_difference, record
from tiny_heads import PAIR_TEMPLATE, change_json, pair_tokenizer, save_cross_encoder, save_logit_score, save_model
from torch import nn

from poolgraph import PoolingModel, export_model
from poolgraph.runtime.score_template import resolve_template


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A checkpoint of transformers, and how CrossEncoder saves it."""

    name: str
    save: Callable[[Path, Path], Path]
    source: Callable[[Path], Path]


def save_pair_classifier(folder: Path, backbone: str, cls: str) -> Path:
    return save_model(folder, backbone, cls, num_labels=1)


def save_without_types(folder: Path, source: Path) -> Path:
    """CrossEncoder passes what the tokenizer's ``model_input_names`` name: here no token types of the pair."""
    saved = save_cross_encoder(folder, source)
    change_json(saved / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    return saved


PAIR_ROWS = (
    PairRow(
        name="bert CrossEncoder",
        source=lambda folder: save_pair_classifier(folder, "BertModel", "BertForSequenceClassification"),
        save=save_cross_encoder,
    ),
    PairRow(
        name="bert CrossEncoder without token types",
        source=lambda folder: save_pair_classifier(folder, "BertModel", "BertForSequenceClassification"),
        save=save_without_types,
    ),
    PairRow(
        name="roberta CrossEncoder",
        source=lambda folder: save_pair_classifier(folder, "RobertaModel", "RobertaForSequenceClassification"),
        save=save_cross_encoder,
    ),
    PairRow(
        name="qwen3 LogitScore of two tokens",
        source=lambda folder: save_model(folder, "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer()),
        save=lambda folder, source: save_logit_score(folder, source, true_token_id=70, false_token_id=77),
    ),
    PairRow(
        name="gemma LogitScore of one token",
        source=lambda folder: save_model(
            folder, "GemmaModel", "GemmaForCausalLM", tokenizer=pair_tokenizer(), tie_word_embeddings=True
        ),
        save=lambda folder, source: save_logit_score(folder, source, true_token_id=70, false_token_id=None),
    ),
)


def make_pairs() -> list[tuple[str, str]]:
    """25 pairs of random words, the shortest of one letter each."""
    source = random.Random(17)

    def text(longest: int) -> str:
        return " ".join(source.choices(WORDS, k=source.randint(1, longest)))

    return [("a", "b"), *((text(5), text(9)) for _ in range(24))]


@pytest.mark.slow
@pytest.mark.parametrize("row", PAIR_ROWS, ids=lambda row: row.name)
def test_scores_equal_cross_encoder(row: PairRow, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    checkpoint = row.save(tmp_path / "checkpoint", row.source(tmp_path / "source"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = CrossEncoder(str(checkpoint), device="cpu")
        pairs = make_pairs()
        expected = np.array([reference.predict([pair], show_progress_bar=False)[0] for pair in pairs])
        raw = np.array(
            [reference.predict([pair], show_progress_bar=False, activation_fn=nn.Identity())[0] for pair in pairs]
        )
    assert len(set(expected.tolist())) > 20, "the pairs' scores hardly differ"
    export_model(checkpoint, tmp_path / "artifact")
    with PoolingModel.load(tmp_path / "artifact") as model:
        queries, documents = (list(side) for side in zip(*pairs, strict=True))
        found = model.score(queries, documents)
        for task, answer, scores in (
            ("score", found, expected),
            ("score(use_activation=False)", model.score(queries, documents, use_activation=False), raw),
        ):
            difference = largest_difference([scores.astype(np.float32)], [answer])
            record(task, row.name, "sentence-transformers CrossEncoder", difference)
            assert difference <= TOLERANCE, (row.name, task, difference)
        alone = [model.score(*pair)[0] for pair in pairs]
        assert np.array_equal(np.array(alone), found)
        assert np.array_equal(model.score(queries[::-1], documents[::-1])[::-1], found)
        against_one = reference.predict([(queries[1], text) for text in documents], show_progress_bar=False)
        np.testing.assert_allclose(model.score(queries[1], documents), against_one, atol=TOLERANCE, rtol=0)


def test_pair_template_is_a_score_template_too() -> None:
    assert resolve_template(PAIR_TEMPLATE).render("where", "here") == "query where\ndocument here\nanswer "
