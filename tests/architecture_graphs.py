"""An architecture's graphs against an oracle: a text alone, in uniform batches and between padding, to 640 tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from native_graphs import FLOAT32
from torch import Tensor

from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Variant
from poolgraph.runtime.session import register_operators
from poolgraph.tasks import GraphFamily

MAX_LENGTH = 640
LENGTHS = (1, 2, 3, 4, 5, 9, 16, 17, 31, 33, 64, 65, 127, 129, 257, 513, MAX_LENGTH)
BATCH_SIZE = 2
FIRST_WORD = 5
"""Of the tiny vocabularies; what comes before are special tokens."""

Inputs = Mapping[str, np.ndarray]
TextOracle = Callable[[dict[str, Tensor]], Tensor]
"""One text's inputs, (1, num_tokens) each, to its raw answer: (size,) or (num_tokens, size)."""


def check_graphs(
    artifact: Path, oracle: TextOracle, family: GraphFamily = "sequence", longest: int = MAX_LENGTH
) -> float:
    """Check all variants' raw answers to ``longest`` tokens; return the largest difference as a share of the largest.

    The CPU's are the same bits alone and in a batch, and cosines are 0.99999 or more everywhere.
    """
    variants = {variant.name: variant for variant in open_artifact(artifact).variants}
    portable, *others = (
        _Session(artifact, variant, family) for name in FLOAT32[::-1] if (variant := variants.get(name)) is not None
    )
    lengths = [*(length for length in LENGTHS if length < longest), longest]
    batches = [_random_batch(length, portable) for length in lengths]
    expected = [[ask(oracle, _row(batch, index)) for index in range(BATCH_SIZE)] for batch in batches]
    differences = [_difference(expected, [portable.run(batch) for batch in batches])]
    differences += [_difference(expected, _same_bits(cpu, batches)) for cpu in others]
    for side in ("left", "right"):
        rows = [_row(batch, 0) for batch in batches[::-2]]
        first = [[answers[0]] for answers in expected[::-2]]
        differences.append(_difference(first, [[row] for row in _run_padded(portable, rows, side)]))
    return max(differences)


def _same_bits(session: _Session, batches: Sequence[Inputs]) -> list[list[np.ndarray]]:
    """Answer each text alone; together, also with texts of other lengths if packed, the bits are the same."""
    texts = [[_row(batch, index) for index in range(BATCH_SIZE)] for batch in batches]
    found = [[session.run(text)[0] for text in batch] for batch in texts]
    for together, alone in zip(map(session.run, batches), found, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True)), "other bits in a batch"
    if session.is_packed:
        mixed = session.run_packed([batch[0] for batch in texts])
        assert all(np.array_equal(row, alone[0]) for row, alone in zip(mixed, found, strict=True)), "other bits"
    return found


class _Session:
    """One graph and what it takes and gives."""

    def __init__(self, artifact: Path, variant: Variant, family: GraphFamily) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if variant.operators is not None:
            register_operators(options, variant.operators)
        graph = variant.graphs[family]
        self.inputs = {tensor.name for tensor in graph.inputs}
        self.is_packed = variant.layout == "packed"
        self.is_token = family == "token"
        self._session = onnxruntime.InferenceSession(artifact / graph.file, options)
        self._output = graph.raw_output

    def run(self, inputs: Inputs) -> Sequence[np.ndarray]:
        """Answer a batch; a mask of ones where the graph takes one and there is none."""
        if self.is_packed:
            return self.run_packed([_row(inputs, index) for index in range(len(inputs["input_ids"]))])
        ones = np.ones_like(inputs["input_ids"])
        feeds = {"attention_mask": ones, "attended_mask": inputs.get("attention_mask", ones), **inputs}
        answers = self._session.run([self._output], {name: feeds[name] for name in self.inputs})
        result: np.ndarray = answers[0]
        return result

    def run_packed(self, texts: Sequence[Inputs]) -> list[np.ndarray]:
        """Answer texts, whose inputs are (1, num_tokens) each, end to end in one run."""
        bounds = np.cumsum([0, *(text["input_ids"].shape[1] for text in texts)])
        feeds = {name: np.concatenate([text[name][0] for text in texts]) for name in texts[0]}
        feeds |= {"cu_seqlens": bounds, "attended_mask": np.ones(bounds[-1], dtype=np.int64)}
        answers = self._session.run([self._output], {name: feeds[name] for name in self.inputs})[0]
        return np.split(answers, bounds[1:-1]) if self.is_token else list(answers)


def _random_batch(length: int, session: _Session) -> Inputs:
    source = np.random.default_rng(length)
    batch = {"input_ids": source.integers(FIRST_WORD, 300, (BATCH_SIZE, length))}
    if "token_type_ids" in session.inputs:
        starts = source.integers(0, length + 1, (BATCH_SIZE, 1))
        batch["token_type_ids"] = (np.arange(length) >= starts).astype(np.int64)
    return batch


def _row(batch: Inputs, index: int) -> Inputs:
    return {name: rows[index : index + 1] for name, rows in batch.items()}


def ask(oracle: TextOracle, inputs: Inputs) -> np.ndarray:
    """Ask the oracle about one text."""
    with torch.no_grad():
        return oracle({name: torch.from_numpy(rows) for name, rows in inputs.items()}).float().numpy()


def _run_padded(session: _Session, texts: list[Inputs], side: str) -> list[np.ndarray]:
    """Answer texts of all lengths in one batch; padding has the id of a word, which must not count."""
    shape = (len(texts), max(text["input_ids"].shape[1] for text in texts))
    batch = {name: np.full(shape, 1) for name in texts[0]} | {"attention_mask": np.zeros(shape, dtype=np.int64)}
    batch["input_ids"][:] = FIRST_WORD
    places = []
    for index, text in enumerate(texts):
        length = text["input_ids"].shape[1]
        places.append(slice(shape[1] - length, None) if side == "left" else slice(length))
        batch["attention_mask"][index, places[-1]] = 1
        for name, rows in text.items():
            batch[name][index, places[-1]] = rows[0]
    answers = session.run(batch)
    return [row[place] if session.is_token else row for row, place in zip(answers, places, strict=True)]


def _difference(expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    pairs = [pair for texts in zip(expected, found, strict=True) for pair in zip(*texts, strict=True)]
    return difference_of([one for one, _ in pairs], [other for _, other in pairs])


def difference_of(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the largest difference as a share of the largest expected number; cosines are 0.99999 or more."""
    pairs = list(zip(expected, found, strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    scale = max(np.abs(one).max() for one, _ in pairs)
    for one, other in pairs:
        if one.shape[-1] > 1:
            norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
            assert ((one * other).sum(-1) / norms).min() >= 0.99999
    return float(max(np.abs(one - other).max() for one, other in pairs) / scale)
