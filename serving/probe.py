"""Whether a model still gives the answer that it should: one stored probe text, run as any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError
from poolgraph.graphs.probe_files import StoredProbes, load_probes
from poolgraph.runtime.compare import Threshold, compare_answers
from poolgraph.runtime.loaded import LoadedModel
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.verify import SAME_BITS, Finish, choose_comparison, encode_probes, has_same_bits
from poolgraph.tasks import GraphFamily

_FALLBACK_IDS: Final = 8
"""Tokens of the probe of an artifact that has no probe files."""

_STABLE: Final = Threshold(min_cosine=0.9999)
"""How near a padded batch's answer stays to the first one; where nothing is padded it has the same bits."""


@dataclass(slots=True, kw_only=True)
class Probe:
    """A text and what its answer must be.

    Attributes:
        family: Whose graph runs.
        text: The text.
        reference: Its reference answer, None where the artifact stores none.
        threshold: What the answer must reach against the reference.
        finish: What is done to both sides before they are compared.
        stable: What the answer must reach against ``first``.
        first: The first answer, after warm-up.
    """

    family: GraphFamily
    text: EncodedText
    reference: NDArray[np.float32] | None
    threshold: Threshold
    finish: Finish
    stable: Threshold
    first: NDArray[np.float32] | None = None

    def find_fault(self, answer: NDArray[np.float32]) -> str | None:
        """Return what is wrong with an answer, None where nothing is; the first answer seen is kept."""
        if not np.isfinite(answer).all():
            return "its probe's answer holds NaN or infinity"
        if self.first is None:
            self.first = answer.copy()
        checks = [("the first answer", self.first, answer, self.stable)]
        if self.reference is not None:
            sides = self.finish(np.atleast_2d(self.reference)), self.finish(np.atleast_2d(answer))
            checks.append(("the reference", *sides, self.threshold))
        for name, expected, found, threshold in checks:
            result = compare_answers([expected], [found], threshold)
            if not result.passed:
                return (
                    f"its probe's answer has cosine {result.min_cosine:.6f} and difference {result.max_difference:.1e} "
                    f"to {name}; {threshold.min_cosine:g} and {threshold.max_difference:.1e} are allowed"
                )
        return None


def choose_probe(model: PoolingModel, family: GraphFamily) -> Probe:
    """Choose the shortest stored probe that has an answer of this graph; any short text where the artifact has none."""
    stable = SAME_BITS if has_same_bits(model) else _STABLE
    threshold, finish = choose_comparison(model, family)
    try:
        stored = load_probes(model.path)
    except ArtifactError:
        text = _make_text(model)
        return Probe(family=family, text=text, reference=None, threshold=threshold, finish=finish, stable=stable)
    encoded = encode_probes(model.tokenizer, stored.texts, stored.prompt, stored.pairs)
    answers = _stored_answers(stored, family)
    index = min(answers or range(len(encoded)), key=lambda number: encoded[number].num_tokens)
    return Probe(
        family=family,
        text=encoded[index],
        reference=answers.get(index),
        threshold=_for_one(threshold, answers, index, finish),
        finish=finish,
        stable=stable,
    )


def _stored_answers(stored: StoredProbes, family: GraphFamily) -> dict[int, NDArray[np.float32]]:
    return dict(enumerate(stored.sequence)) if family == "sequence" else stored.token


def _for_one(threshold: Threshold, answers: dict[int, NDArray[np.float32]], index: int, finish: Finish) -> Threshold:
    """Return a threshold for one text that allows what verification allows: a share of all answers' scale, no mean."""
    if threshold.may_miss:  # and those of one text may be the ones that do
        return Threshold(min_cosine=threshold.least_cosine)
    if not answers:
        return threshold
    finished = {number: np.abs(finish(np.atleast_2d(rows))).max() for number, rows in answers.items()}
    scale = max(finished.values()) / max(finished[index], np.finfo(np.float32).tiny)
    allowed = min(threshold.max_difference * float(scale), float(np.finfo(np.float32).max))
    return replace(threshold, mean_cosine=-1.0, max_difference=allowed)


def _make_text(model: LoadedModel) -> EncodedText:
    num_tokens = min(_FALLBACK_IDS, model.manifest.limits.max_model_len, model.manifest.limits.vocab_size)
    return model.tokenizer.encode_ids(list(range(num_tokens)))
