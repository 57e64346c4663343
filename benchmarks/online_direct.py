"""The same texts through ``PoolingModel.embed``, in a process of its own: the offline rate, and one text a call."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from poolgraph import PoolingModel


def measure_rate(model: PoolingModel, texts: list[str], seconds: float) -> dict[str, float]:
    """Return texts a second of calls with all texts, their median, and a text's processor time."""
    model.embed(texts[:256])
    rates, end = [], time.perf_counter() + seconds
    used = time.process_time()
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        model.embed(texts)
        rates.append(len(texts) / (time.perf_counter() - started))
    used = time.process_time() - used
    return {"texts_per_s": statistics.median(rates), "cpu_ms": used / len(rates) / len(texts) * 1e3}


def measure_calls(model: PoolingModel, texts: list[str], seconds: float) -> float:
    """Return the median milliseconds of a call with one text, each text once."""
    waits, end = [], time.perf_counter() + seconds
    for text in texts:
        started = time.perf_counter()
        model.embed(text)
        waits.append(time.perf_counter() - started)
        if time.perf_counter() > end:
            break
    return statistics.median(waits) * 1e3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="a JSON list")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(argv)
    texts = json.loads(options.texts.read_text())
    with PoolingModel.load(options.artifact, precision=options.precision) as model:
        rate = measure_rate(model, texts, options.seconds)
        call = measure_calls(model, texts, options.seconds)
    print(json.dumps({"call_p50_ms": call, **rate}), flush=True)


if __name__ == "__main__":
    main()
