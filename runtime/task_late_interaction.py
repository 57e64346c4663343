"""Queries and documents of a late-interaction (ColBERT) model to the vectors that MaxSim scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import TruncationWarning
from poolgraph.runtime.embeddings import at_token_width, check_dimensions, choose_norm, finish_embeddings
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.late_interaction import SideRules, encode_side, resolve_side, scored_tokens
from poolgraph.runtime.loaded import LoadedModel, progress_bar
from poolgraph.runtime.pipeline import encode_windows
from poolgraph.runtime.texts import resolve_texts
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import Side


class LateInteractionTasks(LoadedModel):
    """Texts to vectors of their tokens, as the model's own definition of queries and documents has it."""

    def embed_queries(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        plain: bool = False,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        progress: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Embed queries: marker, the model's length, [MASK] expansion and skip list as its checkpoint defines them.

        The answers are those of sentence-transformers' ``MultiVectorEncoder.encode_query``.

        Args:
            texts: A query or several.
            prompt_name: Name of one of the model's prompts, instead of the marker.
            prompt: Put before each query instead of the marker; wins over ``prompt_name``.
            plain: Every token as it is, with no marker, length, expansion or skip list: what vLLM does.
            dimensions: Leading values kept, for Matryoshka models.
            normalize: Divide each vector by its L2 norm; None does as the model says.
            truncate: A length that belongs to the model's definition cuts by default, with one warning. True cuts texts
                beyond the model's limit too, False refuses whatever would be cut.
            progress: Show a progress bar.

        Returns:
            One array (num_vectors, token_embedding_size) a query, also for a lone one.

        Raises:
            TaskNotSupported: the model has no late interaction.
            InputError: a query that is too long, or an option that the model does not have.
        """
        rules = resolve_side(self.manifest, "query", plain=plain, prompt_name=prompt_name, prompt=prompt)
        return self._embed(rules, texts, dimensions, normalize, truncate=truncate, progress=progress)

    def embed_documents(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        plain: bool = False,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        progress: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Embed documents: marker, the model's length and skip list; arguments and errors as of ``embed_queries``.

        The answers are those of sentence-transformers' ``MultiVectorEncoder.encode_document``.

        Returns:
            One array (num_vectors, token_embedding_size) a document. A document has no vectors when all its tokens are
            on the skip list.
        """
        rules = resolve_side(self.manifest, "document", plain=plain, prompt_name=prompt_name, prompt=prompt)
        return self._embed(rules, texts, dimensions, normalize, truncate=truncate, progress=progress)

    def encode_side(
        self, side: Side, texts: Sequence[str], *, plain: bool = False, truncate: bool | None = None
    ) -> list[EncodedText]:
        """Tokenize queries or documents; the options are those of ``embed_queries``."""
        return encode_side(
            self.tokenizer, resolve_side(self.manifest, side, plain=plain), resolve_texts(texts), truncate=truncate
        )

    def embed_side(
        self,
        rules: SideRules,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        on_progress: Progress | None = None,
    ) -> tuple[list[NDArray[np.float32]], int]:
        """Embed the texts of one side, without a warning.

        Args:
            rules: The side's, of ``resolve_side``.
            texts: The texts.
            dimensions: As for ``embed_queries``, like the next two.
            normalize: Divide by the L2 norm.
            truncate: What is cut.
            on_progress: Called with the number of texts that each finished batch adds.

        Returns:
            The vectors (num_vectors, token_embedding_size) of each text, and how many texts were cut.
        """
        self.check_task("token_embed")
        check_dimensions(at_token_width(self.manifest), dimensions, self.manifest.source.model)
        unit = choose_norm(self.manifest, normalize)
        answers: list[NDArray[np.float32]] = []

        def take(_first: int, window: Sequence[EncodedText], raw: Sequence[NDArray[np.float32]]) -> None:
            answers.extend(
                finish_embeddings(rows[scored_tokens(rules, text.input_ids)], normalize=unit, dimensions=dimensions)
                for rows, text in zip(raw, window, strict=True)
            )

        encode = partial(encode_side, self.tokenizer, rules, truncate=truncate)
        windows = encode_windows(texts, encode, self.first_window)
        run = self._executor.run_token
        num_cut = self._run_windows(windows, run, take, num_items=len(texts), on_progress=on_progress)
        return answers, num_cut

    def _embed(
        self,
        rules: SideRules,
        texts: str | Sequence[str],
        dimensions: int | None,
        normalize: bool | None,
        *,
        truncate: bool | None,
        progress: bool,
    ) -> list[NDArray[np.float32]]:
        resolved = resolve_texts(texts)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.embed_side(
                rules,
                resolved,
                dimensions=dimensions,
                normalize=normalize,
                truncate=truncate,
                on_progress=on_progress,
            )
        if num_cut:
            limit = rules.max_tokens or self.manifest.limits.max_model_len
            message = f"{num_cut} of {len(resolved)} {rules.side} texts were longer than {limit} tokens and were cut"
            # The caller of embed_queries or embed_documents.
            warnings.warn(TruncationWarning(message, num_cut), stacklevel=3)
        return answers
