"""Probes beside the graphs: written so that any machine reads them, read so that nothing runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from poolgraph.errors import ArtifactError
from poolgraph.graphs.probe_files import ANSWERS_FILE, MAX_TOKEN_ROWS, PROBES_FILE, load_probes, save_probes

TEXTS = ("kurz", "東京 🙂", "")
SEQUENCE = [np.arange(4, dtype=np.float32) + index for index in range(3)]


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


TOKEN = [rows(3), rows(MAX_TOKEN_ROWS + 1), rows(MAX_TOKEN_ROWS)]


def test_round_trip(tmp_path: Path) -> None:
    save_probes(tmp_path, TEXTS, "query: ", SEQUENCE, TOKEN)
    probes = load_probes(tmp_path)
    assert (probes.texts, probes.prompt) == (TEXTS, "query: ")
    np.testing.assert_array_equal(probes.sequence, np.stack(SEQUENCE))
    assert sorted(probes.token) == [0, 2]  # the long one is left out
    for index, answer in probes.token.items():
        np.testing.assert_array_equal(answer, TOKEN[index])
        assert answer.dtype == np.float32


def test_without_tokens(tmp_path: Path) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, None)
    assert load_probes(tmp_path).token == {}


def test_equal_probes_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_probes(tmp_path / name, TEXTS, "", SEQUENCE, TOKEN)
    for name in (PROBES_FILE, ANSWERS_FILE):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("name", [PROBES_FILE, ANSWERS_FILE])
def test_missing_file(tmp_path: Path, name: str) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=r"the probes of .* cannot be read"):
        load_probes(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"texts": "one"}', b'{"texts": [], "other": 1}', b'{"texts": ["\xff"]}']
)
def test_texts_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    (tmp_path / PROBES_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(tmp_path)


@pytest.mark.parametrize("keep", [0, 2, 4, 100, -30])
def test_answers_that_are_cut(tmp_path: Path, keep: int) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    file = tmp_path / ANSWERS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(tmp_path)


def test_answers_that_are_changed(tmp_path: Path) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    file = tmp_path / ANSWERS_FILE
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 140] ^= 0xFF  # inside the data of the first array
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(tmp_path)


def test_answers_without_sequence(tmp_path: Path) -> None:
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    np.savez(tmp_path / ANSWERS_FILE, token_0=rows(2))
    with pytest.raises(ArtifactError, match="sequence"):
        load_probes(tmp_path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    save_probes(tmp_path, TEXTS, "", SEQUENCE, TOKEN)
    array = np.empty(1, dtype=object)
    array[0] = Trap(trap)
    np.savez(tmp_path / ANSWERS_FILE, sequence=array)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(tmp_path)
    (tmp_path / ANSWERS_FILE).write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_probes(tmp_path)
    assert not trap.exists()
