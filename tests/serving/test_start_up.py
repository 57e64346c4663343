"""A real model's server is ready within two seconds: of processor time, for other tests may hold the cores."""

import re
import sys

from fake_app import server_process

LIMIT_S = 2.0


def test_minilm_is_ready_within_two_seconds(minilm_artifact):
    """On idle cores the clock shows about half of it: the models are warmed up on all of them."""
    command = [sys.executable, "-m", "poolgraph.cli", "serve", str(minilm_artifact), "--port", "0"]
    with server_process(command) as server:
        assert server.get("/ready").status == 200
        text = server.get("/metrics").body.decode()
    spent = float(re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)[1])
    assert spent < LIMIT_S
