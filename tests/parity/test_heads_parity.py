"""Heads against transformers, sentence-transformers and torch: each task, one text at a time in the oracle.

The largest difference of each row is listed as JSON in the file that the environment's POOLGRAPH_PARITY_TABLE names.
"""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from filelock import FileLock
from safetensors.torch import load_file
from tiny_heads import (
    PAIR_TEMPLATE,
    STEP_TAG,
    STEP_TAG_ID,
    pair_tokenizer,
    save_cross_encoder,
    save_logit_score,
    save_model,
    save_reward_model,
    step_tokenizer,
)
from tiny_models import VOCAB_SIZE
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from poolgraph import PoolingModel, export_model
from poolgraph.export.probes import PROBE_SENTENCES

TOLERANCE = 1e-4
LIMIT = 33
"""Longest text of most rows: past a verified edge, and quick."""
TABLE_FILE = "POOLGRAPH_PARITY_TABLE"
WORDS = [word for sentence in PROBE_SENTENCES for word in sentence.split()]

Rows = np.ndarray
TextOracle = Callable[[dict[str, Tensor]], Tensor]
"""One text's token ids, (1, num_tokens) each, to its answer."""


def record(task: str, head: str, oracle: str, difference: float) -> None:
    """Note a row of the table, in a file that several workers may write."""
    file = os.environ.get(TABLE_FILE)
    if not file:
        return
    with FileLock(f"{file}.lock"):
        rows = json.loads(Path(file).read_text()) if Path(file).exists() else []
        rows = [row for row in rows if (row["task"], row["head"], row["oracle"]) != (task, head, oracle)]
        row = {"task": task, "head": head, "oracle": oracle, "largest_difference": difference}
        Path(file).write_text(json.dumps(sorted([*rows, row], key=str), indent=1))


def make_texts(count: Callable[[list[str]], list[int]], limit: int, *, tag: str = "") -> list[str]:
    """Some 25 texts of random words, from the empty one to one of ``limit`` tokens, each word followed by ``tag``."""
    source = random.Random(11)
    texts = ["", "a", "waves"]
    for target in [2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 19, 21, 23, 25, 27, 29, 31, 32, limit, limit]:
        text = ""
        while count([longer := f"{text} {source.choice(WORDS)}{tag}".strip()])[0] <= min(target, limit):
            text = longer
        texts.append(text)
    filled = texts[-1]
    while count([f"{filled} a"])[0] <= limit:
        filled += " a"
    return [*texts, filled]


def load(folder: Path, cls: str) -> PreTrainedModel:
    """Load transformers' own class; without a padding token it takes a decoder's last token, as vLLM does."""
    warnings.simplefilter("ignore")
    model = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.config.pad_token_id = None
    return model.eval()


def logits_of(cls: str) -> Callable[[Path], TextOracle]:
    """Transformers' class of the checkpoint: (num_labels,), or (num_tokens, num_labels) of a token classifier."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        return lambda inputs: model(**inputs).logits[0]

    return make


def head_on_rows(cls: str, head: str) -> Callable[[Path], TextOracle]:
    """VLLM's token_classify of a sequence classifier: what follows the pooler, on each row of the backbone."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        # A head that picks the first of several rows itself is given them one by one.
        picks_first = type(getattr(model, head)).__name__.endswith("ClassificationHead")

        def answer(inputs: dict[str, Tensor]) -> Tensor:
            rows = model.base_model(**inputs).last_hidden_state[0]
            return getattr(model, head)(rows[:, None] if picks_first else rows)

        return answer

    return make


def reward_layers(folder: Path) -> TextOracle:
    """The published reward model: two linear layers on the rows of Qwen2Model, by the tensors' published names."""
    tensors = load_file(folder / "model.safetensors")
    model = transformers.Qwen2Model(transformers.Qwen2Config.from_pretrained(folder)).eval()
    backbone = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(backbone)

    def answer(inputs: dict[str, Tensor]) -> Tensor:
        rows = model(**inputs).last_hidden_state[0]
        inner = torch.relu(rows @ tensors["score.0.weight"].T + tensors["score.0.bias"])
        return inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]

    return answer


