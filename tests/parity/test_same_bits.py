"""Every task answers a text with the same bits alone, in a batch of mixed lengths, and in any other grouping."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_graphs import FLOAT32
from parity_table import WORDS
from tiny_decoders import END
from tiny_heads import TINY_BACKBONES, pair_tokenizer, save_logit_score, save_model, save_reward_model
from tiny_models import HeadSpec, dense, few_calibration_texts, save_checkpoint, tame
from tokenizers import processors

from poolgraph import PoolingModel, export_model
from poolgraph.errors import InputError
from poolgraph.export import int8
from poolgraph.export.int8 import Measurements, Recipes
from poolgraph.graphs import quantize_embeddings
from poolgraph.graphs.pipeline import NATIVE_INT8
from poolgraph.runtime.native_library import can_run
from poolgraph.runtime.pair_tokenizer import encode_pairs

LIMIT = 128
"""Of every row's artifact."""

LENGTHS = (5, 7, 8, 16, 17, 31, 33, 65, 99, LIMIT)
"""Tokens of the texts beside the three shortest; few, so that batches of one length hold several texts."""

NUM_ITEMS = 40
QUERY_WORDS = 8
"""Of a pair at most; the document has the rest."""

Item = str | tuple[str, str]
Save = Callable[[Path], Path]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a task is asked about: how words become an item, and how many tokens of it count."""

    make: Callable[[list[str]], Item]
    count: Callable[[PoolingModel, Item], int]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A method of PoolingModel, and what it is asked about."""

    method: str
    kind: Kind

    def answers(self, model: PoolingModel, items: list[Item]) -> Sequence[Any]:
        """Ask it."""
        sides = [items] if self.kind is TEXT else [list(side) for side in zip(*items, strict=True)]
        answers: Sequence[Any] = getattr(model, self.method)(*sides)
        return answers


def split(words: list[str]) -> Item:
    return " ".join(words[:QUERY_WORDS]), " ".join(words[QUERY_WORDS:])


def share(words: list[str]) -> Item:
    """Make a pair of which no text is empty, for tokenizers that add nothing."""
    return " ".join(words[:QUERY_WORDS]), " ".join(words[QUERY_WORDS:] or words[:1])


TEXT = Kind(make=" ".join, count=lambda model, item: model.count_tokens(item)[0])
PAIR = Kind(make=split, count=lambda model, item: encode_pairs(model.tokenizer, [item])[0].num_tokens)
SCORED = Kind(
    make=split, count=lambda model, item: model.encode_scoring_pairs([item[0]], [item[1]], [(0, 0)])[0].num_tokens
)
"""A pair in the model's template, where it has one."""
APART = Kind(make=share, count=lambda model, item: max(model.count_tokens(list(item))))

