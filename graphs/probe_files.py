"""Probes beside the graphs: texts and the reference's answers, to check the artifact on any machine without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError

PROBES_FILE = "probes.json"
ANSWERS_FILE = "probes.npz"

MAX_TOKEN_ROWS = 64
"""Token answers are stored for texts up to this many tokens; longer ones would dominate the artifact's size."""

Rows = NDArray[np.float32]


class _ProbeTexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    texts: tuple[str, ...]
    prompt: str = ""
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProbes:
    """Texts, cut to the model's limit when they are encoded, and their raw reference answers.

    Attributes:
        texts: The probe texts.
        prompt: Put before each text.
        sequence: (num_inputs, size), texts first, then pairs; empty where the artifact has no sequence graph.
        token: Index of an input to (num_tokens, size).
        pairs: Pairs of texts that are one input, for models that take them.
    """

    texts: tuple[str, ...]
    prompt: str
    sequence: Rows
    token: dict[int, Rows]
    pairs: tuple[tuple[str, str], ...] = ()


def save_probes(
    directory: Path,
    texts: Sequence[str],
    prompt: str,
    sequence: Sequence[Rows] | None,
    token: Sequence[Rows] | None,
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Write ``probes.json`` and ``probes.npz`` into an artifact's directory."""
    encoded = msgspec.json.encode(_ProbeTexts(texts=tuple(texts), prompt=prompt, pairs=tuple(pairs)))
    (directory / PROBES_FILE).write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    arrays = {"sequence": np.stack(sequence).astype(np.float32) if sequence else np.empty((0, 0), dtype=np.float32)}
    for index, rows in enumerate(token or ()):
        if len(rows) <= MAX_TOKEN_ROWS:
            arrays[f"token_{index}"] = rows.astype(np.float32)
    np.savez(directory / ANSWERS_FILE, **arrays)  # type: ignore[arg-type]


def load_probes(directory: Path) -> StoredProbes:
    """Read an artifact's probes; nothing is unpickled.

    Raises:
        ArtifactError: the files are missing or not what ``save_probes`` writes.
    """
    try:
        texts = msgspec.json.decode((directory / PROBES_FILE).read_bytes(), type=_ProbeTexts)
        with (directory / ANSWERS_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            token = {int(name[6:]): arrays[name] for name in arrays.files if name.startswith("token_")}
            sequence = arrays["sequence"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise ArtifactError(f"the probes of {directory} cannot be read: {error}") from error
    return StoredProbes(texts=texts.texts, prompt=texts.prompt, sequence=sequence, token=token, pairs=texts.pairs)
