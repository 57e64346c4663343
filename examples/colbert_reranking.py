"""Late interaction: document token vectors are made once and stored, each query is scored against them by MaxSim.

python examples/colbert_reranking.py answerdotai/answerai-colbert-small-v1 "How do I keep my pan from rusting?"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poolgraph import PoolingModel

CORPUS = Path(__file__).parent / "corpus.txt"


def rank(model: PoolingModel, query: str, vectors: Sequence[np.ndarray], top_n: int = 3) -> list[tuple[int, float]]:
    """Return (document, score) of the best documents for a query."""
    scores = model.similarity(model.embed_queries([query]), list(vectors))[0]
    return [(int(position), float(scores[position])) for position in np.argsort(-scores, kind="stable")[:top_n]]


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the corpus for each query."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        raise SystemExit(__doc__)
    model_name, *queries = arguments
    documents = CORPUS.read_text(encoding="utf-8").splitlines()
    with PoolingModel.load(model_name) as model:
        vectors = model.embed_documents(documents)
        num_vectors, size = sum(len(rows) for rows in vectors), vectors[0].shape[1]
        print(f"{len(documents)} documents, {num_vectors} vectors of {size} values")
        for query in queries or ["How do I keep my pan from rusting?"]:
            print(query)
            for position, score in rank(model, query, vectors):
                print(f"  {score:7.3f}  {documents[position]}")


if __name__ == "__main__":
    main()
