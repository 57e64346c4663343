"""A query and a document as one input of a cross-encoder: as a pair of sequences, or put into a score template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from poolgraph.errors import ArtifactError, InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.pair_tokenizer import encode_pairs
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_prompts import PromptForm, encode_prompts
from poolgraph.runtime.score_template import read_template
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def encode_inputs(
    tokenizer: TextTokenizer,
    form: PromptForm | None,
    pairs: Sequence[tuple[str, str]],
    options: ScoreOptions,
    *,
    prompt: str = "",
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize queries with their documents.

    Args:
        tokenizer: The model's tokenizer.
        form: What they are put into; None makes pairs of sequences.
        pairs: Queries with their documents.
        options: The caller's; its ``template`` is not looked at here.
        prompt: The caller's prompt or the model's; of a pair it is put before the query.
        first_index: Index of the first pair in the caller's own list, for messages.

    Raises:
        InputError: a pair that is too long, or an option that is not acceptable.
    """
    if form is not None:
        return encode_prompts(tokenizer, form, pairs, options, prompt=prompt, first_index=first_index)
    if options.instruction is not None or options.template_kwargs:
        raise InputError(
            "this model reads a query and a document as a pair, which has no place for an instruction or for template "
            "variables; pass a score template that has one, as template=...",
            parameter="instruction",
            value=options.instruction,
        )
    return encode_pairs(
        tokenizer,
        [(prompt + query, document) for query, document in pairs] if prompt else pairs,
        truncate_to=options.truncate_to,
        truncation_side=options.truncation_side,
        max_tokens_per_query=options.max_tokens_per_query,
        max_tokens_per_doc=options.max_tokens_per_doc,
        first_index=first_index,
    )


def read_prompt_form(directory: Path, manifest: Manifest) -> PromptForm:
    """Return the form of an artifact whose manifest names a score template.

    Args:
        directory: The artifact's directory.
        manifest: Its manifest.

    Raises:
        ArtifactError: the template is none of the artifact's files, or is not one.
    """
    scoring = manifest.scoring
    name = None if scoring is None else scoring.template
    if scoring is None or name is None or name not in manifest.files:
        raise ArtifactError(f"the score template {name!r} is none of the artifact's files; export it again")
    try:
        template = read_template(directory / name, content_parts=scoring.content_parts)
    except InputError as error:
        raise ArtifactError(f"the artifact's own score template {name!r} is not one: {error.message}") from error
    return PromptForm(
        template=template,
        variables={**read_special_tokens(directory), **scoring.template_kwargs},
        add_special_tokens=scoring.add_special_tokens,
    )


def read_special_tokens(directory: Path) -> dict[str, str]:
    """Return the special tokens that chat templates know as variables: ``bos_token``, ``eos_token`` and so on.

    Args:
        directory: An artifact's directory.

    Raises:
        ArtifactError: ``tokenizer_config.json`` is there and is no JSON object.
    """
    config = read_tokenizer_config(directory)
    values = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Return what ``tokenizer_config.json`` of an artifact holds, nothing where there is none.

    Args:
        directory: The artifact's directory.

    Raises:
        ArtifactError: it is there and is no JSON object.
    """
    file = directory / _TOKENIZER_CONFIG
    if not file.is_file():
        return {}
    try:
        return msgspec.convert(json.loads(file.read_bytes()), dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is no JSON object: {error}; export the checkpoint again") from error
