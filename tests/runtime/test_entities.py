import warnings
from itertools import chain

import msgspec
import numpy as np
import pytest
import torch
from entity_texts import ENTITY_TEXTS
from little_classifiers import BIO_LABELS, build_classifier
from tiny_models import TINY_MODELS, VOCAB_SIZE
from transformers import (
    BertForTokenClassification,
    RobertaForTokenClassification,
    TokenClassificationPipeline,
    XLMRobertaForTokenClassification,
)

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Limits
from poolgraph.runtime.entities import (
    AGGREGATION_STRATEGIES,
    Entity,
    check_entity_options,
    find_entities,
    group_entities,
    merge_windows,
    score_tokens,
    split_tag,
)
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.runtime.word_spans import read_words

LIMIT = 40
LABEL_SETS = {
    "bio": BIO_LABELS,
    "plain": ("O", "PER", "LOC", "E-ORG", "B-"),
    "odd": ("B-a-b", "I-a-b", "b-x", "O", "I-O"),
}
MODELS = {
    "BertModel": BertForTokenClassification,
    "RobertaModel": RobertaForTokenClassification,
    "XLMRobertaModel": XLMRobertaForTokenClassification,
}


def build_pipeline(name, tokenizer, labels):
    """Transformers' pipeline over a tiny tokenizer; its model answers nothing here."""
    config = TINY_MODELS[name].config()
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    return TokenClassificationPipeline(model=MODELS[name](config).eval(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """By tokenizer: the pipeline for a set of labels, and our tokenizer and reader of words."""

    def make(name):
        folder = build_classifier(tmp_path_factory.mktemp(name) / "artifact", "token_classifier")
        limits = Limits(max_model_len=LIMIT, vocab_size=VOCAB_SIZE)
        manifest = msgspec.structs.replace(open_artifact(folder), limits=limits)
        # One tokenizer for both sides: training breaks ties at random.
        trained = TINY_MODELS[name].tokenizer()
        trained.model_max_length = LIMIT
        trained.save_pretrained(folder)
        tokenizer = TextTokenizer(folder, manifest)
        pipelines = {key: build_pipeline(name, trained, labels) for key, labels in LABEL_SETS.items()}
        return pipelines, tokenizer, read_words(tokenizer.backend, folder)

    return {name: make(name) for name in MODELS}


def draw_logits(rng, num_tokens, scale):
    """Logits that stay with a label for a while; a large scale saturates their softmax."""
    steady = np.repeat(rng.standard_normal((num_tokens // 3 + 1, 5)), 3, axis=0)[:num_tokens]
    return ((steady + 0.5 * rng.standard_normal((num_tokens, 5))) * scale).astype(np.float32)


def theirs(pipeline, text, draw, **options):
    preprocess, _, postprocess = pipeline._sanitize_parameters(**options)
    outputs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for inputs in pipeline.preprocess(text, **preprocess):
            kept = int(inputs["attention_mask"].sum())
            logits = np.zeros((1, inputs["input_ids"].shape[1], 5), dtype=np.float32)
            logits[0, :kept] = draw(kept)
            outputs.append({**inputs, "logits": torch.from_numpy(logits)})
        return pipeline.postprocess(outputs, **postprocess)


def ours(tokenizer, words, labels, text, draw, *, strategy, ignore_labels=("O",), stride=None):
    parts = tokenizer.locate([text], truncate_to=-1, stride=stride)[0]
    options = {"strategy": strategy, "ignore_labels": ignore_labels, "join": words.join}
    found = [
        find_entities(words.locate(text, part), score_tokens(draw(part.num_tokens)), labels, **options)
        for part in parts
    ]
    return merge_windows(list(chain.from_iterable(found))) if len(parts) > 1 else found[0]


def assert_same(found, expected):
    dicts = [entity.to_dict() for entity in found]
    assert [list(entity) for entity in dicts] == [list(entity) for entity in expected]
    for mine, other in zip(dicts, expected, strict=True):
        assert mine.pop("score") == pytest.approx(float(other.pop("score")), abs=1e-6)
        assert mine == other


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("strategy", AGGREGATION_STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_same_as_transformers_on_the_same_logits(sides, name, strategy, scale):
    pipelines, tokenizer, words = sides[name]
    num_entities = 0
    for key, labels in LABEL_SETS.items():
        for seed, text in enumerate(ENTITY_TEXTS):
            expected = theirs(
                pipelines[key],
                text,
                lambda size, seed=seed: draw_logits(np.random.default_rng(seed), size, scale),
                aggregation_strategy=strategy,
            )
            found = ours(
                tokenizer,
                words,
                labels,
                text,
                lambda size, seed=seed: draw_logits(np.random.default_rng(seed), size, scale),
                strategy=strategy,
            )
            assert_same(found, expected)
            num_entities += len(found)
    assert num_entities > 300


@pytest.mark.parametrize("ignore_labels", [[], ["PER"], ["B-PER", "O"], ["LOC", "PER", "O"]])
@pytest.mark.parametrize("strategy", ["none", "simple", "average"])
def test_ignored_labels_are_transformers(sides, strategy, ignore_labels):
    pipelines, tokenizer, words = sides["BertModel"]
    for seed, text in enumerate(ENTITY_TEXTS):

        def draw(size, seed=seed):
            return draw_logits(np.random.default_rng(seed), size, 2.0)

        options = {"aggregation_strategy": strategy, "ignore_labels": ignore_labels}
        expected = theirs(pipelines["bio"], text, draw, **options)
        assert_same(
            ours(tokenizer, words, BIO_LABELS, text, draw, strategy=strategy, ignore_labels=ignore_labels), expected
        )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 20])
@pytest.mark.parametrize("strategy", ["simple", "max"])
@pytest.mark.parametrize("name", ["BertModel", "RobertaModel"])
def test_windows_are_transformers(sides, name, strategy, stride, side, monkeypatch):
    pipelines, tokenizer, words = sides[name]
    monkeypatch.setattr(pipelines["bio"].tokenizer, "truncation_side", side)
    monkeypatch.setattr(tokenizer, "_side", side)
    texts = [" ".join(ENTITY_TEXTS[first : first + 6]) for first in range(0, len(ENTITY_TEXTS), 6)]
    num_windows = []
    for seed, text in enumerate(texts):
        # The same row of logits for a window on both sides, drawn anew for each window.
        left, right = (np.random.default_rng(seed) for _ in range(2))
        expected = theirs(
            pipelines["bio"],
            text,
            lambda size, rng=left: draw_logits(rng, size, 4.0),
            aggregation_strategy=strategy,
            stride=stride,
        )
        found = ours(
            tokenizer,
            words,
            BIO_LABELS,
            text,
            lambda size, rng=right: draw_logits(rng, size, 4.0),
            strategy=strategy,
            stride=stride,
        )
        assert_same(found, expected)
        num_windows.append(len(tokenizer.locate([text], stride=stride)[0]))
    assert max(num_windows) > 3


def test_a_text_that_fits_is_one_window(sides):
    _, tokenizer, _ = sides["BertModel"]
    (part,) = tokenizer.locate(["a quick fox"], stride=5)[0]
    assert part.offsets[0] == (0, 0)
    assert part.is_special[0]
    np.testing.assert_array_equal(part.input_ids, tokenizer.encode(["a quick fox"])[0].input_ids)


@pytest.mark.parametrize("stride", [-1, 38, 1.0, True])
def test_strides_that_do_not_fit(sides, stride):
    _, tokenizer, _ = sides["BertModel"]
    with pytest.raises(InputError, match="stride must be an int from 0 to 37: a window has 40 tokens, 2 of them"):
        tokenizer.locate(["a"], stride=stride)


def test_located_texts_are_encoded_ones(sides):
    _, tokenizer, _ = sides["RobertaModel"]
    long = [" ".join(ENTITY_TEXTS), *ENTITY_TEXTS]
    for parts, encoded in zip(
        tokenizer.locate(long, truncate_to=-1), tokenizer.encode(long, truncate_to=-1), strict=True
    ):
        np.testing.assert_array_equal(parts[0].input_ids, encoded.input_ids)
        assert parts[0].num_truncated_tokens == encoded.num_truncated_tokens
    with pytest.raises(InputError, match=r"maximum context length is 40 tokens.*\(text 8\)"):
        tokenizer.locate(["a", long[0]], first_index=7)


def test_tags():
    assert split_tag("B-PER") == (True, "PER")
    assert split_tag("I-PER") == (False, "PER")
    assert split_tag("PER") == (False, "PER")
    assert split_tag("B-") == (True, "")


def entity(label, start, end, score=0.5):
    return Entity(label=label, score=score, word="", start=start, end=end)


def test_a_begin_tag_splits_and_an_inside_tag_joins():
    labels = ["B-PER", "I-PER", "B-PER", "I-LOC", "I-LOC", "O", "O", "B-LOC"]
    groups = group_entities([entity(label, at, at + 1) for at, label in enumerate(labels)])
    assert [[one.label for one in group] for group in groups] == [
        ["B-PER", "I-PER"],
        ["B-PER"],
        ["I-LOC", "I-LOC"],
        ["O", "O"],
        ["B-LOC"],
    ]
    assert group_entities([]) == []


def test_of_overlapping_entities_the_longest_then_the_surest_stays():
    assert merge_windows([entity("A", 5, 9), entity("B", 0, 6), entity("C", 20, 21)]) == [
        entity("B", 0, 6),
        entity("C", 20, 21),
    ]
    assert merge_windows([entity("A", 0, 4, 0.6), entity("B", 2, 6, 0.7)]) == [entity("B", 2, 6, 0.7)]
    assert merge_windows([entity("A", 0, 4), entity("B", 4, 6)]) == [entity("A", 0, 4), entity("B", 4, 6)]
    assert merge_windows([]) == []


def test_dicts_have_transformers_keys():
    group = Entity(label="PER", score=0.5, word="Ann", start=0, end=3)
    assert group.to_dict() == {"entity_group": "PER", "score": 0.5, "word": "Ann", "start": 0, "end": 3}
    token = Entity(label="B-PER", score=0.5, word="Ann", start=0, end=3, index=1)
    assert list(token.to_dict().items()) == [
        ("entity", "B-PER"),
        ("score", 0.5),
        ("index", 1),
        ("word", "Ann"),
        ("start", 0),
        ("end", 3),
    ]


def test_options():
    with pytest.raises(InputError, match=r"aggregation_strategy 'last' is not one of \['none', 'simple', 'first'"):
        check_entity_options("last", ("O",))
    with pytest.raises(InputError, match="ignore_labels must be a list of str"):
        check_entity_options("simple", "O")
    for no_list in (None, 3, iter(["O"])):
        with pytest.raises(InputError, match="ignore_labels must be a list of str"):
            check_entity_options("simple", no_list)
    with pytest.raises(InputError, match="stride needs a strategy that groups tokens"):
        check_entity_options("none", (), stride=3)
    with pytest.raises(InputError, match="leave one of them out"):
        check_entity_options("simple", (), stride=3, truncate=True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "[UNK]"), ('{"unk_token": "[MASK]"}', "[MASK]"), ('{"unk_token": {"content": "[SEP]"}}', "[SEP]")],
)
def test_the_unknown_token_is_the_checkpoints(tmp_path, content, expected):
    backend = TINY_MODELS["BertModel"].tokenizer().backend_tokenizer
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    assert read_words(backend, tmp_path).unk_token_id == backend.token_to_id(expected)


def test_settings_that_are_not_json(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json does not hold a tokenizer's settings"):
        read_words(TINY_MODELS["BertModel"].tokenizer().backend_tokenizer, tmp_path)
