"""A graph that is run for what lies inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.providers import CPU_PROVIDER
from poolgraph.runtime.session import build_session_options, import_onnxruntime, mapped_errors


class WatchedGraph:
    """A graph on the CPU and the names of the outputs that are fetched.

    Args:
        path: The graph's file.
        names: Its outputs.

    Raises:
        SessionError: ONNX Runtime refused the graph.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        onnxruntime = import_onnxruntime()
        options = build_session_options(onnxruntime, {"graph_optimization_level": "basic"}, read_cpu_info().num_cores)
        with mapped_errors(f"opening {path}"):
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._names, self._path = list(names), path

    def run(self, feed: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        """Run one batch and return the outputs by name; inputs that the graph does not take are left out.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        with mapped_errors(f"running {self._path}"):
            values = self._session.run(self._names, {name: feed[name] for name in feed if name in self._inputs})
        return dict(zip(self._names, values, strict=True))
