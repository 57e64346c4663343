"""The rows of the target table that an export makes, by ``--target`` and ``--precision``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from poolgraph.errors import InputError
from poolgraph.export.backbone import Backbone
from poolgraph.graphs.pipeline import PORTABLE, PORTABLE_INT8, TARGETS, Target
from poolgraph.runtime.native_library import can_run

DEFAULT_PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"portable": ("fp32",), "cpu": ("fp32",), "cuda": ("fp16", "bf16"), "cublaslt": ("fp16", "bf16")}
)
"""What an open precision stands for, by word of ``--target``: the first that the model runs in."""

Pairs = frozenset[tuple[str, str]]
"""Words of ``--target`` and ``--precision``."""


def resolve_targets(
    backbone: Backbone, targets: Sequence[str], precisions: Sequence[str] | None, unfit: Collection[str] = ()
) -> tuple[Target, ...]:
    """Choose the targets of a model: what its row refuses is an error where asked for, and passed over where open.

    Args:
        backbone: Of the model.
        targets: Words of ``--target``.
        precisions: None where they are open.
        unfit: Precisions to pass over beside those that the row refuses.

    Raises:
        InputError: a precision that the row refuses, or a pair that is not offered.
    """
    _check_precisions(backbone, precisions or ())
    return choose_targets(targets, precisions, unfit=(*backbone.row.refused, *unfit))


def _check_precisions(backbone: Backbone, precisions: Sequence[str]) -> None:
    for precision in precisions:
        if precision in backbone.row.refused:
            why = backbone.row.refused[precision]
            raise InputError(f"{backbone.architecture} cannot be exported with --precision {precision}: {why}")


def choose_targets(
    targets: Sequence[str],
    precisions: Sequence[str] | None,
    runs_here: Callable[[Target], bool] = can_run,
    *,
    unfit: Collection[str] = (),
) -> tuple[Target, ...]:
    """Return the rows of the target table asked for, portable first, then by precision as they are asked for.

    Each target is made in those of the precisions that it has, so that one artifact may hold int8 for CPUs and fp16 for
    GPUs; a target or precision that goes with none of the others is refused. Open, each target has its own.

    Rows for the CPU that need operators beside ONNX Runtime's own are left out where ``runs_here`` says that they
    cannot be verified and there is a row of the same precision beside them that needs none.

    Args:
        targets: Words of ``--target``.
        precisions: None where they are open.
        runs_here: Whether a target can be verified on this machine.
        unfit: Precisions that an open one does not stand for.

    Raises:
        InputError: there is such a one; the message lists the pairs that there are.
    """
    pairs = _open_pairs(targets, unfit) if precisions is None else _offered_pairs(targets, precisions)
    # int8 alone is for little space: its portable graph has the same weights, in 8 bits.
    portable = PORTABLE_INT8 if set(precisions or ()) == {"int8"} else PORTABLE
    chosen = [
        target
        for target in TARGETS
        if (target.word, target.precision) in pairs
        and target is not portable
        and (runs_here(target) or not _has_stand_in(target))
    ]
    if precisions is not None:
        chosen.sort(key=lambda target: precisions.index(target.precision))
    return (portable, *chosen)


def _open_pairs(targets: Sequence[str], unfit: Collection[str]) -> Pairs:
    return frozenset((word, _default_precision(word, unfit)) for word in targets)


def _default_precision(word: str, unfit: Collection[str]) -> str:
    if word not in DEFAULT_PRECISIONS:
        raise InputError(f"--target {word} is not offered; what is: {_list_pairs()}")
    defaults = DEFAULT_PRECISIONS[word]
    fitting = [precision for precision in defaults if precision not in unfit]
    if not fitting:
        raise InputError(f"--target {word} is made in {' or '.join(defaults)}, and the model runs in none of them")
    return fitting[0]


def _offered_pairs(targets: Sequence[str], precisions: Sequence[str]) -> Pairs:
    asked_for = {(t, p) for t in targets for p in precisions}
    offered = asked_for & {(target.word, target.precision) for target in TARGETS}
    lost_targets = set(targets) - {target for target, _ in offered}
    lost_precisions = set(precisions) - {precision for _, precision in offered}
    unknown = sorted((t, p) for t, p in asked_for if t in lost_targets or p in lost_precisions)
    if unknown:
        asked = ", ".join(f"--target {t} --precision {p}" for t, p in unknown)
        raise InputError(f"{asked} is not offered; what is: {_list_pairs()}")
    return frozenset(offered)


def _list_pairs() -> str:
    pairs = dict.fromkeys((target.word, target.precision) for target in TARGETS)
    return ", ".join(f"--target {t} --precision {p}" for t, p in pairs)


def _has_stand_in(target: Target) -> bool:
    """Whether a target on operators of this package for the CPU has one beside it that needs none."""
    return any(
        (it.word, it.precision, it.providers) == (target.word, target.precision, PORTABLE.providers)
        and it.operators is None
        for it in TARGETS
    )
