"""Sentence-transformers' files: the chain of modules, prompts and limits, read into frozen values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older pooling configurations, in the order in which sentence-transformers concatenates their results."""

COMPILED_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")

MULTI_VECTOR_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "MultiVectorMask")
"""What is compiled of a MultiVectorEncoder, whose modules work on token embeddings; its Pooling has no effect there."""

HIDDEN_STATE = "last_hidden_state"

IGNORED_OPTIONS = frozenset(
    {
        "trust_remote_code",
        "torch_dtype",
        "dtype",
        "attn_implementation",
        "device_map",
        "low_cpu_mem_usage",
        "use_safetensors",
        "add_pooling_layer",
    }
)
"""Arguments that say how torch loads and runs the model, not what it computes; code is trusted by the caller alone."""

SIMILARITY_FUNCTIONS = ("cosine", "dot", "euclidean", "manhattan")

ALWAYS_PROMPTS = ("query", "document")
"""Prompts that sentence-transformers has of every model, empty where the files do not say."""

SIDE_OPTIONS = ("query_length", "document_length", "query_expansion")
"""What a MultiVectorEncoder does to queries and documents; sentence-transformers 6 does it in encode_query and
encode_document of every model, which have nothing of the kind here."""

PUBLISHED_CODE = frozenset({"custom_st.Transformer"})
"""Modules of a checkpoint's own that do what sentence-transformers' of that name does (jina-embeddings-v3: it chooses
the adapter, which is chosen at export here)."""

LIMIT_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers looks for max_seq_length and do_lower_case, in its order."""


_Form = TypeVar("_Form")


class _Module(msgspec.Struct, frozen=True):
    """A row of modules.json."""

    type: str
    path: str


class _Settings(msgspec.Struct, frozen=True):
    """What is read of config_sentence_transformers.json."""

    truncate_dim: Annotated[int, msgspec.Meta(gt=0)] | None = None

    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None


class _Transformer(msgspec.Struct, frozen=True):
    """What is read of sentence_bert_config.json; options have an older and a current name."""

    max_seq_length: Annotated[int, msgspec.Meta(gt=0)] | None = None
    do_lower_case: bool | None = None
    transformer_task: str = "feature-extraction"
    module_output_name: str = "token_embeddings"
    modality_config: dict[str, Any] | None = None
    model_args: dict[str, Any] = {}
    model_kwargs: dict[str, Any] = {}
    config_args: dict[str, Any] = {}
    config_kwargs: dict[str, Any] = {}
    tokenizer_args: dict[str, Any] = {}
    processor_kwargs: dict[str, Any] = {}
    processing_kwargs: dict[str, Any] | None = None
    tokenizer_name_or_path: str | None = None
    query_length: int | None = None
    document_length: int | None = None
    query_expansion: Any = None

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """Arguments of the tokenizer."""
        return _without_ignored({**self.tokenizer_args, **self.processor_kwargs})

    @property
    def config_options(self) -> dict[str, Any]:
        """Fields of config.json that are changed."""
        return _without_ignored({**self.config_args, **self.config_kwargs})

    @property
    def limit(self) -> int | None:
        """The longest text in tokens: the tokenizer's own argument goes before max_seq_length."""
        declared = self.tokenizer_options.get("model_max_length")
        return declared if isinstance(declared, int) and declared > 0 else self.max_seq_length


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadModule:
    """One module after the pooling: its class name, its folder in the checkpoint and its configuration."""

    kind: str
    path: str
    config: Mapping[str, Any]

    @property
    def features(self) -> tuple[str | None, str | None]:
        """What it reads and writes, None where the configuration does not say."""
        source = self.config.get("module_input_name")
        return source, self.config.get("module_output_name") or source


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformer:
    """What a sentence-transformers checkpoint says beyond the backbone.

    Attributes:
        transformer_path: Folder of the backbone, "" for the checkpoint's own.
        pooling: Pooling modes in the order of their concatenation, empty where the files have no Pooling.
        include_prompt: False when the prompt's tokens are left out of the pooling.
        head: The modules after the pooling.
        max_seq_length: Limit in tokens, None where the files do not say.
        do_lower_case: Whether texts are lower-cased before they are tokenized.
        prompts: Prompt texts by name.
        default_prompt_name: The prompt that is applied when none is asked for.
        similarity_fn_name: cosine, dot, euclidean or manhattan.
        config_options: Fields of config.json that the files change.
        tokenizer_options: Arguments of the tokenizer that the files change.
    """

    transformer_path: str = ""
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    head: tuple[HeadModule, ...] = ()
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    config_options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)


