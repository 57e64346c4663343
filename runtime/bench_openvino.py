"""OpenVINO on an artifact's portable graph: dynamic shapes, length-sorted padded batches of 8, one plan for all tasks.

One batch alone runs on a model compiled for latency (all cores on it), several run on one compiled for throughput (a
stream a core) through an asynchronous queue: what was fastest of 4, 8, 16 and 32 texts a batch in ``benchmarks/``.
Tokenizing and finishing are poolgraph's own; the graph's raw answers are OpenVINO's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime.bench_engines import Engine, EngineRequest, find_portable
from poolgraph.runtime.bench_tasks import BENCH_TASKS
from poolgraph.runtime.cpu import count_cores
from poolgraph.runtime.executor import Collect, Executor, Progress
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.planner import plan_sorted_batches
from poolgraph.runtime.providers import CPU_PROVIDER
from poolgraph.runtime.runner import build_runner
from poolgraph.runtime.session import SessionPool
from poolgraph.runtime.tokenizer import EncodedText
from poolgraph.runtime.tuning import Tuning

BATCH_SIZE: Final = 8


def load(request: EngineRequest, *, precision: str) -> Engine:
    """Compile the portable sequence or token graph when it is first asked.

    Args:
        request: The artifact and the task.
        precision: OpenVINO's inference precision, ``f32`` or ``bf16``.
    """
    import openvino

    manifest = open_artifact(request.directory)
    variant = find_portable(manifest)
    sessions = SessionPool(directory=request.directory, variant=variant, provider=CPU_PROVIDER)
    executor = OpenVinoExecutor(
        sessions=sessions,
        runner=build_runner(variant, manifest.tokenization),
        cores=count_cores(),
        threads=None,
        tuning=Tuning(),
        core=openvino.Core(),
        precision=precision,
    )
    model = PoolingModel(path=request.directory, manifest=manifest, sessions=sessions, executor=executor)
    task = BENCH_TASKS[request.task]
    return Engine(
        label=f"OpenVINO {precision} on {variant.name}", ask=lambda workload, _size: task.ask(model, workload)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoExecutor(Executor):
    """Runs tokenized texts on OpenVINO.

    Attributes:
        core: OpenVINO's ``Core``.
        precision: Its inference precision.
    """

    core: Any
    precision: str
    _compiled: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False)

    def _run(self, encoded: Sequence[EncodedText], family: str, collect: Collect, on_progress: Progress | None) -> None:
        graph = self.sessions.graph(family)
        request, queue = self._compile(family)
        batches = plan_sorted_batches([text.num_tokens for text in encoded], BATCH_SIZE)
        feeds = (self.runner.feed([encoded[index] for index in batch.indices], graph) for batch in batches)
        if len(batches) == 1:
            request.infer(dict(next(feeds)), share_inputs=True)
            collect(batches[0], request.get_tensor(graph.raw_output).data)
            return
        answers: dict[int, NDArray[np.float32]] = {}

        def store(finished: Any, place: int) -> None:
            answers[place] = np.array(finished.get_tensor(graph.raw_output).data)

        queue.set_callback(store)
        for place, feed in enumerate(feeds):
            queue.start_async(dict(feed), place)
        queue.wait_all()
        for place, batch in enumerate(batches):
            collect(batch, answers[place])

    def _compile(self, family: str) -> tuple[Any, Any]:
        """Return a request for lone batches and a queue for several."""
        if family not in self._compiled:
            import openvino

            model = self.core.read_model(self.sessions.directory / self.sessions.graph(family).file)
            settings = {"INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": self.cores}
            streams = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self.cores}
            latency = self.core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
            throughput = self.core.compile_model(model, "CPU", settings | streams)
            self._compiled[family] = (latency.create_infer_request(), openvino.AsyncInferQueue(throughput))
        return self._compiled[family]
