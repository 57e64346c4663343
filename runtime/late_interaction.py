"""How a late-interaction (ColBERT) model encodes queries and documents: markers, lengths, [MASK] expansion, skip list.

The definitions are those of sentence-transformers' MultiVectorEncoder; the manifest says which of them a model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError, InputError, TaskNotSupported
from poolgraph.graphs.manifest import LateInteraction, Manifest, QueryExpansion
from poolgraph.runtime.texts import resolve_prompt, resolve_truncation
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer
from poolgraph.tasks import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRules:
    """How the texts of one side are encoded.

    Attributes:
        side: ``query`` or ``document``.
        prompt: Put before each text; holds the marker.
        max_tokens: Length in tokens that belongs to the model's definition; None where only its limit counts.
        expansion: How short queries are filled up.
        fills_left: Whether the added tokens come before the text.
        skip_token_ids: Tokens whose vectors are left out.
    """

    side: Side
    prompt: str = ""
    max_tokens: int | None = None
    expansion: QueryExpansion | None = None
    fills_left: bool = False
    skip_token_ids: tuple[int, ...] = ()


def resolve_side(
    manifest: Manifest, side: Side, *, plain: bool = False, prompt_name: str | None = None, prompt: str | None = None
) -> SideRules:
    """Decide how one side is encoded.

    Args:
        manifest: A late-interaction artifact's.
        side: ``query`` or ``document``.
        plain: Tokens as they are, as vLLM encodes both sides: no marker, no length, no expansion, no skip list.
        prompt_name: Name of another of the model's prompts than the side's own.
        prompt: Put before each text; wins over ``prompt_name``.

    Raises:
        TaskNotSupported: the model has no late interaction.
        InputError: no prompt of that name.
        ArtifactError: queries are expanded beyond the model's limit.
    """
    late = manifest.late_interaction
    if late is None:
        raise TaskNotSupported(
            f"{manifest.source.model!r} is no late-interaction model, so its {side} side has no encoding of its own; "
            f"the artifact's tasks are {list(manifest.tasks)}"
        )
    own = prompt is None and prompt_name is None
    default = manifest.prompts.get(side, "") if own and not plain else ""
    text = default if own else resolve_prompt(manifest, prompt_name=prompt_name, prompt=prompt)
    if plain:
        return SideRules(side=side, prompt=text)
    _check_expansion(late, manifest.limits.max_model_len)
    expansion = late.query_expansion if side == "query" else None
    return SideRules(
        side=side,
        prompt=text,
        max_tokens=find_length(manifest, side),
        expansion=expansion,
        # A fixed length is reached by the tokenizer's own padding, hence on its side.
        fills_left=expansion is not None
        and expansion.strategy == "fixed"
        and manifest.tokenization.padding_side == "left",
        skip_token_ids=late.skip_token_ids if side in late.skip_in else (),
    )


def find_length(manifest: Manifest, side: str | None) -> int | None:
    """Return the tokens of the longest text of a side by the model's definition; None where only its limit counts."""
    late = manifest.late_interaction
    max_tokens = None if late is None or side is None else _MAX_TOKENS[side](late)
    return None if max_tokens is None else min(max_tokens, manifest.limits.max_model_len)


def encode_side(
    tokenizer: TextTokenizer,
    rules: SideRules,
    texts: Sequence[str],
    *,
    truncate: bool | None = None,
    truncation_side: str | None = None,
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize the texts of one side.

    Args:
        tokenizer: The artifact's.
        rules: The side's.
        texts: The texts.
        truncate: None cuts to the length of the model's definition, where it has one, and refuses texts beyond the
            model's limit elsewhere; True cuts there too; False refuses whatever would be cut.
        truncation_side: Where tokens are cut off, ``left`` or ``right``; None is the model's own side.
        first_index: Index of the first text in the caller's own list, for messages.

    Raises:
        InputError: a text that is too long, or not acceptable to the tokenizer.
    """
    limit = resolve_truncation(truncate)
    truncate_to = limit if truncate is False or rules.max_tokens is None else rules.max_tokens
    encoded = tokenizer.encode(
        texts,
        prompt=rules.prompt,
        truncate_to=truncate_to,
        truncation_side=truncation_side,
        first_index=first_index,
    )
    if truncate is False:
        _check_lengths(encoded, rules, first_index)
    if rules.expansion is None:
        return encoded
    return [expand_query(text, rules.expansion, left=rules.fills_left) for text in encoded]


def expand_query(text: EncodedText, expansion: QueryExpansion, *, left: bool = False) -> EncodedText:
    """Fill a short query up with the expansion's token; a long one stays as it is.

    Args:
        text: The query.
        expansion: Length, token, and whether other tokens attend to the added ones.
        left: Put the added tokens before the query.
    """
    missing = expansion.length - text.num_tokens
    if missing <= 0:
        return text

    def join(own: NDArray[np.int64], value: int) -> NDArray[np.int64]:
        added = np.full(missing, value, dtype=np.int64)
        return np.concatenate([added, own] if left else [own, added])

    return replace(
        text,
        input_ids=join(text.input_ids, expansion.token_id),
        token_type_ids=None if text.token_type_ids is None else join(text.token_type_ids, 0),
        attended=None if expansion.attend else join(np.ones(text.num_tokens, dtype=np.int64), 0),
    )


def scored_tokens(rules: SideRules, input_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens of a text have a vector that is scored, (num_tokens,)."""
    return ~np.isin(input_ids, rules.skip_token_ids)


def _query_length(late: LateInteraction) -> int | None:
    expansion = late.query_expansion
    if expansion is None or (expansion.strategy != "fixed" and late.query_length is None):
        return late.query_length
    return expansion.length if expansion.strategy == "fixed" else max(late.query_length or 0, expansion.length)


_MAX_TOKENS: Final[Mapping[str, Callable[[LateInteraction], int | None]]] = MappingProxyType(
    {"query": _query_length, "document": lambda late: late.document_length}
)


def _check_expansion(late: LateInteraction, max_model_len: int) -> None:
    expansion = late.query_expansion
    if expansion is not None and expansion.length > max_model_len:
        raise ArtifactError(
            f"the artifact expands queries to {expansion.length} tokens, but takes texts of at most {max_model_len}; "
            "leave max_model_len out, or export the checkpoint again"
        )


def _check_lengths(encoded: Sequence[EncodedText], rules: SideRules, first_index: int) -> None:
    for index, text in enumerate(encoded, first_index):
        if rules.max_tokens is not None and text.num_tokens > rules.max_tokens:
            raise InputError(
                f"{rules.side} {index} has {text.num_tokens} tokens, its marker and special tokens included; the model "
                f"takes at most {rules.max_tokens} of a {rules.side}. Shorten it, or leave out truncate=False to have "
                "it cut",
                parameter="texts",
                value=text.num_tokens,
            )
