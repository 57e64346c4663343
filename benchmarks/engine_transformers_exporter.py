"""transformers' own OnnxExporter with its ONNX Runtime fusions, pooled in numpy.

Texts go in length-sorted padded batches of 32 or of 8, whichever is faster on the workload.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from batches import encode_texts, plan_batches
from numpy.typing import NDArray
from tokenizers import Tokenizer
from workloads import load_tokenizer

from poolgraph.runtime.cpu import count_cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

label = "transformers OnnxExporter + ONNX Runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The exported graph with what surrounds it."""

    tokenizer: Tokenizer
    session: InferenceSession
    input_names: tuple[str, ...]
    pad_id: int


def load(checkpoint_dir: Path, artifact_dir: Path, cache_dir: Path) -> Engine:
    graph = cache_dir / "transformers_exporter" / "model.onnx"
    if not graph.exists():
        # in a child process, so that torch is not part of the engine's memory and threads
        subprocess.run([sys.executable, __file__, str(checkpoint_dir), str(graph.parent)], check=True)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    tokenizer = load_tokenizer(checkpoint_dir)
    names = tuple(value.name for value in session.get_inputs())
    return Engine(tokenizer=tokenizer, session=session, input_names=names, pad_id=tokenizer.token_to_id("[PAD]"))


def embed(engine: Engine, texts: list[str], *, batch_size: int) -> NDArray[np.float32]:
    vectors: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for batch in plan_batches(encode_texts(engine.tokenizer, texts), batch_size, engine.pad_id):
        inputs = {name: batch.inputs[name] for name in engine.input_names}
        hidden = engine.session.run(["last_hidden_state"], inputs)[0]
        vectors.append((batch.rows, _pool(hidden, batch.inputs["attention_mask"])))
    answer = np.empty((len(texts), vectors[0][1].shape[1]), dtype=np.float32)
    for rows, values in vectors:
        answer[rows] = values
    return answer


def _pool(hidden: NDArray[np.float32], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Average over real tokens and normalize: ``(batch_size, sequence_length, size)`` to ``(batch_size, size)``."""
    mask = attention_mask.astype(np.float32)
    pooled = np.matmul(mask[:, None, :], hidden)[:, 0] / mask.sum(axis=1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def export(checkpoint_dir: Path, output_dir: Path) -> None:
    """Export the backbone with dynamic shapes and the CPU provider's fusions."""
    import torch
    from transformers import AutoModel
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModel.from_pretrained(checkpoint_dir, dtype=torch.float32).eval()
    ids = torch.arange(1000, 1032).reshape(2, 16)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True, ort_fusions="cpu"))
    exported.save_pretrained(output_dir)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
