"""Probe texts: what verification asks, of the lengths at which graphs go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

PROBE_SENTENCES = (
    "A lighthouse keeper counts ships, not waves.",
    "Where can I renew a library card on a Sunday?",
    "The committee postponed its vote until the audit of 2023 was complete (see page 14).",
    "def mean(values): return sum(values) / len(values)",
    "Der Zug nach Köln fährt heute von Gleis 7 ab.",
    "La receta lleva tres huevos, harina y una pizca de sal.",
    "東京の天気は明日も晴れるでしょう。",
    "Вчера вечером мы долго гуляли вдоль реки.",
    "UPPER case, lower case, ümläuts, naïve façade & <tags/> 🙂",
    "0.5% of 1,024 requests took longer than 37 ms!",
)
"""Texts of our own in several scripts, with punctuation, digits, code and capitals."""

LONGEST_ANSWERED = 1536
"""Tokens of the longest text that is answered, whatever a model's limit: graphs of standard operators, and some models
in torch, hold numbers for each two tokens of a text and each head, at 8,192 tokens and 12 heads 3.2 GB a copy."""

EDGES = (16, 32, 64, 128, 256, 512, 1024)
"""Sequence lengths at which buckets, tiles and windows end."""


def choose_lengths(max_length: int, longest: int = 600) -> tuple[int, ...]:
    """Return the token counts to verify: 1, 2, odd ones, edges with neighbours, the limit (at most ``longest``)."""
    limit = min(max_length, longest)
    edges = {edge + step for edge in EDGES for step in (-1, 0, 1)}
    return tuple(
        sorted(length for length in {1, 2, 3, 5, 11, 37, 93, limit - 1, limit} | edges if 1 <= length <= limit)
    )


def build_probe_texts(count_tokens: Callable[[Sequence[str]], Sequence[int]], lengths: Sequence[int]) -> list[str]:
    """Return texts whose token counts are at or just below ``lengths``, then PROBE_SENTENCES and an empty text.

    A text without any token is no input, so the empty one is left out where the tokenizer adds no special tokens.

    Args:
        count_tokens: Token counts of texts, special tokens included.
        lengths: Wanted token counts; those below what an empty text has give the empty text.
    """
    words = [word for sentence in PROBE_SENTENCES for word in sentence.split()]
    texts = [_text_of_length(count_tokens, words, length, start) for start, length in enumerate(lengths)]
    distinct = list(dict.fromkeys([*texts, *PROBE_SENTENCES, ""]))
    return [text for text, count in zip(distinct, count_tokens(distinct), strict=True) if count]


def build_longest(count_tokens: Callable[[Sequence[str]], Sequence[int]], limit: int) -> str:
    """Return a text beyond ``limit`` tokens, or one of LONGEST_ANSWERED where that is less."""
    if limit <= LONGEST_ANSWERED:
        return build_overlong(limit)
    return _text_of_length(count_tokens, ["overlong"], LONGEST_ANSWERED, 0)


def build_overlong(limit: int) -> str:
    """Return a text beyond ``limit`` tokens."""
    return " ".join(["overlong"] * (limit + 5))


def build_probe_pairs(limit: int) -> tuple[tuple[str, str], ...]:
    """Return pairs of texts: short, long and empty on either side, and one beyond ``limit`` tokens or very long."""
    long = " ".join(PROBE_SENTENCES)
    first, second, *_ = PROBE_SENTENCES
    # Of two sides, a word of several tokens: both together are below the bound.
    longest = build_overlong(limit if limit <= LONGEST_ANSWERED else LONGEST_ANSWERED // 8)
    return ((first, second), (second, long), (long, first), (first, ""), ("", second), (longest, longest + long))


def _text_of_length(
    count_tokens: Callable[[Sequence[str]], Sequence[int]], words: Sequence[str], length: int, start: int
) -> str:
    """Search the largest number of words whose text has at most ``length`` tokens, then fill up with a short word."""
    endless = [words[(start + index) % len(words)] for index in range(length + 1)]
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens([" ".join(endless[:middle])])[0] <= length:
            low = middle
        else:
            high = middle - 1
    text = " ".join(endless[:low])
    while count_tokens([f"{text} a"])[0] <= length and len(text) < 8 * length:
        text = f"{text} a"
    return text
