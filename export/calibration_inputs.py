"""Calibration texts as a model reads them: tokens, pairs where it reads pairs, texts that say little, probes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poolgraph.errors import InputError
from poolgraph.export.calibration_texts import EDGE_TEXTS
from poolgraph.export.describe import build_manifest
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.tokenizer import save_tokenizer
from poolgraph.export.verify import build_probes, takes_pairs
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.pair_tokenizer import encode_pairs
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

LONGEST = 512
"""Longest calibration text in tokens."""

LONG_TEXTS = 3
"""Texts joined from all others, cut at LONGEST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationInputs:
    """Tokenized texts, and the manifest under which they were.

    Attributes:
        encoded: The texts, and pairs of neighbours where pairs are what the model reads.
        edges: EDGE_TEXTS and very long texts.
        probes: What the gate asks.
        manifest: Without variants.
    """

    encoded: list[EncodedText]
    edges: list[EncodedText]
    probes: list[EncodedText]
    manifest: Manifest


def encode_calibration(plan: ExportPlan, texts: Sequence[str]) -> CalibrationInputs:
    """Tokenize calibration texts, cut at LONGEST or the model's limit."""
    manifest = build_manifest(plan, (), min_cosine=None)
    limit = min(LONGEST, plan.limits.max_model_len)
    prompt = manifest.prompts.get(manifest.default_prompt_name or "", "")
    with tempfile.TemporaryDirectory(prefix="poolgraph-") as folder:
        save_tokenizer(plan.tokenizer, plan.backbone.folder, Path(folder), list(PROBE_SENTENCES))
        tokenizer = TextTokenizer(Path(folder), manifest)
        encoded = tokenizer.encode(texts, prompt=prompt, truncate_to=limit)
        if takes_pairs(manifest):
            pairs = list(zip(texts[::2], texts[1::2], strict=False))
            encoded += encode_pairs(tokenizer, pairs, truncate_to=limit)
        longest = [" ".join(texts[start::LONG_TEXTS]) for start in range(LONG_TEXTS)]
        edges = [text for edge in (*EDGE_TEXTS, *longest) for text in _encode_edge(tokenizer, edge, prompt, limit)]
        probes = build_probes(tokenizer, manifest)
    return CalibrationInputs(encoded=encoded, edges=edges, probes=list(probes.encoded), manifest=manifest)


def _encode_edge(tokenizer: TextTokenizer, text: str, prompt: str, limit: int) -> list[EncodedText]:
    """Return nothing for a text that has no token of this tokenizer."""
    try:
        return tokenizer.encode([text], prompt=prompt, truncate_to=limit)
    except InputError:
        return []
