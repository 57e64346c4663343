"""What artifacts of each kind are asked about a corpus, and what is compared of their answers: a row a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.activations import choose_activation, finish_logits
from poolgraph.runtime.embeddings import finish_by_default, finish_embeddings
from poolgraph.runtime.fidelity_corpus import Corpus
from poolgraph.runtime.late_interaction import resolve_side, scored_tokens
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.similarity import maxsim_matrix, similarity_matrix
from poolgraph.runtime.texts import TO_MODEL_LIMIT
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import SIDES, GraphFamily, Side

NUM_CANDIDATES: Final = 10
"""Documents that a cross-encoder scores for each query: its anchor and those around it, most of them of one subject."""


Raw: TypeAlias = Sequence[NDArray[np.float32]]
"""A graph's raw answers: a row (size,) a text, or (num_tokens, size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A corpus as tokens.

    Attributes:
        encoded: The inputs: queries then documents, or pairs query by query, or texts.
        num_queries: How many queries are among them, 0 where texts are asked about alone.
        relevant: Which scores belong to documents that answer their query, (num_queries, num_scores); None without
            judgements.
        queries: (num_queries, size) of queries that no graph answers, which are then not among the inputs.
    """

    encoded: tuple[EncodedText, ...]
    num_queries: int = 0
    relevant: NDArray[np.bool_] | None = None
    queries: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Finished answers.

    Attributes:
        scores: Of each query's documents, (num_queries, num_scores), where there are queries.
        rows: Vectors, or values of labels, (num_rows, size), where there are such.
    """

    scores: NDArray[np.float32] | None = None
    rows: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityKind:
    """How one kind of artifact is compared.

    Attributes:
        family: The graph that is run.
        measures: What is compared, by the names of ``fidelity_report``.
        encode: A model and a corpus to its inputs; longer texts are cut to the model's limit.
        finish: Raw answers to what is compared.
    """

    family: GraphFamily
    measures: tuple[str, ...]
    encode: Callable[[PoolingModel, Corpus], Questions]
    finish: Callable[[Manifest, Questions, Raw], Findings]


def choose_kind(manifest: Manifest) -> FidelityKind:
    """Return how an artifact is compared: by the task that it is made for."""
    return FIDELITY_KINDS[name_kind(manifest)]


def name_kind(manifest: Manifest) -> str:
    """Return the name of an artifact's kind, a key of FIDELITY_KINDS."""
    tasks, scoring, pooler = manifest.tasks, manifest.scoring, manifest.pooler
    if manifest.late_interaction is not None:
        return "late_interaction"
    if manifest.static_query is not None:
        return "routes"
    if pooler.activation is None:
        return "embed" if "embed" in tasks else "token_embed"
    if scoring is not None and scoring.kind == "cross_encoder" and manifest.options.get("task") != "reward":
        return "cross_encoder"
    of_tokens = "classify" not in tasks
    size = pooler.token_embedding_size if of_tokens else pooler.embedding_size
    return ("token_" if of_tokens else "") + ("reward" if size == 1 else "classify")


def _encode_sides(model: PoolingModel, corpus: Corpus) -> Questions:
    queries, documents = (
        model.tokenizer.encode(texts, prompt=model.prompts[side], truncate_to=TO_MODEL_LIMIT)
        for side, texts in zip(SIDES, (corpus.queries, corpus.documents), strict=True)
    )
    return Questions(encoded=(*queries, *documents), num_queries=len(queries), relevant=_judge_all(corpus))


def _encode_routes(model: PoolingModel, corpus: Corpus) -> Questions:
    queries, _ = model.embed_chunk(corpus.queries, prompt=model.prompts["query"], side="query", truncate=True)
    encoded = model.tokenizer.encode(corpus.documents, prompt=model.prompts["document"], truncate_to=TO_MODEL_LIMIT)
    return Questions(encoded=tuple(encoded), num_queries=len(queries), relevant=_judge_all(corpus), queries=queries)


def _encode_late(model: PoolingModel, corpus: Corpus) -> Questions:
    queries, documents = (
        model.encode_side(side, texts, truncate=True)
        for side, texts in zip(SIDES, (corpus.queries, corpus.documents), strict=True)
    )
    return Questions(encoded=(*queries, *documents), num_queries=len(queries), relevant=_judge_all(corpus))


def _encode_pairs(model: PoolingModel, corpus: Corpus) -> Questions:
    candidates = choose_candidates(corpus)
    pairs = [(query, int(document)) for query, row in enumerate(candidates) for document in row]
    options = ScoreOptions(truncate_to=TO_MODEL_LIMIT)
    encoded = model.encode_scoring_pairs(corpus.queries, corpus.documents, pairs, options)
    relevant = candidates == np.array(corpus.anchors)[:, None] if corpus.is_judged else None
    return Questions(encoded=tuple(encoded), num_queries=len(corpus.queries), relevant=relevant)


