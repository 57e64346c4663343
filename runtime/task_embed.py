"""The tasks ``embed`` and ``token_embed`` of a loaded model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poolgraph.config import PoolingParams
from poolgraph.runtime.embeddings import check_dimensions, choose_norm, divides_kept, finish_embeddings
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.finish import finish_tokens, plan_finish
from poolgraph.runtime.loaded import LoadedModel, count_cut, progress_bar
from poolgraph.runtime.sparse import choose_active_dims
from poolgraph.runtime.static_query import encode_queries, find_limit, name_side, resolve_route
from poolgraph.runtime.texts import resolve_prompt, resolve_texts, resolve_truncation, warn_of_cuts
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import Side


class EmbedTasks(LoadedModel):
    """Texts to vectors, one a text or one a token."""

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        side: str | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: A text or several.
            prompt_name: Name of one of the model's prompts; None takes its default prompt.
            prompt: Put before each text; wins over ``prompt_name``.
            dimensions: Leading values kept, for Matryoshka models.
            normalize: Divide by the L2 norm; None does as the model says.
            side: ``query`` or ``document``, for models that have a route for each; None takes that whose prompt is
                named, else the default route.
            truncate: Cut longer texts to the model's limit, with one warning, instead of refusing them.
            progress: Show a progress bar.

        Returns:
            (num_texts, embedding_size), one row a text, also for a lone one.
        """
        self.check_embed_options(prompt_name=prompt_name, prompt=prompt, dimensions=dimensions, side=side)
        resolved = resolve_texts(texts)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.embed_chunk(
                resolved,
                prompt_name=prompt_name,
                prompt=prompt,
                dimensions=dimensions,
                normalize=normalize,
                side=side,
                truncate=truncate,
                on_progress=on_progress,
            )
        limit = find_limit(self.manifest, self._find_route(side, prompt_name))
        warn_of_cuts(num_cut, len(resolved), self.manifest, limit)
        return answers

    def embed_chunk(
        self,
        texts: Sequence[str],
        *,
        first_index: int = 0,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        side: str | None = None,
        truncate: bool = False,
        max_active_dims: int | None = None,
        on_progress: Progress | None = None,
    ) -> tuple[NDArray[np.float32], int]:
        """Embed a part of a longer list, without a warning; the options are those of ``embed``.

        Args:
            texts: The part.
            first_index: Index in the whole list of its first text, for messages.
            prompt_name: As for ``embed``, like the next five.
            prompt: Put before each text.
            dimensions: Leading values kept.
            normalize: Divide by the L2 norm.
            side: Which route.
            truncate: Cut longer texts.
            max_active_dims: Of sparse embeddings, keep so many of the largest weights; None does as the model says.
            on_progress: Called with the number of texts that each finished batch adds.

        Returns:
            The rows (num_texts, embedding_size), and how many texts were cut.
        """
        self.check_embed_options(prompt_name=prompt_name, prompt=prompt, dimensions=dimensions, side=side)
        unit = choose_norm(self.manifest, normalize)
        prefix = resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        most = choose_active_dims(self.manifest, max_active_dims)
        if self._find_route(side, prompt_name) == "query":
            queries = self._encode_queries(texts, prefix, truncate=truncate, first_index=first_index)
            rows, asked = self.run_query(queries, on_progress=on_progress), bool(normalize)
            rows = finish_embeddings(rows, normalize=asked, dimensions=dimensions, max_active_dims=most, to_unit=asked)
            return rows, count_cut(queries)
        answers = np.empty((len(texts), dimensions or self.manifest.pooler.embedding_size), dtype=np.float32)
        to_unit = divides_kept(self.manifest, normalize)

        def take(first: int, window: Sequence[EncodedText], raw: NDArray[np.float32]) -> None:
            answers[first : first + len(window)] = finish_embeddings(
                raw, normalize=unit, dimensions=dimensions, max_active_dims=most, to_unit=to_unit
            )

        windows = self._encode_windows(texts, prefix, truncate=truncate, first_index=first_index)
        run = self._executor.run_sequence
        num_cut = self._run_windows(
            windows, run, take, num_items=len(texts), first_index=first_index, on_progress=on_progress
        )
        return answers, num_cut

    def _encode_queries(
        self, texts: Sequence[str], prefix: str, *, truncate: bool, first_index: int
    ) -> list[EncodedText]:
        """Tokenize queries that the table answers."""
        truncate_to = resolve_truncation(truncate)
        return encode_queries(
            self.tokenizer, self.manifest, texts, prompt=prefix, truncate_to=truncate_to, first_index=first_index
        )

    def check_embed_options(
        self,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        side: str | None = None,
    ) -> None:
        """Check options of ``embed`` that do not depend on the texts.

        Raises:
            TaskNotSupported: the model cannot embed.
            InputError: a prompt or a route that the model does not have, or dimensions that it does not allow.
        """
        self.check_task("embed")
        check_dimensions(self.manifest, dimensions, self.manifest.source.model)
        resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        self._find_route(side, prompt_name)

    def _find_route(self, side: str | None, prompt_name: str | None) -> Side | None:
        """Return the route of texts whose caller says these, None for models without routes."""
        return resolve_route(self.manifest, name_side(self.manifest, side, prompt_name))

    def token_embed(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Embed every token of texts; the options are those of ``embed``.

        Returns:
            One array (num_tokens, token_embedding_size) a text, special tokens included; of BGE-M3 without the first.
        """
        self.check_task("token_embed")
        params = PoolingParams(dimensions=dimensions, use_activation=choose_norm(self.manifest, normalize))
        finish = plan_finish(params, "token_embed", manifest=self.manifest, model=self.manifest.source.model)
        resolved = resolve_texts(texts)
        prefix = resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)
        answers: list[NDArray[np.float32]] = []

        def take(_first: int, window: Sequence[EncodedText], raw: Sequence[NDArray[np.float32]]) -> None:
            answers.extend(finish_tokens(rows, text, finish) for rows, text in zip(raw, window, strict=True))

        windows = self._encode_windows(resolved, prefix, truncate=truncate)
        run = self._executor.run_token
        with progress_bar(len(resolved), shown=progress) as on_progress:
            num_cut = self._run_windows(windows, run, take, num_items=len(resolved), on_progress=on_progress)
        warn_of_cuts(num_cut, len(resolved), self.manifest)
        return answers
