"""Decoders that read both ways, relatives of Llama without a class in transformers, and positions beyond training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architecture_graphs import check_graphs
from internlm2_oracle import reward_rows
from parity_table import TOLERANCE, record
from tiny_decoders import WINDOW
from tiny_llamas import (
    both_sides_rows,
    llama_config,
    save_bidirectional_llama,
    save_internlm,
    save_long,
)
from torch import Tensor

from poolgraph import export_model
from poolgraph.errors import InputError, UnsupportedArchitecture

pytestmark = pytest.mark.usefixtures("short_probes")

LONGEST = 300
"""Tokens of most texts here: four times what those that are trained to 64 have seen."""


@pytest.mark.slow
def test_bidirectional_llama_pools_as_its_config_says(tmp_path: Path) -> None:
    """Its average is a row of the support table."""
    checkpoint = save_bidirectional_llama(tmp_path / "checkpoint", "cls")
    export_model(checkpoint, tmp_path / "artifact")
    rows = both_sides_rows(checkpoint, "LlamaModel", llama_config(checkpoint))
    difference = check_graphs(tmp_path / "artifact", lambda inputs: rows(inputs)[0])
    record("embed", "LlamaBidirectionalModel, cls", "transformers", difference)
    assert difference <= TOLERANCE


def test_what_bidirectional_llama_cannot_be_is_refused(tmp_path: Path) -> None:
    checkpoint = save_bidirectional_llama(tmp_path / "checkpoint", "max")
    with pytest.raises(UnsupportedArchitecture, match=r"has pooling 'max'; it is one of avg, cls, last"):
        export_model(checkpoint, tmp_path / "artifact")
    with pytest.raises(UnsupportedArchitecture, match="temperature"):
        export_model(checkpoint, tmp_path / "artifact", hf_overrides={"pooling": "avg", "temperature": 0.2})


@pytest.mark.slow
def test_an_override_makes_a_decoder_read_both_ways(tmp_path: Path) -> None:
    checkpoint = save_long(tmp_path / "checkpoint", "MistralModel", longest=LONGEST, sliding_window=None)
    export_model(checkpoint, tmp_path / "artifact", hf_overrides={"is_causal": False})
    rows = both_sides_rows(checkpoint, "MistralModel")
    difference = check_graphs(tmp_path / "artifact", lambda inputs: rows(inputs)[-1], longest=LONGEST)
    record("embed", "MistralModel, is_causal false in hf_overrides", "transformers", difference)
    assert difference <= TOLERANCE


@pytest.mark.slow
def test_internlm_beyond_its_training_equals_numpy(tmp_path: Path) -> None:
    checkpoint = save_internlm(tmp_path / "checkpoint", trained=64)
    export_model(checkpoint, tmp_path / "artifact")

    def oracle(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(reward_rows(checkpoint, inputs["input_ids"][0].numpy()))

    difference = check_graphs(tmp_path / "artifact", oracle, "token")
    record("reward", "InternLM2ForRewardModel trained to 64", "numpy", difference)
    assert difference <= TOLERANCE


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 9.0],
    "original_max_position_embeddings": 64,
}
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("LlamaModel", YARN),
    "llama3": ("LlamaModel", LLAMA3),
    "longrope": ("LlamaModel", LONG),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SCALED, "a base for each kind of layer"])
def test_positions_beyond_training(name: str, tmp_path: Path) -> None:
    if name in SCALED:
        cls, parameters = SCALED[name]
        changes: dict[str, Any] = {"rope_parameters": {"rope_theta": 10000.0, **parameters}}
    else:
        full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
        sliding = {"rope_type": "default", "rope_theta": 1e4}
        cls, changes = "Gemma3TextModel", {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
        changes["sliding_window"] = 4 * WINDOW
    checkpoint = save_long(tmp_path / "checkpoint", cls, longest=LONGEST, **changes)
    export_model(checkpoint, tmp_path / "artifact", task="embed", pooler_config={"pooling_type": "LAST"})
    model: Any = getattr(transformers, cls).from_pretrained(checkpoint, attn_implementation="eager").eval()
    difference = check_graphs(
        tmp_path / "artifact", lambda inputs: model(**inputs).last_hidden_state[0, -1], longest=LONGEST
    )
    record("embed", f"{cls}, {name}", "transformers", difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("name", ["Gemma2Model", "Gemma3TextModel"])
def test_fp16_is_refused_by_name(name: str, tmp_path: Path) -> None:
    checkpoint = save_long(tmp_path / "checkpoint", name)
    with pytest.raises(InputError, match=rf"{name} cannot be exported with --precision fp16: .*65,504; bf16 and fp32"):
        export_model(checkpoint, tmp_path / "artifact", precisions=("fp16",), targets=("cuda",))
    assert not (tmp_path / "artifact").exists()
