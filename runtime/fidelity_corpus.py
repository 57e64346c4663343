"""The texts on which variants are compared: those that ship, with queries and what answers them, or the user's file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Final

import msgspec

from poolgraph.errors import InputError
from poolgraph.runtime.file_readers import name_input
from poolgraph.runtime.file_sources import FileSource

SHIPPED_FILE: Final = "fidelity_corpus.jsonl"

QUERY_STEP: Final = 8
"""Of a file's texts, each one of so many is a query, the first among them; the others are the documents."""

MIN_TEXTS: Final = 20
"""Below, ten documents are no choice."""

MAX_TEXTS: Final = 2_000
"""Texts of a file that are looked at: every query is compared with every document, and torch may have to read all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Queries and documents.

    Attributes:
        name: What reports call it.
        queries: The queries.
        documents: The documents.
        anchors: For each query the index of the document that answers it; without judgements, of one near it.
        is_judged: Whether the anchors answer their queries.
    """

    name: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    anchors: tuple[int, ...]
    is_judged: bool


class Passage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the shipped file; ``query`` is answered by this passage and no other."""

    topic: str
    language: str
    text: str
    query: str | None = None


def shipped_corpus(num_topics: int | None = None) -> Corpus:
    """Return the shipped corpus.

    Args:
        num_topics: How many of its topics; None takes all.
    """
    passages = read_passages()
    topics = list(dict.fromkeys(passage.topic for passage in passages))[:num_topics]
    kept = [passage for passage in passages if passage.topic in topics]
    asked = [(index, passage.query) for index, passage in enumerate(kept) if passage.query is not None]
    return Corpus(
        name="passages that ship with poolgraph",
        queries=tuple(query for _, query in asked),
        documents=tuple(passage.text for passage in kept),
        anchors=tuple(index for index, _ in asked),
        is_judged=True,
    )


def read_passages() -> list[Passage]:
    """Return the lines of the shipped file."""
    data = resources.files(__package__).joinpath(SHIPPED_FILE).read_bytes()
    return msgspec.json.Decoder(Passage).decode_lines(data)


def read_corpus(source: FileSource) -> Corpus:
    """Make a corpus of the first MAX_TEXTS texts of a file that are not blank.

    Raises:
        InputError: the file cannot be read, or has too few texts.
    """
    texts = list(islice((str(text) for (text,) in source.read() if str(text).strip()), MAX_TEXTS))
    if len(texts) < MIN_TEXTS:
        raise InputError(
            f"{name_input(source.path)} holds {len(texts)} texts that are not blank; fidelity takes at least "
            f"{MIN_TEXTS}, of which every {QUERY_STEP}th becomes a query",
            parameter="corpus",
        )
    queries = texts[::QUERY_STEP]
    documents = [text for index, text in enumerate(texts) if index % QUERY_STEP]
    return Corpus(
        name=f"texts of {name_input(source.path)}",
        queries=tuple(queries),
        documents=tuple(documents),
        anchors=tuple(min(index * (QUERY_STEP - 1), len(documents) - 1) for index in range(len(queries))),
        is_judged=False,
    )
