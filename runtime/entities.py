"""Entities from token scores, by the aggregation strategies of transformers' token-classification pipeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.runtime.word_spans import TokenSpan

Scores: TypeAlias = NDArray[np.float32]

Join: TypeAlias = Callable[[list[str]], str]
"""Tokens to their text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A span of a text and its label.

    Attributes:
        label: The label; without its ``B-`` or ``I-``, except for single tokens.
        score: Its probability, averaged over what was grouped.
        word: The tokens decoded; ``text[start:end]`` is what the text says.
        start: First character in the text.
        end: The character after the last.
        index: Row of a single token among all tokens of the text; None for a group.
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entity under the keys that transformers' pipeline has."""
        place = {"word": self.word, "start": self.start, "end": self.end}
        if self.index is None:
            return {"entity_group": self.label, "score": self.score, **place}
        return {"entity": self.label, "score": self.score, "index": self.index, **place}


_WORD_SCORES: Final[Mapping[str, Callable[[Scores], Scores] | None]] = MappingProxyType(
    {
        "none": None,
        "simple": None,
        "first": lambda scores: scores[0],
        "average": lambda scores: scores.mean(axis=0),
        "max": lambda scores: scores[scores.max(axis=1).argmax()],
    }
)
"""Strategy to how the scores of a word's tokens (num_tokens, num_labels) become the word's; None labels tokens."""

AGGREGATION_STRATEGIES: Final[tuple[str, ...]] = tuple(_WORD_SCORES)


def check_entity_options(
    strategy: str, ignore_labels: Sequence[str], *, stride: int | None = None, truncate: bool = False
) -> None:
    """Check options that do not depend on the texts or the model.

    Raises:
        InputError: an unknown strategy, labels that are no list of str, or a stride where it means nothing.
    """
    if strategy not in AGGREGATION_STRATEGIES:
        raise InputError(
            f"aggregation_strategy {strategy!r} is not one of {list(AGGREGATION_STRATEGIES)}",
            parameter="aggregation_strategy",
            value=strategy,
        )
    listed = isinstance(ignore_labels, Collection) and not isinstance(ignore_labels, str)
    if not listed or not all(isinstance(label, str) for label in ignore_labels):
        raise InputError("ignore_labels must be a list of str", parameter="ignore_labels", value=ignore_labels)
    if stride is None:
        return
    problem = None
    if strategy == "none":
        problem = f"stride needs a strategy that groups tokens, one of {list(AGGREGATION_STRATEGIES[1:])}, not 'none'"
    elif truncate:
        problem = "stride reads long texts whole and truncate=True cuts them; leave one of them out"
    if problem is not None:
        raise InputError(problem, parameter="stride", value=stride)


def uses_words(strategy: str) -> bool:
    """Whether a strategy labels whole words."""
    return _WORD_SCORES[strategy] is not None


def score_tokens(logits: Scores) -> Scores:
    """Return the softmax of (num_tokens, num_labels) logits.

    In float32, as transformers' pipeline computes it: where scores saturate at 1, the first of equals wins, and more
    exact scores would choose other labels.
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def find_entities(
    spans: Sequence[TokenSpan],
    scores: Scores,
    labels: Sequence[str],
    *,
    strategy: str,
    ignore_labels: Sequence[str],
    join: Join,
) -> list[Entity]:
    """Find the entities of a text or window.

    Args:
        spans: The tokens that come from the text.
        scores: (num_tokens, num_labels), rows of special tokens included.
        labels: The label of each column.
        strategy: One of ``AGGREGATION_STRATEGIES``.
        ignore_labels: Labels whose entities are left out.
        join: Tokens to their text.
    """
    to_word = _WORD_SCORES[strategy]
    if to_word is None:
        entities = [_label_token(span, scores[span.index], labels) for span in spans]
    else:
        words = group_words(spans)
        rows = [to_word(scores[[span.index for span in word]]) for word in words]
        entities = [_label_word(word, row, labels, join) for word, row in zip(words, rows, strict=True)]
    if strategy != "none":
        entities = [_join_entities(group, join) for group in group_entities(entities)]
    return [entity for entity in entities if entity.label not in ignore_labels]


def group_words(spans: Sequence[TokenSpan]) -> list[list[TokenSpan]]:
    """Group tokens into words; the first token begins one whatever it is."""
    words: list[list[TokenSpan]] = []
    for span in spans:
        if words and span.is_subword:
            words[-1].append(span)
        else:
            words.append([span])
    return words


def group_entities(entities: Sequence[Entity]) -> list[list[Entity]]:
    """Group neighbours of the same tag; ``B-`` always begins a group."""
    groups: list[list[Entity]] = [[entity] for entity in entities[:1]]
    for before, entity in pairwise(entities):
        begins, tag = split_tag(entity.label)
        if begins or tag != split_tag(before.label)[1]:
            groups.append([entity])
        else:
            groups[-1].append(entity)
    return groups


def split_tag(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity, and its tag; one without ``B-`` or ``I-`` is its own tag."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def merge_windows(entities: Sequence[Entity]) -> list[Entity]:
    """Keep the longest, then the surest, of entities that overlap where the windows of a text do."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity.start):
        if not kept or not kept[-1].start <= entity.start < kept[-1].end:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: Entity) -> tuple[int, float]:
    return entity.end - entity.start, entity.score


def _label_token(span: TokenSpan, scores: Scores, labels: Sequence[str]) -> Entity:
    best = int(scores.argmax())
    return Entity(
        label=labels[best],
        score=float(scores[best]),
        word=span.word,
        start=span.start,
        end=span.end,
        index=span.index,
    )


def _label_word(word: Sequence[TokenSpan], scores: Scores, labels: Sequence[str], join: Join) -> Entity:
    whole = _label_token(word[0], scores, labels)
    return replace(whole, word=join([span.word for span in word]), end=word[-1].end, index=None)


def _join_entities(group: Sequence[Entity], join: Join) -> Entity:
    return Entity(
        label=group[0].label.split("-", 1)[-1],
        score=float(np.mean(np.array([entity.score for entity in group], dtype=np.float32))),
        word=join([entity.word for entity in group]),
        start=group[0].start,
        end=group[-1].end,
    )
