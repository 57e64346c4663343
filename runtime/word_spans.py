"""The tokens of a text as spans of it, and which of them continue a word."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from poolgraph.errors import ArtifactError
from poolgraph.runtime.tokenizer import LocatedText

_TOKEN_FILES: Final = ("tokenizer_config.json", "special_tokens_map.json")
_USUAL_UNKNOWN: Final = ("<unk>", "[UNK]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """One token that comes from the text.

    Attributes:
        index: Its row among all tokens, special ones counted.
        word: The token as the vocabulary has it; the text itself where the token is the unknown one.
        start: Its first character in the text.
        end: The character after its last.
        is_subword: Whether it continues the word of the token before it.
    """

    index: int
    word: str
    start: int
    end: int
    is_subword: bool


@dataclass(frozen=True, slots=True)
class WordReader:
    """What the tokenizer knows about words.

    Attributes:
        tokenizer: The tokenizers library's object.
        unk_token_id: Id of the token for what the vocabulary lacks, None where there is none.
        marks_subwords: Whether the vocabulary marks the pieces that continue a word, as WordPiece's does. Without it a
            word is what stands between spaces.
    """

    tokenizer: Tokenizer
    unk_token_id: int | None
    marks_subwords: bool

    def join(self, words: list[str]) -> str:
        """Return the text of tokens."""
        decoder = self.tokenizer.decoder
        return " ".join(words) if decoder is None else str(decoder.decode(words))

    def locate(self, text: str, located: LocatedText) -> list[TokenSpan]:
        """Return the tokens of a window that come from the text, as transformers' pipeline sees them.

        Args:
            text: The whole text.
            located: The window.
        """
        rows = zip(located.input_ids.tolist(), located.offsets, located.is_special, strict=True)
        return [
            self._span(text, index, token_id, start, end)
            for index, (token_id, (start, end), is_special) in enumerate(rows)
            if not is_special
        ]

    def _span(self, text: str, index: int, token_id: int, start: int, end: int) -> TokenSpan:
        if token_id == self.unk_token_id:
            return TokenSpan(index=index, word=text[start:end], start=start, end=end, is_subword=False)
        word = str(self.tokenizer.id_to_token(token_id))
        if self.marks_subwords:
            is_subword = len(word) != end - start
        else:
            is_subword = start > 0 and " " not in text[start - 1 : start + 1]
        return TokenSpan(index=index, word=word, start=start, end=end, is_subword=is_subword)


def read_words(tokenizer: Tokenizer, artifact_dir: Path) -> WordReader:
    """Find out what a tokenizer knows about words.

    Args:
        tokenizer: The tokenizers library's object.
        artifact_dir: The artifact's directory, whose files may name the unknown token.

    Raises:
        ArtifactError: such a file is not JSON.
    """
    model = tokenizer.model
    named = [_read_unk_token(artifact_dir / name) for name in _TOKEN_FILES]
    candidates = (*named, getattr(model, "unk_token", None), *_USUAL_UNKNOWN)
    ids = (tokenizer.token_to_id(token) for token in candidates if token is not None)
    return WordReader(
        tokenizer=tokenizer,
        unk_token_id=next((token_id for token_id in ids if token_id is not None), None),
        marks_subwords=bool(getattr(model, "continuing_subword_prefix", None)),
    )


def _read_unk_token(path: Path) -> str | None:
    """Return the unknown token that a file of the checkpoint names, written as a string or with its options."""
    if not path.is_file():
        return None
    try:
        token: Any = json.loads(path.read_text(encoding="utf-8")).get("unk_token")
        content = token["content"] if isinstance(token, dict) else token
    except (ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"{path} does not hold a tokenizer's settings: {error}; export again") from error
    return None if content is None else str(content)
