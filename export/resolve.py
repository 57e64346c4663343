"""Resolution: checkpoint and options to a definite plan of what is exported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from poolgraph.errors import ExportError, InputError, TaskNotSupported, UnsupportedArchitecture
from poolgraph.export.architectures import ARCHITECTURES, Architecture
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.sentence_transformers import SentenceTransformer, parse_sentence_transformers
from poolgraph.graphs.manifest import Limits
from poolgraph.graphs.pipeline import PORTABLE, TARGETS, Target

EXPORT_TASKS = ("auto", "embed", "token_embed")
LATER_TASKS = ("classify", "score", "reward", "token_classify")

UNLIMITED = 1_000_000
"""Transformers writes numbers far beyond this as model_max_length where a tokenizer knows no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """All decisions of one export.

    Attributes:
        checkpoint: Where the weights come from.
        backbone_folder: Folder of the backbone in it.
        config: The backbone's configuration.
        architecture: Hugging Face class name of the backbone.
        row: Its row of the architecture table, or one made for a class without a row.
        model_class: The transformers class.
        sentence_transformer: The sentence-transformers files; defaults where there are none.
        pooling: Pooling modes.
        targets: What is lowered, portable first.
        limits: Longest text and vocabulary.
        default_task: The task that the checkpoint is made for.
    """

    checkpoint: Checkpoint
    backbone_folder: Path
    config: PretrainedConfig
    architecture: str
    row: Architecture
    model_class: type[PreTrainedModel]
    sentence_transformer: SentenceTransformer
    pooling: tuple[str, ...]
    targets: tuple[Target, ...]
    limits: Limits
    default_task: str

    @property
    def family(self) -> ModuleType:
        """The module that prepares this architecture's backbone for tracing."""
        return importlib.import_module(f"poolgraph.export.arch_{self.row.family}")

    @property
    def position_offset(self) -> int | None:
        """``pad_token_id`` where positions are counted from the one after it, else None."""
        return int(self.config.pad_token_id) if self.row.positions == "offset" else None

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's rows, by optimum's table of configuration names."""
        from optimum.utils import NormalizedConfigManager

        try:
            normalized = NormalizedConfigManager.get_normalized_config_class(self.config.model_type)(self.config)
        except KeyError:
            return int(self.config.hidden_size)
        return int(normalized.hidden_size)


def resolve_plan(
    checkpoint: Checkpoint,
    *,
    task: str,
    precisions: Sequence[str],
    targets: Sequence[str],
    trust_remote_code: bool,
) -> ExportPlan:
    """Decide what an export makes.

    Raises:
        InputError: an unknown task, target or precision.
        TaskNotSupported: a task that this checkpoint cannot do.
        UnsupportedArchitecture: no row and no transformers class fits.
    """
    _check_task(task)
    chosen = choose_targets(targets, precisions)
    sentence = parse_sentence_transformers(checkpoint) or SentenceTransformer()
    folder = checkpoint.folder / sentence.transformer_path
    config = load_config(folder, sentence.config_options, trust_remote_code=trust_remote_code)
    name = _architecture_name(config, as_backbone=bool(sentence.pooling) or task != "auto")
    row = ARCHITECTURES.get(name) or _generic_row()
    return ExportPlan(
        checkpoint=checkpoint,
        backbone_folder=folder,
        config=config,
        architecture=name,
        row=row,
        model_class=_model_class(name),
        sentence_transformer=sentence,
        pooling=sentence.pooling or (row.pooling,),
        targets=chosen,
        limits=Limits(max_model_len=1, vocab_size=int(config.vocab_size)),
        default_task=row.task if task == "auto" else task,
    )


def choose_targets(targets: Sequence[str], precisions: Sequence[str]) -> tuple[Target, ...]:
    """Return the rows of the target table asked for, portable first; any other pair is an error that lists them."""
    available = {(target.name, target.precision): target for target in TARGETS}
    wanted = {("portable", "fp32")} | {(t, p) for t in targets for p in precisions}
    unknown = sorted(pair for pair in wanted if pair not in available)
    if unknown:
        pairs = ", ".join(f"--target {t} --precision {p}" for t, p in available)
        asked = ", ".join(f"--target {t} --precision {p}" for t, p in unknown)
        raise InputError(f"{asked} is not offered; what is: {pairs}")
    return (
        PORTABLE,
        *(target for target in TARGETS if target is not PORTABLE and (target.name, target.precision) in wanted),
    )


def resolve_limits(plan: ExportPlan, tokenizer: PreTrainedTokenizerBase) -> Limits:
    """Return the longest text in tokens: the least of what the files, the tokenizer and the position table allow.

    Sentence-transformers' max_seq_length replaces the tokenizer's limit; neither can go beyond the positions that there
    are, of which the RoBERTa family loses pad_token_id + 1.
    """
    positions = getattr(plan.config, "max_position_embeddings", None)
    declared = plan.sentence_transformer.max_seq_length or tokenizer.model_max_length
    candidates = [int(declared)] if declared and declared < UNLIMITED else []
    if positions is not None:
        candidates.append(int(positions) - (0 if plan.position_offset is None else plan.position_offset + 1))
    if not candidates:
        raise ExportError("neither the tokenizer nor the configuration says how long a text may be; set max_seq_length")
    if min(candidates) < 1:
        raise ExportError(f"the checkpoint limits texts to {min(candidates)} tokens, which leaves none")
    return Limits(max_model_len=min(candidates), vocab_size=plan.limits.vocab_size)


def load_config(folder: Path, options: Mapping[str, Any], *, trust_remote_code: bool) -> PretrainedConfig:
    """Read ``config.json`` of a backbone's folder, with some fields changed by ``options``.

    Raises:
        UnsupportedArchitecture: a model type that transformers does not know.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise UnsupportedArchitecture(f"config.json of the checkpoint cannot be used: {error}") from error
    return config


