"""A late-interaction plan meets its tokenizer: markers become tokens, words become ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.late_interaction_files import Expansion
from poolgraph.export.late_interaction_plan import LateInteractionPlan
from poolgraph.graphs.manifest import LateInteraction, QueryExpansion


def register_markers(tokenizer: PreTrainedTokenizerBase, markers: Sequence[str]) -> tuple[str, ...]:
    """Make each marker that the tokenizer knows come out of a text as one token.

    ``[unused0]`` put before a text would fall into pieces, and an added ``[Q] `` is not found by a tokenizer that
    lower-cases first. What the tokenizer does not know stays text.

    Returns:
        The tokens that were registered; none where every marker is one token already.
    """
    known = set(tokenizer.get_vocab())
    wanted: list[str] = []
    for marker in markers:
        candidates = (marker, *marker.split(None, 1)[:1])
        token = next((candidate for candidate in candidates if candidate.strip() and candidate in known), None)
        if token is not None and tokenizer.tokenize(token) != [token]:
            wanted.append(token)
    if wanted:
        added = [AddedToken(token, normalized=False, special=True) for token in wanted]
        tokenizer.add_special_tokens({"additional_special_tokens": added})
    return tuple(wanted)


def describe_late_interaction(plan: LateInteractionPlan, tokenizer: PreTrainedTokenizerBase) -> LateInteraction:
    """Return the manifest's record: words and tokens become ids.

    Raises:
        ExportError: the expansion's token is not in the vocabulary.
    """
    return LateInteraction(
        query_length=_own_length(plan.query_length, plan, tokenizer),
        document_length=_own_length(plan.document_length, plan, tokenizer),
        query_expansion=None if plan.expansion is None else _describe_expansion(plan.expansion, tokenizer),
        skip_token_ids=_skip_ids(plan.skip_words, tokenizer),
        skip_in=plan.skip_in,
    )


def _own_length(length: int | None, plan: LateInteractionPlan, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return a side's length; the limit that the files declare, where only the other side goes beyond it."""
    declared = plan.sentence_transformer.max_seq_length or tokenizer.model_max_length
    return declared if length is None and declared < plan.longest else length


def _describe_expansion(expansion: Expansion, tokenizer: PreTrainedTokenizerBase) -> QueryExpansion:
    if expansion.token is not None:
        token_id = _token_id(expansion.token, tokenizer)
    else:
        token_id = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
    if token_id is None:
        name = "mask token or end token" if expansion.token is None else f"token {expansion.token!r}"
        raise ExportError(f"the checkpoint expands queries, but its tokenizer has no {name}")
    return QueryExpansion(
        strategy=expansion.strategy, token_id=int(token_id), length=expansion.length, attend=expansion.attend
    )


def _skip_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of words that are tokens; a word that is none would otherwise skip every unknown token."""
    ids = (_token_id(word, tokenizer) for word in words)
    return tuple(sorted({token_id for token_id in ids if token_id is not None}))


def _token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    found: Any = tokenizer.convert_tokens_to_ids(token)
    unknown = found == tokenizer.unk_token_id and token != tokenizer.unk_token
    return None if found is None or unknown else int(found)
