"""Two-stage retrieval: an embedding model recalls from a vector index, a cross-encoder orders what was recalled.

    python examples/two_stage_retrieval.py --embedder all-MiniLM-L6-v2.poolgraph --reranker BAAI/bge-reranker-base

Models are artifacts, checkpoint folders or hub ids; the index is faiss (pip install faiss-cpu).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from poolgraph import PoolingModel

CORPUS = Path(__file__).parent / "corpus.txt"


def build_index(embedder: PoolingModel, documents: Sequence[str]) -> faiss.Index:
    """Embed the documents and put them into an index of inner products, which are cosines of unit vectors."""
    vectors = embedder.embed(documents, normalize=True, truncate=True)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def recall(embedder: PoolingModel, index: faiss.Index, query: str, count: int) -> list[int]:
    """Return the indices of the documents whose vectors are nearest to the query's."""
    _, found = index.search(embedder.embed(query, normalize=True), count)
    return [int(position) for position in found[0] if position >= 0]


def search(
    embedder: PoolingModel,
    reranker: PoolingModel,
    index: faiss.Index,
    documents: Sequence[str],
    query: str,
    *,
    recalled: int = 10,
    top_n: int = 3,
) -> list[tuple[int, float]]:
    """Return (document, score) of the best documents: recalled by vectors, ordered by the cross-encoder."""
    candidates = recall(embedder, index, query, recalled)
    ranked = reranker.rerank(query, [documents[position] for position in candidates], top_n=top_n)
    return [(candidates[document.index], document.score) for document in ranked]


def main(argv: Sequence[str] | None = None) -> None:
    """Answer the queries given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", required=True)
    parser.add_argument("--reranker", required=True)
    parser.add_argument("queries", nargs="*", default=["How do I keep my pan from rusting?"])
    args = parser.parse_args(argv)
    documents = CORPUS.read_text(encoding="utf-8").splitlines()
    with PoolingModel.load(args.embedder) as embedder, PoolingModel.load(args.reranker) as reranker:
        index = build_index(embedder, documents)
        for query in args.queries:
            print(query)
            for position, score in search(embedder, reranker, index, documents, query):
                print(f"  {np.round(score, 3):>7}  {documents[position]}")


if __name__ == "__main__":
    main()
