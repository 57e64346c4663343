#!/usr/bin/env bash
# Answer from an artifact with the built wheel in a clean environment without torch, the folder that make wheel-env makes.
set -euo pipefail
: "${BIN:=.venv/bin}"
work=$(realpath "$1")

# The artifact is exported by the wheel's sibling with torch, as a user's build machine would.
"$BIN/python" - "$work" <<'PY'
import sys
from pathlib import Path

sys.path.insert(0, "tests")
from tiny_heads import save_model
from tiny_models import save_checkpoint

from poolgraph import export_model

work = Path(sys.argv[1])
export_model(save_checkpoint(work / "checkpoint", "BertModel"), work / "artifact")
reranker = save_model(work / "reranker-checkpoint", "BertModel", "BertForSequenceClassification", num_labels=1)
export_model(reranker, work / "reranker", score_template="plain")
PY

printf 'a first text\nand a second one\n' > "$work/texts.txt"
cd "$work" # away from the checkout, so that only the wheel can be imported
env/bin/poolgraph --version
env/bin/poolgraph doctor > doctor.txt
env/bin/poolgraph export --list > support.txt
grep -q "^embed *NomicBertModel" support.txt
env/bin/poolgraph verify artifact
env/bin/poolgraph embed artifact texts.txt -o vectors.npy
env/bin/poolgraph encode artifact texts.txt --task token_embed -o tokens.jsonl
env/bin/poolgraph rerank reranker texts.txt --query "a text" --score-template nemotron_rerank -o ranked.jsonl
env/bin/python - <<'PY'
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

import poolgraph
from poolgraph.runtime.fidelity_corpus import shipped_corpus

assert len(shipped_corpus().documents) > 200
assert "site-packages" in poolgraph.__file__, poolgraph.__file__
assert importlib.util.find_spec("torch") is None
from poolgraph.runtime.native_library import available_operators

assert "poolgraph.cuda/1" in available_operators(), "the wheel has no native operators: is there a C++ compiler?"
# Optimum is not installed here; its plugin is, and waits for it.
packages = Path(poolgraph.__file__).parents[1]
assert [path.name for path in packages.glob("optimum/**/*.py")] == ["poolgraph.py"]
assert {row["text"] for row in json.loads(Path("ranked.jsonl").read_text())["results"]} == {
    "a first text",
    "and a second one",
}
vectors = np.load("vectors.npy")
with poolgraph.PoolingModel.load("artifact") as model:
    assert np.array_equal(model.embed(["a first text", "and a second one"]), vectors)
assert not {"transformers", "onnx", "onnx_ir"} & set(sys.modules)
print(f"wheel smoke test passed: {vectors.shape} vectors without torch installed")
PY
