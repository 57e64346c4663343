"""Probes beside the graphs: texts and the reference's answers, to check the artifact on any machine without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from poolgraph.errors import ArtifactError

PROBES_FILE = "probes.json"
ANSWERS_FILE = "probes.npz"

MAX_TOKEN_ROWS = 64
"""Token answers are stored for texts up to this many tokens; longer ones would dominate the artifact's size."""

Rows = NDArray[np.float32]

SparseRow = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Where an answer is not 0, and what it is there."""


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
        queries: The answer to each text as a query, of models that answer those by a table; None for others.
    """

    texts: tuple[str, ...]
    prompt: str
    sequence: Rows
    token: dict[int, Rows]
    pairs: tuple[tuple[str, str], ...] = ()
    queries: tuple[SparseRow, ...] | None = None


def save_probes(
    directory: Path,
    texts: Sequence[str],
    prompt: str,
    sequence: Sequence[Rows] | None,
    token: Sequence[Rows] | None,
    pairs: Sequence[tuple[str, str]] = (),
    queries: Sequence[SparseRow] | None = None,
) -> None:
    """Write ``probes.json`` and ``probes.npz`` into an artifact's directory."""
    encoded = msgspec.json.encode(_ProbeTexts(texts=tuple(texts), prompt=prompt, pairs=tuple(pairs)))
    (directory / PROBES_FILE).write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    none = np.empty((0, 0), dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {"sequence": np.stack(sequence).astype(np.float32) if sequence else none}
    for index, rows in enumerate(token or ()):
        if len(rows) <= MAX_TOKEN_ROWS:
            arrays[f"token_{index}"] = rows.astype(np.float32)
    if queries:
        arrays["query_counts"] = np.array([len(values) for _, values in queries], dtype=np.int64)
        arrays["query_indices"] = np.concatenate([indices for indices, _ in queries]).astype(np.int64)
        arrays["query_values"] = np.concatenate([values for _, values in queries]).astype(np.float32)
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
            queries = _read_queries(arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise ArtifactError(f"the probes of {directory} cannot be read: {error}") from error
    return StoredProbes(
        texts=texts.texts, prompt=texts.prompt, sequence=sequence, token=token, pairs=texts.pairs, queries=queries
    )


def _read_queries(arrays: Mapping[str, NDArray[Any]]) -> tuple[SparseRow, ...] | None:
    if "query_counts" not in arrays:
        return None
    counts, indices, values = (arrays[f"query_{name}"] for name in ("counts", "indices", "values"))
    kinds = counts.dtype.kind + indices.dtype.kind + values.dtype.kind
    shapes = {counts.shape[1:], indices.shape[1:], values.shape[1:]}
    if kinds != "iif" or shapes != {()} or not len(counts) or not counts.sum() == len(indices) == len(values):
        raise ValueError("query_counts, query_indices and query_values do not fit together")
    stops = np.cumsum(counts)[:-1]
    return tuple(zip(np.split(indices, stops), np.split(values, stops), strict=True))