def vocabulary_columns(cls: str, ids: tuple[int, ...]) -> Callable[[Path], TextOracle]:
    """Logits of a few tokens at every position, (num_tokens, len(ids))."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        return lambda inputs: model(**inputs).logits[0][:, list(ids)]

    return make


def last_of(columns: Callable[[Path], TextOracle], finish: Callable[[Tensor], Tensor]) -> Callable[[Path], TextOracle]:
    """What becomes of the last row."""

    def make(folder: Path) -> TextOracle:
        rows = columns(folder)
        return lambda inputs: finish(rows(inputs)[-1])

    return make


def steps_of(rows: Callable[[Path], TextOracle]) -> Callable[[Path], TextOracle]:
    """The rows of the step tags."""

    def make(folder: Path) -> TextOracle:
        answer = rows(folder)
        return lambda inputs: answer(inputs)[inputs["input_ids"][0] == STEP_TAG_ID]

    return make


def finished(oracle: Callable[[Path], TextOracle], activation: Callable[[Tensor], Tensor]) -> Callable:
    """An oracle's logits after an activation."""

    def make(folder: Path) -> TextOracle:
        answer = oracle(folder)
        return lambda inputs: activation(answer(inputs))

    return make


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def identity(logits: Tensor) -> Tensor:
    return logits


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint and what it must answer.

    Attributes:
        name: Of the row.
        save: Writes the checkpoint.
        oracles: Method of PoolingModel, and further arguments of it in brackets, to the oracle of its answers.
        source: Where the oracle comes from, for the table.
        options: Of the export.
        limit: Longest text.
        tag: What each word of a text is followed by.
    """

    name: str
    save: Callable[[Path], Path]
    oracles: Mapping[str, Callable[[Path], TextOracle]]
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

    available = {
        "classify": finished(logits_of(cls), finish),
        "token_classify": finished(head_on_rows(cls, head), finish),
        "classify(use_activation=False)": finished(logits_of(cls), scale),
        "reward": finished(logits_of(cls), lambda logits: finish(logits)[0]),
    }
    return Row(
        name=name,
        save=lambda folder: save_model(folder, backbone, cls, **{"num_labels": 3, "max_length": LIMIT, **changes}),
        oracles={task: available[task] for task in tasks},
        options=options or {},
    )


def token_classifier(name: str, backbone: str, cls: str) -> Row:
    """A token classifier of transformers."""
    return Row(
        name=name,
        save=lambda folder: save_model(folder, backbone, cls, num_labels=5, max_length=LIMIT),
        oracles={"token_classify": finished(logits_of(cls), softmax)},
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


REWARD_COLUMNS = (77, 70)
STEP_CONFIG = {"pooling_type": "STEP", "step_tag_id": STEP_TAG_ID, "returned_token_ids": list(REWARD_COLUMNS)}
YES_NO = ("A", "a")
"""Single tokens of the decoders' vocabulary: false, true."""


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

TOKEN_ROWS = (
    token_classifier("bert tokens", "BertModel", "BertForTokenClassification"),
    token_classifier("roberta tokens", "RobertaModel", "RobertaForTokenClassification"),
    token_classifier("modernbert tokens", "ModernBertModel", "ModernBertForTokenClassification"),
)

REWARD_ROWS = (
    Row(
        name="qwen2 reward layers",
        save=lambda folder: save_reward_model(folder, "Qwen2ForRewardModel", 1, max_length=LIMIT),
        oracles={
            "reward": reward_layers,
            "token_classify": reward_layers,
            "reward(use_activation=True)": finished(reward_layers, torch.sigmoid),
        },
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
        oracles={
            "reward": steps_of(finished(reward_layers, softmax)),
            "token_classify": steps_of(finished(reward_layers, softmax)),
            "reward(use_activation=False)": steps_of(reward_layers),
        },
        source="torch",
        options={"pooler_config": {"step_tag_id": STEP_TAG_ID}},
        tag=STEP_TAG,
    ),
    *(
        Row(
            name=f"llama steps, {word} embeddings",
            save=lambda folder, tied=tied: save_step_model(folder, "LlamaForCausalLM", tie_word_embeddings=tied),
            oracles={
                "reward": steps_of(finished(vocabulary_columns("LlamaForCausalLM", REWARD_COLUMNS), softmax)),
                f"reward(returned_token_ids=[{REWARD_COLUMNS[1]}], use_activation=False)": steps_of(
                    vocabulary_columns("LlamaForCausalLM", REWARD_COLUMNS[1:])
                ),
            },
            options={"task": "reward", "pooler_config": STEP_CONFIG},
            tag=STEP_TAG,
        )
        for word, tied in (("untied", False), ("tied", True))
    ),
)

