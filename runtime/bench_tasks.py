"""What a model is asked in a benchmark, one row a task: its inputs, its answers and how those are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.activations import finish_logits
from poolgraph.runtime.late_interaction import encode_side, resolve_side
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.texts import TO_MODEL_LIMIT, resolve_prompt
from poolgraph.runtime.tokenizer import EncodedText

if TYPE_CHECKING:
    from poolgraph.runtime.bench_workloads import Workload
    from poolgraph.runtime.model import PoolingModel

Answers: TypeAlias = Sequence[NDArray[np.float32]] | NDArray[np.float32]
"""One answer an input: a vector or number, or the rows of its tokens."""

Encode: TypeAlias = "Callable[[PoolingModel, Sequence[str], Sequence[str]], list[EncodedText]]"
"""Tokenizes texts, or documents with the queries that follow them, cut to the model's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """A task.

    Attributes:
        measure: How answers are compared: by ``cosine``, or by their largest ``difference``.
        takes_pairs: Whether its inputs are queries with documents.
        fits: Whether an artifact answers it.
        encode: Its inputs as token ids.
        ask: Its answers, from strings.
    """

    measure: Literal["cosine", "difference"]
    takes_pairs: bool = False
    fits: Callable[[Manifest], bool]
    encode: Encode
    ask: Callable[[PoolingModel, Workload], Answers]


def choose_task(manifest: Manifest, name: str | None = None) -> str:
    """Return the task that an artifact is measured on: the one asked for, else what it is made for.

    Raises:
        InputError: the artifact does not answer it.
    """
    fitting = [task for task, row in BENCH_TASKS.items() if row.fits(manifest)]
    if name is not None and name not in fitting:
        raise InputError(
            f"{manifest.source.model!r} is not measured on {name}, but on {', '.join(fitting)}",
            parameter="task",
            value=name,
        )
    if name is not None:
        return name
    if _is_cross_encoder(manifest):
        return "score"
    if "reward" in fitting and _is_stepwise(manifest):
        return "reward"
    return manifest.default_task if manifest.default_task in fitting else fitting[0]


def _encode_plain(model: PoolingModel, texts: Sequence[str], _queries: Sequence[str]) -> list[EncodedText]:
    return model.tokenizer.encode(texts, truncate_to=TO_MODEL_LIMIT)


def _encode_prompted(model: PoolingModel, texts: Sequence[str], _queries: Sequence[str]) -> list[EncodedText]:
    prompt = resolve_prompt(model.manifest, prompt_name=None, prompt=None)
    return model.tokenizer.encode(texts, prompt=prompt, truncate_to=TO_MODEL_LIMIT)


def _encode_token_embed(model: PoolingModel, texts: Sequence[str], queries: Sequence[str]) -> list[EncodedText]:
    if model.manifest.late_interaction is None:
        return _encode_prompted(model, texts, queries)
    return encode_side(model.tokenizer, resolve_side(model.manifest, "document"), texts, truncate=True)


def _encode_pairs(model: PoolingModel, texts: Sequence[str], queries: Sequence[str]) -> list[EncodedText]:
    pairs = [(index, index) for index in range(len(texts))]
    return model.encode_scoring_pairs(queries, texts, pairs, ScoreOptions(truncate_to=TO_MODEL_LIMIT))


def _ask_token_embed(model: PoolingModel, workload: Workload) -> Answers:
    if model.manifest.late_interaction is None:
        return model.token_embed(workload.texts, truncate=True)
    return model.embed_documents(workload.texts, truncate=True)


def _ask_reward(model: PoolingModel, workload: Workload) -> Answers:
    """Ask for rewards; of a STEP pooler for those of every token, since few of the texts have step tags."""
    if not _is_stepwise(model.manifest):
        return model.reward(workload.texts, truncate=True)
    rows = model.run_token(_encode_plain(model, workload.texts, ()))
    return [finish_logits(row, model.manifest.pooler.activation) for row in rows]


def _is_cross_encoder(manifest: Manifest) -> bool:
    return manifest.scoring is not None and manifest.scoring.kind == "cross_encoder"


def _is_stepwise(manifest: Manifest) -> bool:
    return manifest.pooler.tok_pooling_type == "STEP"


BENCH_TASKS: Final[Mapping[str, BenchTask]] = MappingProxyType(
    {
        "embed": BenchTask(
            measure="cosine",
            fits=lambda manifest: "embed" in manifest.tasks,
            encode=_encode_prompted,
            ask=lambda model, workload: model.embed(workload.texts, truncate=True),
        ),
        "token_embed": BenchTask(
            measure="cosine",
            fits=lambda manifest: "token_embed" in manifest.tasks,
            encode=_encode_token_embed,
            ask=_ask_token_embed,
        ),
        "classify": BenchTask(
            measure="difference",
            fits=lambda manifest: "classify" in manifest.tasks,
            encode=_encode_plain,
            ask=lambda model, workload: model.classify(workload.texts, truncate=True),
        ),
        "token_classify": BenchTask(
            measure="difference",
            fits=lambda manifest: "token_classify" in manifest.tasks and not _is_stepwise(manifest),
            encode=_encode_plain,
            ask=lambda model, workload: model.token_classify(workload.texts, truncate=True),
        ),
        "score": BenchTask(
            measure="difference",
            takes_pairs=True,
            fits=_is_cross_encoder,
            encode=_encode_pairs,
            ask=lambda model, workload: model.score(workload.queries, workload.texts, truncate=True),
        ),
        "reward": BenchTask(
            measure="difference",
            fits=lambda manifest: bool({"classify", "token_classify"} & {*manifest.tasks}),
            encode=_encode_plain,
            ask=_ask_reward,
        ),
    }
)
"""The tasks by name, in the order in which an artifact's own is looked for."""
