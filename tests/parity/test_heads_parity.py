"""Heads against their oracles: each task of each head, and the same bits alone and in batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_oracles import (
    Oracle,
    expected_answers,
    finished,
    head_on_rows,
    identity,
    last_of,
    logits_of,
    mean_of_rows,
    reward_layers,
    softmax,
    steps_of,
    vocabulary_columns,
)
from native_graphs import FLOAT32
from parity_table import TOLERANCE, largest_difference, make_texts, record
from tiny_heads import (
    STEP_TAG,
    STEP_TAG_ID,
    pair_tokenizer,
    save_model,
    save_reward_model,
    step_tokenizer,
    yes_no_vocabulary,
)
from tiny_models import VOCAB_SIZE
from torch import Tensor, nn

from poolgraph import PoolingModel, export_model

LIMIT = 33
"""Longest text of most rows: past a verified edge, and quick."""


class Ask:
    """A method of PoolingModel, further arguments of it, and the oracle of its answers."""

    def __init__(self, method: str, oracle: Oracle, **options: Any) -> None:
        self.method, self.oracle, self.options = method, oracle, options
        arguments = ", ".join(f"{name}={value}" for name, value in options.items())
        self.name = f"{method}({arguments})" if options else method

    def answers(self, model: PoolingModel, texts: list[str]) -> list[np.ndarray]:
        """Ask it."""
        return list(getattr(model, self.method)(texts, **self.options))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint and what it must answer.

    Attributes:
        name: Of the row.
        save: Writes the checkpoint.
        asks: What is asked of it.
        source: Where the oracle comes from, for the table.
        options: Of the export.
        limit: Longest text.
        tag: What each word of a text is followed by.
    """

    name: str
    save: Callable[[Path], Path]
    asks: tuple[Ask, ...]
    source: str = "transformers"
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int = LIMIT
    tag: str = ""


def classifier(
    name: str,
    backbone: str,
    cls: str,
    head: str = "classifier",
    *,
    activation: Callable[[Tensor], Tensor] = softmax,
    tasks: tuple[str, ...] = ("classify", "token_classify"),
    options: Mapping[str, Any] | None = None,
    scale: Callable[[Tensor], Tensor] = identity,
    **changes: Any,
) -> Row:
    """A sequence classifier: its own class, and its head on each row."""

    def finish(logits: Tensor) -> Tensor:
        return activation(scale(logits))

    available = (
        Ask("classify", finished(logits_of(cls), finish)),
        Ask("token_classify", finished(head_on_rows(cls, head), finish)),
        Ask("classify", finished(logits_of(cls), scale), use_activation=False),
        Ask("reward", finished(logits_of(cls), lambda logits: finish(logits)[0])),
    )
    return Row(
        name=name,
        save=lambda folder: save_model(folder, backbone, cls, **{"num_labels": 3, "max_length": LIMIT, **changes}),
        asks=tuple(ask for ask in available if ask.name in tasks),
        options=options or {},
    )


def save_step_model(folder: Path, cls: str, **changes: Any) -> Path:
    return save_model(
        folder,
        "LlamaModel",
        cls,
        tokenizer=step_tokenizer(),
        vocab_size=VOCAB_SIZE + 1,
        max_length=LIMIT,
        **changes,
    )


COLUMNS = (77, 70)
STEP_CONFIG = {"pooling_type": "STEP", "step_tag_id": STEP_TAG_ID, "returned_token_ids": list(COLUMNS)}
YES_NO = yes_no_vocabulary()


def yes_no_ids() -> tuple[int, ...]:
    vocabulary = pair_tokenizer().get_vocab()
    return tuple(vocabulary[token] for token in YES_NO)


