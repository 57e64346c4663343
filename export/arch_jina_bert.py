"""Jina's first BERT (arXiv:2310.19923): no positions but a bias by distance (ALiBi, both ways), gated feed-forward.

With ``qk_post_norm``, as in jina-embeddings-v2-base-code, queries and keys are normalized, over all heads at once, and
the layer's two residuals are its own: what attention's norm makes is added to the layer's rows and normalized again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertPreTrainedModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from poolgraph.export.arch_interface import build_from_config
from poolgraph.export.semantic import attention
from poolgraph.export.semantic_distance import distance_bias, distances

GATES = {"geglu": nn.GELU, "reglu": nn.ReLU}
"""Activations of the gate by ``feed_forward_type``."""


def build_backbone(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Build the model, whose attention is our semantic op already."""
    return build_from_config(model_class, config)


def alibi_slopes(num_heads: int) -> list[float]:
    """Return how fast each head's scores fall with the distance (arXiv:2108.12409).

    They are powers of ``2 ** (-8 / num_heads)``. Where ``num_heads`` is no power of two, those of the next smaller one
    come first, then every other one of twice as many heads.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return slopes + (alibi_slopes(2 * whole)[::2][: num_heads - whole] if whole < num_heads else [])


class Embeddings(nn.Module):
    """Words and token types; no positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map (batch_size, sequence_length) to (batch_size, sequence_length, hidden_size)."""
        rows: Tensor = self.LayerNorm(self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids))
        return rows


class SelfAttention(nn.Module):
    """BERT's projections over the semantic op with a bias; queries and keys may be normalized."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        norms = (nn.LayerNorm(size, eps=config.layer_norm_eps) if config.qk_post_norm else nn.Identity() for _ in "qk")
        self.layer_norm_q, self.layer_norm_k = norms
        self.num_heads, self.scale = config.num_attention_heads, (size // config.num_attention_heads) ** -0.5

    def forward(self, rows: Tensor, attention_mask: Tensor | None, bias: Tensor) -> Tensor:
        """Attend within (batch_size, sequence_length, hidden_size)."""
        return attention(
            self.layer_norm_q(self.query(rows)),
            self.layer_norm_k(self.key(rows)),
            self.value(rows),
            num_heads=self.num_heads,
            scale=self.scale,
            attention_mask=attention_mask,
            attention_bias=bias,
        )


class Output(nn.Module):
    """A linear layer whose result is added to what the layer began with, and normalized."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        result: Tensor = self.LayerNorm(self.dense(rows) + residual)
        return result


class GatedMlp(nn.Module):
    """The gate's half of one product comes first; residual and norm are inside."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = GATES[config.feed_forward_type]()
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        gate, up = self.gated_layers(rows).chunk(2, dim=-1)
        result: Tensor = self.layernorm(self.wo(self.act(gate) * up) + rows)
        return result


class Layer(nn.Module):
    """Attention, then the gated feed-forward layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Output(config)})
        self.mlp = GatedMlp(config)

    def forward(self, rows: Tensor, attention_mask: Tensor | None, bias: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        attended = self.attention["self"](rows, attention_mask, bias)
        result: Tensor = self.mlp(self.attention["output"](attended, rows))
        return result


class PlainGatedMlp(nn.Module):
    """The gate's half of one product comes second; residual and norm are the layer's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up_gated_layer = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = GATES[config.feed_forward_type]()
        self.down_layer = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        up, gate = self.up_gated_layer(rows).chunk(2, dim=-1)
        result: Tensor = self.down_layer(up * self.act(gate))
        return result


class PostNormLayer(nn.Module):
    """Attention with its residual and norm, then those of the layer around it and around the feed-forward layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Output(config)})
        self.mlp = PlainGatedMlp(config)
        norms = (nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(2))
        self.layer_norm_1, self.layer_norm_2 = norms

    def forward(self, rows: Tensor, attention_mask: Tensor | None, bias: Tensor) -> Tensor:
        """Map (batch_size, sequence_length, hidden_size) to the same shape."""
        attended = self.attention["self"](rows, attention_mask, bias)
        rows = self.layer_norm_1(rows + self.attention["output"](attended, rows))
        result: Tensor = self.layer_norm_2(rows + self.mlp(rows))
        return result


class JinaBertModel(BertPreTrainedModel):  # type: ignore[no-untyped-call]
    """The encoder, with the tensors' published names."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        layer = PostNormLayer if config.qk_post_norm else Layer
        self.encoder.layer = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """Encode (batch_size, sequence_length); positions are read off the order."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        rows, bias = self.embeddings(input_ids, types), self._bias(input_ids)
        seen = None if attention_mask is None else attention_mask.bool()
        layers: Any = self.encoder.layer
        for layer in layers:
            rows = layer(rows, seen, bias)
        return BaseModelOutput(last_hidden_state=rows)

    def _bias(self, input_ids: Tensor) -> Tensor:
        """Return (1, num_heads, sequence_length, sequence_length)."""
        length = input_ids.shape[1]
        distance = distances(length, input_ids.device).abs().float()
        slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=input_ids.device)
        return distance_bias(-slopes[:, None] * distance, length)
