"""Which head a checkpoint gets: by what its class answers, what the caller wants of it, and what its files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from poolgraph.errors import ExportError, InputError, TaskNotSupported
from poolgraph.export.activation import AUTO, resolve_activation
from poolgraph.export.backbone import Backbone
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.classifier_heads import SEQUENCE_LAYOUTS, TOKEN_LAYOUTS, find_layout, plan_layout, read_pooling
from poolgraph.export.head import HeadPlan, HeadStep, StoredTensor, describe_modules
from poolgraph.export.language_model_head import (
    NO_POST_PROCESSING,
    TWO_WAY,
    find_reranker,
    plan_score_rows,
    plan_token_rows,
    token_ids_of,
)
from poolgraph.export.layouts import Weights
from poolgraph.export.many_vectors import plan_weighted_vectors
from poolgraph.export.masked_language_head import plan_splade
from poolgraph.export.options import ExportOptions
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.export.sparse_encoder import Splade
from poolgraph.tasks import POOLING_MODES

Wish = Literal["embed", "classify"] | None
"""What the caller wants made; None leaves it to the checkpoint."""

TASK_WISHES: Mapping[str, Wish] = {
    "auto": None,
    "embed": "embed",
    "token_embed": "embed",
    "classify": "classify",
    "token_classify": "classify",
    "reward": "classify",
    "score": None,
}
CONVERT_WISHES: Mapping[str, Wish] = {"auto": None, "none": None, "embed": "embed", "classify": "classify"}

RAW_BY_DEFAULT = frozenset({"Qwen2ForRewardModel", "InternLM2ForRewardModel", "JambaForSequenceClassification"})
"""Classes whose answers are logits unless a request asks for the activation: vLLM's class defaults, and InternLM2,
whose rewards are used as they are."""

STEP_TAGS = {"Qwen2ForProcessRewardModel": 151651}
"""Process-reward classes and the token that ends a step (``<extra_0>`` of Qwen2.5-Math-PRM)."""


@dataclass(frozen=True, kw_only=True)
class HeadSource:
    """All that the choice depends on."""

    checkpoint: Checkpoint
    backbone: Backbone
    options: ExportOptions
    sentence_transformer: SentenceTransformer
    tokenizer: PreTrainedTokenizerBase
    score_token_ids: tuple[int, ...] = ()

    @cached_property
    def weights(self) -> Weights:
        """The checkpoint's tensors, under transformers' names."""
        return self.backbone.open_weights()

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def base_prefix(self) -> str:
        """What the checkpoint puts before the backbone's names."""
        return str(self.backbone.model_class.base_model_prefix)

    @property
    def wish(self) -> Wish:
        """What the caller wants made.

        Raises:
            InputError: ``task`` and ``convert`` contradict each other.
        """
        options = self.options
        wishes = {TASK_WISHES[options.task], CONVERT_WISHES[options.convert]} - {None}
        if len(wishes) > 1:
            raise InputError(f"--task {options.task} and --convert {options.convert} contradict each other")
        return wishes.pop() if wishes else None


def plan_head(source: HeadSource) -> HeadPlan:
    """Decide the head of a checkpoint, with the caller's pooler settings applied.

    Raises:
        TaskNotSupported: the checkpoint has no head for what is wanted.
        InputError: options that contradict each other or the checkpoint.
    """
    return _override(_choose(source), source)


def _choose(source: HeadSource) -> HeadPlan:
    form, wish = source.backbone.form, source.wish
    if form == "sparse" or source.sentence_transformer.splade is not None:
        return _plan_sparse(source)
    if form == "many_vectors":
        return _plan_many_vectors(source)
    if wish == "embed" or (wish is None and source.sentence_transformer.pooling):
        return _plan_embedding(source)
    if form == "language_model" or _names_tokens(source):
        return _choose_language_model(source)
    if form in ("embedding", "late_interaction") and wish is None:
        return _plan_embedding(source)
    layouts = SEQUENCE_LAYOUTS if form in ("sequence_logits", "embedding") else TOKEN_LAYOUTS
    if wish == "classify" and form == "embedding":
        _check_convertible(source)
    layout = find_layout(layouts, source.weights, source.config, source.base_prefix)
    return _with_activation(plan_layout(layout, source.weights, source.config, source.base_prefix), source)


