"""What people read about an artifact."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fake_embedder import CHECK, MANIFEST, VARIANT

from poolgraph.graphs.manifest import Pooler, Quantization, Report
from poolgraph.runtime.inspect import describe, describe_quantization, format_report, format_size, format_table


def test_the_description():
    assert describe(MANIFEST, Path("tiny")).splitlines() == [
        "artifact      tiny (3 files, 90.7 MB)",
        "model         acme/tiny at main",
        "architecture  BertModel",
        "tasks         embed (default), token_embed",
        "pooler        mean, normalized",
        "dimensions    8; 8 a token",
        "limits        256 tokens a text, vocabulary of 1000",
        "similarity    cosine",
        "prompts       query (default): 'query: '",
        "              document: ''",
        "made          2026-11-22T04:00:00Z by poolgraph 0.1.0, format 5",
        "",
        "cpu_fp32  fp32 for CPUExecutionProvider, uniform batches, verified",
        "  sequence      onnx/model_cpu_fp32.onnx (1.2 kB)",
        "    inputs      input_ids int64 (batch_size, sequence_length)",
        "    outputs     pooled float32 (batch_size, 8)",
        "",
        "Verified against sentence-transformers 6.2.0 on torch",
        "  variant   graph     check  texts  min cosine  max diff  ok",
        "  --------  --------  -----  -----  ----------  --------  ---",
        "  cpu_fp32  sequence  alone     40   0.9999998   1.2e-07  yes",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"variants": (msgspec.structs.replace(VARIANT, verified=False),)}, "uniform batches, NOT verified"),
        (
            {"variants": (msgspec.structs.replace(VARIANT, cpu_features=("avx512_vnni",)),)},
            "  needs         avx512_vnni",
        ),
        (
            {"pooler": Pooler(pooling=("cls", "mean"), include_prompt=False, embedding_size=8)},
            "cls + mean, not normalized",
        ),
        ({"pooler": Pooler(pooling=("cls",), include_prompt=False, embedding_size=8)}, "prompt's tokens left out"),
        (
            {"pooler": Pooler(pooling=("cls",), embedding_size=8, is_matryoshka=True, matryoshka_dimensions=(2, 4))},
            "dimensions    8, may be shortened to 2, 4\n",
        ),
        (
            {"pooler": Pooler(pooling=("max",), embedding_size=8, sparse=True, max_active_dims=3)},
            "pooler        max, not normalized, weights of words, the 3 largest\n",
        ),
        ({"pooler": Pooler(pooling=("cls",), embedding_size=8, is_matryoshka=True)}, "8, may be shortened\n"),
        ({"source": msgspec.structs.replace(MANIFEST.source, revision=None)}, "model         acme/tiny\n"),
        ({"report": Report(reference="nothing")}, "  nothing was verified"),
        ({"files": {}}, "onnx/model_cpu_fp32.onnx (not listed)"),
    ],
)
def test_what_differs_is_said(changes, line):
    assert line in describe(msgspec.structs.replace(MANIFEST, **changes), Path("tiny"))


def test_all_of_a_quantization_record_is_said():
    record = Quantization(
        static=20,
        token=4,
        smoothed=1,
        float32=("product",),
        routers=("chooses",),
        tables=("words",),
        float32_tables=("others",),
        calibration="9 texts",
        mean_cosine=0.99,
        min_cosine=0.98,
    )
    variant = msgspec.structs.replace(VARIANT, cpu_features=("vnni",), quantization=record)
    lines = describe(msgspec.structs.replace(MANIFEST, variants=(variant,)), Path("tiny")).splitlines()
    start = lines.index("  needs         vnni") + 1
    assert lines[start : start + 7] == [
        "  reduced",
        "    products    20 by static scales, 4 by a scale a token; 1 smoothed",
        "    tables      words",
        "    float32     product, others",
        "    routers     chooses (float32; 5% of token vectors may miss the minimum)",
        "    calibration 9 texts",
        "    held out    mean cosine 0.9900000, lowest 0.9800000",
    ]
    assert describe_quantization(Quantization(weights=3)) == {"products": "3 by weights alone"}


def test_a_missed_threshold_says_what_was_needed():
    row = msgspec.structs.replace(CHECK, passed=False, min_cosine=0.98)
    report = Report(reference="torch", rows=(CHECK, row))
    assert format_report(report).splitlines()[-1].endswith("0.9800000   1.2e-07  NO (needs 0.99999, 1.0e-04)")


def test_a_table_aligns_numbers_to_the_right():
    table = format_table(("name", "n"), [("a", "1"), ("long name", "100")])
    assert table.splitlines() == ["name         n", "---------  ---", "a            1", "long name  100"]
    assert format_table(("name",), []).splitlines() == ["name", "----"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_900_000, "90.9 MB"), (4 * 10**9, "4.0 GB")],
)
def test_sizes(size_bytes, text):
    assert format_size(size_bytes) == text
