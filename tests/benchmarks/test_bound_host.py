"""The benchmark of what calls cost beside the graph."""

from __future__ import annotations

import pytest


def test_every_workload_has_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import bound_host

    monkeypatch.setattr(bound_host, "WORKLOADS", {"1x16": [16], "ragged": [3, 500, 20]})
    bound_host.main(["--repeats", "1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["1x16", "ragged"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
