"""Equal exports are equal files in processes with other seeds of Python's hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_decoders import save_decoder
from transformers.models.modernbert import modeling_modernbert

from poolgraph.export.ordered_sets import OrderedSet, ordered_sets

BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_heads import plan_of
from poolgraph.export.build import build_module, trace_layout
from poolgraph.graphs.storage import save_graphs

plan = plan_of(Path(sys.argv[2]))
model, _ = trace_layout(plan, build_module(plan), "padded")
save_graphs({"model.onnx": model}, Path(sys.argv[3]), "weights.data")
print(list(set(plan.config.layer_types)))
"""
"""An export of one layout without its lowering and verification: the graph as it is written."""


def test_a_set_is_walked_in_order_and_the_name_given_back() -> None:
    model = object.__new__(modeling_modernbert.ModernBertModel)
    with ordered_sets(model):
        made = modeling_modernbert.set(["b", "c", "a"])  # type: ignore[attr-defined]
        assert (list(made), made == {"a", "b", "c"}, type(made)) == (["a", "b", "c"], True, OrderedSet)
    assert not hasattr(modeling_modernbert, "set")


@pytest.mark.slow
def test_modern_bert_has_the_same_graphs_in_every_process(tmp_path: Path) -> None:
    checkpoint = save_decoder(tmp_path / "checkpoint", "ModernBertModel")
    graphs, orders = [], set()
    for seed in ("0", "1"):
        target = tmp_path / seed
        target.mkdir()
        command = [sys.executable, "-c", BUILD, str(Path(__file__).parents[1]), str(checkpoint), str(target)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        orders.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout.splitlines()[-1])
        graphs.append({path.name: path.read_bytes() for path in sorted(target.iterdir())})
    assert len(orders) == 2
    assert len(graphs[0]) == 2
    assert graphs[0] == graphs[1]
