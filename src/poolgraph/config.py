"""What a caller may ask of the pooler: ``PoolingParams`` for one request, ``PoolerConfig`` for a whole model.

Both take vLLM's current names and fold the older ones (``normalize``, ``softmax``, ``activation``) into
``use_activation``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import InitVar, dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from typing import Any, Final, cast, get_args

from poolgraph.errors import InputError
from poolgraph.tasks import POOLING_TASKS, PoolingTask, SequencePoolingType, TokenPoolingType

SEQUENCE_POOLING_TYPES: Final[tuple[str, ...]] = get_args(SequencePoolingType)
TOKEN_POOLING_TYPES: Final[tuple[str, ...]] = get_args(TokenPoolingType)

_MAX_CHUNK_SIZE: Final = 2**63


class RequestOutputKind(Enum):
    """When a request's output is handed over; pooling has only the final one."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, slots=True)
class LateChunkingParams:
    """Token embeddings averaged over chunks, each of which has seen the whole text.

    Attributes:
        chunk_size: Tokens of a chunk, special tokens counted; the last chunk of a text may be shorter.

    Raises:
        InputError: not a positive int below 2**63.
    """

    chunk_size: int

    def __post_init__(self) -> None:
        size = self.chunk_size
        if type(size) is not int or not 0 < size < _MAX_CHUNK_SIZE:
            raise InputError(
                "chunk_size must be a positive integer less than 2**63", parameter="chunk_size", value=self.chunk_size
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """The options of one request; None leaves a value to the model's ``PoolerConfig`` and then to the artifact.

    Attributes:
        task: The task the parameters are meant for, checked against the task that is asked.
        use_activation: Normalize an embedding, or apply the classifier's activation.
        dimensions: Width of a shortened (Matryoshka) embedding.
        step_tag_id: Token id whose rows a STEP pooler returns.
        returned_token_ids: Columns that a STEP pooler returns.
        truncate_prompt_tokens: Keep that many tokens of a longer prompt, -1 for the model's limit; older spelling of
            ``tokenization_kwargs={"truncate_prompt_tokens": N}``.
        late_chunking_params: Average token embeddings over chunks of that many tokens (``token_embed``).
        extra_kwargs: Options of ``LLM.score`` and ``LLM.rerank``: ``max_tokens_per_query``, ``max_tokens_per_doc``,
            ``chat_template_kwargs`` and ``plain_late_interaction``. Of ``LLM.embed`` and ``LLM.encode``: ``side``,
            ``query`` or ``document``, of models that answer the two differently. Copied.
        requires_token_ids: Of no effect, like ``skip_reading_prefix_cache``: vLLM's engine sets them.
        skip_reading_prefix_cache: Of no effect.
        late_interaction_params: None; vLLM's engine sets it.
        output_kind: ``FINAL_ONLY``.

    ``normalize``, ``softmax`` and ``activation`` are older spellings of ``use_activation``.

    Raises:
        InputError: a wrong type, spellings that contradict each other, or an output kind that pooling does not have.
    """

    task: PoolingTask | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: Sequence[int] | None = None
    truncate_prompt_tokens: int | None = None
    late_chunking_params: LateChunkingParams | None = None
    extra_kwargs: Mapping[str, Any] | None = field(default=None, hash=False)
    requires_token_ids: bool = False
    skip_reading_prefix_cache: bool | None = None
    late_interaction_params: None = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
    normalize: InitVar[bool | None] = None
    softmax: InitVar[bool | None] = None
    activation: InitVar[bool | None] = None

    def __post_init__(self, normalize: bool | None, softmax: bool | None, activation: bool | None) -> None:
        _fold_activation(self, normalize=normalize, softmax=softmax, activation=activation)
        _check_choice("task", self.task, POOLING_TASKS)
        for name in ("dimensions", "step_tag_id", "truncate_prompt_tokens"):
            _check_integer(name, getattr(self, name))
        _freeze_token_ids(self)
        check_truncation(self.truncate_prompt_tokens)
        _check_engine_fields(self)
        _check_instance("late_chunking_params", self.late_chunking_params, LateChunkingParams)
        _check_instance("extra_kwargs", self.extra_kwargs, Mapping)
        object.__setattr__(self, "extra_kwargs", deepcopy(self.extra_kwargs))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerConfig:
    """How a model pools, for all of its requests; None leaves a value to the artifact.

    ``pooling_type`` is a convenience that becomes ``seq_pooling_type`` (CLS, LAST, MEAN) or ``tok_pooling_type`` (ALL,
    STEP), and reads as None afterwards. ``normalize``, ``softmax`` and ``activation`` are older spellings of
    ``use_activation``.

    Attributes:
        task: The task that the model is used for.
        pooling_type: Either of the next two.
        seq_pooling_type: How a sequence becomes one vector.
        tok_pooling_type: Which rows of a sequence are returned.
        use_activation: Normalize embeddings, or apply the classifier's activation.
        dimensions: Width of shortened (Matryoshka) embeddings.
        logit_mean: Subtracted from the logits before the activation.
        logit_sigma: The logits are divided by it after ``logit_mean`` is subtracted.
        step_tag_id: Token id whose rows a STEP pooler returns.
        returned_token_ids: Columns that a STEP pooler returns.
        enable_flash_late_interaction: Of no effect: one implementation of MaxSim serves all.
        enable_chunked_processing: Embed texts beyond the model's limit in parts and average, as ``poolgraph serve
            --long-text chunk`` does.
        max_embed_len: Tokens of the longest text that is embedded so.

    Raises:
        InputError: a wrong type, an unknown pooling type or spellings that contradict each other.
    """

    task: PoolingTask | None = None
    pooling_type: str | None = None
    seq_pooling_type: SequencePoolingType | None = None
    tok_pooling_type: TokenPoolingType | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: Sequence[int] | None = None
    enable_flash_late_interaction: bool | None = None
    enable_chunked_processing: bool | None = None
    max_embed_len: int | None = None
    normalize: InitVar[bool | None] = None
    softmax: InitVar[bool | None] = None
    activation: InitVar[bool | None] = None

    def __post_init__(self, normalize: bool | None, softmax: bool | None, activation: bool | None) -> None:
        _fold_activation(self, normalize=normalize, softmax=softmax, activation=activation)
        _check_choice("task", self.task, POOLING_TASKS)
        _fold_pooling_type(self)
        _check_choice("seq_pooling_type", self.seq_pooling_type, SEQUENCE_POOLING_TYPES)
        _check_choice("tok_pooling_type", self.tok_pooling_type, TOKEN_POOLING_TYPES)
        for name in ("dimensions", "step_tag_id", "max_embed_len"):
            _check_integer(name, getattr(self, name))
        for name in ("enable_flash_late_interaction", "enable_chunked_processing"):
            _check_instance(name, getattr(self, name), bool)
        for name in ("logit_mean", "logit_sigma"):
            _check_number(name, getattr(self, name))
        _freeze_token_ids(self)
        if self.logit_sigma == 0:
            raise InputError("logit_sigma cannot be 0 (division by zero)", parameter="logit_sigma", value=0)

    @classmethod
    def from_json(cls, text: str) -> PoolerConfig:
        """Read a pooler config from the text of a JSON object.

        Raises:
            InputError: not a JSON object, an unknown key or a wrong value.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(f"pooler_config is not JSON: {error}", parameter="pooler_config", value=text) from error
        return _from_mapping(value)


def parse_pooler_config(value: PoolerConfig | Mapping[str, Any] | str | None) -> PoolerConfig:
    """Turn any accepted form of a pooler config (object, mapping, JSON text, None) into a ``PoolerConfig``.

    Raises:
        InputError: the value is none of these, has an unknown key or a wrong value.
    """
    if value is None:
        return PoolerConfig()
    if isinstance(value, PoolerConfig):
        return value
    if isinstance(value, str):
        return PoolerConfig.from_json(value)
    return _from_mapping(value)


def check_truncation(truncate_prompt_tokens: int | None) -> None:
    """Refuse a truncation that keeps nothing; -1 stands for the model's limit.

    Raises:
        InputError: 0, or less than -1.
    """
    if truncate_prompt_tokens is not None and (truncate_prompt_tokens < -1 or truncate_prompt_tokens == 0):
        raise InputError(
            "truncate_prompt_tokens must be -1 (the model's limit) or a positive number of tokens",
            parameter="truncate_prompt_tokens",
            value=truncate_prompt_tokens,
        )


def _from_mapping(value: object) -> PoolerConfig:
    if not isinstance(value, Mapping):
        raise InputError(
            f"pooler_config must be a PoolerConfig, a mapping or the text of a JSON object, not {type(value).__name__}",
            parameter="pooler_config",
            value=value,
        )
    known = [*(field.name for field in fields(PoolerConfig)), "normalize", "softmax", "activation"]
    for key in value:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {known}"
            raise InputError(f"pooler_config has no key {key!r}; {hint}", parameter="pooler_config", value=dict(value))
    return PoolerConfig(**cast("Mapping[str, Any]", value))


def _fold_activation(config: PoolingParams | PoolerConfig, **older: object) -> None:
    spelled = {"use_activation": config.use_activation, **older}
    given = {name: value for name, value in spelled.items() if value is not None}
    for name, value in given.items():
        _check_instance(name, value, bool)
    if len(set(given.values())) > 1:
        raise InputError(f"{given} contradict each other: all of them mean use_activation; set that one alone")
    if given:
        object.__setattr__(config, "use_activation", next(iter(given.values())))


def _fold_pooling_type(config: PoolerConfig) -> None:
    kind = config.pooling_type
    if kind is None:
        return
    _check_choice("pooling_type", kind, (*SEQUENCE_POOLING_TYPES, *TOKEN_POOLING_TYPES))
    for name in ("seq_pooling_type", "tok_pooling_type"):
        if getattr(config, name) is not None:
            raise InputError(f"Cannot set both `pooling_type` and `{name}`", parameter="pooling_type", value=kind)
    name = "seq_pooling_type" if kind in SEQUENCE_POOLING_TYPES else "tok_pooling_type"
    object.__setattr__(config, name, kind)
    object.__setattr__(config, "pooling_type", None)


def _freeze_token_ids(config: PoolingParams | PoolerConfig) -> None:
    ids = config.returned_token_ids
    if ids is None:
        return
    if isinstance(ids, str | bytes | bytearray | memoryview) or not isinstance(ids, Sequence):
        raise InputError(
            f"returned_token_ids must be a list of ints, not {type(ids).__name__}",
            parameter="returned_token_ids",
            value=ids,
        )
    for token_id in ids:
        _check_integer("returned_token_ids", token_id)
    object.__setattr__(config, "returned_token_ids", tuple(ids))


def _check_engine_fields(params: PoolingParams) -> None:
    """Check the fields that vLLM keeps for its engine; the messages are vLLM's where it has one."""
    kind = params.output_kind
    if kind is not RequestOutputKind.FINAL_ONLY:
        raise InputError(
            f"For pooling output_kind has to be FINAL_ONLY, got {kind}", parameter="output_kind", value=kind
        )
    _check_instance("requires_token_ids", params.requires_token_ids, bool)
    _check_instance("skip_reading_prefix_cache", params.skip_reading_prefix_cache, bool)
    if params.late_interaction_params is not None:
        raise InputError(
            "late_interaction_params is set by vLLM's engine and must be None; LLM.score does late interaction",
            parameter="late_interaction_params",
            value=params.late_interaction_params,
        )


def _check_instance(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "aeiou" else "a"
        raise InputError(
            f"{name} must be {article} {kind.__name__}, not {type(value).__name__}", parameter=name, value=value
        )


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise InputError(f"unknown {name} {value!r}; allowed are {list(allowed)}", parameter=name, value=value)


def _check_integer(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"{name} must be an int, not {type(value).__name__}", parameter=name, value=value)


def _check_number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{name} must be a number, not {type(value).__name__}", parameter=name, value=value)
