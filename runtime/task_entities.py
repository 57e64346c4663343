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
    check_entity_options,
    find_entities,
    merge_windows,
    score_tokens,
    uses_words,
)
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.loaded import LoadedModel, progress_bar
from poolgraph.runtime.pipeline import encode_windows
from poolgraph.runtime.texts import resolve_texts, resolve_truncation, warn_of_cuts
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
        truncate_to = resolve_truncation(truncate)
        offset = first_index
        answers: list[list[Entity]] = []
        num_cut = 0

        def encode(window: Sequence[str], *, first_index: int) -> list[list[LocatedText]]:
            return self.tokenizer.locate(
                window, truncate_to=truncate_to, stride=stride, first_index=offset + first_index
            )

        def find(text: str, located: LocatedText, logits: NDArray[np.float32]) -> list[Entity]:
            return find_entities(
                self._words.locate(text, located),
                score_tokens(logits),
                self.manifest.labels,
                strategy=aggregation_strategy,
                ignore_labels=ignore_labels,
                join=self._words.join,
            )

        with closing(encode_windows(texts, encode, self.first_window)) as windows:
            for first, window in windows:
                scored = self._score_window(window, first_index + first, on_progress)
                for text, parts in zip(texts[first : first + len(window)], scored, strict=True):
                    found = [entity for located, logits in parts for entity in find(text, located, logits)]
                    answers.append(merge_windows(found) if len(parts) > 1 else found)
                num_cut += sum(parts[0].num_truncated_tokens > 0 for parts in window)
        return answers, num_cut

    def _score_window(
        self, window: Sequence[Sequence[LocatedText]], first_index: int, on_progress: Progress | None
    ) -> Iterator[list[tuple[LocatedText, NDArray[np.float32]]]]:
        """Run the token graph; yield each text's parts with their logits."""
        flat = [part for parts in window for part in parts]
        # Only where every text is one part do finished parts count texts.
        whole = len(flat) == len(window)
        logits = iter(
            self._executor.run_token(flat, on_progress=on_progress if whole else None, first_index=first_index)
        )
        if on_progress is not None and not whole:
            on_progress(len(window))
        for parts in window:
            yield [(part, next(logits)) for part in parts]

    @cached_property
    def _words(self) -> WordReader:
        return read_words(self.tokenizer.backend, self.path)

    def _check_entity_options(
        self, strategy: str, ignore_labels: Sequence[str], stride: int | None, *, truncate: bool
    ) -> None:
        self.check_task("token_classify")
        manifest, model = self.manifest, self.manifest.source.model
        if manifest.pooler.tok_pooling_type == "STEP":
            raise TaskNotSupported(f"{model!r} scores steps, not words; call reward or token_classify")
        width = manifest.pooler.token_embedding_size or manifest.pooler.embedding_size
        if len(manifest.labels) != width:
            raise TaskNotSupported(
                f"{model!r} has {width} scores a token and {len(manifest.labels)} labels; entities need a label for "
                "each (id2label in config.json); call token_classify for the scores"
            )
        check_entity_options(strategy, ignore_labels, stride=stride, truncate=truncate)
