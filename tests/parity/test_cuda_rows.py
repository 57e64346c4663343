"""Every row of the support table lowered for CUDA: in numpy's float32 the portable graph's answers, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_graphs import CudaGraphs, random_texts
from support_row import SupportRow
from support_rows import SUPPORT_ROWS

TOLERANCE = 1e-5
"""Of the largest expected number."""


@pytest.mark.slow
@pytest.mark.parametrize("row", SUPPORT_ROWS, ids=lambda row: row.name)
def test_the_answers_of_cuda_graphs(row: SupportRow, tmp_path: Path) -> None:
    row.make(tmp_path / "checkpoint")
    graphs = CudaGraphs(tmp_path / "checkpoint", row.family, **row.options)
    texts = random_texts()
    expected = graphs.expected(texts, tmp_path / "portable")
    scale = max(np.abs(rows).max() for rows in expected)
    for layout in ("padded", "packed") if graphs.fits_packed else ("padded",):
        found = graphs.answer(layout, texts)
        difference = max(np.abs(one - other).max() for one, other in zip(expected, found, strict=True))
        assert difference <= TOLERANCE * scale, (layout, difference / scale)
