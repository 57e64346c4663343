"""One export under way: its plan, where it is written, its stages and the memory that it may use."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from poolgraph.export.calibration_texts import CalibrationTexts
from poolgraph.export.resolve import ExportPlan
from poolgraph.export.twin import WeightSizes, choose_twin, free_memory

StageHook = Callable[[str], None]


@dataclass(slots=True)
class Stages:
    """Announces stages and keeps their times.

    Attributes:
        hook: Called with the name of each stage as it starts.
        seconds: Time of each, in seconds.
    """

    hook: StageHook | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage; the block is its work."""
        if self.hook is not None:
            self.hook(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """What compiling and verifying one artifact needs.

    Attributes:
        plan: What is exported.
        folder: Where it is written.
        stages: Told of each stage.
        texts: Those by which int8 and fp16 are decided; None where there is neither.
        max_memory: GiB that this process may use to verify; None for half of what is free.
        is_twin: Whether this is the twin of a checkpoint too large to be verified as a whole.
    """

    plan: ExportPlan
    folder: Path
    stages: Stages
    texts: CalibrationTexts | None = None
    max_memory: float | None = None
    is_twin: bool = False

    def twin_layers(self, sizes: WeightSizes) -> int | None:
        """Return how many layers a twin has; None where the whole model can be verified in the memory allowed."""
        return choose_twin(sizes, self.plan.config, free_memory(self.max_memory))


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Within, the collector passes over what was there before.

    Torch and transformers are a million objects, which it would walk again and again for nothing while graphs are made.
    """
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
