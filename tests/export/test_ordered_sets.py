"""Equal exports are equal files in processes with other seeds of Python's hashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_decoders import save_decoder
from tiny_heads import plan_of
from transformers.models.modernbert import modeling_modernbert

from poolgraph.export.build import build_module, trace_layout
from poolgraph.export.ordered_sets import OrderedSet, ordered_sets
from poolgraph.graphs.storage import save_graphs

CHILD = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
print(runpy.run_path(sys.argv[2])["write_graph"](*sys.argv[3:]))
"""


def write_graph(checkpoint: str, target: str) -> list[str]:
    """Write the graph of one layout as it is before its lowering; return a set in the order of this process."""
    plan = plan_of(Path(checkpoint))
    model, _ = trace_layout(plan, build_module(plan), "padded")
    Path(target).mkdir()
    save_graphs({"model.onnx": model}, Path(target), "weights.data")
    return list(set(plan.config.layer_types))


def run(seed: int, *command: str) -> str:
    """Run Python with this seed of its hashes; return the last line that it prints."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", *command], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def test_a_set_is_walked_in_order_and_the_name_given_back() -> None:
    model = object.__new__(modeling_modernbert.ModernBertModel)
    with ordered_sets(model):
        made = modeling_modernbert.set(["b", "c", "a"])  # type: ignore[attr-defined]
        assert (list(made), made == {"a", "b", "c"}, type(made)) == (["a", "b", "c"], True, OrderedSet)
    assert not hasattr(modeling_modernbert, "set")


@pytest.mark.slow
def test_modern_bert_has_the_same_graphs_in_every_process(tmp_path: Path) -> None:
    checkpoint = save_decoder(tmp_path / "checkpoint", "ModernBertModel")
    targets = [tmp_path / "own", tmp_path / "other"]
    order = write_graph(str(checkpoint), str(targets[0]))
    seed = next(seed for seed in range(100) if run(seed, f"print(list(set({order})))") != str(order))
    arguments = (str(Path(__file__).parents[1]), __file__, str(checkpoint), str(targets[1]))
    assert run(seed, CHILD, *arguments) != str(order)
    graphs = [{path.name: path.read_bytes() for path in sorted(target.iterdir())} for target in targets]
    assert len(graphs[0]) == 2
    assert graphs[0] == graphs[1]
