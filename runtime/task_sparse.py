"""Sparse embeddings of a loaded SPLADE model, and the words that they weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.embeddings import finish_by_default
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.loaded import count_cut, progress_bar
from poolgraph.runtime.module_kinds import AUTO_ENCODER, read_head_kinds
from poolgraph.runtime.sparse import (
    SparseEmbedding,
    check_active_dims,
    choose_active_dims,
    sparsify,
    weigh_words,
    weighs_words,
)
from poolgraph.runtime.static_query import find_limit, weigh_tokens
from poolgraph.runtime.task_embed import EmbedTasks
from poolgraph.runtime.texts import resolve_prompt, resolve_texts, warn_of_cuts
from poolgraph.runtime.tokenizer import EncodedText

Raw: TypeAlias = NDArray[np.float32] | list[NDArray[np.float32]]
"""Of the sequence graph (num_texts, size), of the token graph (num_tokens, size) a text."""


class SparseTasks(EmbedTasks):
    """Texts to weights of the vocabulary's words."""

    def embed_sparse(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_active_dims: int | None = None,
        side: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[SparseEmbedding]:
        """Weigh words: by a SPLADE model, without the zeros that ``embed`` returns of it, or by BGE-M3.

        Args:
            texts: A text or several.
            prompt_name: Name of one of the model's prompts; None takes its default prompt.
            prompt: Put before each text; wins over ``prompt_name``.
            max_active_dims: Keep the largest weights only; None does as the model says, which as a rule is all.
            side: ``query`` or ``document``, for models that have a route for each (inference-free SPLADE); None takes
                that whose prompt is named, else their default route. It chooses no prompt.
            truncate: Cut longer texts to the model's limit, with one warning, instead of refusing them.
            progress: Show a progress bar.

        Returns:
            One embedding a text, also for a lone one.

        Raises:
            TaskNotSupported: the model's embeddings are dense.
            InputError: ``side`` is needed and not given, or given to a model without routes.
        """
        self.check_sparse_options(prompt_name=prompt_name, prompt=prompt, max_active_dims=max_active_dims, side=side)
        resolved = resolve_texts(texts)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.embed_sparse_chunk(
                resolved,
                prompt_name=prompt_name,
                prompt=prompt,
                max_active_dims=max_active_dims,
                side=side,
                truncate=truncate,
                on_progress=on_progress,
            )
        limit = find_limit(self.manifest, self._find_route(side, prompt_name))
        warn_of_cuts(num_cut, len(resolved), self.manifest, limit)
        return answers

    def embed_sparse_chunk(
        self,
        texts: Sequence[str],
        *,
        first_index: int = 0,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_active_dims: int | None = None,
        side: str | None = None,
        truncate: bool = False,
        on_progress: Progress | None = None,
    ) -> tuple[list[SparseEmbedding], int]:
        """Embed a part of a longer list, without a warning; arguments as of ``embed_sparse`` and ``embed_chunk``.

        Returns:
            One embedding a text, and how many texts were cut.
        """
        self.check_sparse_options(prompt_name=prompt_name, prompt=prompt, max_active_dims=max_active_dims, side=side)
        weights = self.manifest.pooler.token_weights
        most = choose_active_dims(self.manifest, max_active_dims)
        prefix = resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        if self._find_route(side, prompt_name) == "query":
            queries = self._encode_queries(texts, prefix, truncate=truncate, first_index=first_index)
            table = self._check_table()
            weighed = [weigh_tokens(query.input_ids, table).keep_largest(most) for query in queries]
            if on_progress is not None:
                on_progress(len(weighed))
            return weighed, count_cut(queries)
        answers: list[SparseEmbedding] = []

        def take(_first: int, window: Sequence[EncodedText], raw: Raw) -> None:
            answers.extend(embedding.keep_largest(most) for embedding in self._weigh(raw, window, most))

        windows = self._encode_windows(texts, prefix, truncate=truncate, first_index=first_index)
        run: Callable[..., Raw] = self._executor.run_sequence if weights is None else self._executor.run_token
        num_cut = self._run_windows(
            windows, run, take, num_items=len(texts), first_index=first_index, on_progress=on_progress
        )
        return answers, num_cut

    def _weigh(self, raw: Raw, window: Sequence[EncodedText], most: int | None) -> list[SparseEmbedding]:
        """Return the weights of each text's words, of raw answers of the sequence graph, or of BGE-M3's token graph."""
        weights = self.manifest.pooler.token_weights
        if weights is None:
            return sparsify(finish_by_default(np.asarray(raw), self.manifest, most))
        skipped, size = weights.skip_token_ids, self.sparse_size
        return [
            weigh_words(text.input_ids, rows[:, -1], skipped=skipped, size=size)
            for text, rows in zip(window, raw, strict=True)
        ]

    @property
    def sparse_size(self) -> int:
        """Width of a sparse embedding, the vocabulary's size."""
        is_splade = self.manifest.pooler.sparse
        return self.manifest.pooler.embedding_size if is_splade else self.manifest.limits.vocab_size

    def check_sparse_options(
        self,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        max_active_dims: int | None = None,
        side: str | None = None,
    ) -> None:
        """Check options of ``embed_sparse`` that do not depend on the texts.

        Raises:
            TaskNotSupported: the model's embeddings are dense.
            InputError: a prompt or a route that the model does not have, or a number of weights that is none.
        """
        self.check_embed_options(prompt_name=prompt_name, prompt=prompt, side=side)
        if not weighs_words(self.manifest):
            raise TaskNotSupported(
                f"{self.manifest.source.model!r} embeds densely: sparse embeddings are of SPLADE models, sparse "
                "auto-encoders and BGE-M3"
            )
        check_active_dims(max_active_dims)

    def decode(self, embedding: SparseEmbedding, top_k: int | None = None) -> list[tuple[str, float]]:
        """Return the tokens that an embedding weighs, the heaviest first.

        Args:
            embedding: Of this model.
            top_k: The most that are returned, None for all.

        Raises:
            InputError: no embedding, one of another size, or a number that is none.
            TaskNotSupported: the model weighs no words but the features of a sparse auto-encoder.
        """
        if not isinstance(embedding, SparseEmbedding):
            raise InputError(
                f"embedding must be one SparseEmbedding, got {type(embedding).__name__}", parameter="embedding"
            )
        if embedding.size != self.sparse_size:
            raise InputError(
                f"the embedding has {embedding.size} words, those of {self.manifest.source.model!r} {self.sparse_size}",
                parameter="embedding",
            )
        if AUTO_ENCODER in read_head_kinds(self.path):
            raise TaskNotSupported(
                f"{self.manifest.source.model!r} weighs the features of a sparse auto-encoder, which have no words"
            )
        number = len(embedding) if top_k is None else check_active_dims(top_k, "top_k")
        order = np.argsort(-embedding.values, kind="stable")[:number]
        vocabulary = self.tokenizer.backend
        return [
            (vocabulary.id_to_token(int(index)) or f"[{index}]", float(value))
            for index, value in zip(embedding.indices[order], embedding.values[order], strict=True)
        ]
