"""A real model's server is ready within two seconds: of processor time, for other tests may hold the cores."""

import re
import subprocess
import sys

from fake_app import server_process

LIMIT_S = 2.0
LIBRARIES = "import msgspec, numpy, onnxruntime, time, tokenizers, uvicorn; print(time.process_time())"
LIBRARIES_S = 0.35
"""What a processor that keeps the limit takes to import what no server can do without; a slower one has more time."""
MOST_TRIES = 5


def measure_pace() -> float:
    """Return how many times as long as LIBRARIES_S this machine takes now, at least 1."""
    run = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, check=True)
    return max(1.0, float(run.stdout) / LIBRARIES_S)


def measure_start(artifact) -> float:
    """Return a server's processor seconds until it is ready; on idle cores the clock shows about half of them."""
    command = [sys.executable, "-m", "poolgraph.cli", "serve", str(artifact), "--port", "0"]
    with server_process(command) as server:
        assert server.get("/ready").status == 200
        text = server.get("/metrics").body.decode()
    return float(re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)[1])


def test_minilm_is_ready_within_two_seconds(minilm_artifact):
    """One start of a few: what else runs on a core's other half makes every second longer."""
    starts = []
    while len(starts) < MOST_TRIES and not any(spent < LIMIT_S * pace for spent, pace in starts):
        starts.append((measure_start(minilm_artifact), measure_pace()))
    assert any(spent < LIMIT_S * pace for spent, pace in starts), starts