def _encode_texts(model: PoolingModel, corpus: Corpus) -> Questions:
    texts = [*corpus.documents, *corpus.queries]
    return Questions(encoded=tuple(model.tokenizer.encode(texts, truncate_to=TO_MODEL_LIMIT)))


def choose_candidates(corpus: Corpus) -> NDArray[np.int64]:
    """Return which documents are scored for each query, (num_queries, NUM_CANDIDATES)."""
    last = len(corpus.documents) - NUM_CANDIDATES
    starts = np.clip(np.array(corpus.anchors) - NUM_CANDIDATES // 2, 0, last)
    return np.asarray(starts[:, None] + np.arange(NUM_CANDIDATES), dtype=np.int64)


def _judge_all(corpus: Corpus) -> NDArray[np.bool_] | None:
    if not corpus.is_judged:
        return None
    return np.asarray(np.arange(len(corpus.documents)) == np.array(corpus.anchors)[:, None])


def _finish_embeddings(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    rows = finish_by_default(np.stack(raw), manifest)
    queries, documents = np.split(rows, [questions.num_queries])
    return Findings(rows=rows, scores=similarity_matrix(queries, documents, manifest.similarity_fn_name))


def _finish_routes(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    assert questions.queries is not None
    rows = finish_by_default(np.stack(raw), manifest)
    return Findings(rows=rows, scores=similarity_matrix(questions.queries, rows, manifest.similarity_fn_name))


def _finish_late(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    texts, split = list(zip(raw, questions.encoded, strict=True)), questions.num_queries

    def finish(side: Side, part: slice) -> list[NDArray[np.float32]]:
        rules, unit = resolve_side(manifest, side), manifest.pooler.normalize
        kept = (rows[scored_tokens(rules, text.input_ids)] for rows, text in texts[part])
        return [finish_embeddings(rows, normalize=unit, dimensions=None) for rows in kept]

    queries, documents = finish("query", slice(split)), finish("document", slice(split, None))
    return Findings(scores=maxsim_matrix(queries, documents, manifest.similarity_fn_name))


def _finish_tokens(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    return Findings(rows=finish_embeddings(np.concatenate(raw), normalize=manifest.pooler.normalize, dimensions=None))


def _finish_pairs(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    answers = finish_logits(np.stack(raw), choose_activation(manifest.pooler, None))
    return Findings(scores=answers[:, 0].reshape(questions.num_queries, -1))


def _finish_labels(manifest: Manifest, questions: Questions, raw: Raw) -> Findings:
    logits = np.concatenate([np.atleast_2d(rows) for rows in raw])
    return Findings(rows=finish_logits(logits, choose_activation(manifest.pooler, None)))


_RETRIEVAL: Final = ("top-10 overlap", "Spearman", "recall@10", "nDCG@10")
_COSINES: Final = ("mean cosine", "lowest cosine")

_CLASSIFY: Final = FidelityKind(
    family="sequence",
    measures=("same label", "Spearman", "largest difference"),
    encode=_encode_texts,
    finish=_finish_labels,
)
_REWARD: Final = replace(_CLASSIFY, measures=("Spearman", "largest difference"))

FIDELITY_KINDS: Final[Mapping[str, FidelityKind]] = MappingProxyType(
    {
        "embed": FidelityKind(
            family="sequence",
            measures=(*_COSINES, *_RETRIEVAL),
            encode=_encode_sides,
            finish=_finish_embeddings,
        ),
        "routes": FidelityKind(
            family="sequence",
            measures=(*_COSINES, *_RETRIEVAL),
            encode=_encode_routes,
            finish=_finish_routes,
        ),
        "token_embed": FidelityKind(family="token", measures=_COSINES, encode=_encode_sides, finish=_finish_tokens),
        "late_interaction": FidelityKind(family="token", measures=_RETRIEVAL, encode=_encode_late, finish=_finish_late),
        "cross_encoder": FidelityKind(
            family="sequence",
            measures=("same best document", "Spearman", "largest difference", "nDCG@10"),
            encode=_encode_pairs,
            finish=_finish_pairs,
        ),
        "classify": _CLASSIFY,
        "reward": _REWARD,
        "token_classify": replace(_CLASSIFY, family="token"),
        "token_reward": replace(_REWARD, family="token"),
    }
)
"""How each kind is compared. Classifiers and rewards are compared as a request that does not say gets them."""
