"""The MaxSim benchmark runs, and refuses engines that do not agree."""

from __future__ import annotations

import pytest


def test_it_prints_each_engine_relative_to_torch(capsys: pytest.CaptureFixture[str]) -> None:
    from maxsim import ENGINES, main

    main(["--rounds", "1", "--shape", "4", "20", "10", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:26].rstrip() for line in lines[1:]] == list(ENGINES)
    assert all(" times torch, " in line for line in lines[1:])


def test_engines_must_agree() -> None:
    from maxsim import summarize

    line = {"median_s": 1.0, "extra_mib": 1.0}
    agreeing = {"torch": line | {"checksum": 5.0}, "other": line | {"checksum": 5.0, "median_s": 0.5}}
    assert summarize([agreeing])["other"]["times_as_fast"] == 2.0
    with pytest.raises(ValueError, match=r"other adds up to 6\.0, torch to 5\.0"):
        summarize([agreeing | {"other": line | {"checksum": 6.0}}])
