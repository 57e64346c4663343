"""Tiny artifacts that score pairs, and what they answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from little_classifiers import build_classifier, reference_logits
from numpy.typing import NDArray

from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Scoring, parse_manifest
from poolgraph.runtime.model import PoolingModel

TEMPLATE = "ask {{ instruction | default('w9') }} {{ query }} about {{ document }} end"


def draw_texts(num_texts: int, *, seed: int = 0, longest: int = 14) -> list[str]:
    """Texts of random words, some without any."""
    source = random.Random(seed)
    return [" ".join(f"w{source.randrange(60)}" for _ in range(source.randint(0, longest))) for _ in range(num_texts)]


def sigmoid(logits: Any) -> NDArray[np.float64]:
    """The activation of a lone label."""
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def build_scorer(folder: Path, *, template: str | None = None, config: str | None = None, **changes: Any) -> Path:
    """A classifier with one label that scores pairs, or prompts when ``template`` is given."""
    scoring = Scoring(kind="cross_encoder", template=None if template is None else "score_template.jinja")
    build_classifier(folder, labels=("relevant",), **({"scoring": scoring} | changes))
    if template is not None:
        (folder / "score_template.jinja").write_text(template, encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    manifest = parse_manifest((folder / "poolgraph.json").read_bytes())
    save_manifest(folder, msgspec.structs.replace(manifest, files=record_files(folder)))
    return folder


def pair_logits(model: PoolingModel, query: str, document: str) -> float:
    """The logit of a pair that the tokenizer itself makes."""
    ids = model.tokenizer.backend.encode(query, document).ids
    return float(reference_logits(ids, 1, "sequence")[0])


def prompt_logits(model: PoolingModel, text: str) -> float:
    """The logit of a text."""
    return float(reference_logits(model.tokenizer.backend.encode(text).ids, 1, "sequence")[0])
