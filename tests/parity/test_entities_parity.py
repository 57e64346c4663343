"""Entities of exported token classifiers against transformers' pipeline, the whole way from text to span."""

import random
import warnings
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from entity_texts import ENTITY_TEXTS
from parity_table import largest_difference, record
from tiny_heads import save_model
from transformers import AutoTokenizer, pipeline

from poolgraph import PoolingModel, export_model
from poolgraph.runtime.entities import AGGREGATION_STRATEGIES

LABELS = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))
LIMIT = 48
HEADS = {
    "BertModel": "BertForTokenClassification",
    "RobertaModel": "RobertaForTokenClassification",
}


@pytest.fixture(scope="module", params=HEADS)
def sides(request, tmp_path_factory):
    """The pipeline over a tiny checkpoint, and the checkpoint exported."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = save_model(
        folder / "checkpoint", request.param, HEADS[request.param], id2label=LABELS, max_length=LIMIT
    )
    balance(checkpoint, HEADS[request.param])
    exported = export_model(checkpoint, folder / "artifact")
    threads = torch.get_num_threads()
    # Torch's threads wait for each other by spinning, for minutes on cores that are busy.
    torch.set_num_threads(1)
    with PoolingModel.load(exported.path) as model:
        yield pipeline("token-classification", model=str(checkpoint), device="cpu"), model
    torch.set_num_threads(threads)


def balance(checkpoint, cls):
    """Move the classifier's bias so that no label is likelier than the others over all texts."""
    model = getattr(transformers, cls).from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in ENTITY_TEXTS]
        model.classifier.bias -= torch.cat([model(**one).logits[0] for one in inputs]).mean(0)
    model.save_pretrained(checkpoint)


def without_score(entity):
    return {key: value for key, value in entity.items() if key != "score"}


def assert_same(found, expected, task, model):
    for mine, theirs in zip(found, expected, strict=True):
        assert [without_score(entity.to_dict()) for entity in mine] == [without_score(entity) for entity in theirs]
        scores = [float(entity["score"]) for entity in theirs]
        np.testing.assert_allclose([entity.score for entity in mine], scores, atol=1e-4)
    scores = [
        [np.array([one.score for one in row]) for row in found],
        [np.array([one["score"] for one in row]) for row in expected],
    ]
    record(
        f"extract_entities({task})", model.manifest.architecture, "transformers pipeline", largest_difference(*scores)
    )


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words", "ignore:the tokenizer does not mark")
@pytest.mark.parametrize("strategy", AGGREGATION_STRATEGIES)
def test_entities_are_transformers(sides, strategy):
    theirs, model = sides
    assert model.manifest.limits.max_model_len == LIMIT
    with pytest.warns(UserWarning, match="texts were longer than 48 tokens and were cut"):
        found = model.extract_entities(ENTITY_TEXTS, aggregation_strategy=strategy, truncate=True)
    assert_same(found, theirs(list(ENTITY_TEXTS), aggregation_strategy=strategy), strategy, model)
    counts = Counter(entity.label for entity in chain.from_iterable(found))
    assert (
        min(counts[label] for label in (LABELS.values() if strategy == "none" else ("PER", "LOC")) if label != "O") > 5
    )


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words", "ignore:the tokenizer does not mark")
@pytest.mark.parametrize(("strategy", "stride"), [("simple", 0), ("average", 16)])
def test_long_texts_in_windows_are_transformers(sides, strategy, stride):
    theirs, model = sides
    texts = [" ".join(ENTITY_TEXTS[first : first + 8]) for first in range(0, len(ENTITY_TEXTS), 8)]
    found = model.extract_entities(texts, aggregation_strategy=strategy, stride=stride)
    expected = [theirs(text, aggregation_strategy=strategy, stride=stride) for text in texts]
    assert_same(found, expected, f"{strategy}, stride={stride}", model)


def test_same_bits_alone_and_in_any_batch(sides):
    _, model = sides
    source = random.Random(5)
    words = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog", "near", "London"]
    texts = [""]
    for target in range(3, LIMIT + 1):
        text = ""
        while model.count_tokens([longer := f"{text} {source.choice(words)}".strip()])[0] <= target:
            text = longer
        texts.append(text)
    source.shuffle(texts)
    assert max(model.count_tokens(texts)) > LIMIT - 6
    whole, entities = model.token_classify(texts), model.extract_entities(texts)
    for text, rows, found in zip(texts, whole, entities, strict=True):
        np.testing.assert_array_equal(model.token_classify(text)[0], rows)
        assert model.extract_entities(text) == [found]
    for rows, expected in zip(model.reward(texts[::-1]), whole[::-1], strict=True):
        np.testing.assert_array_equal(rows, expected)


def test_word_strategies_warn_where_words_are_guessed(sides):
    _, model = sides
    text = "the quick fox"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.extract_entities(text, aggregation_strategy="first")
    marked = type(model.tokenizer.backend.model).__name__ == "WordPiece"
    assert len(caught) == (0 if marked else 1)
