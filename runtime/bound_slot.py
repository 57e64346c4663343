"""One bucket's buffers, bound once: inputs and output stay at their addresses, and batches come and go in them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from poolgraph.graphs.manifest import Graph
from poolgraph.runtime.bound_inputs import BOUND_LAYOUTS, CPU_INPUTS, build_arrays, output_shape
from poolgraph.runtime.buckets import Bucket
from poolgraph.runtime.capture_gate import GATE
from poolgraph.runtime.session import Session, import_onnxruntime, mapped_errors
from poolgraph.runtime.tokenizer import EncodedText

NO_GRAPH: Final = -1
"""The ``gpu_graph_id`` of runs that no CUDA graph is captured of; 0 is ONNX Runtime's own, ours count from 1."""


@dataclass(slots=True, kw_only=True, eq=False)
class BoundSlot:
    """The buffers of one bucket; one batch at a time goes through ``stage``, ``run`` and ``fetch``.

    ``stage`` and ``fetch`` are the caller's, whose thread copies while other slots run; ``run`` belongs to the one
    thread that runs the session, in which its CUDA graphs live.

    Attributes:
        session: The session that runs it.
        graph: The graph's record.
        family: ``sequence`` or ``token``.
        bucket: The shape.
        device: ``cuda``, or ``cpu`` for the same code in the processor's memory.
        graph_id: ``gpu_graph_id`` of its CUDA graph, ``NO_GRAPH`` for none.
        pad_token_id: The token of padding.
        max_model_len: Tokens of the longest text that the model takes; None for any.
        captured: Whether the CUDA graph is there; the first run captures it.
    """

    session: Session
    graph: Graph
    family: str
    bucket: Bucket
    device: str
    graph_id: int
    pad_token_id: int
    max_model_len: int | None = None
    captured: bool = False
    _arrays: dict[str, NDArray[Any]] = field(init=False)
    _inputs: dict[str, Any] = field(init=False)
    _output: Any = field(init=False)
    _binding: Any = field(init=False)
    _rows: slice = field(init=False, default_factory=lambda: slice(None))
    _run_options: Any = field(init=False)

    def __post_init__(self) -> None:
        onnxruntime = import_onnxruntime()
        shape = output_shape(self.graph, self.family, self.bucket)
        build = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        what = f"making buffers for {self.bucket} of {self.graph.file}"
        with mapped_errors(what):
            self._arrays = build_arrays(self.graph, self.bucket)
            BOUND_LAYOUTS[self.bucket.layout].fill(self._arrays, self.bucket, [self._longest_text()], self.pad_token_id)
        with mapped_errors(what), GATE.shared():
            self._inputs = {
                name: build(array.shape, array.dtype.type, "cpu" if name in CPU_INPUTS else self.device, 0)
                for name, array in self._arrays.items()
            }
            self._output = build(shape, np.float32, self.device, 0)
            self._binding = self.session.io_binding()
            for name, value in self._inputs.items():
                value.update_inplace(self._arrays[name])
                self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(self.graph.raw_output, self._output)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("gpu_graph_id", str(self.graph_id))

    def stage(self, texts: Sequence[EncodedText]) -> None:
        """Write a batch into the inputs.

        Raises:
            SessionError: the device refused the copy.
        """
        filled = BOUND_LAYOUTS[self.bucket.layout].fill(self._arrays, self.bucket, texts, self.pad_token_id)
        if self.family == "sequence":
            self._rows = slice(filled.first_row, filled.first_row + len(texts))
        with mapped_errors(f"copying inputs of {self.graph.file}"), GATE.shared():
            for name in filled.changed:
                self._inputs[name].update_inplace(self._arrays[name])

    def run(self) -> None:
        """Run what is staged, to its end; capture the CUDA graph if this is its first run.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        with mapped_errors(f"running {self.graph.file} in the bucket {self.bucket}"), self._gate():
            self.session.run_with_iobinding(self._binding, self._run_options)
        self.captured = self.graph_id != NO_GRAPH

    def fetch(self) -> NDArray[np.float32]:
        """Return the output of the last run, in memory that no later one writes to.

        Of a sequence graph the rows of the texts that were staged, (num_texts, size); of a token graph all rows.

        Raises:
            SessionError: the device refused the copy.
        """
        with mapped_errors(f"copying the output of {self.graph.file}"), GATE.shared():
            output: NDArray[np.float32] = self._output.numpy()[self._rows]  # of a device already a copy
            return output.copy() if self.device == "cpu" else output

    def warm_up(self) -> None:
        """Run one text of the greatest length: kernels are chosen, memory is allocated, the CUDA graph is captured."""
        self.stage([self._longest_text()])
        self.run()

    def release_graph(self) -> None:
        """Let go of the CUDA graph; call it on the thread that runs the session."""
        if self.captured:
            with GATE.shared():
                self.session.release_captured_graph(self.graph_id)
            self.captured = False

    def _gate(self) -> AbstractContextManager[None]:
        captures = self.graph_id != NO_GRAPH and not self.captured
        return GATE.exclusive() if captures else GATE.shared()

    def _longest_text(self) -> EncodedText:
        length = (
            self.bucket.max_length if self.max_model_len is None else min(self.bucket.max_length, self.max_model_len)
        )
        return EncodedText(input_ids=np.full(length, self.pad_token_id, dtype=np.int64), token_type_ids=None)