EMBED, TOKEN_EMBED, CLASSIFY, TOKEN_CLASSIFY, REWARD, ENTITIES, QUERIES, DOCUMENTS = (
    Ask(method=method, kind=TEXT)
    for method in (
        *("embed", "token_embed", "classify", "token_classify"),
        *("reward", "extract_entities", "embed_queries", "embed_documents"),
    )
)
CLASSIFY_PAIRS = Ask(method="classify", kind=PAIR)
SCORE_TOGETHER, SCORE_APART = Ask(method="score", kind=SCORED), Ask(method="score", kind=APART)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact and the tasks asked of it.

    Attributes:
        name: Of the row.
        asks: The tasks.
        artifact: Its name in task_artifacts, or what writes its checkpoint.
        options: Of the export.
        fewest: Tokens of the shortest text; 1 where the tokenizer adds none.
        tag: What every other word is followed by.
    """

    name: str
    asks: tuple[Ask, ...]
    artifact: str | Save
    options: Mapping[str, Any] = field(default_factory=dict)
    fewest: int = 1
    tag: str = ""


def bare(folder: Path, name: str) -> Path:
    """Give a checkpoint a tokenizer that adds no special tokens, so that a text may be one token."""
    tokenizer = TINY_BACKBONES[name].tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.save_pretrained(folder)
    return folder


def pooled(name: str, flag: str, *modules: Any) -> Save:
    head = HeadSpec(pooling={f"pooling_mode_{flag}": True}, modules=modules or (("Normalize", {}, {}),))
    return lambda folder: bare(save_checkpoint(folder, name, head), name)


def headed(name: str, cls: str, **changes: Any) -> Save:
    return lambda folder: bare(save_model(folder, name, cls, num_layers=2, **changes), name)


def classifier(name: str, cls: str) -> Row:
    return Row(name=cls, asks=(CLASSIFY, TOKEN_CLASSIFY), artifact=headed(name, cls, num_labels=3))


def decoder(name: str, pooling: str) -> Row:
    options = {"task": "embed", "pooler_config": {"pooling_type": pooling}}
    asks = (EMBED, TOKEN_EMBED, SCORE_APART)
    return Row(name=f"{name} pooled by {pooling}", asks=asks, artifact=headed(name, name), options=options)


def save_causal_reranker(folder: Path) -> Path:
    source = folder.with_name("source")
    save_model(source, "Qwen3Model", "Qwen3ForCausalLM", num_layers=2, tokenizer=pair_tokenizer())
    return save_logit_score(folder, source, true_token_id=70, false_token_id=77)


def save_token_reward(folder: Path) -> Path:
    return bare(save_reward_model(folder, "Qwen2ForRewardModel", 1), "Qwen2Model")


NORM_WEIGHTS = {"norm.weight": torch.linspace(0.5, 1.5, 48), "norm.bias": torch.linspace(-0.2, 0.2, 48)}
MODULES = (dense(32, 48), ("LayerNorm", {"dimension": 48}, NORM_WEIGHTS), dense(48, 7, seed=2))

ROWS = (
    Row(name="bert pooled by CLS", asks=(EMBED, TOKEN_EMBED), artifact=pooled("BertModel", "cls_token")),
    Row(name="bert pooled by LAST", asks=(EMBED,), artifact=pooled("BertModel", "lasttoken")),
    Row(name="bert pooled by MEAN", asks=(EMBED, SCORE_APART), artifact=pooled("BertModel", "mean_tokens")),
    Row(name="mpnet pooled by MEAN", asks=(EMBED, TOKEN_EMBED), artifact=pooled("MPNetModel", "mean_tokens")),
    Row(name="Dense and LayerNorm", asks=(EMBED,), artifact=pooled("RobertaModel", "mean_tokens", *MODULES)),
    decoder("Qwen2Model", "LAST"),
    decoder("MistralModel", "MEAN"),
    decoder("Gemma2Model", "LAST"),
    classifier("BertModel", "BertForSequenceClassification"),
    classifier("ModernBertModel", "ModernBertForSequenceClassification"),
    classifier("Qwen3Model", "Qwen3ForSequenceClassification"),
    Row(name="bert classifier of pairs", asks=(CLASSIFY_PAIRS,), artifact="classifier", fewest=3),
    Row(name="roberta cross-encoder", asks=(SCORE_TOGETHER,), artifact="reranker", fewest=4),
    Row(name="qwen3 reranker", asks=(SCORE_TOGETHER,), artifact=save_causal_reranker, fewest=18),
    Row(name="bert tokens", asks=(TOKEN_CLASSIFY, ENTITIES, REWARD), artifact="ner", fewest=2),
    Row(name="gpt2 reward", asks=(REWARD,), artifact="reward"),
    Row(name="qwen2 token reward", asks=(REWARD,), artifact=save_token_reward),
    Row(name="llama steps", asks=(REWARD,), artifact="process-reward", fewest=2, tag=END),
    Row(name="colbert", asks=(QUERIES, DOCUMENTS, TOKEN_EMBED, SCORE_APART), artifact="colbert", fewest=2),
)

PACKED = (
    *("bert pooled by CLS", "bert pooled by MEAN", "Dense and LayerNorm", "Qwen2Model pooled by LAST"),
    *("MistralModel pooled by MEAN", "ModernBertForSequenceClassification", "qwen2 token reward"),
    "mpnet pooled by MEAN",
)
"""Rows that are asked in packed batches too: each pooling, windows, biases by distance, heads of float32."""

IN_CI = (
    ("bert pooled by MEAN", "int8"),
    ("qwen2 token reward", "int8"),
    ("mpnet pooled by MEAN", "int8"),
    ("Dense and LayerNorm", "partly float32"),
    ("ModernBertForSequenceClassification", "partly float32"),
)
"""Of these, with what of a model is in int8, what every run of the tests has; POOLGRAPH_ALL_ROWS asks for all."""


def draw(model: PoolingModel, kind: Kind, target: int, tag: str, source: random.Random) -> Item:
    """Draw an item of ``target`` tokens."""

    def fits(words: list[str]) -> bool:
        try:
            return kind.count(model, kind.make(words)) <= target
        except InputError:  # longer than the model takes
            return False

    words: list[str] = []
    for next_word in (lambda: source.choice(WORDS) + source.choice(("", tag)), lambda: "a"):
        while fits(longer := [*words, next_word()]):
            words = longer
    return kind.make(words)


def draw_items(model: PoolingModel, kind: Kind, row: Row) -> list[Item]:
    """Return items in random order, the shortest and the longest that there can be among them."""
    source = random.Random(29)
    lengths = {*range(row.fewest, row.fewest + 3), *(length for length in LENGTHS if length > row.fewest)}
    targets = list(islice(cycle(sorted(lengths)), NUM_ITEMS))
    items = [draw(model, kind, target, row.tag, source) for target in targets]
    assert [kind.count(model, item) for item in items] == targets
    source.shuffle(items)
    return items


def bits_of(answer: object) -> object:
    """Return what two answers share only if they are the same to the last bit."""
    if isinstance(answer, list):
        return [repr(entity) for entity in answer]
    array = np.asarray(answer)
    return array.dtype.str, array.shape, array.tobytes()


def random_groups(source: random.Random) -> list[list[int]]:
    """Cut a random order of the items into groups of 2 to 9."""
    order = source.sample(range(NUM_ITEMS), NUM_ITEMS)
    groups = []
    while order:
        size = source.randint(2, 9)
        groups.append(order[:size])
        order = order[size:]
    return groups


def assert_same_bits(model: PoolingModel, ask: Ask, items: list[Item]) -> None:
    whole = [bits_of(answer) for answer in ask.answers(model, items)]
    assert len({repr(bits) for bits in whole}) > NUM_ITEMS / 2, "the texts' answers hardly differ"
    alone = [[index] for index in range(NUM_ITEMS)]
    for name, groups in (("alone", alone), ("in groups", random_groups(random.Random(31)))):
        found = {}
        for group in groups:
            answers = ask.answers(model, [items[index] for index in group])
            found |= {index: bits_of(answer) for index, answer in zip(group, answers, strict=True)}
        others = [items[index] for index, bits in enumerate(whole) if found[index] != bits]
        assert others == [], f"{ask.method} answers {len(others)} of {NUM_ITEMS} otherwise {name}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* texts were longer than .* and were cut:UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_same_bits_alone_and_in_any_batch(row: Row, tmp_path: Path, task_artifact: Callable[[str], Path]) -> None:
    if isinstance(row.artifact, str):
        folder = task_artifact(row.artifact)
    else:
        folder = export_model(row.artifact(tmp_path / "checkpoint"), tmp_path / "artifact", **row.options).path
    with PoolingModel.load(folder) as model:
        assert (model.variant.name, model.manifest.limits.max_model_len) == (FLOAT32[0], LIMIT)
        for ask in row.asks:
            assert_same_bits(model, ask, draw_items(model, ask.kind, row))


def every_second(measured: Measurements) -> Iterator[Recipes]:
    """Leave every second product in float32, on ONNX Runtime's operators."""
    yield {name: found.range.recipe for index, (name, found) in enumerate(measured.items()) if index % 2}


