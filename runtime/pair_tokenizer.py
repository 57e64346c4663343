"""Pairs of texts as one input of a cross-encoder: the tokenizer's own form of a pair, cut as transformers cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.text_cuts import check_max_tokens, cut_texts
from poolgraph.runtime.texts import check_texts
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer, keep_ids, name_inputs

Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the form of a pair: the tokens of one side (0 or 1), or fixed ``ids`` when ``side`` is None."""

    side: int | None
    ids: tuple[int, ...]
    type_id: int


@dataclass(frozen=True, slots=True)
class PairFrame:
    """Where a tokenizer puts the special tokens of a pair, and which token types it gives."""

    pieces: tuple[_Piece, ...]

    @property
    def num_special_tokens(self) -> int:
        """Tokens that belong to neither text."""
        return sum(len(piece.ids) for piece in self.pieces)

    def join(self, sides: tuple[Ids, Ids]) -> tuple[Ids, Ids]:
        """Return the ids and the token types of a pair, (num_tokens,) each."""
        parts = [
            np.array(piece.ids, dtype=np.int64) if piece.side is None else sides[piece.side] for piece in self.pieces
        ]
        lengths = [len(part) for part in parts]
        types = np.repeat(np.array([piece.type_id for piece in self.pieces], dtype=np.int64), lengths)
        return np.concatenate(parts), types


def learn_frame(backend: Tokenizer) -> PairFrame:
    """Read the form of a pair off two pairs that the tokenizer makes itself.

    Raises:
        ArtifactError: its form of a pair is more than special tokens around two texts.
    """
    probe = _find_probe(backend)
    whole = backend.encode(probe, probe)
    pieces: list[_Piece] = []
    for token_id, type_id, side in zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True):
        last = pieces[-1] if pieces else None
        if last is not None and last.side == side and last.type_id == type_id:
            pieces[-1] = _Piece(side, last.ids if side is not None else (*last.ids, token_id), type_id)
        else:
            pieces.append(_Piece(side, () if side is not None else (token_id,), type_id))
    frame = PairFrame(tuple(pieces))
    for texts in ((probe, probe), (f"{probe} {probe}", probe), (probe, f"{probe} {probe}")):
        sides = [np.array(backend.encode(text, add_special_tokens=False).ids, dtype=np.int64) for text in texts]
        ids, types = frame.join((sides[0], sides[1]))
        expected = backend.encode(*texts)
        if ids.tolist() != expected.ids or types.tolist() != expected.type_ids:
            raise ArtifactError(
                "the tokenizer's post-processor does more to a pair of texts than to put tokens around them"
            )
    return frame


def encode_pairs(
    tokenizer: TextTokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    truncate_to: int | None = None,
    truncation_side: str | None = None,
    max_tokens_per_query: int | None = None,
    max_tokens_per_doc: int | None = None,
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize pairs of a query and a document, each distinct text once, to transformers' ids and token types.

    A pair that is too long loses tokens of its longer text, as in sentence-transformers' CrossEncoder.

    Args:
        tokenizer: The model's tokenizer.
        pairs: Queries with their documents.
        truncate_to: Tokens kept of a longer pair, special tokens included and kept; -1 means the model's limit.
        truncation_side: Where tokens are cut off, ``left`` or ``right``; None is the model's own side.
        max_tokens_per_query: Tokens kept of a query, whatever the pair's length; None and 0 keep all.
        max_tokens_per_doc: Tokens kept of a document, likewise.
        first_index: Index of the first pair in the caller's own list, for messages.

    Raises:
        InputError: no valid text, too long without ``truncate_to``, or a limit that leaves no place.
    """
    frame = learn_frame(tokenizer.backend)
    limit = tokenizer.resolve_limit(truncate_to, least=frame.num_special_tokens)
    side = tokenizer.resolve_truncation_side(truncation_side)
    per_query = check_max_tokens("max_tokens_per_query", max_tokens_per_query, tokenizer.max_model_len)
    per_doc = check_max_tokens("max_tokens_per_doc", max_tokens_per_doc, tokenizer.max_model_len)
    queries = _encode_queries(tokenizer, [query for query, _ in pairs], per_query, first_index)
    documents = _encode_distinct(tokenizer, [document for _, document in pairs], first_index)

    def encode(pair: tuple[str, str], suffix: str) -> EncodedText:
        query, cut_before = queries[pair[0]]
        document = documents[pair[1]]
        num_tokens = len(query) + cut_before + len(document)
        sides = query, document if per_doc is None else keep_ids(document, per_doc, side)
        if limit is not None:
            room = limit - frame.num_special_tokens
            kept = _choose_lengths(len(sides[0]), len(sides[1]), room)
            sides = keep_ids(sides[0], kept[0], side), keep_ids(sides[1], kept[1], side)
        ids, types = frame.join(sides)
        tokenizer.check_length(len(ids), suffix)
        return EncodedText(
            input_ids=ids,
            token_type_ids=types if tokenizer.has_token_types else None,
            num_truncated_tokens=num_tokens - len(sides[0]) - len(sides[1]),
        )

    suffixes = name_inputs("pair", len(pairs), first_index)
    return [encode(pair, suffix) for pair, suffix in zip(pairs, suffixes, strict=True)]


def _encode_queries(
    tokenizer: TextTokenizer, texts: Sequence[str], max_tokens: int | None, first_index: int
) -> dict[str, tuple[Ids, int]]:
    """Return the ids of each distinct query, and how many tokens ``max_tokens`` took from it."""
    check_texts(texts, first_index=first_index)
    distinct = list(dict.fromkeys(texts))
    cuts = cut_texts(tokenizer, distinct, max_tokens)
    ids = _encode_distinct(tokenizer, [cut.text for cut in cuts], first_index)
    return {text: (ids[cut.text], cut.num_truncated_tokens) for text, cut in zip(distinct, cuts, strict=True)}


def _encode_distinct(tokenizer: TextTokenizer, texts: Sequence[str], first_index: int) -> dict[str, Ids]:
    check_texts(texts, first_index=first_index)
    distinct = list(dict.fromkeys(texts))
    try:
        encodings = tokenizer.encode_batch(distinct, add_special_tokens=False, first_index=first_index)
    except InputError:
        # Once more in the caller's order, for a message that counts as the caller does.
        tokenizer.encode_batch(texts, add_special_tokens=False, first_index=first_index)
        raise
    return {text: np.array(encoding.ids, dtype=np.int64) for text, encoding in zip(distinct, encodings, strict=True)}


def _choose_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text are kept, so that both fit into ``room``, as the tokenizers library does.

    The shorter text stays whole where it can, else the longer gets the larger half.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    kept, rest = (shorter, room - shorter) if 2 * shorter <= room else (room // 2, room - room // 2)
    return (kept, rest) if first <= second else (rest, kept)


def _find_probe(backend: Tokenizer) -> str:
    """Return a text that has a token: a letter, or else the text of a special token."""
    texts = ["a", *(token.content for token in backend.get_added_tokens_decoder().values())]
    for text in texts:
        if len(backend.encode(text, add_special_tokens=False)):
            return text
    raise ArtifactError("the tokenizer makes no token of any text; export the checkpoint again")
