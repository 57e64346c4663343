"""Describing: a plan and its variants to the manifest."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from poolgraph import __version__
from poolgraph.export.build import trace_inputs
from poolgraph.export.head import build_head_modules, head_output_size
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.manifest import Manifest, Pooler, Report, Source, Tokenization, Variant
from poolgraph.poolers.head import Normalize


def build_manifest(
    plan: ExportPlan, tokenizer: PreTrainedTokenizerBase, variants: Sequence[Variant], *, min_cosine: float | None
) -> Manifest:
    """Return the manifest of an artifact whose files and report are still to come."""
    sentence = plan.sentence_transformer
    has_tokens = any("token" in variant.graphs for variant in variants)
    return Manifest(
        poolgraph_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=Source(
            model=plan.checkpoint.model, revision=plan.checkpoint.revision, content_hash=plan.checkpoint.content_hash
        ),
        architecture=plan.architecture,
        tasks=("embed", "token_embed") if has_tokens else ("embed",),
        default_task=plan.default_task,
        pooler=_describe_pooler(plan, has_tokens=has_tokens),
        limits=plan.limits,
        tokenization=_describe_tokenization(plan, tokenizer),
        prompts=dict(sentence.prompts),
        default_prompt_name=sentence.default_prompt_name,
        similarity_fn_name=sentence.similarity_fn_name,
        options={} if min_cosine is None else {"min_cosine": repr(min_cosine)},
        variants=tuple(variants),
        report=Report(reference=""),
        files={},
    )


def _describe_pooler(plan: ExportPlan, *, has_tokens: bool) -> Pooler:
    modules = build_head_modules(plan)
    dimensions = tuple(int(size) for size in getattr(plan.config, "matryoshka_dimensions", None) or ())
    return Pooler(
        pooling=plan.pooling,
        include_prompt=plan.sentence_transformer.include_prompt,
        normalize=bool(modules) and isinstance(modules[-1], Normalize),
        embedding_size=head_output_size(plan, len(plan.pooling) * plan.hidden_size),
        token_embedding_size=head_output_size(plan, plan.hidden_size) if has_tokens else None,
        is_matryoshka=bool(dimensions) or bool(getattr(plan.config, "is_matryoshka", False)),
        matryoshka_dimensions=dimensions,
    )


def _describe_tokenization(plan: ExportPlan, tokenizer: PreTrainedTokenizerBase) -> Tokenization:
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = getattr(plan.config, "pad_token_id", None)
    return Tokenization(
        pad_token_id=int(pad or 0),
        padding_side=str(tokenizer.padding_side),
        truncation_side=str(tokenizer.truncation_side),
        do_lower_case=plan.sentence_transformer.do_lower_case,
        needs_token_type_ids=trace_inputs(plan).token_type_ids,
    )
