"""Token classification of a loaded model as entities: labelled spans of the texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import TaskNotSupported
from poolgraph.runtime.entities import (
    Entity,
    check_options,
    find_entities,
    merge_windows,
    score_tokens,
    uses_words,
)
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.loaded import TO_MODEL_LIMIT, LoadedModel, progress_bar
from poolgraph.runtime.pipeline import encode_windows
from poolgraph.runtime.texts import resolve_texts, warn_of_cuts
from poolgraph.runtime.tokenizer import LocatedText
from poolgraph.runtime.word_spans import WordReader, read_words

OUTSIDE: Final = ("O",)
"""The label of tokens outside of all entities."""

_NO_MARKS: Final = (
    "the tokenizer does not mark the pieces that continue a word, so a word is what stands between spaces, punctuation "
    "included; aggregation_strategy='simple' needs no words"
)


class EntityTasks(LoadedModel):
    """Texts to entities."""

    def extract_entities(
        self,
        texts: str | Sequence[str],
        *,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = OUTSIDE,
        stride: int | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[list[Entity]]:
        """Find labelled spans of texts, as transformers' ``pipeline("token-classification")`` does.

        Args:
            texts: A text or several.
            aggregation_strategy: ``none`` gives every token; ``simple`` groups neighbouring tokens of one label;
                ``first``, ``average`` and ``max`` give each word one label before, by its first token, by the mean of
                its tokens, or by its surest token.
            ignore_labels: Labels that are left out; of ``none``, with their ``B-`` and ``I-``.
            stride: Read texts that are too long whole, in windows that share so many tokens; of entities that overlap
                there, the longest is kept.
            truncate: Cut longer texts to the model's limit, with one warning, instead of refusing them.
            progress: Show a progress bar.

        Returns:
            The entities of each text, in their order.

        Raises:
            TaskNotSupported: the model labels no tokens.
            InputError: an unknown strategy, options that contradict each other, or a text that is too long.
        """
        self._check_entity_options(aggregation_strategy, ignore_labels, stride, truncate=truncate)
        resolved = resolve_texts(texts)
        if uses_words(aggregation_strategy) and not self._words.marks_subwords:
            warnings.warn(_NO_MARKS, UserWarning, stacklevel=2)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.entities_chunk(
                resolved,
                aggregation_strategy=aggregation_strategy,
                ignore_labels=ignore_labels,
                stride=stride,
                truncate=truncate,
                on_progress=on_progress,
            )
        warn_of_cuts(num_cut, len(resolved), self.manifest)
        return answers

    def entities_chunk(
        self,
        texts: Sequence[str],
        *,
        first_index: int = 0,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = OUTSIDE,
        stride: int | None = None,
        truncate: bool = False,
        on_progress: Progress | None = None,
    ) -> tuple[list[list[Entity]], int]:
        """Find the entities of a part of a longer list, without a warning; options are those of ``extract_entities``.

        Args:
            texts: The part.
            first_index: Index in the whole list of its first text, for messages.
            aggregation_strategy: As for ``extract_entities``, like the next three.
            ignore_labels: Labels left out.
            stride: Tokens that windows share.
            truncate: Cut longer texts.
            on_progress: Called with the number of texts done since its last call.

        Returns:
            The entities of each text, and how many texts were cut.
        """
        self._check_entity_options(aggregation_strategy, ignore_labels, stride, truncate=truncate)
        answers: list[list[Entity]] = []
        num_cut = 0

        def encode(window: Sequence[str], *, first_index: int) -> list[list[LocatedText]]:
            truncate_to = TO_MODEL_LIMIT if truncate else None
            return self.tokenizer.locate(window, truncate_to=truncate_to, stride=stride, first_index=first_index)

        for text, located, logits in self._score_windows(texts, encode, first_index, on_progress):
            found = [
                entity
                for window, rows in zip(located, logits, strict=True)
                for entity in find_entities(
                    self._words.locate(text, window),
                    score_tokens(rows),
                    self.manifest.labels,
                    strategy=aggregation_strategy,
                    ignore_labels=ignore_labels,
                    join=self._words.join,
                )
            ]
            answers.append(merge_windows(found) if len(located) > 1 else found)
            num_cut += located[0].num_truncated_tokens > 0
        return answers, num_cut