def _names_tokens(source: HeadSource) -> bool:
    """Whether a causal checkpoint was renamed to a classifier, as vLLM does; its head is still the old one."""
    tokens = getattr(source.config, "classifier_from_token", None)
    return bool(tokens) and "score.weight" not in source.weights.names


def _choose_language_model(source: HeadSource) -> HeadPlan:
    """A language model classifies where it has a score, or where tokens are named; else it embeds."""
    tokens = getattr(source.config, "classifier_from_token", None) or ()
    pooler = source.options.pooler_config
    if pooler.returned_token_ids or pooler.tok_pooling_type == "STEP":
        return _plan_token_rewards(source)
    if source.score_token_ids:
        method = TWO_WAY if len(source.score_token_ids) > 1 else NO_POST_PROCESSING
        return _score_rows(source, source.score_token_ids, method)
    if tokens:
        return _score_rows(source, token_ids_of(tokens, source.tokenizer), _method(source))
    if "score.weight" in source.weights.names:
        layout = SEQUENCE_LAYOUTS["score"]
        return _with_activation(plan_layout(layout, source.weights, source.config, source.base_prefix), source)
    reranker = find_reranker(source.config.model_type)
    if source.options.task == "score" and reranker is not None:
        return _score_rows(source, token_ids_of(reranker.tokens, source.tokenizer), reranker.method)
    if source.wish == "classify" or source.options.task == "score":
        raise TaskNotSupported(
            f"{source.backbone.architecture} generates text and has no classifier: name the tokens whose logits score, "
            """with --hf-overrides '{"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}', or """
            """the tokens of its step rewards, with --pooler-config '{"pooling_type": "STEP", "step_tag_id": ..., """
            """"returned_token_ids": [...]}'"""
        )
    return _plan_embedding(source)


def _method(source: HeadSource) -> str:
    method = getattr(source.config, "method", None)
    original = getattr(source.config, "is_original_qwen3_reranker", False)
    return str(method or (TWO_WAY if original else NO_POST_PROCESSING))


def _score_rows(source: HeadSource, ids: tuple[int, ...], method: str) -> HeadPlan:
    return _with_activation(plan_score_rows(source.weights, source.config, source.base_prefix, ids, method), source)


def _plan_token_rewards(source: HeadSource) -> HeadPlan:
    ids = tuple(source.options.pooler_config.returned_token_ids or ())
    if not ids:
        raise InputError(
            f"{source.backbone.architecture} has no reward head: name the tokens whose logits are the rewards, as "
            'returned_token_ids of the pooler config, e.g. {"pooling_type": "STEP", "step_tag_id": 12902, '
            '"returned_token_ids": [648, 387]}',
            parameter="returned_token_ids",
        )
    return _with_activation(plan_token_rows(source.weights, source.config, source.base_prefix, ids), source)


def _plan_embedding(source: HeadSource) -> HeadPlan:
    """A checkpoint without sentence-transformers files normalizes, as in vLLM."""
    sentence = source.sentence_transformer
    if sentence.pooling or sentence.head:
        steps = describe_modules(sentence.head, source.checkpoint.folder)
    else:
        steps = (HeadStep(kind="Normalize"),)
    own = read_pooling(source.config, "pooling") if hasattr(source.config, "pooling") else source.backbone.row.pooling
    pooling = sentence.pooling or (own,)
    return HeadPlan(kind="embedding", pooling=pooling, shared=(*_plan_projection(source), *steps))


