"""The portable graph of an artifact as other programs run it, and what counts as the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime


def assert_same(expected: np.ndarray, found: np.ndarray) -> None:
    """DESIGN's fp32 threshold: cosine at least 0.99999, differences at most 1e-4 of the largest value."""
    assert found.shape == expected.shape
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert ((expected * found).sum(1) / norms).min() >= 0.99999
    assert np.abs(expected - found).max() <= 1e-4 * np.abs(expected).max()


def run_portable(artifact: Path, ids: list[list[int]], side: str) -> np.ndarray:
    """The portable graph over one padded batch, as other programs run it."""
    longest = max(map(len, ids))
    inputs = np.zeros((2, len(ids), longest), dtype=np.int64)
    for row, text in enumerate(ids):
        tokens = slice(longest - len(text), None) if side == "left" else slice(len(text))
        inputs[0, row, tokens], inputs[1, row, tokens] = text, 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artifact / "onnx" / "model.onnx", options)
    feeds = {"input_ids": inputs[0], "attention_mask": inputs[1]}
    if "token_type_ids" in [value.name for value in session.get_inputs()]:
        feeds["token_type_ids"] = np.zeros_like(inputs[0])
    name = "pooled" if "pooled" in [output.name for output in session.get_outputs()] else "sentence_embedding"
    result: np.ndarray = session.run([name], feeds)[0]
    return result
