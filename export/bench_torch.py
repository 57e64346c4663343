"""torch as an engine of ``poolgraph bench``: what users of a checkpoint run, a row a way, the first that fits.

What no library runs as it is published is answered by verification's reference, one text at a time, and labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from poolgraph.errors import InputError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.reference import ReferenceHead, ReferenceModel, full_class, load_unpatched
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.activations import choose_activation, finish_logits
from poolgraph.runtime.bench_engines import Engine, EngineRequest, find_portable
from poolgraph.runtime.bench_tasks import BENCH_TASKS
from poolgraph.runtime.cpu import count_cores
from poolgraph.runtime.executor import Collect, Executor, Progress
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.planner import Batch, plan_sorted_batches
from poolgraph.runtime.providers import CPU_PROVIDER
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import SessionPool
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.tuning import Tuning

BATCH_SIZES: Final = (8, 32)
"""Batch sizes that users choose between; the faster one counts."""

_CHANGES_THE_MODEL: Final = ("convert", "pooler_config", "hf_overrides")
"""Options of an export after which other libraries no longer run the same model."""

AnswerRaw: TypeAlias = Callable[[Sequence[EncodedText], str], Sequence[NDArray[np.float32]]]
"""Tokenized texts and a graph family to raw answers, one a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is to be run, and how precisely."""

    request: EngineRequest
    manifest: Manifest
    plan: ExportPlan
    dtype: torch.dtype

    @property
    def folder(self) -> str:
        """The checkpoint's folder."""
        return str(self.plan.checkpoint.folder)

    @property
    def as_published(self) -> bool:
        """Whether sentence-transformers runs the same model from the checkpoint's files."""
        changed = {*_CHANGES_THE_MODEL} & {*self.manifest.options}
        return not changed and self.plan.backbone.layout is None

    @property
    def has_modules(self) -> bool:
        """Whether the checkpoint has sentence-transformers' files."""
        return (self.plan.checkpoint.folder / "modules.json").is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A way to run a checkpoint on torch: which it fits, and how it is loaded."""

    fits: Callable[[_Subject], bool]
    load: Callable[[_Subject], Engine]


def load(request: EngineRequest, *, dtype: str) -> Engine:
    """Load the checkpoint on all cores.

    Args:
        request: The artifact, its checkpoint and the task.
        dtype: torch's name of the precision, ``float32`` or ``bfloat16``.

    Raises:
        InputError: another checkpoint than the artifact's, or one that is only run in float32.
    """
    assert request.checkpoint is not None
    torch.set_num_threads(count_cores())
    manifest = open_artifact(request.directory)
    checkpoint = open_checkpoint(request.checkpoint)
    options = ExportOptions.from_record(manifest.options)
    plan = resolve_plan(checkpoint, options=options, precisions=("fp32",), targets=("cpu",), trust_remote_code=False)
    subject = _Subject(request=request, manifest=manifest, plan=plan, dtype=getattr(torch, dtype))
    return next(way for way in _WAYS if way.fits(subject)).load(subject)


def _load_sentence_transformer(subject: _Subject) -> Engine:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(subject.folder, device="cpu", model_kwargs={"dtype": subject.dtype})
    return Engine(
        label=f"sentence-transformers {_name(subject)}",
        ask=lambda workload, size: model.encode(
            list(workload.texts), batch_size=size, show_progress_bar=False, convert_to_numpy=True
        ),
        batch_sizes=BATCH_SIZES,
    )


def _load_multi_vector(subject: _Subject) -> Engine:
    from sentence_transformers import MultiVectorEncoder

    model: Any = MultiVectorEncoder(subject.folder, device="cpu", model_kwargs={"dtype": subject.dtype})
    return Engine(
        label=f"sentence-transformers MultiVectorEncoder {_name(subject)}",
        ask=lambda workload, size: model.encode_document(
            list(workload.texts), batch_size=size, show_progress_bar=False, convert_to_numpy=True
        ),
        batch_sizes=BATCH_SIZES,
    )


def _load_cross_encoder(subject: _Subject) -> Engine:
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder(subject.folder, device="cpu", model_kwargs={"dtype": subject.dtype})
    activation = choose_activation(subject.manifest.pooler, None)

    def ask(workload: Any, size: int | None) -> NDArray[np.float32]:
        pairs = list(zip(workload.queries, workload.texts, strict=True))
        raw = model.predict(pairs, batch_size=size, show_progress_bar=False, activation_fn=torch.nn.Identity())
        return finish_logits(np.asarray(raw, dtype=np.float32)[:, None], activation)[:, 0]

    return Engine(label=f"sentence-transformers CrossEncoder {_name(subject)}", ask=ask, batch_sizes=BATCH_SIZES)


def _load_transformers(subject: _Subject) -> Engine:
    """Load transformers' own class, in length-sorted padded batches, of one text where it cannot pad (decoders)."""
    model: Any = load_unpatched(subject.plan, full_class(subject.plan), subject.dtype)
    head = ReferenceHead(subject.plan)
    variant = find_portable(subject.manifest)
    runner = build_runner(variant, subject.manifest.tokenization)
    sizes = (1,) if model.config.pad_token_id is None else BATCH_SIZES

    def answer(size: int) -> AnswerRaw:
        def run(encoded: Sequence[EncodedText], family: str) -> list[NDArray[np.float32]]:
            answers: dict[int, NDArray[np.float32]] = {}
            for batch in plan_sorted_batches([text.num_tokens for text in encoded], size):
                texts = [encoded[index] for index in batch.indices]
                feed = runner.feed(texts, variant.graphs[family])
                with torch.no_grad():
                    logits = model(**{name: torch.from_numpy(ids) for name, ids in feed.items()}).logits.float().numpy()
                rows = list(logits) if family == "sequence" else runner.split_tokens(logits, texts)
                answers |= zip(batch.indices, map(head.standardize, rows), strict=True)
            return [answers[index] for index in range(len(encoded))]

        return run

    models = {size: _wrap(subject, answer(size)) for size in sizes}
    return _ask_wrapped(models, subject, f"transformers {type(model).__name__} {_name(subject)}")