def parse_sentence_transformers(checkpoint: Checkpoint, *, multi_vector: bool = False) -> SentenceTransformer | None:
    """Read the sentence-transformers files; None for a checkpoint without ``modules.json``.

    Args:
        checkpoint: The checkpoint.
        multi_vector: Read them as MultiVectorEncoder does: modules may work on token embeddings, nothing is pooled.

    Raises:
        ExportError: a module that cannot be compiled, named with those that can.
    """
    modules = read_form(checkpoint, "modules.json", list[_Module])
    if modules is None:
        return None
    kinds = [_module_kind(module, MULTI_VECTOR_MODULES if multi_vector else COMPILED_MODULES) for module in modules]
    _check_order(kinds)
    pooling_path = modules[kinds.index("Pooling")].path if "Pooling" in kinds else None
    pooling = (read_form(checkpoint, f"{pooling_path}/config.json", dict[str, Any]) or {}) if pooling_path else {}
    transformer = _read_transformer(checkpoint, modules[0].path, multi_vector=multi_vector)
    settings = read_form(checkpoint, "config_sentence_transformers.json", _Settings) or _Settings()
    if multi_vector:
        # MultiVectorEncoder always has these two prompts, and knows no truncate_dim.
        prompts = {"query": None, "document": None, **(settings.prompts or {})}
        settings = msgspec.structs.replace(settings, prompts=prompts, truncate_dim=None)
    _check_default_prompt(settings)
    return SentenceTransformer(
        transformer_path=modules[0].path,
        pooling=parse_pooling(pooling) if pooling_path else (),
        include_prompt=bool(pooling.get("include_prompt", True)),
        head=(
            *(
                _head_module(checkpoint, module, kind, multi_vector=multi_vector)
                for module, kind in zip(modules, kinds, strict=True)
                if kind not in ("Transformer", "Pooling")
            ),
            *_truncation(settings),
        ),
        max_seq_length=transformer.limit,
        do_lower_case=bool(transformer.do_lower_case),
        prompts=_name_prompts(settings),
        default_prompt_name=settings.default_prompt_name,
        similarity_fn_name=settings.similarity_fn_name or "cosine" if multi_vector else _choose_similarity(settings),
        config_options=transformer.config_options,
        tokenizer_options=transformer.tokenizer_options,
    )


def add_task_instructions(sentence: SentenceTransformer, instructions: object) -> SentenceTransformer:
    """Take the instructions of config.json, by task, as prompts beside those of sentence-transformers' files.

    vLLM reads them there (``task_instructions``) for the input types of its ``/v2/embed``. A prompt of that name in
    sentence-transformers' files stays, and the default prompt with it.

    Raises:
        ExportError: they are not texts by name.
    """
    if instructions is None:
        return sentence
    try:
        texts = msgspec.convert(instructions, dict[str, str])
    except msgspec.ValidationError as error:
        raise ExportError(f"task_instructions of config.json are not what they should be: {error}") from error
    return replace(sentence, prompts={**texts, **sentence.prompts})


