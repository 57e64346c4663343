"""Resolution: checkpoint and options to a definite plan of what is exported."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from poolgraph.errors import ExportError, TaskNotSupported, UnsupportedArchitecture
from poolgraph.export.backbone import Backbone, find_backbone
from poolgraph.export.checkpoint import Checkpoint, check_merged
from poolgraph.export.cross_encoder import CrossEncoder, parse_cross_encoder
from poolgraph.export.head import HeadPlan
from poolgraph.export.late_interaction import parse_late_interaction
from poolgraph.export.late_interaction_plan import LateInteractionPlan
from poolgraph.export.late_interaction_tokens import describe_late_interaction, register_markers
from poolgraph.export.message_template import TemplatePlan
from poolgraph.export.options import ExportOptions
from poolgraph.export.resolve_head import STEP_TAGS, HeadSource, plan_head
from poolgraph.export.scoring import check_pairs, choose_template, describe_scoring
from poolgraph.export.sentence_transformers import (
    SentenceTransformer,
    add_task_instructions,
    parse_sentence_transformers,
)
from poolgraph.export.static_query import StaticWeights, plan_static_query
from poolgraph.export.targets import resolve_targets
from poolgraph.export.tokenizer import UNLIMITED, load_tokenizer
from poolgraph.graphs.manifest import LateInteraction, Limits, Scoring
from poolgraph.graphs.pipeline import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """All decisions of one export.

    Attributes:
        checkpoint: Where the weights come from.
        backbone: What is traced.
        sentence_transformer: The sentence-transformers files; defaults where there are none.
        tokenizer: The reference's tokenizer.
        head: What follows the backbone.
        options: What the caller asked for.
        targets: What is lowered, portable first.
        limits: Longest text and vocabulary.
        score_template: The score template, or None.
        late: What the files of a ColBERT model say of its queries and documents, or None.
        static: The table of queries of an inference-free SPLADE, or None.
    """

    checkpoint: Checkpoint
    backbone: Backbone
    sentence_transformer: SentenceTransformer
    tokenizer: PreTrainedTokenizerBase
    head: HeadPlan
    options: ExportOptions
    targets: tuple[Target, ...]
    limits: Limits
    score_template: TemplatePlan | None = None
    late: LateInteractionPlan | None = None
    static: StaticWeights | None = None

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The backbone's class."""
        return self.backbone.model_class

    @property
    def family(self) -> ModuleType:
        """The module that prepares this architecture's backbone for tracing."""
        return importlib.import_module(f"poolgraph.export.arch_{self.backbone.row.family}")

    @property
    def position_offset(self) -> int | None:
        """``pad_token_id`` where positions are counted from the one after it, else None."""
        return int(self.config.pad_token_id) if self.backbone.row.positions == "offset" else None

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's rows."""
        return self.backbone.hidden_size

    @property
    def has_token_types(self) -> bool:
        """Whether texts of a pair are told apart by token types."""
        has_types = getattr(self.config, "type_vocab_size", 0) > 1
        return has_types and "token_type_ids" in self.tokenizer.model_input_names

    @property
    def sequence_size(self) -> int | None:
        """Width of the sequence family's answer, None without that family."""
        return self.head.sequence_size(self.hidden_size)

    @property
    def token_size(self) -> int | None:
        """Width of the token family's answer, None where the head does not fit the rows."""
        return self.head.token_size(self.hidden_size)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the artifact answers."""
        verbs = ("embed", "token_embed") if self.head.kind == "embedding" else ("classify", "token_classify")
        sizes = (self.sequence_size, self.token_size)
        found = tuple(verb for verb, size in zip(verbs, sizes, strict=True) if size is not None)
        return (*found, "token_classify") if self.head.tokens else found

    @property
    def default_task(self) -> str:
        """What the caller asked for, in vLLM's words, else what the checkpoint is made for."""
        task = self.options.pooler_config.task or self.options.task
        return task if task in self.tasks else self.tasks[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of a classifier's columns; empty where they are no classes."""
        size = self.sequence_size or self.token_size
        if self.head.kind != "logits" or self.head.converted:
            return ()
        names = {int(index): str(name) for index, name in (self.config.id2label or {}).items()}
        return tuple(names[index] for index in range(size or 0)) if sorted(names) == list(range(size or 0)) else ()

    @property
    def scoring(self) -> Scoring | None:
        """How pairs are scored; a query by a table and a document by the graph are not compared as a pair."""
        if self.static is not None:
            return None
        late = self.late is not None
        return describe_scoring(self.head, self.sequence_size or 0, self.score_template, late_interaction=late)

    @property
    def template(self) -> str | None:
        """Text of the score template, None where there is none."""
        return None if self.score_template is None else self.score_template.source

    @property
    def late_interaction(self) -> LateInteraction | None:
        """How queries and documents of a ColBERT model are encoded."""
        return None if self.late is None else describe_late_interaction(self.late, self.tokenizer)

    @property
    def step_tag_id(self) -> int | None:
        """The token whose rows are the answer of a process-reward model."""
        given = self.options.pooler_config.step_tag_id
        return STEP_TAGS.get(self.backbone.architecture) if given is None else given


def resolve_plan(
    checkpoint: Checkpoint,
    *,
    options: ExportOptions,
    precisions: Sequence[str] | None,
    targets: Sequence[str],
    trust_remote_code: bool,
    unfit: Collection[str] = (),
) -> ExportPlan:
    """Decide what an export makes; ``unfit`` are precisions that an open one does not stand for.

    Raises:
        InputError: an option that contradicts the checkpoint, or an unknown target or precision.
        TaskNotSupported: a task that this checkpoint cannot do.
        UnsupportedArchitecture: no row and no transformers class fits.
    """
    cross = parse_cross_encoder(checkpoint)
    late = _late_interaction(checkpoint, options)
    sentence = late.sentence_transformer if late is not None else _sentence_files(checkpoint, cross)
    folder = checkpoint.folder / sentence.transformer_path
    check_merged(folder)
    overrides = {**sentence.config_options, **options.hf_overrides}
    backbone = find_backbone(folder, overrides, trust_remote_code=trust_remote_code)
    if late is None and cross is None:
        sentence = add_task_instructions(sentence, getattr(backbone.config, "task_instructions", None))
    _check_expansion(backbone, late)
    chosen = resolve_targets(backbone, targets, precisions, unfit)
    translated = backbone.config if backbone.layout is not None else None
    tokenizer = load_tokenizer(folder, sentence, trust_remote_code=trust_remote_code, config=translated)
    if late is not None:
        register_markers(tokenizer, late.markers)
    source = HeadSource(
        checkpoint=checkpoint,
        backbone=backbone,
        options=options,
        sentence_transformer=sentence,
        tokenizer=tokenizer,
        score_token_ids=cross.token_ids if cross is not None else (),
    )
    head = plan_head(source) if late is None else HeadPlan(kind="embedding", pooling=None, shared=late.head)
    if cross is not None and head.kind == "embedding":
        sentence = replace(sentence, default_prompt_name=None)
    plan = ExportPlan(
        checkpoint=checkpoint,
        backbone=backbone,
        sentence_transformer=sentence,
        tokenizer=tokenizer,
        head=head,
        options=options,
        targets=chosen,
        limits=Limits(max_model_len=1, vocab_size=int(backbone.config.vocab_size)),
        score_template=choose_template(options, head, backbone.config, checkpoint, tokenizer, cross),
        late=late,
    )
    static = _plan_static(plan, trust_remote_code=trust_remote_code)
    plan = replace(plan, limits=resolve_limits(plan), static=static)
    if cross is not None:
        check_pairs(cross, head, plan.sequence_size or 0)
    _check_task(plan)
    return plan


def _plan_static(plan: ExportPlan, *, trust_remote_code: bool) -> StaticWeights | None:
    sentence, size = plan.sentence_transformer, plan.sequence_size
    return plan_static_query(plan.checkpoint, sentence, plan.tokenizer, size, trust_remote_code=trust_remote_code)


def _check_expansion(backbone: Backbone, late: LateInteractionPlan | None) -> None:
    expansion = None if late is None else late.expansion
    if expansion is not None and not expansion.attend and not backbone.row.expansion:
        raise UnsupportedArchitecture(
            f"{backbone.architecture} convolves tokens in both directions, and it is not known whether those that fill "
            "up a query without being attended to take part in it"
        )


def resolve_limits(plan: ExportPlan) -> Limits:
    """Return the longest text in tokens: the least of what the files, the tokenizer and the position table allow.

    Sentence-transformers' max_seq_length replaces the tokenizer's limit; neither can go beyond the positions that there
    are, of which the RoBERTa family loses pad_token_id + 1.

    Raises:
        ExportError: none of them says it, or no token is left.
    """
    positions = getattr(plan.config, "max_position_embeddings", None)
    if positions is not None and positions < 0:  # XLNet's, which have no end
        positions = None
    if positions is not None:  # a rotary base that grows with the text takes it beyond the trained positions
        positions = max(positions, getattr(plan.config, "n_positions", None) or 0)
    declared = plan.sentence_transformer.max_seq_length or plan.tokenizer.model_max_length
    declared = int(declared or 0) if plan.late is None else max(int(declared or 0), plan.late.longest)
    candidates = [declared] if declared and declared < UNLIMITED else []
    if positions is not None:
        candidates.append(int(positions) - (0 if plan.position_offset is None else plan.position_offset + 1))
    if not candidates:
        raise ExportError("neither the tokenizer nor the configuration says how long a text may be; set max_seq_length")
    if min(candidates) < 1:
        raise ExportError(f"the checkpoint limits texts to {min(candidates)} tokens, which leaves none")
    return Limits(max_model_len=min(candidates), vocab_size=plan.limits.vocab_size)


def _late_interaction(checkpoint: Checkpoint, options: ExportOptions) -> LateInteractionPlan | None:
    """Read a ColBERT checkpoint as one, unless the caller wants vectors of whole texts from it."""
    if options.task == "embed" or options.convert == "embed":
        return None
    return parse_late_interaction(checkpoint, architectures=options.hf_overrides.get("architectures"))


def _sentence_files(checkpoint: Checkpoint, cross: CrossEncoder | None) -> SentenceTransformer:
    if cross is not None:
        return cross.sentence_transformer
    return parse_sentence_transformers(checkpoint) or SentenceTransformer()


def _check_task(plan: ExportPlan) -> None:
    """Check that the plan answers the task that was asked for, and the one that the pooler config names."""
    answers = {
        "score": plan.scoring is not None,
        "reward": plan.head.kind == "logits",
        "auto": True,
    }
    size = plan.sequence_size
    for task in (plan.options.task, plan.options.pooler_config.task or "auto"):
        if answers.get(task, task in plan.tasks):
            continue
        why = f"; it has {size} labels, and a score is one number" if task == "score" and size is not None else ""
        raise TaskNotSupported(
            f"{plan.backbone.architecture} cannot {task}: as its checkpoint is, it answers {', '.join(plan.tasks)}{why}"
        )