def _check_task(task: str) -> None:
    if task in LATER_TASKS:
        raise TaskNotSupported(
            f"--task {task} cannot be exported by this version; it exports {', '.join(EXPORT_TASKS)}"
        )
    if task not in EXPORT_TASKS:
        raise InputError(f"--task {task} is unknown; choose one of {', '.join(EXPORT_TASKS)}")


def _architecture_name(config: PretrainedConfig, *, as_backbone: bool) -> str:
    """Return the backbone's class name.

    A checkpoint of a larger model (``MPNetForMaskedLM``) is taken as its backbone when sentence-transformers files or
    the task ask for embeddings, or when its head is one of pre-training, by optimum's table of tasks.
    """
    name = str((config.architectures or ["?"])[0])
    if name in ARCHITECTURES:
        return name
    backbone = _class_for_task(config, "feature-extraction")
    if backbone is None:
        raise UnsupportedArchitecture(
            f"architecture {name} of model_type {config.model_type!r} has no backbone to embed with"
        )
    pretrained = {"?", backbone, _class_for_task(config, "fill-mask")}
    if not (as_backbone or name in pretrained or name.endswith("ForPreTraining")):
        raise UnsupportedArchitecture(
            f"architecture {name} cannot be exported by this version unless as an embedding model (--task embed); "
            f"it exports {', '.join(ARCHITECTURES)} and other encoders that verify"
        )
    return backbone


def _class_for_task(config: PretrainedConfig, task: str) -> str | None:
    """Return the transformers class that optimum's TasksManager loads for a task, None where there is none."""
    from optimum.exporters.tasks import TasksManager

    auto = TasksManager.get_model_class_for_task(task, framework="pt", library="transformers")
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        return None
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def _generic_row() -> Architecture:
    """Return the row of a backbone that the table does not have: its attention must go through the interface."""
    return Architecture(family="interface", task="embed", pooling="cls")


def _model_class(name: str) -> type[PreTrainedModel]:
    """Return the transformers class called ``name``."""
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise UnsupportedArchitecture(f"transformers {transformers.__version__} has no class {name}")
    model_class: type[PreTrainedModel] = found
    return model_class
