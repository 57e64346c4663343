"""The options of sentence-transformers' Transformer module: what is read of them, and what would change the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.graphs.manifest import Positive

TASK_OUTPUTS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
"""What each task that is compiled reads of the model's output."""

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

SIDE_OPTIONS = ("query_length", "document_length", "query_expansion")
"""What a MultiVectorEncoder does to queries and documents; sentence-transformers 6 does it in encode_query and
encode_document of every model, which have nothing of the kind here."""

CHAT_TEMPLATE = "chat_template"
"""The key of processing_kwargs whose values only a text of messages sees."""

LIMIT_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers looks for max_seq_length and do_lower_case, in its order."""


_Form = TypeVar("_Form")


class TransformerOptions(msgspec.Struct, frozen=True):
    """What is read of sentence_bert_config.json; options have an older and a current name."""

    max_seq_length: Positive | None = None
    do_lower_case: bool | None = None
    transformer_task: str | None = None
    module_output_name: str = "token_embeddings"
    modality_config: dict[str, Any] | None = None
    model_args: dict[str, Any] = {}
    model_kwargs: dict[str, Any] = {}
    config_args: dict[str, Any] = {}
    config_kwargs: dict[str, Any] = {}
    tokenizer_args: dict[str, Any] = {}
    processor_kwargs: dict[str, Any] = {}
    processing_kwargs: dict[str, dict[str, Any] | None] | None = None
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
        """The longest text in tokens: arguments of the chat template and the tokenizer go before max_seq_length."""
        declared = self.template_arguments.get("max_length") or self.tokenizer_options.get("model_max_length")
        return declared if isinstance(declared, int) and declared > 0 else self.max_seq_length

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Arguments of the tokenizer's chat template; none where texts do not go through it."""
        rendered = "message" in (self.modality_config or {})
        return ((self.processing_kwargs or {}).get(CHAT_TEMPLATE) or {}) if rendered else {}


def read_form(checkpoint: Checkpoint, name: str, form: type[_Form]) -> _Form | None:
    """Read a JSON file of the checkpoint in the form that sentence-transformers writes; None where there is none.

    Raises:
        ExportError: it is no JSON, or has another form.
    """
    content = checkpoint.read_json(name)
    if content is None:
        return None
    try:
        return msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise ExportError(f"{name} of checkpoint {checkpoint.model!r} is not what it should be: {error}") from error


def find_transformer_file(checkpoint: Checkpoint, path: str) -> str | None:
    """Return the name of the file that holds the Transformer module's options, None where there is none."""
    names = [f"{path}/{name}" if path else name for name in LIMIT_FILES]
    return next((name for name in names if (checkpoint.folder / name).is_file()), None)


def read_transformer(
    checkpoint: Checkpoint, path: str, *, task: str = "feature-extraction", multi_vector: bool = False
) -> TransformerOptions:
    """Read the options of the Transformer module at a path.

    Args:
        checkpoint: The checkpoint.
        path: The module's folder, "" for the checkpoint's own.
        task: A key of TASK_OUTPUTS, the only one that is compiled.
        multi_vector: Whether what they say of queries and documents is read.

    Raises:
        ExportError: one that would change the answers.
    """
    name = find_transformer_file(checkpoint, path)
    found = read_form(checkpoint, name, TransformerOptions) if name else None
    if found is None or name is None:
        return TransformerOptions()
    _check_transformer(found, name, task)
    check_options(found, name, sides=multi_vector)
    return found


def read_pair_transformer(checkpoint: Checkpoint) -> TransformerOptions:
    """Read the options of a CrossEncoder's Transformer module.

    Raises:
        ExportError: one that would change the answers.
    """
    name = find_transformer_file(checkpoint, "")
    found = read_form(checkpoint, name, TransformerOptions) if name else None
    if found is None or name is None:
        return TransformerOptions()
    check_options(found, name)
    return found


def _check_transformer(transformer: TransformerOptions, file: str, task: str) -> None:
    """Check that the backbone is read as the task does; what else the file asks for would change the answers."""
    text = (transformer.modality_config or {}).get("text") or {}
    output = TASK_OUTPUTS[task]
    asked = {
        "transformer_task": (transformer.transformer_task or task, task),
        "module_output_name": (transformer.module_output_name, "token_embeddings"),
        "modality_config.text.method": (text.get("method", "forward"), "forward"),
        "modality_config.text.method_output_name": (text.get("method_output_name", output), output),
    }
    for key, (value, compiled) in asked.items():
        if value != compiled:
            raise ExportError(f"{file} has {key} {value!r}; only {compiled!r} can be compiled")
    if "message" in (transformer.modality_config or {}):
        raise ExportError(
            f"{file} has the modality 'message': sentence-transformers renders every text through the tokenizer's chat "
            "template, which is not compiled. Without 'message' in modality_config, texts are embedded as they are"
        )


def check_options(transformer: TransformerOptions, file: str, *, sides: bool = False) -> None:
    """Check that the file asks for nothing that would change the answers.

    Args:
        transformer: The options.
        file: Their file, for messages.
        sides: Whether what it says of queries and documents is read.

    Raises:
        ExportError: it does.
    """
    options = transformer.processing_kwargs or {}
    used = sorted(key for key, value in options.items() if value and key != CHAT_TEMPLATE)
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
