"""int8 against fp32 on disk and in memory, where the table of words is most of the model: the shape of XLM-R-base.

The checkpoint is synthetic (seeded normal weights, a vocabulary of 250,002 made-up words). Each precision is exported
alone and, to be quick, verified on a twin, without calibration: which scales are chosen does not change the size.
Memory is the growth of the resident size, mapped files included, of a fresh process that has imported poolgraph and
ONNX Runtime before: after loading (sessions open with the first text), after a short text, after one of 512 tokens, and
after texts whose words are from all over the table, so that all of it is in memory. The weights are dropped from the
page cache before: a file that was just written may be mapped in pages of 2 MiB. ``tokenizer`` is what tokenizer.json
alone takes, in either precision.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from poolgraph.runtime.bench_machine import describe_machine, read_versions
from poolgraph.runtime.native_library import available_operators

VOCABULARY, HIDDEN, INNER, POSITIONS, MAX_LENGTH = 250_002, 768, 3072, 514, 512
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PRECISIONS = ("fp32", "int8")
VARIANTS = ("cpu", "portable")
SHORT_TEXT = "a short text"
NUM_SPREAD_WORDS = 20_400
"""Words of the last texts: one in twelve of the vocabulary, closer than the 64 KiB that the kernel maps at once."""
MAX_MEMORY = 2.0
"""GiB that the exports may verify in: too little for the whole model."""


def word(index: int) -> str:
    """Return a word of the vocabulary: its index in letters."""
    letters = ""
    for _ in range(4):
        index, letter = divmod(index, 26)
        letters += chr(ord("a") + letter)
    return letters


def tensors(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of XLMRobertaModel's weights."""
    yield "embeddings.word_embeddings.weight", (VOCABULARY, HIDDEN)
    yield "embeddings.position_embeddings.weight", (POSITIONS, HIDDEN)
    yield "embeddings.token_type_embeddings.weight", (1, HIDDEN)
    yield from _with_bias("embeddings.LayerNorm", (HIDDEN,))
    for index in range(num_layers):
        layer = f"encoder.layer.{index}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _with_bias(f"{layer}.{name}", (HIDDEN, HIDDEN))
        yield from _with_bias(f"{layer}.attention.output.LayerNorm", (HIDDEN,))
        yield from _with_bias(f"{layer}.intermediate.dense", (INNER, HIDDEN))
        yield from _with_bias(f"{layer}.output.dense", (HIDDEN, INNER))
        yield from _with_bias(f"{layer}.output.LayerNorm", (HIDDEN,))


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def make_checkpoint(folder: Path, num_layers: int) -> dict[str, Any]:
    """Write the checkpoint; return the bytes of its weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    source = np.random.default_rng(0)
    made = {name: _draw(source, name, shape) for name, shape in tensors(num_layers)}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HIDDEN // 64,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _make_tokenizer(folder)
    return {"checkpoint_bytes": sum(array.nbytes for array in made.values())}


def _draw(source: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn: np.ndarray = source.standard_normal(shape, dtype=np.float32) * 0.02
    return drawn + 1 if name.endswith("LayerNorm.weight") else drawn


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIAL[:-1], *(f"▁{word(index)}" for index in range(VOCABULARY - len(SPECIAL))), SPECIAL[-1]]
    tokenizer = Tokenizer(models.Unigram([(piece, -10.0) for piece in pieces], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_LENGTH,
    ).save_pretrained(folder)


def export(checkpoint: Path, artifact: Path, precision: str) -> dict[str, Any]:
    """Export one precision in this process; return how large the artifact is."""
    from poolgraph import export_model

    start = time.perf_counter()
    result = export_model(checkpoint, artifact, precisions=(precision,), max_memory=MAX_MEMORY)
    manifest = json.loads((artifact / "poolgraph.json").read_text(encoding="utf-8"))
    return {
        "export_s": round(time.perf_counter() - start),
        "artifact_bytes": sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file()),
        "weights_bytes": (artifact / "onnx" / "weights.data").stat().st_size,
        "reference": result.report.reference,
        "lowest_cosine": min(row.min_cosine for row in result.report.rows),
        "quantization": manifest["variants"][-1]["quantization"],
    }


def _texts(num_words: int, length: int) -> list[str]:
    """Return texts of ``length`` words, which are spread evenly over the vocabulary and shuffled."""
    chosen = np.linspace(0, VOCABULARY - len(SPECIAL) - 1, num_words, dtype=int)
    words = [word(int(index)) for index in np.random.default_rng(0).permutation(chosen)]
    return [" ".join(words[start : start + length]) for start in range(0, num_words, length)]


def answer(artifact: Path, variant: str) -> dict[str, Any]:
    """Load the artifact in this process and answer; return how the resident size grows."""
    import onnxruntime  # noqa: F401

    from poolgraph import PoolingModel

    forget(artifact / "onnx" / "weights.data")
    before = read_memory()
    stages = {"short text": [SHORT_TEXT], "512 tokens": _texts(510, 510), "all words": _texts(NUM_SPREAD_WORDS, 510)}
    with PoolingModel.load(artifact, variant=variant) as model:
        grown = {"load": _growth(before)}
        for name, texts in stages.items():
            model.embed(texts)
            grown[name] = _growth(before)
    return grown


def choose(target: str, precision: str) -> str:
    """Return the variant's name: on the CPU the one that runs unless another is asked for."""
    is_native = (target, precision) == ("cpu", "int8") and bool(available_operators())
    return f"{'native' if is_native else target}_{precision}"


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_tokenizer(artifact: Path) -> dict[str, int]:
    """Load the tokenizer alone in this process; return how the resident size grows."""
    from tokenizers import Tokenizer

    before = read_memory()
    kept = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    grown = _growth(before)
    del kept
    return grown


