"""Compares answers with reference answers: the numbers that verification rests on, pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

UNBOUNDED: Final = float(np.finfo(np.float32).max)
"""No bound, as a number that JSON can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What a precision must reach.

    Attributes:
        min_cosine: Required of the worst text.
        mean_cosine: Required of the mean over the texts.
        max_difference: Largest absolute difference allowed, as a share of the largest absolute reference answer.
        may_miss: Share of the vectors, the worst ones, that need not reach the minimum; of no text more than as many as
            chance would put together there (``most_missed``).
        least_cosine: Required of those that miss it.
    """

    min_cosine: float
    mean_cosine: float = -1.0
    max_difference: float = UNBOUNDED
    may_miss: float = 0.0
    least_cosine: float = -1.0


THRESHOLDS: Final[Mapping[str, Threshold]] = MappingProxyType(
    {
        "fp32": Threshold(min_cosine=0.99999, max_difference=1e-4),
        "fp16": Threshold(min_cosine=0.9995),
        "bf16": Threshold(min_cosine=0.999),
        "int8": Threshold(min_cosine=0.98, mean_cosine=0.995),
    }
)
"""Thresholds by precision."""

OTHER_EXPERTS: Final = 0.05
"""Share of the token vectors of an embedder that chooses experts which may miss the minimum of int8 and bf16: where two
experts' scores nearly tie, any rounding sends a token to the other one. The tokens' mean and texts' bounds hold."""

OTHER_EXPERTS_COSINE: Final = 0.5
"""What such a vector must reach: the residual and all other layers are the same, so it is no unrelated one."""


def allow_other_experts(threshold: Threshold) -> Threshold:
    """Return the threshold of an embedder's token vectors in int8 or bf16 where it chooses experts."""
    mean = max(threshold.mean_cosine, threshold.min_cosine)
    return replace(threshold, may_miss=OTHER_EXPERTS, least_cosine=OTHER_EXPERTS_COSINE, mean_cosine=mean)


ACTIVATED: Final[Mapping[str, Threshold]] = MappingProxyType(
    {
        **THRESHOLDS,
        "fp16": Threshold(min_cosine=0.9995, max_difference=1e-2),
        "bf16": Threshold(min_cosine=0.999, max_difference=5e-2),
        "int8": Threshold(min_cosine=-1.0, max_difference=5e-2),
    }
)
"""Thresholds of what classifiers answer; where they are others than the above, activated answers are compared."""


TOKEN_WEIGHTS: Final[Mapping[str, Threshold]] = MappingProxyType(
    {
        "fp32": Threshold(min_cosine=-1.0, max_difference=1e-4),
        "fp16": Threshold(min_cosine=-1.0, max_difference=1e-2),
        "bf16": Threshold(min_cosine=-1.0, max_difference=5e-2),
        "int8": Threshold(min_cosine=-1.0),
    }
)
"""Thresholds of the weights behind BGE-M3's token vectors, which hardly count in the cosine of both. Those of int8 are
told and not judged: what a head that cuts at 0 makes of its errors is not known of a real checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Answers against their reference.

    Attributes:
        num_texts: How many were compared.
        min_cosine: Of the worst vector.
        mean_cosine: Over all vectors.
        max_difference: A share of the largest absolute reference answer.
        passed: Whether all bounds are kept.
        crowded: Vectors that miss the minimum, and all, of the text that has the most of them beyond its bound.
    """

    num_texts: int
    min_cosine: float
    mean_cosine: float
    max_difference: float
    passed: bool
    crowded: tuple[int, int] | None = None


def compare_answers(
    reference: Sequence[NDArray[np.float32]], answers: Sequence[NDArray[np.float32]], threshold: Threshold
) -> Comparison:
    """Compare answers with reference answers of the same shapes, one array a text.

    A text's answer is a vector (size,) or one vector a token (num_tokens, size); every vector has a cosine, which of a
    single number is its sign: where the difference has a bound, that alone judges those. Shapes that differ, or values
    that are not finite, fail.
    """
    shapes_agree = len(reference) == len(answers) > 0 and all(
        np.shape(r) == np.shape(a) for r, a in zip(reference, answers, strict=True)
    )
    if not shapes_agree:
        return Comparison(
            num_texts=len(reference), min_cosine=-1.0, mean_cosine=-1.0, max_difference=float("inf"), passed=False
        )
    expected = np.concatenate([np.atleast_2d(np.asarray(r, np.float64)) for r in reference])
    found = np.concatenate([np.atleast_2d(np.asarray(a, np.float64)) for a in answers])
    cosines = cosine_rows(expected, found)
    if expected.shape[1] == 1 and threshold.max_difference < UNBOUNDED:
        threshold = replace(threshold, min_cosine=-1.0, mean_cosine=-1.0)
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(expected - found).max()) / scale
    spared = int(threshold.may_miss * len(cosines))
    crowded = _find_crowded(cosines, [len(np.atleast_2d(r)) for r in reference], threshold)
    # Written as "not worse than" so that NaN fails, which the mean is if any cosine is.
    passed = bool(
        np.sort(cosines)[spared] >= threshold.min_cosine
        and crowded is None
        and cosines.min() >= threshold.least_cosine
        and cosines.mean() >= threshold.mean_cosine
        and difference <= threshold.max_difference
    )
    return Comparison(
        num_texts=len(reference),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        max_difference=difference,
        passed=passed,
        crowded=crowded,
    )


def most_missed(share: float, num_vectors: int) -> int:
    """Return how many of a text's vectors may miss the minimum where a share of all vectors may.

    That is the share of the text, and four standard deviations of what chance would make of it there (2 of 5 tokens, 4
    of 16, 45 of 512 at 5 in 100), since ties come together: a text repeats its words. One may miss in any text.
    """
    expected = share * num_vectors
    return max(1, int(expected + 4 * expected**0.5)) if share else 0


def _find_crowded(cosines: NDArray[np.float64], lengths: Sequence[int], threshold: Threshold) -> tuple[int, int] | None:
    """Return the misses and the length of the text that has the most beyond what it may have, if any has."""
    if not threshold.may_miss:
        return None
    starts = np.cumsum([0, *lengths[:-1]])
    missed = [int(number) for number in np.add.reduceat(cosines < threshold.min_cosine, starts, dtype=np.int64)]
    beyond = [
        (number, length)
        for number, length in zip(missed, lengths, strict=True)
        if number > most_missed(threshold.may_miss, length)
    ]
    return max(beyond, key=lambda it: it[0] - most_missed(threshold.may_miss, it[1]), default=None)


def cosine_rows(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows; two rows of zeros have cosine 1.

    Args:
        left: (num_rows, size).
        right: (num_rows, size).

    Returns:
        (num_rows,).
    """
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = (left == 0).all(axis=1) & (right == 0).all(axis=1)
    dots = (left * right).sum(axis=1)
    return np.where(both_zero, 1.0, dots / np.where(norms == 0, 1.0, norms))
