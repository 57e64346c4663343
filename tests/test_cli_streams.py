"""The command line with standard streams that are closed or full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_embedder import EMBEDDING_SIZE


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("first\nsecond\n\n")
    return path


FAKE_EMBED = """
import sys
sys.path.insert(0, {tests!r})
from fake_embedder import FakeEmbedder
from poolgraph.cli import main
from poolgraph.runtime.model import PoolingModel
PoolingModel.load = lambda path, **options: FakeEmbedder()
sys.exit(main(["embed", "m", *sys.argv[1:]]))
"""


def run_shell(command, *arguments):
    """Run poolgraph (or the fake embedding) in a shell, which can close streams; ``$@`` is the command."""
    return subprocess.run(["/bin/sh", "-c", command, "sh", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">&-", 2, "poolgraph: error: standard output is closed, so there is nowhere to print to\n"),
        (">/dev/full", 2, "poolgraph: error: No space left on device\n"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(texts, redirection, code, error):
    fake = [sys.executable, "-c", FAKE_EMBED.format(tests=str(Path(__file__).parent)), str(texts)]
    for command in ([sys.executable, "-m", "poolgraph.cli", "doctor"], fake):
        done = run_shell(f'"$@" {redirection}', *command)
        assert (done.returncode, done.stderr) == (code, error)


def test_standard_input_that_is_closed():
    fake = [sys.executable, "-c", FAKE_EMBED.format(tests=str(Path(__file__).parent)), "-"]
    done = run_shell('"$@" <&-', *fake)
    assert done.returncode == 2
    assert done.stderr == "poolgraph: error: standard input is closed; name a file, or pipe the texts in\n"


def test_an_error_that_nobody_can_read_keeps_its_code(tmp_path):
    for redirection in ("2>&-", "2>/dev/full"):
        command = [sys.executable, "-m", "poolgraph.cli", "inspect", str(tmp_path / "absent")]
        assert run_shell(f'"$@" {redirection}', *command).returncode == 2


def test_messages_never_land_in_the_output(texts, tmp_path):
    """With descriptor 2 closed, the next file opened would take its number, and a library's message."""
    loud = """class Loud(FakeEmbedder):
    def embed_chunk(self, texts, **options):
        import os
        os.write(2, b"library warning")
        return super().embed_chunk(texts, **options)
PoolingModel.load = lambda path, **options: Loud()
sys.exit"""
    code = FAKE_EMBED.replace("sys.exit", loud)
    output = tmp_path / "out.npy"
    arguments = [sys.executable, "-c", code.format(tests=str(Path(__file__).parent)), str(texts), "-o", str(output)]
    assert run_shell('"$@" 2>&-', *arguments).returncode == 0
    assert np.load(output).shape == (3, EMBEDDING_SIZE)
    assert b"library" not in output.read_bytes()


def test_a_reader_that_goes_away_is_no_crash():
    child = subprocess.Popen(
        [sys.executable, "-m", "poolgraph.cli", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 141
