"""Heads cut out of a language model's: the rows of a few tokens, as vLLM converts causal models to classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from poolgraph.errors import ExportError, InputError
from poolgraph.export.classifier_heads import IDENTITY
from poolgraph.export.head import HeadPlan, HeadStep, StoredTensor
from poolgraph.export.layouts import Weights

TWO_WAY = "from_2_way_softmax"
NO_POST_PROCESSING = "no_post_processing"
METHODS = (TWO_WAY, NO_POST_PROCESSING)
"""vLLM's ways: the second token's row less the first's, whose sigmoid is the second's share of a softmax over both; or
the rows as they are."""

OUTPUT_NAMES = ("lm_head", "embed_out")
INPUT_NAMES = ("embed_tokens", "wte", "word_embeddings", "embed_in")
"""Names of a language model's head, and of the token embeddings that are the head where the two are tied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranker:
    """A published way of reranking with a causal language model.

    Attributes:
        model_type: Of its configuration.
        tokens: Tokens whose rows score.
        method: One of METHODS.
        template: The shipped score template.
    """

    model_type: str
    tokens: tuple[str, ...]
    method: str
    template: str


RERANKERS = (
    Reranker(model_type="qwen3", tokens=("no", "yes"), method=TWO_WAY, template="qwen3_reranker"),
    Reranker(model_type="qwen2", tokens=("0", "1"), method=TWO_WAY, template="mxbai_rerank_v2"),
    Reranker(model_type="gemma", tokens=("Yes",), method=NO_POST_PROCESSING, template="bge_reranker_v2_gemma"),
)
"""Qwen/Qwen3-Reranker, mixedbread-ai/mxbai-rerank-v2 and BAAI/bge-reranker-v2-gemma, as vLLM's examples run them."""


def find_reranker(model_type: str, tokens: Sequence[str] = ()) -> Reranker | None:
    """Return the published reranker of a model type, with the same tokens where some are named."""
    return next(
        (r for r in RERANKERS if r.model_type == model_type and (not tokens or r.tokens == tuple(tokens))), None
    )


def token_ids_of(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of single tokens by their text.

    Raises:
        InputError: a text that is no token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    if unknown := [token for token in tokens if token not in vocabulary]:
        raise InputError(
            f"classifier_from_token names {unknown}, which the tokenizer does not have as single tokens",
            parameter="classifier_from_token",
            value=list(tokens),
        )
    return tuple(int(vocabulary[token]) for token in tokens)


def plan_score_rows(
    weights: Weights, config: PretrainedConfig, base_prefix: str, ids: tuple[int, ...], method: str
) -> HeadPlan:
    """Plan a classifier whose weights are the head's rows of ``ids``, or their difference, at the last token.

    Raises:
        InputError: an unknown method, or not two tokens for a two-way softmax.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; choose one of {list(METHODS)}", parameter="method")
    if method == TWO_WAY and len(ids) != len(("false", "true")):
        raise InputError(
            f"{TWO_WAY} takes two tokens, false and true, not {len(ids)}", parameter="classifier_from_token"
        )
    step = _plan_rows(weights, config, base_prefix, ids, difference=method == TWO_WAY)
    return HeadPlan(kind="logits", pooling=("lasttoken",), shared=(step,), converted=True)


def plan_token_rows(weights: Weights, config: PretrainedConfig, base_prefix: str, ids: tuple[int, ...]) -> HeadPlan:
    """Plan the logits of a few tokens at every position: a process-reward model without a head of its own."""
    step = _plan_rows(weights, config, base_prefix, ids, difference=False)
    return HeadPlan(kind="logits", pooling=None, shared=(step,), column_token_ids=ids, converted=True)


def _plan_rows(
    weights: Weights, config: PretrainedConfig, base_prefix: str, ids: tuple[int, ...], *, difference: bool
) -> HeadStep:
    if getattr(config, "final_logit_softcapping", None):
        raise ExportError("the model bends its logits (final_logit_softcapping), which a head cut out of it would lose")
    name = _find_head(weights, base_prefix)
    num_tokens, hidden_size = weights.shape(f"{name}.weight")
    if outside := [index for index in ids if not 0 <= index < num_tokens]:
        raise InputError(
            f"token ids {outside} are out of vocabulary: the language-model head has {num_tokens} rows",
            parameter="returned_token_ids",
            value=list(ids),
        )
    parts = [part for part in ("weight", "bias") if f"{name}.{part}" in weights.names]
    settings: dict[str, Any] = {"rows": ids, "difference": difference}
    return HeadStep(
        kind="Dense",
        config={
            "in_features": hidden_size,
            "out_features": 1 if difference else len(ids),
            "bias": "bias" in parts,
            "activation_function": IDENTITY,
        },
        tensors={
            f"linear.{part}": StoredTensor(
                folder=weights.folder, name=weights.stored_name(f"{name}.{part}"), **settings
            )
            for part in parts
        },
    )


def _find_head(weights: Weights, base_prefix: str) -> str:
    """Return the name of the head, or of the token embeddings where there is none: then they are tied."""
    tied = [name for stem in INPUT_NAMES for name in (stem, f"{base_prefix}.{stem}")]
    for name in (*OUTPUT_NAMES, *tied):
        if f"{name}.weight" in weights.names:
            return name
    raise ExportError(f"the checkpoint has no language-model head; looked for {[*OUTPUT_NAMES, *INPUT_NAMES]}")
