"""Oracles of heads: transformers' own classes, and torch over the tensors of those that it lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tiny_heads import STEP_TAG_ID
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

TextOracle = Callable[[dict[str, Tensor]], Tensor]
"""One text's token ids, (1, num_tokens) each, to its answer."""

Oracle = Callable[[Path], TextOracle]
"""A checkpoint to the oracle of its texts."""


def load(folder: Path, cls: str) -> PreTrainedModel:
    """Load transformers' own class; without a padding token it takes a decoder's last token, as vLLM does."""
    warnings.simplefilter("ignore")
    model = getattr(transformers, cls).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.config.pad_token_id = None
    return model.eval()


def logits_of(cls: str) -> Oracle:
    """Transformers' class of the checkpoint: (num_labels,), or (num_tokens, num_labels) of a token classifier."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        return lambda inputs: model(**inputs).logits[0]

    return make


def head_on_rows(cls: str, head: str) -> Oracle:
    """VLLM's token_classify of a sequence classifier: what follows the pooler, on each row of the backbone."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        # A head that picks the first of several rows itself is given them one by one.
        picks_first = type(getattr(model, head)).__name__.endswith("ClassificationHead")

        def answer(inputs: dict[str, Tensor]) -> Tensor:
            rows = model.base_model(**inputs).last_hidden_state[0]
            return getattr(model, head)(rows[:, None] if picks_first else rows)

        return answer

    return make


def reward_layers(folder: Path) -> TextOracle:
    """The published reward model: two linear layers on the rows of Qwen2Model, by the tensors' published names."""
    tensors = load_file(folder / "model.safetensors")
    model = transformers.Qwen2Model(transformers.Qwen2Config.from_pretrained(folder)).eval()
    backbone = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(backbone)

    def answer(inputs: dict[str, Tensor]) -> Tensor:
        rows = model(**inputs).last_hidden_state[0]
        inner = torch.relu(rows @ tensors["score.0.weight"].T + tensors["score.0.bias"])
        return inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]

    return answer


def vocabulary_columns(cls: str, ids: tuple[int, ...]) -> Oracle:
    """Logits of a few tokens at every position, (num_tokens, len(ids))."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        return lambda inputs: model(**inputs).logits[0][:, list(ids)]

    return make


def mean_of_rows(cls: str) -> Oracle:
    """The mean of the backbone's rows."""

    def make(folder: Path) -> TextOracle:
        model = load(folder, cls)
        return lambda inputs: model(**inputs).last_hidden_state[0].mean(0)

    return make


def last_of(columns: Oracle, finish: Callable[[Tensor], Tensor]) -> Oracle:
    """What becomes of the last row."""

    def make(folder: Path) -> TextOracle:
        rows = columns(folder)
        return lambda inputs: finish(rows(inputs)[-1])

    return make


def steps_of(rows: Oracle) -> Oracle:
    """The rows of the step tags."""

    def make(folder: Path) -> TextOracle:
        answer = rows(folder)
        return lambda inputs: answer(inputs)[inputs["input_ids"][0] == STEP_TAG_ID]

    return make


def finished(oracle: Oracle, activation: Callable[[Tensor], Tensor]) -> Oracle:
    """An oracle's logits after an activation."""

    def make(folder: Path) -> TextOracle:
        answer = oracle(folder)
        return lambda inputs: activation(answer(inputs))

    return make


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def identity(logits: Tensor) -> Tensor:
    return logits


def expected_answers(oracle: Oracle, folder: Path, texts: list[str], limit: int) -> list[np.ndarray]:
    """Answer texts one by one."""
    answer = oracle(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            answer(dict(tokenizer(text, truncation=True, max_length=limit, return_tensors="pt"))).float().numpy()
            for text in texts
        ]
