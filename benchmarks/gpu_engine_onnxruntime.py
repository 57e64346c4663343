"""Plain ONNX Runtime: the portable graph in fp16, padded batches, arrays in and out, no binding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from gpu_engines import Engine, Job, Rows
from gpu_workloads import Ids, pad, plan_padded

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
RAW = "pooled"


def load(job: Job, *, half: bool = True) -> Engine:
    file = job.artifact_dir / "onnx" / "model.onnx"
    if half:
        file = convert(file, job.artifact_dir.parent / "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(file, options, providers=[PROVIDERS[job.device]])
    if PROVIDERS[job.device] not in session.get_providers():
        raise RuntimeError(f"{PROVIDERS[job.device]} does not load; there are {session.get_providers()}")
    names = {tensor.name for tensor in session.get_inputs()}
    output = choose_output([tensor.name for tensor in session.get_outputs()])

    def run(rows: Sequence[Ids]) -> Rows:
        input_ids, mask = pad(rows)
        feeds = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": np.zeros_like(input_ids)}
        answer: Rows = session.run([output], {name: feeds[name] for name in names})[0]
        return answer.astype(np.float32)

    def answer(ids: Sequence[Ids]) -> Rows:
        parts = [(batch, run([ids[row] for row in batch])) for batch in plan_padded([len(row) for row in ids])]
        rows = np.empty((len(ids), parts[0][1].shape[1]), dtype=np.float32)
        for batch, part in parts:
            rows[batch] = part
        return rows

    return Engine(answer=answer, note=f"ONNX Runtime {onnxruntime.__version__}, output {output}")


def choose_output(names: Sequence[str]) -> str:
    """Return the finished value, which is the raw one but for its norm, or the only one there is."""
    return "sentence_embedding" if "sentence_embedding" in names else names[0]


def convert(file: Path, folder: Path) -> Path:
    """Convert a graph to fp16 as ONNX Runtime's own tool does, inputs and outputs kept; once."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    target = folder / "model_fp16.onnx"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = convert_float_to_float16(onnx.load(file), keep_io_types=True, disable_shape_infer=True)
        onnx.save(model, target, save_as_external_data=True, location="model_fp16.data")
    return target
