"""LiquidAI's LFM2 that reads in both directions: LFM2.5-Embedding."""

from __future__ import annotations

from poolgraph.export.layouts import Json, Layout, read_rope

BIDIRECTIONAL = "Lfm2BidirectionalModel"


def _is_bidirectional(published: Json) -> bool:
    return published.get("model_type") == "lfm2" and BIDIRECTIONAL in (published.get("architectures") or ())


LFM2_BIDIRECTIONAL = Layout(
    model_type="lfm2",
    recognize=_is_bidirectional,
    derive=lambda published: {"rope_parameters": read_rope(published, base=1e6), "is_causal": False},
)
