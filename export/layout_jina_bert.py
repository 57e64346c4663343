"""The layout of Jina's first BERT: jina-embeddings-v2 (also -base-code), jina-reranker-v1."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from poolgraph.errors import UnsupportedArchitecture
from poolgraph.export.layouts import Json, Layout, check_fixed

FEED_FORWARD = ("geglu", "reglu")
POST_NORM = "qk-post-norm"
"""Part of the name of code whose layers have more norms (jina-embeddings-v2-base-code)."""

OTHER_NORM = "-qk-"
"""Part of the names of all code that normalizes queries and keys."""


def _derive(published: Json) -> dict[str, Any]:
    check_fixed(published, {"alibi_scaling": None, "is_decoder": False, "add_cross_attention": False})
    code = str((published.get("auto_map") or {}).get("AutoModel") or "")
    if OTHER_NORM in code and POST_NORM not in code:
        raise UnsupportedArchitecture(
            f"config.json names the code {code}, whose norms of queries and keys are not known here; those known "
            f"are of jina-bert-v2-{POST_NORM}"
        )
    if published.get("feed_forward_type") not in FEED_FORWARD:
        raise UnsupportedArchitecture(
            f"config.json has the feed_forward_type {published.get('feed_forward_type')!r}; "
            f"it is one of {', '.join(FEED_FORWARD)}"
        )
    return {"qk_post_norm": POST_NORM in code or bool(published.get("qk_post_norm"))}


JINA_BERT = Layout(
    model_type="bert",
    recognize=lambda published: (
        published.get("model_type") == "bert" and published.get("position_embedding_type") == "alibi"
    ),
    classes=MappingProxyType({"JinaBertForMaskedLM": "JinaBertModel"}),
    derive=_derive,
    backbone="JinaBertModel",
)