def _load_reference(subject: _Subject) -> Engine:
    if subject.dtype is not torch.float32:
        raise InputError(
            f"no library runs {subject.manifest.source.model!r} as it is published in {_name(subject)}; verification's "
            "reference answers in float32 only: ask for torch"
        )
    model = ReferenceModel(subject.plan)

    def answer(encoded: Sequence[EncodedText], family: str) -> Sequence[NDArray[np.float32]]:
        answers = getattr(model.answer(encoded), family)
        assert answers is not None
        return answers  # type: ignore[no-any-return]

    return _ask_wrapped({1: _wrap(subject, answer)}, subject, "transformers fp32, one text at a time")


@dataclass(frozen=True, slots=True, kw_only=True)
class _TorchExecutor(Executor):
    """Answers tokenized texts with torch; ``answer`` gives their raw answers."""

    answer: AnswerRaw

    def _run(self, encoded: Sequence[EncodedText], family: str, collect: Collect, on_progress: Progress | None) -> None:
        for index, raw in enumerate(self.answer(encoded, family)):
            length = encoded[index].num_tokens
            collect(Batch(indices=(index,), length=length, num_tokens=length), raw[None])


def _wrap(subject: _Subject, answer: AnswerRaw) -> PoolingModel:
    """Return the artifact's tokenizing and finishing around torch's raw answers."""
    directory, manifest = subject.request.directory, subject.manifest
    variant = find_portable(manifest)
    sessions = SessionPool(directory=directory, variant=variant, provider=CPU_PROVIDER)
    executor = _TorchExecutor(
        sessions=sessions,
        runner=build_runner(variant, manifest.tokenization),
        cores=count_cores(),
        threads=None,
        tuning=Tuning(),
        answer=answer,
    )
    return PoolingModel(path=directory, manifest=manifest, sessions=sessions, executor=executor)


def _ask_wrapped(models: dict[int, PoolingModel], subject: _Subject, label: str) -> Engine:
    task = BENCH_TASKS[subject.request.task]
    sizes = tuple(models)
    return Engine(
        label=label, ask=lambda workload, size: task.ask(models[size or sizes[0]], workload), batch_sizes=sizes
    )


def _name(subject: _Subject) -> str:
    return "fp32" if subject.dtype is torch.float32 else "bf16"


_WAYS: Final = (
    _Way(
        fits=lambda it: it.request.task == "embed" and it.as_published and it.has_modules,
        load=_load_sentence_transformer,
    ),
    _Way(
        fits=lambda it: it.manifest.late_interaction is not None and it.as_published and it.has_modules,
        load=_load_multi_vector,
    ),
    _Way(
        fits=lambda it: it.request.task == "score" and it.as_published and it.plan.template is None,
        load=_load_cross_encoder,
    ),
    _Way(
        fits=lambda it: full_class(it.plan) is not None and it.plan.backbone.layout is None,
        load=_load_transformers,
    ),
    _Way(fits=lambda it: True, load=_load_reference),
)
