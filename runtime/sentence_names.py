"""The names of sentence-transformers, with its meanings: ``encode``, ``encode_query``, ``similarity`` and so on."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.embeddings import finish_embeddings
from poolgraph.runtime.encode_request import Encoded, EncodeOptions, EncodeRequest, SparseOptions, Texts, take_texts
from poolgraph.runtime.loaded import progress_bar
from poolgraph.runtime.module_kinds import read_head_kinds
from poolgraph.runtime.similarity import (
    LATE_INTERACTION_FUNCTIONS,
    Matrices,
    maxsim_matrix,
    maxsim_of_pairs,
    similarity_matrix,
    similarity_pairs,
)
from poolgraph.runtime.static_query import find_limit
from poolgraph.runtime.task_embed import EmbedTasks
from poolgraph.runtime.task_late_interaction import LateInteractionTasks
from poolgraph.runtime.texts import resolve_prompt, warn_of_cuts
from poolgraph.tasks import SIDES, Side


class SentenceNames(LateInteractionTasks, EmbedTasks):
    """The methods of sentence-transformers' models that are about inference, numpy arrays in place of tensors.

    As there, and unlike ``embed``, these methods cut texts that are longer than the model's limit; one warning says how
    many.
    """

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        sentences: Texts | None = None,
        **sparse_options: Unpack[SparseOptions],
    ) -> Encoded:
        """Embed texts as ``SentenceTransformer.encode`` does; InputError for options without a meaning here.

        Args:
            inputs: A text or several.
            prompt_name: Name of one of ``prompts``; None takes the model's default prompt, if it has one.
            prompt: Put before each text; wins over ``prompt_name``.
            batch_size: Without effect: batches are cut by length.
            show_progress_bar: Show a progress bar.
            output_value: ``sentence_embedding``, or ``token_embeddings`` for the backbone's rows, not normalized.
            precision: ``float32``, ``binary``, ``ubinary``; ``int8``, ``uint8``, whose ranges are those of the call.
            convert_to_numpy: False returns a list of arrays instead of a matrix.
            convert_to_tensor: Refused: there is no torch at run time.
            device: Refused: ``PoolingModel.load`` decides where a model runs.
            normalize_embeddings: Divide by the L2 norm, also after shortening.
            truncate_dim: Leading values kept, not normalized again, unlike those of ``embed(dimensions=...)``.
            pool: Refused.
            chunk_size: Refused.
            sentences: Older name of ``inputs``.
            **sparse_options: What only ``SparseEncoder.encode`` has.

        Returns:
            (num_texts, embedding_size), a byte for 8 values in binary; a list of (num_tokens, size) for tokens.
        """
        texts, lone = take_texts(inputs, sentences)
        request = EncodeRequest(
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            device=device,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
            **sparse_options,
        )
        answers, num_cut = self._answer(texts, prompt_name, prompt, request)
        warn_of_cuts(num_cut, len(texts), self.manifest, find_limit(self.manifest, None))
        return request.convert(answers, lone=lone)

    def _check_one_side(self) -> None:
        if self.manifest.late_interaction is not None:
            raise TaskNotSupported(
                f"{self.manifest.source.model!r} encodes queries and documents differently: call encode_query or "
                "encode_document, or token_embed for the plain token vectors"
            )

    def encode_query(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        sentences: Texts | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Encoded:
        """Embed queries: ``encode`` with the prompt ``query``, none where the model has none, unless another is named.

        A model that has a route for each side takes that of queries; ``encode`` takes its default route, if it has one.
        A late-interaction model encodes them with its marker, length and expansion, to token vectors.

        Returns:
            As ``encode``; of a late-interaction model a list of (num_vectors, token_embedding_size), or one of these.
        """
        texts, lone = take_texts(inputs, sentences)
        request = EncodeRequest(**options)
        answers, num_cut = self._answer_side("query", texts, prompt_name, prompt, request)
        warn_of_cuts(num_cut, len(texts), self.manifest, find_limit(self.manifest, "query"))
        return request.convert(answers, lone=lone)

    def encode_document(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        sentences: Texts | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Encoded:
        """Embed documents: ``encode`` with the prompt ``document``, none where the model has none; as ``encode_query``.

        A prompt called ``passage`` or ``corpus`` is taken only when it is named, which is what sentence-transformers 6
        does: there, every model has a prompt ``document``.
        """
        texts, lone = take_texts(inputs, sentences)
        request = EncodeRequest(**options)
        answers, num_cut = self._answer_side("document", texts, prompt_name, prompt, request)
        warn_of_cuts(num_cut, len(texts), self.manifest)
        return request.convert(answers, lone=lone)

    def similarity(self, embeddings1: Matrices | ArrayLike, embeddings2: Matrices | ArrayLike) -> NDArray[Any]:
        """Compare each embedding with each of others by ``similarity_fn_name``; distances are negative.

        Args:
            embeddings1: (n, embedding_size), or one embedding; token vectors of late-interaction models as a list.
            embeddings2: (m, embedding_size), likewise.

        Returns:
            (n, m).

        Raises:
            InputError: shapes that do not fit, NaN or infinity.
        """
        name = self.similarity_fn_name
        compare: Any = maxsim_matrix if name in LATE_INTERACTION_FUNCTIONS else similarity_matrix
        scores: NDArray[Any] = compare(embeddings1, embeddings2, name)
        return scores

    def similarity_pairwise(self, embeddings1: Matrices | ArrayLike, embeddings2: Matrices | ArrayLike) -> NDArray[Any]:
        """Compare embedding i with embedding i of others; arguments and errors as of ``similarity``.

        Returns:
            (n,); () for two lone embeddings.
        """
        name = self.similarity_fn_name
        compare: Any = maxsim_of_pairs if name in LATE_INTERACTION_FUNCTIONS else similarity_pairs
        scores: NDArray[Any] = compare(embeddings1, embeddings2, name)
        return scores

    @property
    def similarity_fn_name(self) -> str:
        """``cosine``, ``dot``, ``euclidean``, ``manhattan``, ``maxsim`` or ``meanmaxsim``: the checkpoint's."""
        return self.manifest.similarity_fn_name

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts by name, with those of the sides, which every model of sentence-transformers has."""
        return {**dict.fromkeys(SIDES, ""), **self.manifest.prompts}

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt that ``encode`` puts before texts unless another is named."""
        return self.manifest.default_prompt_name

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special tokens included."""
        return self.manifest.limits.max_model_len

    def get_max_seq_length(self) -> int:
        """Return ``max_seq_length``."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Return the width of an embedding, of late-interaction models that of a token vector.

        Raises:
            TaskNotSupported: the model does not embed.
        """
        pooler = self.manifest.pooler
        if "embed" in self.manifest.tasks:
            return pooler.embedding_size
        self.check_task("token_embed")
        return pooler.token_embedding_size or pooler.embedding_size

    def get_sentence_embedding_dimension(self) -> int:
        """Return ``get_embedding_dimension()``, whose older name this is."""
        return self.get_embedding_dimension()

    def _answer(
        self,
        texts: list[str],
        prompt_name: str | None,
        prompt: str | None,
        request: EncodeRequest,
        side: Side | None = None,
    ) -> tuple[NDArray[np.float32] | list[NDArray[np.float32]], int]:
        """Return the embeddings in float32, and how many texts were cut without a warning so far."""
        self._check_one_side()
        prefix = self._find_prompt(prompt_name, prompt)
        shown = bool(request.show_progress_bar)
        if request.output_value == "token_embeddings":
            self._check_rows()
            if not texts:
                return [], 0
            return self.token_embed(texts, prompt=prefix, normalize=False, truncate=True, progress=shown), 0
        self.check_task("embed")
        with progress_bar(len(texts), shown=shown) as on_progress:
            answers, num_cut = self.embed_chunk(
                texts,
                prompt=prefix,
                side=None if self.manifest.static_query is None else side,
                truncate=True,
                max_active_dims=request.max_active_dims,
                on_progress=on_progress,
            )
        if request.normalize_embeddings or request.truncate_dim is not None:
            answers = finish_embeddings(
                answers, normalize=request.normalize_embeddings, dimensions=request.truncate_dim
            )
        return answers, num_cut

    def _answer_side(
        self,
        side: Side,
        texts: list[str],
        prompt_name: str | None,
        prompt: str | None,
        request: EncodeRequest,
    ) -> tuple[NDArray[np.float32] | list[NDArray[np.float32]], int]:
        if self.manifest.late_interaction is None:
            name = side if prompt_name is None and prompt is None else prompt_name
            return self._answer(texts, name, prompt, request, side)
        if request.truncate_dim is not None:
            raise InputError(
                "truncate_dim is for sentence embeddings; embed_queries and embed_documents take dimensions",
                parameter="truncate_dim",
                value=request.truncate_dim,
            )
        embed = {"query": self.embed_queries, "document": self.embed_documents}[side]
        answers = (
            embed(
                texts,
                prompt_name=prompt_name,
                prompt=prompt,
                normalize=True if request.normalize_embeddings else None,
                truncate=True,
                progress=bool(request.show_progress_bar),
            )
            if texts
            else []
        )
        return answers, 0

    def _find_prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is None and prompt_name in SIDES and prompt_name not in self.manifest.prompts:
            return ""
        return resolve_prompt(self.manifest, prompt_name=prompt_name, prompt=prompt)

    def _check_rows(self) -> None:
        """Check that the token graph's raw rows are the backbone's: a head between the two is compiled in."""
        self.check_task("token_embed")
        kinds = read_head_kinds(self.path)
        if [kind for kind in kinds if kind != "Dropout"] not in ([], ["Normalize"]):
            raise TaskNotSupported(
                f"output_value='token_embeddings' means the backbone's rows, and the token graph of "
                f"{self.manifest.source.model!r} has the head {kinds} compiled in; call token_embed for its rows"
            )
