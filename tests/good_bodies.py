"""A good body of each route, for the tiny models of ``fake_engine``."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "w1"},
    "/v1/embed": {"texts": ["w1"]},
    "/v2/embed": {"texts": ["w1"]},
    "/pooling": {"input": "w1"},
    "/classify": {"input": "w1"},
    "/score": {"text_1": "w1", "text_2": ["w2"]},
    "/rerank": {"query": "w1", "documents": ["w2"]},
    "/tokenize": {"prompt": "w1"},
    "/detokenize": {"tokens": [5]},
    "/": {"inputs": "w1"},
    "/embed": {"inputs": "w1"},
    "/embed_all": {"inputs": "w1"},
    "/embed_sparse": {"inputs": "w1"},
    "/predict": {"inputs": "w1"},
    "/similarity": {"inputs": {"source_sentence": "w1", "sentences": ["w2"]}},
}