def read_memory() -> dict[str, int]:
    """Return this process' resident bytes: in all, in no file, in files, and of the artifact's weights.

    Pages that two sessions map count twice but in ``pss``.
    """
    status = Path("/proc/self/status").read_text()
    fields = {"rss": "VmRSS", "anonymous": "RssAnon", "files": "RssFile"}
    found = {name: 1024 * int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) for name, field in fields.items()}
    maps = Path("/proc/self/smaps").read_text()
    weights = re.findall(r"weights\.data\n(?:.*\n)*?Rss:\s+(\d+) kB", maps)
    shared = re.findall(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return found | {"weights file": 1024 * sum(map(int, weights)), "pss": 1024 * int(shared[0])}


def _growth(before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in read_memory().items()}


def in_child(*arguments: str) -> dict[str, Any]:
    """Run one step in a process of its own; return the JSON that it prints last."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, num_layers: int) -> dict[str, Any]:
    """Make the checkpoint, export it twice, and measure both artifacts; what is there already is not made again."""
    checkpoint = folder / "checkpoint"
    found = _made(checkpoint, "make", str(checkpoint), str(num_layers))
    for precision in PRECISIONS:
        artifact = folder / precision
        found[precision] = _made(artifact, "export", str(checkpoint), str(artifact), precision)
        for target in VARIANTS:
            found[precision][f"{target} grows"] = in_child("answer", str(artifact), choose(target, precision))
    found["tokenizer grows"] = in_child("tokenizer", str(folder / PRECISIONS[0]))
    return found


def _made(path: Path, *arguments: str) -> dict[str, Any]:
    """Run a step that makes ``path``, or read what it printed when it did."""
    record = path.with_suffix(".json")
    if not record.exists():
        record.write_text(json.dumps(in_child(*arguments)), encoding="utf-8")
    made: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return made


def compare(found: dict[str, Any]) -> dict[str, float]:
    """Return int8's share of fp32: on disk, and in memory at every stage, with the tokenizer's share and without."""
    fp32, int8 = (found[precision] for precision in PRECISIONS)
    ratios = {"artifact": int8["artifact_bytes"] / fp32["artifact_bytes"]}
    tokenizer = found["tokenizer grows"]["rss"]
    for target in VARIANTS:
        for stage, grown in fp32[f"{target} grows"].items():
            small, large = int8[f"{target} grows"][stage]["rss"], grown["rss"]
            ratios[f"{target}, {stage}"] = small / large
            ratios[f"{target}, {stage}, resident int8 of fp32 on disk"] = small / fp32["artifact_bytes"]
            ratios[f"{target}, {stage}, without tokenizer"] = (small - tokenizer) / (large - tokenizer)
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def main() -> None:
    """Run one step where it is named, all of them otherwise, and print or write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="*", help="make, export, answer or tokenizer, and its arguments")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--folder", type=Path, help="where the files go and stay, some 3 GB; a temporary one by default"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "artifact_size.json")
    args = parser.parse_args()
    steps = {
        "make": lambda checkpoint, layers: make_checkpoint(Path(checkpoint), int(layers)),
        "export": lambda checkpoint, artifact, precision: export(Path(checkpoint), Path(artifact), precision),
        "answer": lambda artifact, variant: answer(Path(artifact), variant),
        "tokenizer": lambda artifact: load_tokenizer(Path(artifact)),
    }
    if args.step:
        print(json.dumps(steps[args.step[0]](*args.step[1:])))
        return
    with tempfile.TemporaryDirectory(prefix="size-") as name:
        found = measure(args.folder or Path(name), args.layers)
    found |= {"int8 as a share of fp32": compare(found), "machine": describe_machine(), "versions": read_versions()}
    text = json.dumps(found, indent=1)
    args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