LANGUAGE_MODEL_ROWS = (
    Row(
        name="qwen3 from_2_way_softmax",
        save=lambda folder: save_model(folder, "Qwen3Model", "Qwen3ForCausalLM", max_length=LIMIT),
        oracles={
            "classify": last_of(
                vocabulary_columns("Qwen3ForCausalLM", yes_no_ids()), lambda both: both.softmax(-1)[1:]
            )
        },
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
        oracles={
            "classify": last_of(vocabulary_columns("GemmaForCausalLM", yes_no_ids()[1:]), torch.sigmoid),
            "classify(use_activation=False)": last_of(
                vocabulary_columns("GemmaForCausalLM", yes_no_ids()[1:]), identity
            ),
        },
        options={"hf_overrides": {"classifier_from_token": [YES_NO[1]]}, "score_template": "plain"},
    ),
)

EMBED_ROWS = (
    Row(
        name="qwen2 pooled by MEAN",
        save=lambda folder: save_model(folder, "Qwen2Model", "Qwen2ForCausalLM", max_length=LIMIT),
        oracles={
            "embed": finished(
                lambda folder: lambda inputs, m=load(folder, "Qwen2Model"): m(**inputs).last_hidden_state[0].mean(0),
                lambda pooled: nn.functional.normalize(pooled, dim=-1),
            )
        },
        options={"task": "embed", "pooler_config": {"pooling_type": "MEAN"}},
    ),
)

ROWS = (*SEQUENCE_ROWS, *TOKEN_ROWS, *REWARD_ROWS, *LANGUAGE_MODEL_ROWS, *EMBED_ROWS)


def answers(model: PoolingModel, method: str, texts: list[str]) -> list[Rows]:
    """Call a method by its name, with the arguments in its brackets."""
    name, _, arguments = method.partition("(")
    options = eval(f"dict({arguments}") if arguments else {}
    return list(getattr(model, name)(texts, **options))


def expected_answers(oracle: TextOracle, folder: Path, texts: list[str], limit: int) -> list[Rows]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            oracle(dict(tokenizer(text, truncation=True, max_length=limit, return_tensors="pt"))).float().numpy()
            for text in texts
        ]


def largest_difference(expected: list[Rows], found: list[Rows]) -> float:
    assert len(expected) == len(found)
    assert [row.shape for row in expected] == [np.asarray(row).shape for row in found]
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(expected, found, strict=True))


def assert_same_bits(model: PoolingModel, method: str, texts: list[str], found: list[Rows]) -> None:
    """A text's answer alone and among others in another order."""
    order = list(range(len(texts)))
    random.Random(3).shuffle(order)
    shuffled = dict(zip(order, answers(model, method, [texts[i] for i in order]), strict=True))
    for index, text in enumerate(texts):
        assert np.array_equal(shuffled[index], found[index])
        assert np.array_equal(answers(model, method, [text])[0], found[index])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_head_equals_its_oracle(row: Row, tmp_path: Path) -> None:
    checkpoint = row.save(tmp_path / "checkpoint")
    export_model(checkpoint, tmp_path / "artifact", **row.options)
    with PoolingModel.load(tmp_path / "artifact") as model:
        assert (model.variant.name, model.manifest.limits.max_model_len) == ("cpu_fp32", row.limit)
        texts = make_texts(model.count_tokens, row.limit, tag=row.tag)
        lengths = model.count_tokens(texts)
        assert (len(texts), min(lengths) <= 2, max(lengths)) == (26, True, row.limit)
        for method, oracle in row.oracles.items():
            expected = expected_answers(oracle(checkpoint), checkpoint, texts, row.limit)
            assert len({answer.tobytes() for answer in expected}) > 20, "the texts' answers hardly differ"
            found = answers(model, method, texts)
            difference = largest_difference(expected, found)
            record(method, row.name, row.source, difference)
            assert difference <= TOLERANCE, (row.name, method, difference)
            assert_same_bits(model, method, texts, found)
