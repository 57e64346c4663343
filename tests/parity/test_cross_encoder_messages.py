"""CrossEncoders whose pairs are messages of a chat template: prompts, arguments, long texts, as ``predict`` answers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_table import TOLERANCE, WORDS, largest_difference, record
from tiny_decoders import TINY_DECODERS
from tiny_heads import SYSTEM_TEMPLATE, pair_tokenizer, save_cross_encoder, save_logit_score, save_model
from transformers import PreTrainedTokenizerBase

from poolgraph import LLM, PoolingModel, export_model

ORACLE = "sentence-transformers CrossEncoder"
CHAT_ML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<{{ voice }}>{% endif %}"
)
IN_PARTS = "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}so"
WITH_BEGIN = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
OF_AN_ENCODER = "{{ cls_token }}{% for m in messages %}{{ m.content }}{{ sep_token }}{% endfor %}"
PROMPTS = {"bears": "find the bear ", "swim": "who swims here ", "none": ""}


def with_template(name: str, template: str) -> PreTrainedTokenizerBase:
    """The backbone's own tokenizer, which adds special tokens to a text, with a chat template."""
    tokenizer = TINY_DECODERS[name].tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def save_qwen(folder: Path, template: str, **options: Any) -> Path:
    source = save_model(folder / "source", "Qwen3Model", "Qwen3ForCausalLM", tokenizer=pair_tokenizer(template))
    return save_logit_score(folder / "saved", source, true_token_id=70, false_token_id=77, **options)


def save_gemma(folder: Path) -> Path:
    tokenizer = with_template("GemmaModel", WITH_BEGIN)
    source = save_model(
        folder / "source", "GemmaModel", "GemmaForCausalLM", tokenizer=tokenizer, tie_word_embeddings=True
    )
    return save_logit_score(folder / "saved", source, true_token_id=70, false_token_id=None)


def save_bert(folder: Path, template: str | None, **options: Any) -> Path:
    source = save_model(folder / "source", "BertModel", "BertForSequenceClassification", num_labels=1)
    if template is not None:
        (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    return save_cross_encoder(folder / "saved", source, **options)


@dataclass(frozen=True, kw_only=True)
class MessageRow:
    """A CrossEncoder, and keywords of ``predict`` and ``score`` that are to be tried on it."""

    name: str
    save: Callable[[Path], Path]
    keywords: tuple[Mapping[str, Any], ...] = field(default=({},))


PROMPTED = ({}, {"prompt_name": "swim"}, {"prompt_name": "none"}, {"prompt": "no otters "}, {"prompt": ""})
ROWS = (
    MessageRow(
        name="system message, default prompt",
        save=lambda folder: save_qwen(folder, SYSTEM_TEMPLATE, prompts=PROMPTS, default_prompt_name="bears"),
        keywords=PROMPTED,
    ),
    MessageRow(
        name="any role, arguments of the template",
        save=lambda folder: save_qwen(
            folder,
            CHAT_ML,
            prompts=PROMPTS,
            processing_kwargs={"chat_template": {"add_generation_prompt": True, "voice": "pool"}},
        ),
        keywords=PROMPTED,
    ),
    MessageRow(
        name="content in parts", save=lambda folder: save_qwen(folder, IN_PARTS, prompts=PROMPTS), keywords=PROMPTED
    ),
    MessageRow(name="tokenizer that adds special tokens", save=save_gemma),
    MessageRow(name="encoder", save=lambda folder: save_bert(folder, OF_AN_ENCODER)),
    MessageRow(
        name="prompt before the first text of a pair",
        save=lambda folder: save_bert(folder, None, prompts=PROMPTS, default_prompt_name="bears"),
        keywords=PROMPTED,
    ),
)


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    """A row, its oracle and its artifact."""
    from sentence_transformers import CrossEncoder

    base = tmp_path_factory.mktemp("messages")
    checkpoint = request.param.save(base)
    export_model(checkpoint, base / "artifact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = CrossEncoder(str(checkpoint), device="cpu")
    with PoolingModel.load(base / "artifact") as model:
        yield request.param, oracle, model


def predict(oracle: Any, pairs: list[tuple[str, str]], **keywords: Any) -> np.ndarray:
    """The oracle's scores, one pair at a time."""
    return np.array([oracle.predict([pair], show_progress_bar=False, **keywords)[0] for pair in pairs])


def text(source: random.Random, num_words: int) -> str:
    return " ".join(source.choices(WORDS, k=num_words))


def check(row: MessageRow, expected: np.ndarray, found: np.ndarray, task: str) -> None:
    assert np.ptp(expected) > 100 * TOLERANCE, "the pairs' scores hardly differ"
    difference = largest_difference([expected.astype(np.float32)], [found])
    record(task, f"CrossEncoder of messages: {row.name}", ORACLE, difference)
    assert difference <= TOLERANCE, (row.name, task, difference)


@pytest.mark.slow
def test_scores_equal_predict(compiled: tuple[Any, ...]) -> None:
    row, oracle, model = compiled
    source = random.Random(3)
    pairs = [("a", "b"), *((text(source, source.randint(1, 5)), text(source, source.randint(1, 9))) for _ in range(12))]
    queries, documents = (list(side) for side in zip(*pairs, strict=True))
    answers = []
    for keywords in row.keywords:
        found = model.score(queries, documents, **keywords)
        check(row, predict(oracle, pairs, **keywords), found, "score")
        answers.append(found.tobytes())
    # Two of the keywords stand for no prompt.
    assert len(set(answers)) in (1, len(row.keywords) - 1, len(row.keywords) - 2)
    best = model.rerank(queries[1], documents, **row.keywords[-1])
    scores = model.score(queries[1], documents, **row.keywords[-1])
    np.testing.assert_array_equal([document.score for document in best], np.sort(scores)[::-1])


@pytest.mark.slow
def test_long_texts_are_cut_as_predict_cuts_them(compiled: tuple[Any, ...]) -> None:
    """Documents that are printed last, and queries that leave no room."""
    row, oracle, model = compiled
    source = random.Random(4)
    long_documents = [(text(source, 3), text(source, 150)) for _ in range(6)]
    long_queries = [(text(source, 150), text(source, 3)) for _ in range(6)]
    long_both = [(text(source, 150), text(source, 150)) for _ in range(6)]
    for name, pairs in (("documents", long_documents), ("queries", long_queries), ("pairs", long_both)):
        with pytest.warns(UserWarning, match="6 of 6 pairs were longer"):
            found = model.score(*(list(side) for side in zip(*pairs, strict=True)), truncate=True)
        check(row, predict(oracle, pairs), found, f"score(truncate=True), long {name}")


@pytest.mark.slow
def test_the_default_prompt_is_applied_by_every_way_of_asking(compiled: tuple[Any, ...]) -> None:
    _, _, model = compiled
    documents = ["the otter swims", "a bear"]
    outputs = LLM(str(model.path)).score("who", documents)
    found = model.score("who", documents)
    np.testing.assert_allclose([output.outputs.score for output in outputs], found, atol=1e-6)
    if model.manifest.default_prompt_name is not None:
        assert (model.score("who", documents, prompt="") != found).all()
