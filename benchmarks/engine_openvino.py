"""OpenVINO on the artifact's portable graph: dynamic shapes, length-sorted padded batches of 8.

One batch alone runs on a model compiled for latency (all cores on it), several run on one compiled for throughput (a
stream a core) through an asynchronous queue. On the mixed corpus batches of 8 were at least as fast as of 4, 16 and 32
(which also pad more and hold up to six times the memory), and streams faster than latency. fp32 asks for fp32
arithmetic and bf16 for bf16; int8 leaves what is not quantized to OpenVINO's default for the machine.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from batches import encode_texts, plan_batches
from numpy.typing import NDArray
from tokenizers import Tokenizer
from workloads import load_tokenizer

from poolgraph.runtime.cpu import count_cores

if TYPE_CHECKING:
    import openvino

label = "OpenVINO"

BATCH_SIZE = 8
OUTPUT = "sentence_embedding"
PRECISION_SETTINGS = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The model compiled twice, with what surrounds it."""

    tokenizer: Tokenizer
    request: openvino.InferRequest
    queue: openvino.AsyncInferQueue
    input_names: tuple[str, ...]
    size: int
    pad_id: int


def load(checkpoint_dir: Path, artifact_dir: Path, cache_dir: Path, *, precision: str) -> Engine:
    import openvino

    tokenizer = load_tokenizer(checkpoint_dir)
    pad_id = tokenizer.token_to_id("[PAD]")
    graph = artifact_dir / "onnx" / "model.onnx"
    if precision == "int8":
        graph = _quantize_once(graph, cache_dir, tokenizer, pad_id)
    core = openvino.Core()
    model = core.read_model(graph)
    settings = PRECISION_SETTINGS[precision] | {"INFERENCE_NUM_THREADS": count_cores()}
    latency = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
    streams = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": count_cores()}
    throughput = core.compile_model(model, "CPU", settings | streams)
    return Engine(
        tokenizer=tokenizer,
        request=latency.create_infer_request(),
        queue=openvino.AsyncInferQueue(throughput),
        input_names=tuple(value.get_any_name() for value in latency.inputs),
        size=latency.output(OUTPUT).partial_shape[1].get_length(),
        pad_id=pad_id,
    )


def embed(engine: Engine, texts: list[str]) -> NDArray[np.float32]:
    answer = np.empty((len(texts), engine.size), dtype=np.float32)
    batches = plan_batches(encode_texts(engine.tokenizer, texts), BATCH_SIZE, engine.pad_id)
    if len(texts) <= BATCH_SIZE:
        for batch in batches:
            engine.request.infer({name: batch.inputs[name] for name in engine.input_names}, share_inputs=True)
            answer[batch.rows] = engine.request.get_tensor(OUTPUT).data
        return answer

    def store(request: openvino.InferRequest, rows: NDArray[np.int64]) -> None:
        answer[rows] = request.get_tensor(OUTPUT).data

    engine.queue.set_callback(store)
    for batch in batches:
        engine.queue.start_async({name: batch.inputs[name] for name in engine.input_names}, batch.rows)
    engine.queue.wait_all()
    return answer


def _quantize_once(graph: Path, cache_dir: Path, tokenizer: Tokenizer, pad_id: int) -> Path:
    """Return the int8 model of ``graph``, made at the first call and kept under the graph's hash."""
    output = cache_dir / f"openvino_int8_{sha256(graph.read_bytes()).hexdigest()[:16]}.xml"
    if not output.exists():
        texts = json.loads((cache_dir / "calibration.json").read_text())
        _quantize(graph, output, [ids for text in texts for ids in encode_texts(tokenizer, [text])], pad_id)
    return output


def _quantize(graph: Path, output: Path, ids: list[list[int]], pad_id: int) -> None:
    """Quantize with NNCF's preset for transformers, which includes SmoothQuant, calibrated text by text."""
    os.environ["NNCF_CI"] = "1"  # no usage statistics are sent from a benchmark
    import nncf
    import openvino

    model = openvino.Core().read_model(graph)
    names = [value.get_any_name() for value in model.inputs]
    batches = [next(plan_batches([row], 1, pad_id)).inputs for row in ids]
    samples = nncf.Dataset([{name: inputs[name] for name in names} for inputs in batches])
    quantized = nncf.quantize(
        model,
        samples,
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
    )
    openvino.save_model(quantized, output, compress_to_fp16=False)
