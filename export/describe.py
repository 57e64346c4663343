"""Describing: a plan and its variants to the manifest."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from poolgraph import __version__
from poolgraph.export.build import trace_inputs
from poolgraph.export.resolve import ExportPlan
from poolgraph.graphs.manifest import Manifest, Pooler, Report, Source, Tokenization, TokenWeights, Variant


def build_manifest(plan: ExportPlan, variants: Sequence[Variant], *, min_cosine: float | None) -> Manifest:
    """Return the manifest of an artifact whose files and report are still to come."""
    sentence = plan.sentence_transformer
    return Manifest(
        poolgraph_version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=Source(
            model=plan.checkpoint.model, revision=plan.checkpoint.revision, content_hash=plan.checkpoint.content_hash
        ),
        architecture=plan.backbone.architecture,
        tasks=plan.tasks,
        default_task=plan.default_task,
        pooler=_describe_pooler(plan),
        limits=plan.limits,
        tokenization=_describe_tokenization(plan),
        prompts=dict(sentence.prompts),
        default_prompt_name=sentence.default_prompt_name,
        similarity_fn_name=sentence.similarity_fn_name,
        labels=plan.labels,
        scoring=plan.scoring,
        late_interaction=plan.late_interaction,
        static_query=None if plan.static is None else plan.static.record,
        options=plan.options.to_record() | ({} if min_cosine is None else {"min_cosine": repr(min_cosine)}),
        variants=tuple(variants),
        report=Report(reference=""),
        files={},
    )


def _describe_pooler(plan: ExportPlan) -> Pooler:
    head, config = plan.head, plan.options.pooler_config
    widths = () if head.is_sparse else getattr(plan.config, "matryoshka_dimensions", None) or ()
    dimensions = tuple(int(size) for size in widths)
    size = plan.sequence_size or plan.token_size
    assert size is not None
    return Pooler(
        pooling=head.pooling or (),
        include_prompt=plan.sentence_transformer.include_prompt,
        normalize=head.normalize,
        normalize_kept=head.normalizes_kept or (head.is_sparse and head.normalize and config.use_activation is True),
        embedding_size=size,
        token_embedding_size=plan.token_size,
        is_matryoshka=bool(dimensions) or (bool(getattr(plan.config, "is_matryoshka", False)) and not head.is_sparse),
        matryoshka_dimensions=dimensions,
        sparse=head.is_sparse,
        token_weights=_describe_weights(plan) if head.tokens else None,
        max_active_dims=plan.sentence_transformer.max_active_dims,
        activation=head.activation,
        use_activation=head.use_activation,
        logit_mean=config.logit_mean,
        logit_sigma=config.logit_sigma,
        tok_pooling_type=config.tok_pooling_type or ("ALL" if plan.step_tag_id is None else "STEP"),
        step_tag_id=plan.step_tag_id,
        returned_token_ids=tuple(config.returned_token_ids or ()),
        column_token_ids=head.column_token_ids,
    )


def _describe_weights(plan: ExportPlan) -> TokenWeights:
    tokenizer = plan.tokenizer
    named = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return TokenWeights(
        first_token_id=named[0], last_token_id=named[1], skip_token_ids=tuple(sorted({*named} - {None}))
    )


def _describe_tokenization(plan: ExportPlan) -> Tokenization:
    pad = plan.tokenizer.pad_token_id
    if pad is None:
        pad = getattr(plan.config, "pad_token_id", None)
    return Tokenization(
        pad_token_id=int(pad or 0),
        padding_side=str(plan.tokenizer.padding_side),
        truncation_side=str(plan.tokenizer.truncation_side),
        do_lower_case=plan.sentence_transformer.do_lower_case,
        needs_token_type_ids=trace_inputs(plan).token_type_ids,
    )