SEQUENCE_ROWS = (
    classifier(
        "bert softmax",
        "BertModel",
        "BertForSequenceClassification",
        tasks=("classify", "token_classify", "classify(use_activation=False)"),
    ),
    classifier(
        "bert multi-label",
        "BertModel",
        "BertForSequenceClassification",
        activation=torch.sigmoid,
        problem_type="multi_label_classification",
    ),
    classifier(
        "bert regression",
        "BertModel",
        "BertForSequenceClassification",
        activation=identity,
        problem_type="regression",
        num_labels=1,
        tasks=("classify", "token_classify", "reward"),
    ),
    classifier("bert one label", "BertModel", "BertForSequenceClassification", activation=torch.sigmoid, num_labels=1),
    classifier(
        "bert logit mean and sigma",
        "BertModel",
        "BertForSequenceClassification",
        activation=torch.sigmoid,
        num_labels=1,
        options={"pooler_config": {"logit_mean": 0.7, "logit_sigma": 2.5}},
        scale=lambda logits: (logits - 0.7) / 2.5,
        tasks=("classify", "token_classify", "classify(use_activation=False)"),
    ),
    classifier("roberta", "RobertaModel", "RobertaForSequenceClassification"),
    classifier("xlm-roberta", "XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    classifier("distilbert", "DistilBertModel", "DistilBertForSequenceClassification"),
    classifier("mpnet", "MPNetModel", "MPNetForSequenceClassification"),
    classifier("electra", "ElectraModel", "ElectraForSequenceClassification"),
    classifier("albert", "AlbertModel", "AlbertForSequenceClassification", num_layers=2),
    classifier(
        "modernbert cls", "ModernBertModel", "ModernBertForSequenceClassification", classifier_pooling="cls", seed=1
    ),
    classifier(
        "modernbert mean", "ModernBertModel", "ModernBertForSequenceClassification", classifier_pooling="mean", seed=1
    ),
    classifier("eurobert bos", "EuroBertModel", "EuroBertForSequenceClassification", classifier_pooling="bos"),
    classifier("eurobert mean", "EuroBertModel", "EuroBertForSequenceClassification", classifier_pooling="mean"),
    classifier(
        "eurobert late",
        "EuroBertModel",
        "EuroBertForSequenceClassification",
        classifier_pooling="late",
        tasks=("classify", "classify(use_activation=False)"),
    ),
    classifier("gpt2 score", "GPT2Model", "GPT2ForSequenceClassification", "score"),
    classifier("qwen2 score", "Qwen2Model", "Qwen2ForSequenceClassification", "score"),
    classifier(
        "llama score of one label",
        "LlamaModel",
        "LlamaForSequenceClassification",
        "score",
        num_labels=1,
        activation=torch.sigmoid,
        tasks=("classify", "reward"),
    ),
)

REWARD_ROWS = (
    Row(
        name="qwen2 reward layers",
        save=lambda folder: save_reward_model(folder, "Qwen2ForRewardModel", 1, max_length=LIMIT),
        asks=(
            Ask("reward", reward_layers),
            Ask("token_classify", reward_layers),
            Ask("reward", finished(reward_layers, torch.sigmoid), use_activation=True),
        ),
        source="torch",
    ),
    Row(
        name="qwen2 process reward",
        save=lambda folder: save_reward_model(
            folder,
            "Qwen2ForProcessRewardModel",
            2,
            tokenizer=step_tokenizer(),
            vocab_size=VOCAB_SIZE + 1,
            max_length=LIMIT,
        ),
        asks=(
            Ask("reward", steps_of(finished(reward_layers, softmax))),
            Ask("token_classify", steps_of(finished(reward_layers, softmax))),
            Ask("reward", steps_of(reward_layers), use_activation=False),
        ),
        source="torch",
        options={"pooler_config": {"step_tag_id": STEP_TAG_ID}},
        tag=STEP_TAG,
    ),
    *(
        Row(
            name=f"llama steps, {word} embeddings",
            save=lambda folder, tied=tied: save_step_model(folder, "LlamaForCausalLM", tie_word_embeddings=tied),
            asks=(
                Ask("reward", steps_of(finished(vocabulary_columns("LlamaForCausalLM", COLUMNS), softmax))),
                Ask(
                    "reward",
                    steps_of(vocabulary_columns("LlamaForCausalLM", COLUMNS[1:])),
                    use_activation=False,
                    returned_token_ids=list(COLUMNS[1:]),
                ),
            ),
            options={"task": "reward", "pooler_config": STEP_CONFIG},
            tag=STEP_TAG,
        )
        for word, tied in (("untied", False), ("tied", True))
    ),
)

BOTH = vocabulary_columns("Qwen3ForCausalLM", yes_no_ids())
YES = vocabulary_columns("GemmaForCausalLM", yes_no_ids()[1:])

LANGUAGE_MODEL_ROWS = (
    Row(
        name="qwen3 from_2_way_softmax",
        save=lambda folder: save_model(folder, "Qwen3Model", "Qwen3ForCausalLM", max_length=LIMIT),
        asks=(Ask("classify", last_of(BOTH, lambda both: both.softmax(-1)[1:])),),
        options={
            "hf_overrides": {"classifier_from_token": list(YES_NO), "method": "from_2_way_softmax"},
            "score_template": "plain",
        },
    ),
    Row(
        name="gemma no_post_processing",
        save=lambda folder: save_model(
            folder, "GemmaModel", "GemmaForCausalLM", max_length=LIMIT, tie_word_embeddings=True
        ),
        asks=(
            Ask("classify", last_of(YES, torch.sigmoid)),
            Ask("classify", last_of(YES, identity), use_activation=False),
            Ask("token_classify", finished(YES, torch.sigmoid)),
        ),
        options={"hf_overrides": {"classifier_from_token": [YES_NO[1]]}, "score_template": "plain"},
    ),
)

EMBED_ROWS = (
    Row(
        name="qwen2 pooled by MEAN",
        save=lambda folder: save_model(folder, "Qwen2Model", "Qwen2ForCausalLM", max_length=LIMIT),
        asks=(
            Ask("embed", finished(mean_of_rows("Qwen2Model"), lambda pooled: nn.functional.normalize(pooled, dim=-1))),
        ),
        options={"task": "embed", "pooler_config": {"pooling_type": "MEAN"}},
    ),
)

ROWS = (*SEQUENCE_ROWS, *REWARD_ROWS, *LANGUAGE_MODEL_ROWS, *EMBED_ROWS)


def assert_same_bits(model: PoolingModel, ask: Ask, texts: list[str], found: list[np.ndarray]) -> None:
    """A text's answer alone and among others in another order."""
    order = list(range(len(texts)))
    random.Random(3).shuffle(order)
    shuffled = dict(zip(order, ask.answers(model, [texts[i] for i in order]), strict=True))
    for index, text in enumerate(texts):
        assert np.array_equal(shuffled[index], found[index])
        assert np.array_equal(ask.answers(model, [text])[0], found[index])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_head_equals_its_oracle(row: Row, tmp_path: Path) -> None:
    checkpoint = row.save(tmp_path / "checkpoint")
    export_model(checkpoint, tmp_path / "artifact", **row.options)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert (model.variant.name, model.manifest.limits.max_model_len) == (FLOAT32[0], row.limit)
        texts = make_texts(model.count_tokens, row.limit, tag=row.tag)
        lengths = model.count_tokens(texts)
        assert (len(texts), min(lengths) <= 2, max(lengths)) == (26, True, row.limit)
        for ask in row.asks:
            expected = expected_answers(ask.oracle, checkpoint, texts, row.limit)
            assert len({answer.tobytes() for answer in expected}) > len(texts) / 2, "the texts' answers hardly differ"
            found = ask.answers(model, texts)
            difference = largest_difference(expected, found)
            record(ask.name, row.name, row.source, difference)
            assert difference <= TOLERANCE, (row.name, ask.name, difference)
            assert_same_bits(model, ask, texts, found)
