"""A request as a generator: it asks for what must be run, is sent the raw answers and returns the finished result.

It reads, tokenizes and finishes, but never runs a model itself. So ``LLM``, which runs at once, and a server, which
lets the texts of many requests meet in a queue, do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from poolgraph.runtime.executor import Progress
from poolgraph.runtime.loaded import LoadedModel
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.tasks import RunFamily

T = TypeVar("T")

UseTqdm: TypeAlias = bool | Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a request asks of the model.

    Attributes:
        family: Whose graph runs, or ``query`` for the table of queries.
        encoded: The texts, each once.
    """

    family: RunFamily
    encoded: Sequence[EncodedText]


Answers: TypeAlias = NDArray[np.float32] | list[NDArray[np.float32]]
"""Raw answers in the order of the texts: (num_tokens, size) a text of the token graph, else (num_texts, size)."""

_RUNS: Final[Mapping[RunFamily, Callable[..., Answers]]] = MappingProxyType(
    {"sequence": LoadedModel.run_sequence, "token": LoadedModel.run_token, "query": LoadedModel.run_query}
)

Work: TypeAlias = Generator[Run, Answers, T]
"""A request under way; not started, it has done nothing."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """The end of a request."""

    result: T


def advance(work: Work[T], answers: Answers | None) -> Run | Finished[T]:
    """Take a request to its next run, or to its end.

    Args:
        work: The request.
        answers: Those of its last run; None to start it.
    """
    try:
        return next(work) if answers is None else work.send(answers)
    except StopIteration as end:
        return Finished(end.value)


def drive(model: LoadedModel, work: Work[T], *, use_tqdm: UseTqdm = False) -> T:
    """Do a request at once: every run of it as soon as it asks.

    Args:
        model: Runs the texts.
        work: The request; closed whatever happens.
        use_tqdm: Whether to show a progress bar for each run, or what to call to make one.

    Returns:
        The request's result; its errors and the model's are raised as they come.
    """
    with closing(work):
        step = advance(work, None)
        while isinstance(step, Run):
            step = advance(work, _run(model, step, use_tqdm))
        return step.result


def _run(model: LoadedModel, run: Run, use_tqdm: UseTqdm) -> Answers:
    with _show_progress(use_tqdm, len(run.encoded)) as on_progress:
        return _RUNS[run.family](model, run.encoded, on_progress=on_progress)


@contextmanager
def _show_progress(use_tqdm: UseTqdm, total: int) -> Iterator[Progress | None]:
    """Show what ``use_tqdm`` asks for and yield what to call with each number of finished prompts."""
    if not use_tqdm:
        yield None
        return
    make = use_tqdm if callable(use_tqdm) else partial(tqdm, disable=None)
    with closing(make(total=total, desc="Processed prompts", dynamic_ncols=True)) as bar:
        yield bar.update