def _plan_projection(source: HeadSource) -> tuple[HeadStep, ...]:
    """Return the matrix that the published class ends with; it is the same before and after pooling by a mean.

    Raises:
        ExportError: the class has it, the checkpoint does not.
    """
    layout = source.backbone.layout
    name = None if layout is None else layout.projection
    if layout is None or name is None:
        return ()
    if name not in source.weights.names:
        if layout.must_project:
            override = json.dumps({"architectures": [source.backbone.architecture], "is_causal": False})
            raise ExportError(
                f"the checkpoint lacks the tensor {name}, the matrix that {' and '.join(layout.classes)} end with: "
                f"fetch it whole, or, if it has none, export with --hf-overrides '{override}'"
            )
        return ()
    weights = source.weights
    out_features, in_features = weights.shape(name)
    config = {"in_features": in_features, "out_features": out_features, "bias": False, "activation_function": None}
    stored = StoredTensor(folder=weights.folder, name=weights.stored_name(name))
    return (HeadStep(kind="Dense", config=config, tensors={"linear.weight": stored}),)


def _plan_many_vectors(source: HeadSource) -> HeadPlan:
    """A vector a text, a vector a token and a weight a token, of files that BGE-M3 has beside its backbone's."""
    if source.options.task in ("classify", "score"):
        raise TaskNotSupported(f"{source.backbone.architecture} embeds texts and tokens, and classifies no text")
    return replace(_plan_embedding(source), tokens=(plan_weighted_vectors(source.backbone.folder),))


def _plan_sparse(source: HeadSource) -> HeadPlan:
    if source.wish == "classify":
        raise TaskNotSupported(f"{source.backbone.architecture} weighs words (SPLADE) and classifies nothing")
    sentence = source.sentence_transformer
    plan = plan_splade(source.weights, source.config, source.base_prefix, sentence.splade or Splade())
    number = sentence.max_active_dims
    kept = () if number is None else (HeadStep(kind="KeepLargest", config={"k": number}),)
    return replace(plan, shared=(*plan.shared, *describe_modules(sentence.head, source.checkpoint.folder), *kept))


def _check_convertible(source: HeadSource) -> None:
    if not any(name.partition(".")[0] in ("classifier", "score", "head") for name in source.weights.names):
        raise TaskNotSupported(
            f"{source.backbone.architecture} embeds and its checkpoint has no classifier; "
            "export it with --task embed, or a checkpoint that was trained to classify"
        )


def _with_activation(plan: HeadPlan, source: HeadSource) -> HeadPlan:
    activation = AUTO if plan.column_token_ids else resolve_activation(source.config, source.checkpoint)
    return replace(plan, activation=activation, use_activation=source.backbone.architecture not in RAW_BY_DEFAULT)


def _override(plan: HeadPlan, source: HeadSource) -> HeadPlan:
    """Apply the caller's pooler config, which beats the files, which beat the architecture, field by field."""
    pooler = source.options.pooler_config
    if pooler.seq_pooling_type is not None:
        plan = _override_pooling(plan, POOLING_MODES[pooler.seq_pooling_type])
    if pooler.logit_mean is not None or pooler.logit_sigma is not None:
        if plan.kind != "logits":
            raise InputError("logit_mean and logit_sigma have no meaning for embeddings", parameter="logit_mean")
        step = HeadStep(kind="Standardize", config={"mean": pooler.logit_mean, "sigma": pooler.logit_sigma})
        plan = replace(plan, shared=(*plan.shared, step))
    if pooler.use_activation is not None:
        plan = _override_activation(plan, use=pooler.use_activation)
    return plan


def _override_pooling(plan: HeadPlan, mode: str) -> HeadPlan:
    if plan.pooling is None:
        raise InputError(
            f"pooling {mode} was asked for, but this checkpoint answers token by token", parameter="seq_pooling_type"
        )
    if plan.rows:
        raise InputError(
            f"pooling {mode} was asked for, but weights of words (SPLADE) are pooled by {plan.pooling[0]}",
            parameter="seq_pooling_type",
        )
    return replace(plan, pooling=(mode,))


def _override_activation(plan: HeadPlan, *, use: bool) -> HeadPlan:
    if plan.kind == "logits" or use == plan.normalize:
        return replace(plan, use_activation=use)
    raw = plan.shared[: len(plan.shared) - len(plan.finish)]
    kept = tuple(step for step in plan.finish if step.kind != "Normalize")
    return replace(plan, shared=(*raw, *kept, *((HeadStep(kind="Normalize"),) if use else ())))
