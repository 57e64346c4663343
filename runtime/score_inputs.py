"""A query and a document as one input of a cross-encoder: as a pair of sequences, or put into a score template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tokenizers import Encoding

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.pair_tokenizer import encode_pairs, name_pairs
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_template import ScoreTemplate, check_template_kwargs
from poolgraph.runtime.text_cuts import check_max_tokens, cut_text, cut_texts
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def encode_inputs(
    tokenizer: TextTokenizer,
    template: ScoreTemplate | None,
    pairs: Sequence[tuple[str, str]],
    options: ScoreOptions,
    *,
    variables: Mapping[str, Any] | None = None,
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize queries with their documents.

    Args:
        tokenizer: The model's tokenizer.
        template: What they are put into; None makes pairs of sequences.
        pairs: Queries with their documents.
        options: The caller's; its ``template`` is not looked at here.
        variables: Variables of the template that the caller's go before, such as ``bos_token``.
        first_index: Index of the first pair in the caller's own list, for messages.

    Raises:
        InputError: a pair that is too long, or an option that is not acceptable.
    """
    if template is not None:
        return _encode_templated(tokenizer, template, pairs, options, variables or {}, first_index)
    if options.instruction is not None or options.template_kwargs:
        raise InputError(
            "this model reads a query and a document as a pair, which has no place for an instruction or for template "
            "variables; pass a score template that has one, as template=...",
            parameter="instruction",
            value=options.instruction,
        )
    return encode_pairs(
        tokenizer,
        pairs,
        truncate_to=options.truncate_to,
        truncation_side=options.truncation_side,
        max_tokens_per_query=options.max_tokens_per_query,
        max_tokens_per_doc=options.max_tokens_per_doc,
        first_index=first_index,
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


def _encode_templated(
    tokenizer: TextTokenizer,
    template: ScoreTemplate,
    pairs: Sequence[tuple[str, str]],
    options: ScoreOptions,
    variables: Mapping[str, Any],
    first_index: int,
) -> list[EncodedText]:
    check_template_kwargs(options.template_kwargs)
    _check_instruction(template, options.instruction)
    limit = tokenizer.resolve_limit(
        options.truncate_to, least=tokenizer.backend.num_special_tokens_to_add(is_pair=False)
    )
    side = tokenizer.resolve_truncation_side(options.truncation_side)
    own = _merge_variables(options, variables)
    queries = _cut_distinct(tokenizer, [query for query, _ in pairs], "query", options.max_tokens_per_query)
    documents = _cut_distinct(tokenizer, [document for _, document in pairs], "doc", options.max_tokens_per_doc)
    kept = [(queries[query], documents[document]) for query, document in pairs]
    rendered = [template.render(query, document, **own) for (query, _), (document, _) in kept]
    encodings = tokenizer.encode_batch(rendered, add_special_tokens=True, first_index=first_index)
    encoded: list[EncodedText] = []
    for encoding, sides, suffix in zip(encodings, kept, name_pairs(len(pairs), first_index), strict=True):
        (query, query_cut), (document, document_cut) = sides
        fitting = encoding
        if limit is not None and len(encoding) > limit:
            render = partial(template.render, query, **own)
            fitting = _fit_document(tokenizer, render, document, len(encoding), limit, side, suffix)
        tokenizer.check_length(len(fitting), suffix)
        num_cut = query_cut + document_cut + len(encoding) - len(fitting)
        encoded.append(_to_text(tokenizer, fitting, num_cut))
    return encoded


def _check_instruction(template: ScoreTemplate, instruction: str | None) -> None:
    if instruction is not None and not template.reads("instruction"):
        raise InputError(
            "the score template has no place for an instruction; leave it out, or pass a template that reads "
            "`instruction`",
            parameter="instruction",
            value=instruction,
        )


def _merge_variables(options: ScoreOptions, variables: Mapping[str, Any]) -> dict[str, Any]:
    own = {**variables, **options.template_kwargs}
    instruction = options.instruction
    if instruction is not None and own.setdefault("instruction", instruction) != instruction:
        raise InputError(
            "instruction and chat_template_kwargs contradict each other; give the instruction once",
            parameter="instruction",
            value=instruction,
        )
    return own


def _cut_distinct(
    tokenizer: TextTokenizer, texts: Sequence[str], name: str, max_tokens: int | None
) -> dict[str, tuple[str, int]]:
    """Return what ``max_tokens_per_...`` leaves of each distinct text, and how many tokens it took."""
    most = check_max_tokens(f"max_tokens_per_{name}", max_tokens, tokenizer.max_model_len)
    distinct = list(dict.fromkeys(texts))
    cuts = cut_texts(tokenizer, distinct, most)
    return {text: (cut.text, cut.num_truncated_tokens) for text, cut in zip(distinct, cuts, strict=True)}


def _fit_document(
    tokenizer: TextTokenizer,
    render: Callable[[str], str],
    document: str,
    num_tokens: int,
    limit: int,
    side: str,
    suffix: str,
) -> Encoding:
    """Cut the document so that the whole prompt fits.

    Tokens may merge where the document ends, and a template may print it more than once; hence by trial, from the
    length that a straight line through the empty and the whole document gives.

    Args:
        tokenizer: The model's tokenizer.
        render: A document to the prompt.
        document: The whole document.
        num_tokens: Tokens of its prompt, more than ``limit``.
        limit: Tokens that the prompt may have.
        side: Where the document is cut.
        suffix: Ends a message.
    """
    bare = _encode_one(tokenizer, render(""))
    if len(bare) > limit:
        raise InputError(
            f"the query and the score template alone have {len(bare)} tokens, more than the {limit} allowed, so that "
            f"cutting the document does not help; shorten the query or pass max_tokens_per_query{suffix}",
            parameter="truncate_prompt_tokens",
            value=limit,
        )
    whole = tokenizer.encode_batch([document], add_special_tokens=False, first_index=0, offsets=True)[0]
    slope = max(1.0, (num_tokens - len(bare)) / max(1, len(whole)))
    kept = min(len(whole) - 1, int((limit - len(bare)) / slope))
    while kept > 0:
        fitting = _encode_one(tokenizer, render(cut_text(document, whole, kept, side=side).text))
        if len(fitting) <= limit:
            return fitting
        kept -= max(1, int((len(fitting) - limit) / slope))
    return bare


def _encode_one(tokenizer: TextTokenizer, text: str) -> Encoding:
    return tokenizer.encode_batch([text], add_special_tokens=True, first_index=0)[0]


def _to_text(tokenizer: TextTokenizer, encoding: Encoding, num_cut: int) -> EncodedText:
    return EncodedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64) if tokenizer.has_token_types else None,
        num_truncated_tokens=num_cut,
    )
