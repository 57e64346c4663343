"""Classes of transformers without a row: what verifies is exported with ``convert``, what does not is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from architecture_graphs import check_graphs
from native_graphs import FLOAT32
from parity_table import TOLERANCE, record
from support_oracles import first, last, rows_of
from tiny_decoders import SIZES as TINY_SIZES
from tiny_decoders import TINY_DECODERS, draw_wide
from tiny_models import VOCAB_SIZE, bert_tokenizer
from transformers import PreTrainedTokenizerBase

from poolgraph import export_model
from poolgraph.errors import PoolgraphError
from poolgraph.graphs.artifact import open_artifact

pytestmark = pytest.mark.usefixtures("short_probes")

LONGEST = 300
"""Tokens of the longest texts."""

SIZES = {**TINY_SIZES, "max_position_embeddings": LONGEST}
ENCODER = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}


OFFSET = {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1}
FALCON = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")}


SINKS = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 48}


def decoder_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of Llama's relatives."""
    return TINY_DECODERS["LlamaModel"].tokenizer()


Tokenizer = Callable[[], PreTrainedTokenizerBase]
UNKNOWN: Mapping[str, tuple[str, Mapping[str, Any], Tokenizer]] = {
    "Ernie": ("ForMaskedLM", ENCODER, bert_tokenizer),
    "Camembert": ("Model", {**ENCODER, "max_position_embeddings": LONGEST + 2}, bert_tokenizer),
    "Data2VecText": ("Model", {**ENCODER, "max_position_embeddings": LONGEST + 2}, bert_tokenizer),
    "RobertaPreLayerNorm": ("Model", {**ENCODER, "max_position_embeddings": LONGEST + 2}, bert_tokenizer),
    "Phi3": ("ForCausalLM", {**SIZES, "sliding_window": 48}, decoder_tokenizer),
    "Olmo2": ("ForCausalLM", SIZES, decoder_tokenizer),
    "Mixtral": ("ForCausalLM", {**SIZES, "num_local_experts": 4}, decoder_tokenizer),
    "Qwen2Moe": ("Model", {**SIZES, "num_experts": 4, "moe_intermediate_size": 16}, decoder_tokenizer),
    "GptOss": ("ForCausalLM", {**SIZES, **SINKS}, decoder_tokenizer),
    "BigBird": ("Model", ENCODER, bert_tokenizer),
    "RemBert": ("Model", {**ENCODER, "input_embedding_size": 24}, bert_tokenizer),
    "Luke": ("Model", {**ENCODER, **OFFSET, "entity_vocab_size": 9, "entity_emb_size": 8}, bert_tokenizer),
    "Falcon": ("Model", FALCON, decoder_tokenizer),
    "Bloom": ("Model", {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 4}, decoder_tokenizer),
}
"""GPT-OSS has attention sinks. Those after it compute attention by themselves."""
CAUSAL = ("GptOss", "Phi3", "Olmo2", "Mixtral", "Qwen2Moe", "Falcon", "Bloom")

REFUSED: Mapping[str, tuple[str, Mapping[str, Any], Tokenizer, str]] = {
    "Mpt": (
        "Model",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": LONGEST},
        decoder_tokenizer,
        "MptModel is not supported: it cuts its bias by distance out of a table",
    ),
    "FNet": ("Model", ENCODER, bert_tokenizer, "FNetModel is not supported: it mixes tokens by a Fourier transform"),
    "T5": (
        "Model",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        bert_tokenizer,
        r"T5Model is an encoder with a decoder, .*--hf-overrides '\{\"architectures\": \[\"T5EncoderModel\"\]\}'",
    ),
    "UMT5": (
        "ForConditionalGeneration",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        bert_tokenizer,
        r"UMT5Model is .* its encoder alone does: .*--hf-overrides '\{\"architectures\": \[\"UMT5EncoderModel\"\]\}'",
    ),
    "Bart": (
        "Model",
        {"vocab_size": VOCAB_SIZE, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
        bert_tokenizer,
        "BartModel is an encoder with a decoder, .* known are T5EncoderModel, MT5EncoderModel, UMT5EncoderModel",
    ),
    "Llama": ("Model", {**SIZES, "vocab_size": 70}, decoder_tokenizer, "but the model's vocabulary ends at 69"),
}


def save(folder: Path, family: str, cls: str, changes: Mapping[str, Any], tokenizer: Tokenizer) -> Path:
    """Save a tiny seeded checkpoint."""
    config = getattr(transformers, f"{family}Config")(**changes)
    draw_wide(getattr(transformers, f"{family}{cls}")(config), seed=4).save_pretrained(folder)
    chosen = tokenizer()
    chosen.model_max_length = LONGEST
    chosen.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", UNKNOWN)
def test_a_class_without_a_row_embeds(family: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "checkpoint", family, *UNKNOWN[family])
    export_model(checkpoint, tmp_path / "artifact", convert="embed")
    variants = open_artifact(tmp_path / "artifact").variants
    # What mixes its tokens is not known, so texts are not packed.
    assert {variant.name: variant.layout for variant in variants} == {
        name: "padded" if name == "portable_fp32" else "uniform" for name in FLOAT32
    }
    rows = rows_of(f"{family}Model")
    oracle = (last if family in CAUSAL else first)(rows)(checkpoint)
    difference = check_graphs(tmp_path / "artifact", oracle, longest=LONGEST)
    record("embed", f"{family}{UNKNOWN[family][0]} by convert", "transformers", difference)
    assert difference <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_verify_is_refused_with_the_reason(family: str, tmp_path: Path) -> None:
    *checkpoint, message = REFUSED[family]
    save(tmp_path / "checkpoint", family, *checkpoint)
    with pytest.raises(PoolgraphError, match=message):
        export_model(tmp_path / "checkpoint", tmp_path / "artifact", convert="embed")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
