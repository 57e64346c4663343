"""Eight seconds of the soak: mixed traffic against a real server, each answer checked against the text that asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serving_soak.py"


@pytest.mark.slow
def test_mixed_traffic(task_artifact, tmp_path):
    output = tmp_path / "soak.json"
    exported = {task_artifact(name).parent for name in ("embedder", "reranker", "classifier", "ner")}.pop()
    command = [sys.executable, str(SCRIPT), "--seconds", "8", "--warm-up", "4", "--clients", "8"]
    done = subprocess.run(
        [*command, "--exported", str(exported), "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["faults"] == []
    assert found["answers"] > 250
    assert found["malformed"] > 5
    assert found["hang_ups"] > 1
    assert set(found["statuses"]) <= {"200", "400", "404", "405", "413", "415", "501"}
    assert found["cache_hits"] > 0
