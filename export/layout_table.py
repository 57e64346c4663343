"""The table of published layouts, one family a file."""

from __future__ import annotations

from poolgraph.export.layout_bidirectional import BIDIRECTIONAL
from poolgraph.export.layout_gte import GTE
from poolgraph.export.layout_jina import JINA, JINA_ADAPTERS
from poolgraph.export.layout_jina_bert import JINA_BERT
from poolgraph.export.layout_jina_v5 import JINA_V5_NANO, JINA_V5_SMALL
from poolgraph.export.layout_llama import INTERNLM2, LLAMA_BIDIRECTIONAL
from poolgraph.export.layout_nomic import NOMIC, NOMIC_MOE
from poolgraph.export.layouts import Layout

LAYOUTS: tuple[Layout, ...] = (
    GTE,
    JINA_ADAPTERS,
    JINA,
    JINA_BERT,
    JINA_V5_SMALL,
    JINA_V5_NANO,
    NOMIC,
    NOMIC_MOE,
    LLAMA_BIDIRECTIONAL,
    INTERNLM2,
    *BIDIRECTIONAL,
)
"""The first that recognizes a ``config.json`` holds."""
