"""What is asked of a model for a chunk of items, and the columns that its answers become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from poolgraph.runtime.file_columns import Answers, Column, Numbers, Ragged, Records, Texts
from poolgraph.runtime.file_cuts import call_counting_cuts
from poolgraph.runtime.file_readers import Row

if TYPE_CHECKING:
    from poolgraph.runtime.model import PoolingModel

Options: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Callable[["PoolingModel", Sequence[Row], Options, int], tuple[Answers, int]]
"""Of a model, a chunk of items, the task's options and the index of the chunk's first item: the answers, and how many
texts were cut."""

_RANKED: Final = {"index": "int64", "score": "float32", "text": "string"}
_WEIGHT: Final = {"index": "int64", "value": "float32"}
_SPAN: Final = {"word": "string", "start": "int64", "end": "int64"}
_ENTITY: Final = {"entity_group": "string", "score": "float32", **_SPAN}
_TOKEN_METHODS: Final = {None: "token_embed", "query": "embed_queries", "document": "embed_documents"}
_TOKEN: Final = {"entity": "string", "score": "float32", "index": "int64", **_SPAN}


def ask_chunk(method: str, column: str) -> Answer:
    """Return what asks a method of the model that is made for parts of a longer list.

    Args:
        method: Takes texts, ``first_index`` and the options; returns the answers and how many texts were cut.
        column: The name of the answers' column.
    """

    def answer(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
        values, num_cut = getattr(model, method)(_texts(items), first_index=first_index, **options)
        return {column: _as_column(values)}, num_cut

    return answer


def with_activation(answer: Answer) -> Answer:
    """Return the answer to ``use_activation``, which for embeddings is ``normalize``."""

    def renamed(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
        names = {"use_activation": "normalize"}
        return answer(model, items, {names.get(name, name): value for name, value in options.items()}, first_index)

    return renamed


def embed_sparse(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Weigh the words of texts: ``embedding``, for each word that has a weight its token id and the weight."""
    found, num_cut = model.embed_sparse_chunk(_texts(items), first_index=first_index, **options)
    weights = [
        [{"index": index, "value": value} for index, value in embedding.to_dict().items()] for embedding in found
    ]
    return {"embedding": Records(weights, _WEIGHT)}, num_cut


def embed_tokens(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Embed the tokens of the texts, or those that MaxSim scores of a ``side``: ``data``, (num_tokens, size) a text."""
    side, rest = options.get("side"), {name: value for name, value in options.items() if name != "side"}
    if side is not None:  # whose length belongs to the model's definition, and cuts unasked
        rest["truncate"] = rest.get("truncate") or None
    embed = getattr(model, _TOKEN_METHODS[side])
    rows, num_cut = call_counting_cuts(partial(embed, _texts(items), **rest), first_index)
    return {"data": Ragged(rows)}, num_cut


def classify(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Classify texts: the likeliest ``label``, its ``score``, and the ``probs`` of all, (num_texts, num_labels)."""
    probs, num_cut = model.classify_chunk(_texts(items), first_index=first_index, **options)
    best = probs.argmax(axis=1)
    labels = model.manifest.labels
    answers: dict[str, Column] = {
        "label": Texts([labels[index] if labels else None for index in best]),
        "score": Numbers(probs[np.arange(len(best)), best]),
        "probs": Numbers(probs),
    }
    return answers, num_cut


def find_entities(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Find the ``entities`` of texts, under the keys of transformers' pipeline."""
    found, num_cut = model.entities_chunk(_texts(items), first_index=first_index, **options)
    kinds = _TOKEN if options.get("aggregation_strategy") == "none" else _ENTITY
    return {"entities": Records([[entity.to_dict() for entity in entities] for entities in found], kinds)}, num_cut


def score(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Score pairs of a query and a document: ``score``, (num_pairs,)."""
    queries, documents = zip(*items, strict=True)
    scores, num_cut = call_counting_cuts(partial(model.score, list(queries), list(documents), **options), first_index)
    return {"score": Numbers(scores)}, num_cut


def rerank(model: PoolingModel, items: Sequence[Row], options: Options, first_index: int) -> tuple[Answers, int]:
    """Order the documents of queries: ``query`` and ``results``, or without any text with ``omit_texts``."""
    omit_texts = bool(options.get("omit_texts"))
    keywords = {name: value for name, value in options.items() if name != "omit_texts"}
    kinds = {name: kind for name, kind in _RANKED.items() if name != "text" or not omit_texts}
    results: list[list[dict[str, Any]]] = []
    total_cut = 0
    for index, (query, documents) in enumerate(items, first_index):
        ranked, num_cut = call_counting_cuts(partial(model.rerank, str(query), documents, **keywords), index)
        results.append([{name: getattr(row, name) for name in kinds} for row in ranked])
        total_cut += num_cut
    answers: dict[str, Column] = {} if omit_texts else {"query": Texts([str(query) for query, _ in items])}
    return answers | {"results": Records(results, kinds)}, total_cut


def _texts(items: Sequence[Row]) -> list[str]:
    return [str(text) for (text,) in items]


def _as_column(values: Any) -> Column:
    return Numbers(values) if isinstance(values, np.ndarray) else Ragged(values)