SETS: Mapping[str, Callable[[Measurements], Iterator[Recipes]]] = {
    "int8": int8.native_sets,
    "partly float32": every_second,
}
PACKED_CASES = {
    (row.name, name): (row, sets)
    for row in ROWS
    for name, sets in SETS.items()
    if row.name in PACKED and (os.environ.get("POOLGRAPH_ALL_ROWS") or (row.name, name) in IN_CI)
}


@pytest.mark.slow
@pytest.mark.skipif(not can_run(NATIVE_INT8), reason="this package's operators do not run here")
@pytest.mark.parametrize(("row", "sets"), PACKED_CASES.values(), ids=[" ".join(names) for names in PACKED_CASES])
def test_same_bits_in_packed_batches(
    row: Row, sets: Callable[[Measurements], Iterator[Recipes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_embeddings, "FEWEST_VALUES", 1)
    monkeypatch.setattr(int8, "native_sets", sets)
    assert not isinstance(row.artifact, str)
    checkpoint = row.artifact(tmp_path / "checkpoint")
    tame(checkpoint / "model.safetensors")
    texts = few_calibration_texts(tmp_path)
    folder = export_model(
        checkpoint, tmp_path / "artifact", precisions=("int8",), calibration=texts, **row.options
    ).path
    with PoolingModel.load(folder) as model:
        assert (model.variant.name, model.variant.layout) == ("native_int8", "packed")
        for ask in row.asks:
            assert_same_bits(model, ask, draw_items(model, ask.kind, row))
