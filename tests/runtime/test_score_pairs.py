import random

import numpy as np
import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.score_embedded import EmbedScorer
from poolgraph.runtime.score_pairs import EmbedStep, cosine_scores, plan_pairs, plan_steps


@pytest.mark.parametrize(
    ("sizes", "pairs"),
    [((1, 1), [(0, 0)]), ((1, 3), [(0, 0), (0, 1), (0, 2)]), ((3, 3), [(0, 0), (1, 1), (2, 2)])],
)
def test_pairs(sizes, pairs):
    assert plan_pairs(*sizes) == pairs


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 3), "Input lengths must be either 1:1, 1:N or N:N; got 2 queries and 3 documents"),
        ((2, 1), "Input lengths must be either 1:1, 1:N or N:N"),
        ((2, 0), "Input lengths must be either 1:1, 1:N or N:N"),
        ((0, 3), "At least one text element must be given"),
        ((0, 0), "At least one text element must be given"),
        ((1, 0), "At least one text_pair element must be given"),
    ],
)
def test_lengths_that_do_not_pair(sizes, message):
    with pytest.raises(InputError) as caught:
        plan_pairs(*sizes)
    assert caught.value.message.startswith(message)


def test_cosine_has_the_same_bits_alone():
    rng = np.random.default_rng(0)
    queries, documents = (rng.standard_normal((50, 33)).astype(np.float32) for _ in range(2))
    pairs = [(index % 7, index) for index in range(50)]
    found = cosine_scores(queries, documents, pairs)
    expected = [float(np.dot(queries[left].astype(float), documents[right])) for left, right in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = [cosine_scores(queries, documents, [pair])[0] for pair in pairs]
    np.testing.assert_array_equal(found, alone)


def test_one_held_text_stays_to_the_end():
    assert list(plan_steps([(0, 0), (0, 1), (0, 2)], [1, 1, 1], 2)) == [
        EmbedStep(range(2), (0,), (0, 1), ()),
        EmbedStep(range(2, 3), (), (2,), (0,)),
    ]


def test_a_text_dearer_than_a_step_has_one_of_its_own():
    steps = plan_steps([(index, index) for index in range(4)], [1, 9, 1, 1], 2)
    assert [list(step.streamed) for step in steps] == [[0], [1], [2, 3]]
    assert list(plan_steps([], [], 2)) == []


@pytest.mark.parametrize("seed", range(20))
def test_each_text_is_embedded_once_and_there_when_needed(seed):
    source = random.Random(seed)
    num_held, num_streamed = source.randint(1, 30), source.randint(1, 30)
    pairs = [(source.randrange(num_held), source.randrange(num_streamed)) for _ in range(source.randint(1, 80))]
    steps = list(plan_steps(pairs, [source.randint(0, 5) for _ in range(num_streamed)], 7))
    held = set()
    for step in steps:
        assert not held & set(step.held)
        held |= set(step.held)
        assert all(pairs[index][0] in held and pairs[index][1] in step.streamed for index in step.pairs)
        held -= set(step.released)
    assert held == set()
    assert [text for step in steps for text in step.streamed] == list(range(num_streamed))
    assert sorted(index for step in steps for index in step.pairs) == list(range(len(pairs)))
    embedded = [text for step in steps for text in step.held]
    assert sorted(embedded) == sorted({held for held, _ in pairs})


class Recorder:
    """A model whose vector of a text is its number, and that remembers what it embedded."""

    def __init__(self, budget):
        self.embedded = {"query": [], "document": []}
        self.most = 0
        self.scorer = EmbedScorer(embed=self.embed, compare=self.compare, cost=lambda _text: 1, budget=budget)

    def embed(self, side, texts):
        self.embedded[side] += texts
        return [np.array([float(text)], dtype=np.float32) for text in texts], len(texts)

    def compare(self, queries, documents, pairs):
        self.most = max(self.most, len(queries), len(documents))
        return np.array([queries[left][0] * 1000 + documents[right][0] for left, right in pairs], dtype=np.float32)


@pytest.mark.parametrize("seed", range(10))
def test_scores_by_embedding_each_distinct_text_once(seed):
    source = random.Random(seed)
    queries = [str(source.randint(0, 20)) for _ in range(40)]
    documents = [str(source.randint(0, 300)) for _ in range(40)]
    if seed % 2:
        queries, documents = documents, queries
    recorder = Recorder(budget=5)
    pairs = plan_pairs(40, 40)
    scores, num_cut = recorder.scorer.score(queries, documents, pairs)
    assert scores.tolist() == [
        float(query) * 1000 + float(document) for query, document in zip(queries, documents, strict=True)
    ]
    assert sorted(recorder.embedded["query"]) == sorted({*queries})
    assert sorted(recorder.embedded["document"]) == sorted({*documents})
    assert num_cut == len({*queries}) + len({*documents})


def test_few_embeddings_are_there_at_a_time():
    texts = [str(number) for number in range(100)]
    for queries, documents in ((["7"], texts), (texts, texts[::-1]), (texts, ["7"] * 100)):
        recorder = Recorder(budget=5)
        recorder.scorer.score(queries, documents, plan_pairs(len(queries), len(documents)))
        assert recorder.most == 5
