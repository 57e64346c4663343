"""Exporting a checkpoint of 8 GB: the memory that it takes at most, and whether what it makes loads and answers.

The checkpoint is synthetic (the shapes of Qwen2, fp32, seeded normal weights), and so is its tokenizer. The
export and the run have a process each; memory is each process' largest resident size, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from poolgraph.runtime.bench_machine import describe_machine, read_peak_rss_bytes

GIB = 1024**3
SIZES = {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 32000, "num_attention_heads": 32}
NUM_KV_HEADS, HEAD_DIM, MAX_LENGTH = 8, 64, 1024
END = "<|endoftext|>"
TEXTS = ("winter harbour", "", "a letter from the mountain", "violin engine signal " * 40)


def config(num_layers: int) -> dict[str, Any]:
    """Return config.json."""
    return {
        **SIZES,
        "architectures": ["Qwen2Model"],
        "model_type": "qwen2",
        "num_hidden_layers": num_layers,
        "num_key_value_heads": NUM_KV_HEADS,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "torch_dtype": "float32",
    }


def shards(num_layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield each file's tensors: names and shapes."""
    hidden, inner, kv = SIZES["hidden_size"], SIZES["intermediate_size"], NUM_KV_HEADS * HEAD_DIM
    yield {"embed_tokens.weight": (SIZES["vocab_size"], hidden), "norm.weight": (hidden,)}
    layer = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for index in range(num_layers):
        yield {f"layers.{index}.{name}": shape for name, shape in layer.items()}


def make_checkpoint(folder: Path, num_layers: int) -> int:
    """Write the checkpoint, a file at a time; return the bytes of its weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    source = np.random.default_rng(0)
    weight_map = {}
    for index, tensors in enumerate(shards(num_layers)):
        file = f"model-{index:05d}.safetensors"
        made = {name: _draw(source, name, shape) for name, shape in tensors.items()}
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(made, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config(num_layers)))
    _make_tokenizer(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _draw(source: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn: np.ndarray = source.standard_normal(shape, dtype=np.float32) * 0.02
    return drawn + 1 if name.endswith("norm.weight") else drawn


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((END, *letters))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def export(checkpoint: Path, artifact: Path, max_memory: float) -> dict[str, Any]:
    """Export the portable variant in this process; return what it took."""
    from poolgraph import export_model

    start = time.perf_counter()
    result = export_model(checkpoint, artifact, targets=(), max_memory=max_memory)
    return {
        "export_s": round(time.perf_counter() - start),
        "stages_s": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "export_peak_bytes": read_peak_rss_bytes(),
        "reference": result.report.reference,
        "checks": [f"{row.variant} {row.check}: {'passed' if row.passed else 'failed'}" for row in result.report.rows],
        "weights_file_bytes": max(file.stat().st_size for file in (artifact / "onnx").glob("*.data")),
    }


def answer(artifact: Path) -> dict[str, Any]:
    """Load the artifact in this process and embed a few texts, together and alone; return what came out."""
    from poolgraph import PoolingModel

    start = time.perf_counter()
    with PoolingModel.load(artifact, variant="portable_fp32", threads=1) as model:
        loaded = time.perf_counter() - start
        together = model.embed(list(TEXTS))
        alone = np.concatenate([model.embed(text) for text in TEXTS])
    return {
        "load_s": round(loaded, 1),
        "embedding_shape": list(together.shape),
        "min_cosine_alone": float((together * alone).sum(1).min()),
        "largest_cosine_of_two": float(np.triu(together @ together.T, 1).max()),
        "load_peak_bytes": read_peak_rss_bytes(),
    }


def in_child(*arguments: str) -> dict[str, Any]:
    """Run one step in a process of its own; return the JSON that it prints last."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run one step where it is named, all of them otherwise, and print or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=("make", "export", "answer"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--layers", type=int, default=32, help="0.24 GB each, beside 0.26 GB of embeddings")
    parser.add_argument("--max-memory", type=float, default=1.2e9 / GIB, help="GiB that the export may use")
    parser.add_argument("--folder", type=Path, help="where the files go, some 17 GB; the temporary folder by default")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    if args.step == "make":
        print(json.dumps({"checkpoint_bytes": make_checkpoint(args.paths[0], args.layers)}))
    elif args.step == "export":
        print(json.dumps(export(*args.paths, args.max_memory)))
    elif args.step == "answer":
        print(json.dumps(answer(args.paths[0])))
    else:
        _run_all(args)


def _run_all(args: argparse.Namespace) -> None:
    largest = 4 * max(int(np.prod(shape)) for shard in shards(1) for shape in shard.values())
    with tempfile.TemporaryDirectory(prefix="large-", dir=args.folder) as name:
        checkpoint, artifact = Path(name) / "checkpoint", Path(name) / "artifact"
        found = in_child("make", str(checkpoint), "--layers", str(args.layers))
        found |= in_child("export", str(checkpoint), str(artifact), "--max-memory", str(args.max_memory))
        found |= in_child("answer", str(artifact))
    found |= {"largest_tensor_bytes": largest, "max_memory_bytes": round(args.max_memory * GIB)}
    found |= {"machine": describe_machine()}
    text = json.dumps(found, indent=1)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