def parse_pooling(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the pooling modes of ``1_Pooling/config.json``, in the older and the current spelling."""
    mode = config.get("pooling_mode")
    if mode is None:
        mode = tuple(name for flag, name in POOLING_FLAGS.items() if config.get(flag)) or "mean"
    modes = tuple(mode) if isinstance(mode, list | tuple) else (mode,)
    unknown = [name for name in modes if name not in POOLING_FLAGS.values()]
    if unknown:
        raise ExportError(
            f"pooling modes {unknown} cannot be compiled; the known ones are {list(POOLING_FLAGS.values())}"
        )
    return modes


def read_form(checkpoint: Checkpoint, name: str, form: type[_Form]) -> _Form | None:
    """Read a JSON file of the checkpoint in the form that sentence-transformers writes; None where there is none."""
    content = checkpoint.read_json(name)
    if content is None:
        return None
    try:
        return msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise ExportError(f"{name} of checkpoint {checkpoint.model!r} is not what it should be: {error}") from error


def _check_default_prompt(settings: _Settings) -> None:
    name = settings.default_prompt_name
    if name is not None and name not in (*ALWAYS_PROMPTS, *(settings.prompts or ())):
        raise ExportError(
            f"config_sentence_transformers.json names the default prompt {name!r}, but has only the prompts "
            f"{sorted(settings.prompts or {})}"
        )


def _name_prompts(settings: _Settings) -> dict[str, str]:
    default = settings.default_prompt_name
    always = {name: None for name in ALWAYS_PROMPTS if name == default}
    return {name: prompt or "" for name, prompt in {**always, **(settings.prompts or {})}.items()}


def _choose_similarity(settings: _Settings) -> str:
    """Return the name of the similarity; of one that it does not know sentence-transformers takes the cosine."""
    name = settings.similarity_fn_name
    if name is None or name in SIMILARITY_FUNCTIONS:
        return name or SIMILARITY_FUNCTIONS[0]
    warnings.warn(
        f"similarity_fn_name {name!r} is none of {list(SIMILARITY_FUNCTIONS)}; "
        "cosine is taken, as by sentence-transformers",
        UserWarning,
        stacklevel=2,
    )
    return SIMILARITY_FUNCTIONS[0]


def _module_kind(module: _Module, compiled: tuple[str, ...]) -> str:
    dotted = module.type
    kind = dotted.rpartition(".")[2]
    if kind not in compiled or not (re.match(r"(sentence_transformers|pylate)\.", dotted) or dotted in PUBLISHED_CODE):
        raise ExportError(
            f"modules.json has a module of type {dotted!r} at {module.path!r}, which cannot be compiled "
            f"into the graph; those that can are {list(compiled)}"
        )
    _check_path(module.path)
    return kind


def _check_path(path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ExportError(f"modules.json names the path {path!r}, which leaves the checkpoint")


def _check_order(kinds: list[str]) -> None:
    if not kinds or kinds[0] != "Transformer" or kinds.count("Transformer") > 1:
        raise ExportError(f"modules.json must start with its only Transformer module to be compiled; it has {kinds}")
    if kinds.count("Pooling") > 1 or ("Pooling" in kinds and kinds.index("Pooling") != 1):
        raise ExportError(
            f"modules.json must have its Pooling right after the Transformer to be compiled; it has {kinds}"
        )


def _head_module(checkpoint: Checkpoint, module: _Module, kind: str, *, multi_vector: bool) -> HeadModule:
    config = read_form(checkpoint, f"{module.path}/config.json", dict[str, Any]) or {}
    head = HeadModule(kind=kind, path=module.path, config=config)
    if not multi_vector:
        _check_features(head)
    return head


def _check_features(module: HeadModule) -> None:
    source, target = (name or "sentence_embedding" for name in module.features)
    if (source, target) != ("sentence_embedding", "sentence_embedding"):
        raise ExportError(
            f"module {module.kind} at {module.path!r} reads {source!r} and writes {target!r}; only sentence_embedding "
            "can be compiled"
        )


def find_transformer_file(checkpoint: Checkpoint, path: str) -> str | None:
    """Return the name of the file that holds the Transformer module's options, None where there is none."""
    names = [f"{path}/{name}" if path else name for name in LIMIT_FILES]
    return next((name for name in names if (checkpoint.folder / name).is_file()), None)


def _read_transformer(checkpoint: Checkpoint, path: str, *, multi_vector: bool) -> _Transformer:
    name = find_transformer_file(checkpoint, path)
    found = read_form(checkpoint, name, _Transformer) if name else None
    if found is None or name is None:
        return _Transformer()
    _check_transformer(found, name)
    check_options(found, name, sides=multi_vector)
    return found


def read_pair_transformer(checkpoint: Checkpoint) -> _Transformer:
    """Read the options of a CrossEncoder's Transformer module.

    Raises:
        ExportError: one that would change the answers.
    """
    name = find_transformer_file(checkpoint, "")
    found = read_form(checkpoint, name, _Transformer) if name else None
    if found is None or name is None:
        return _Transformer()
    check_options(found, name)
    return found


def _check_transformer(transformer: _Transformer, file: str) -> None:
    """Check that the backbone is read as token embeddings; what else the file asks for would change the answers."""
    text = (transformer.modality_config or {}).get("text") or {}
    asked = {
        "transformer_task": (transformer.transformer_task, "feature-extraction"),
        "module_output_name": (transformer.module_output_name, "token_embeddings"),
        "modality_config.text.method": (text.get("method", "forward"), "forward"),
        "modality_config.text.method_output_name": (text.get("method_output_name", HIDDEN_STATE), HIDDEN_STATE),
    }
    for key, (value, compiled) in asked.items():
        if value != compiled:
            raise ExportError(f"{file} has {key} {value!r}; only {compiled!r} can be compiled")
    if "message" in (transformer.modality_config or {}):
        raise ExportError(
            f"{file} has the modality 'message': sentence-transformers renders every text through the tokenizer's chat "
            "template, which is not compiled. Without 'message' in modality_config, texts are embedded as they are"
        )


def check_options(transformer: _Transformer, file: str, *, sides: bool = False) -> None:
    """Check that the file asks for nothing that would change the answers.

    Args:
        transformer: The options.
        file: Their file, for messages.
        sides: Whether what it says of queries and documents is read.

    Raises:
        ExportError: it does.
    """
    used = sorted(key for key, value in (transformer.processing_kwargs or {}).items() if value)
    if used:
        raise ExportError(f"{file} has processing_kwargs for {used}, which change how texts are tokenized; remove them")
    options = _without_ignored({**transformer.model_args, **transformer.model_kwargs})
    if options:
        raise ExportError(f"{file} gives the model the arguments {sorted(options)}, which cannot be compiled")
    if transformer.tokenizer_name_or_path is not None:
        raise ExportError(
            f"{file} names another tokenizer, {transformer.tokenizer_name_or_path!r}; put its files into the checkpoint"
        )
    named = [] if sides else [name for name in SIDE_OPTIONS if getattr(transformer, name)]
    if named:
        raise ExportError(f"{file} has {named}, which are compiled for a MultiVectorEncoder alone; remove them")


def _without_ignored(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in IGNORED_OPTIONS}


def _truncation(settings: _Settings) -> tuple[HeadModule, ...]:
    """Sentence-transformers cuts finished embeddings to truncate_dim, without normalizing again: one more module."""
    if settings.truncate_dim is None:
        return ()
    return (HeadModule(kind="Truncate", path="", config={"size": settings.truncate_dim}),)
