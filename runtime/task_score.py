"""The task ``score`` of a loaded model, by whichever of three ways it was made for, and ``rerank``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import TaskNotSupported, TruncationWarning
from poolgraph.graphs.manifest import Scoring
from poolgraph.runtime.activations import choose_activation, finish_logits
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.late_interaction import resolve_side
from poolgraph.runtime.loaded import progress_bar
from poolgraph.runtime.maxsim import maxsim_pairs
from poolgraph.runtime.pipeline import encode_windows
from poolgraph.runtime.score_embedded import EmbedScorer, Vectors
from poolgraph.runtime.score_inputs import encode_inputs, read_prompt_form, read_special_tokens
from poolgraph.runtime.score_options import (
    ScoreOptions,
    check_activation,
    check_options,
    check_ranking,
    cut_side,
    resolve_scoring,
    resolve_side_texts,
)
from poolgraph.runtime.score_pairs import cosine_scores, plan_pairs
from poolgraph.runtime.score_prompts import PromptForm
from poolgraph.runtime.score_routes import choose_scorer, compare_routes
from poolgraph.runtime.score_template import resolve_template
from poolgraph.runtime.task_embed import EmbedTasks
from poolgraph.runtime.task_late_interaction import LateInteractionTasks
from poolgraph.runtime.texts import resolve_prompt, resolve_truncation
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.tasks import Side

_TASKS: Final = {"cross_encoder": "classify", "bi_encoder": "embed", "late_interaction": "token_embed"}
"""Way of scoring to the pooling task that it runs."""

_STEP_VALUES: Final = 2**24
"""Numbers of a bi-encoder's embeddings that are there at a time: 16,384 texts of 1,024 each, 549 of a vocabulary's."""

_STEP_CHARACTERS: Final = 2**19
"""Characters of a late-interaction model's texts whose vectors are there at a time: some 2**17 vectors."""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document in its place.

    Attributes:
        index: Its index among the documents that were given.
        score: Its score.
        text: The document.
    """

    index: int
    score: float
    text: str


@dataclass(frozen=True, slots=True)
class _Scores:
    """The scores (num_pairs,) of a call, and what its warning says was cut."""

    scores: NDArray[np.float32]
    num_cut: int
    what: str


class ScoreTasks(LateInteractionTasks, EmbedTasks):
    """Pairs of a query and a document to scores."""

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        *,
        instruction: str | None = None,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_activation: bool | None = None,
        max_tokens_per_query: int | None = None,
        max_tokens_per_doc: int | None = None,
        plain: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Score documents against queries: one query against each document, or each against its own.

        A cross-encoder reads both texts at once, a bi-encoder compares their embeddings by cosine, a late-interaction
        model the vectors of their tokens by MaxSim. Each distinct text is tokenized or embedded once.

        Args:
            queries: A query, or one for each document.
            documents: A document or several.
            instruction: What is asked of a cross-encoder whose score template has a place for it.
            template: Score template: a shipped name, a file, or a template's text; None is the artifact's own.
            template_kwargs: Further variables of the template.
            prompt_name: Name of one of a cross-encoder's prompts; None takes its default prompt.
            prompt: Put before the query of a pair, or the system message of a template; wins over ``prompt_name``.
            use_activation: Apply a cross-encoder's activation; None does as the model says.
            max_tokens_per_query: Tokens kept of each query, special tokens not counted; None and 0 keep all.
            max_tokens_per_doc: Tokens kept of each document, likewise.
            plain: Every token of a late-interaction model as it is, with no marker, length, expansion or skip list.
            truncate: Cut longer inputs to the model's limit, with one warning, instead of refusing them: the longer
                text of a pair, the document in a template, and the query where it leaves no room for a document.
            progress: Show a progress bar.

        Returns:
            (num_pairs,), in the documents' order. A bi-encoder's texts get no prompt unless each side has a route.

        Raises:
            InputError: numbers of texts that do not pair, a text that is too long, or an option that does not fit.
            TaskNotSupported: the model does not score.
        """
        options = ScoreOptions(
            instruction=instruction,
            template=template,
            template_kwargs=template_kwargs or {},
            prompt_name=prompt_name,
            prompt=prompt,
            max_tokens_per_query=max_tokens_per_query,
            max_tokens_per_doc=max_tokens_per_doc,
            truncate_to=resolve_truncation(truncate),
            plain=plain,
        )
        sides = resolve_side_texts(queries), resolve_side_texts(documents)
        answer = self._score(*sides, options, use_activation, progress=progress)
        _warn_of_cuts(answer)
        return answer.scores

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        instruction: str | None = None,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_activation: bool | None = None,
        max_tokens_per_query: int | None = None,
        max_tokens_per_doc: int | None = None,
        plain: bool = False,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[RankedDocument]:
        """Order documents by their scores against a query; the options beside ``top_n`` are those of ``score``.

        Args:
            query: The query.
            documents: The documents.
            top_n: How many of the best are returned; None and 0 return all.
            instruction: As for ``score``, like the rest.
            template: Score template.
            template_kwargs: Variables of the template.
            prompt_name: Name of a prompt.
            prompt: A prompt.
            use_activation: Apply the activation.
            max_tokens_per_query: Tokens kept of the query.
            max_tokens_per_doc: Tokens kept of each document.
            plain: Tokens as they are.
            truncate: Cut longer inputs.
            progress: Show a progress bar.

        Returns:
            The best first; documents of equal score in the order they were given.

        Raises:
            InputError: as of ``score``, or ``top_n`` is no count.
            TaskNotSupported: the model does not score.
        """
        check_ranking(query, top_n)
        options = ScoreOptions(
            instruction=instruction,
            template=template,
            template_kwargs=template_kwargs or {},
            prompt_name=prompt_name,
            prompt=prompt,
            max_tokens_per_query=max_tokens_per_query,
            max_tokens_per_doc=max_tokens_per_doc,
            truncate_to=resolve_truncation(truncate),
            plain=plain,
        )
        texts = resolve_side_texts(documents)
        answer = self._score([query], texts, options, use_activation, progress=progress)
        _warn_of_cuts(answer)
        order = np.argsort(-answer.scores, kind="stable")[: top_n or None]
        return [RankedDocument(int(index), float(answer.scores[index]), texts[index]) for index in order]

    def check_scoring(self, *, template: str | None = None) -> Scoring:
        """Return how the model scores.

        Args:
            template: The score template that the caller gives, if any.

        Raises:
            TaskNotSupported: it does not score, or the variant has no graph for it.
        """
        scoring = resolve_scoring(self.manifest, template=template)
        self.check_task(_TASKS[scoring.kind])
        return scoring

    def encode_scoring_pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        options: ScoreOptions | None = None,
        *,
        tokenizer: TextTokenizer | None = None,
        first_index: int = 0,
    ) -> list[EncodedText]:
        """Tokenize pairs for a cross-encoder, each distinct text once; ``run_pairs`` scores them.

        Args:
            queries: The queries.
            documents: The documents.
            pairs: Indices of a query and a document, as ``plan_pairs`` gives them.
            options: How texts become inputs; None for the defaults.
            tokenizer: Tokenizer with another limit; None is the artifact's.
            first_index: Index of the first pair in the caller's own list, for messages.

        Returns:
            One input a pair, with its token types and the number of tokens that were cut off.

        Raises:
            InputError: a pair that is too long, or an option that does not fit.
            TaskNotSupported: the model is no cross-encoder.
        """
        chosen = options or ScoreOptions()
        scoring = self.check_scoring(template=chosen.template)
        if scoring.kind != "cross_encoder":
            raise TaskNotSupported(f"{self.manifest.source.model!r} is a {scoring.kind}: it reads one text at a time")
        return encode_inputs(
            tokenizer or self.tokenizer,
            self._choose_form(scoring, chosen),
            [(queries[query], documents[document]) for query, document in pairs],
            chosen,
            prompt=resolve_prompt(self.manifest, prompt_name=chosen.prompt_name, prompt=chosen.prompt),
            first_index=first_index,
        )

    def run_pairs(
        self,
        encoded: Sequence[EncodedText],
        *,
        use_activation: bool | None = None,
        on_progress: Progress | None = None,
        first_index: int = 0,
    ) -> NDArray[np.float32]:
        """Score pairs that ``encode_scoring_pairs`` tokenized.

        Args:
            encoded: The pairs.
            use_activation: Apply the model's activation; None does as the model says.
            on_progress: Called with the number of pairs that each finished batch adds.
            first_index: Index of the first pair in the caller's own list, for messages.

        Returns:
            (num_pairs,), in order; a pair's bits do not depend on the other pairs.
        """
        raw = self._executor.run_sequence(encoded, on_progress=on_progress, first_index=first_index)
        return self._finish_pairs(raw, use_activation)

    def _finish_pairs(self, raw: NDArray[np.float32], use_activation: bool | None) -> NDArray[np.float32]:
        return finish_logits(raw, choose_activation(self.manifest.pooler, use_activation))[:, 0]

    def _score(
        self,
        queries: list[str],
        documents: list[str],
        options: ScoreOptions,
        use_activation: bool | None,
        *,
        progress: bool,
    ) -> _Scores:
        pairs = plan_pairs(len(queries), len(documents))
        scoring = self.check_scoring(template=options.template)
        check_options(scoring, options, self.tokenizer.max_model_len)
        check_activation(scoring, use_activation)
        together = scoring.kind == "cross_encoder"
        num_texts = len(pairs) if together else len({*queries}) + len({*documents})
        with progress_bar(num_texts, shown=progress) as on_progress:
            if together:
                return self._score_together(queries, documents, pairs, options, use_activation, on_progress)
            scorer = _SCORERS[choose_scorer(scoring, self.manifest)](self, options, on_progress)
            scores, num_cut = scorer.score(queries, documents, pairs)
        return _Scores(scores, num_cut, f"{num_cut} of {num_texts} texts were longer than the model takes and were cut")

    def _score_together(
        self,
        queries: list[str],
        documents: list[str],
        pairs: list[tuple[int, int]],
        options: ScoreOptions,
        use_activation: bool | None,
        on_progress: Progress | None,
    ) -> _Scores:
        encode = partial(self.encode_scoring_pairs, queries, documents, options=options)
        scores = np.empty(len(pairs), dtype=np.float32)

        def take(first: int, window: Sequence[EncodedText], raw: NDArray[np.float32]) -> None:
            scores[first : first + len(window)] = self._finish_pairs(raw, use_activation)

        windows = encode_windows(pairs, encode, self.first_window)
        run = self._executor.run_sequence
        found = self._run_windows(windows, run, take, num_items=len(pairs), on_progress=on_progress)
        num_cut = found if options.truncate_to is not None else 0
        limit = self.tokenizer.max_model_len
        return _Scores(scores, num_cut, f"{num_cut} of {len(pairs)} pairs were longer than {limit} tokens and were cut")

    def _compare_embeddings(self, options: ScoreOptions, on_progress: Progress | None) -> EmbedScorer:
        def embed(side: Side, texts: list[str]) -> tuple[Vectors, int]:
            rows, num_cut = self.embed_chunk(
                cut_side(self.tokenizer, side, texts, options),
                prompt="",
                normalize=True,
                truncate=options.truncate_to is not None,
                on_progress=on_progress,
            )
            return list(rows), num_cut

        def compare(queries: Vectors, documents: Vectors, pairs: list[tuple[int, int]]) -> NDArray[np.float32]:
            return cosine_scores(np.stack(queries), np.stack(documents), pairs)

        return EmbedScorer(
            embed=embed, compare=compare, cost=lambda _text: self.manifest.pooler.embedding_size, budget=_STEP_VALUES
        )

    def _compare_tokens(self, options: ScoreOptions, on_progress: Progress | None) -> EmbedScorer:
        mean = self.manifest.similarity_fn_name == "meanmaxsim"
        limit = self.tokenizer.max_model_len

        def embed(side: Side, texts: list[str]) -> tuple[Vectors, int]:
            return self.embed_side(
                resolve_side(self.manifest, side, plain=options.plain),
                cut_side(self.tokenizer, side, texts, options),
                truncate=True if options.truncate_to is not None else None,
                on_progress=on_progress,
            )

        def compare(queries: Vectors, documents: Vectors, pairs: list[tuple[int, int]]) -> NDArray[np.float32]:
            return maxsim_pairs(queries, documents, pairs, mean=mean)

        return EmbedScorer(
            embed=embed, compare=compare, cost=lambda text: min(len(text), limit) + 1, budget=_STEP_CHARACTERS
        )

    def _choose_form(self, scoring: Scoring, options: ScoreOptions) -> PromptForm | None:
        if options.template is not None:
            return PromptForm(template=resolve_template(options.template), variables=self._special_tokens)
        return None if scoring.template is None else self._own_form

    @cached_property
    def _own_form(self) -> PromptForm:
        return read_prompt_form(self.path, self.manifest)

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        return read_special_tokens(self.path)


_SCORERS: Final = {
    "bi_encoder": ScoreTasks._compare_embeddings,
    "late_interaction": ScoreTasks._compare_tokens,
    "routes": compare_routes,
}


def _warn_of_cuts(answer: _Scores) -> None:
    if answer.num_cut:
        # The caller of score or rerank.
        warnings.warn(TruncationWarning(answer.what, answer.num_cut), stacklevel=3)
