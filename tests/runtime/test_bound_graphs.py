"""The hand-made graphs of these tests themselves: on a GPU they could be captured."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from bound_graphs import build_graph

from poolgraph.graphs.check_cuda import check_cuda


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("family", ["sequence", "token"])
def test_the_graphs_stay_on_the_gpu(layout: str, family: str) -> None:
    model, _ = build_graph(layout, family, "graph.onnx")
    assert check_cuda(ir.from_proto(model)) == []
