from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from poolgraph.runtime.bench_corpus import read_passages
from poolgraph.runtime.bench_workloads import Workload

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "array", "of", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(512)
    return tokenizer


def _passages(count: int) -> list[str]:
    """Return passages of seeded random words, from a few to several hundred."""
    random = Random(0)
    words = ["".join(random.choices("abcdefgh", k=random.randint(2, 6))) for _ in range(500)] + ["the", "of"] * 20
    return [" ".join(random.choices(words, k=3 + index % 9 * 30)) for index in range(count)]


def test_uniform_workloads_have_exact_token_counts(tokenizer):
    from workloads import UNIFORM_SHAPES, build_workloads, parse_shape

    workloads = {w.name: w for w in build_workloads(tokenizer, _passages(400), 60)}
    for name in UNIFORM_SHAPES:
        num_texts, num_tokens = parse_shape(name)
        counts = [len(tokenizer.encode(text).ids) for text in workloads[name].texts]
        assert counts == [num_tokens] * num_texts
        assert workloads[name].num_tokens == num_texts * num_tokens
        assert len(set(workloads[name].texts)) == num_texts


def test_uniform_workload_beyond_the_limit_is_refused(tokenizer):
    from workloads import build_workloads

    short = Tokenizer.from_str(tokenizer.to_str())
    short.enable_truncation(256)
    with pytest.raises(ValueError, match=r"1x512 has texts of \[256\] tokens, wanted 512"):
        build_workloads(short, _passages(400), 60)


def test_mixed_workload_counts_truncated_tokens_and_leaves_calibration_out(tokenizer):
    from workloads import NUM_CALIBRATION_PASSAGES, build_mixed, select_calibration

    passages = _passages(500)
    mixed = build_mixed(tokenizer, passages, 150)
    lengths = [len(tokenizer.encode(text).ids) for text in mixed.texts]
    assert len(mixed.texts) == 150
    assert max(lengths) == 512
    assert mixed.num_tokens == sum(lengths)
    calibration = select_calibration(passages)
    assert len(calibration) == NUM_CALIBRATION_PASSAGES
    assert not set(mixed.texts) & set(calibration)


def test_select_evenly_spans_the_list_in_order():
    from poolgraph.runtime.bench_workloads import select_evenly

    items = [str(number) for number in range(103)]
    chosen = [int(item) for item in select_evenly(items, 10)]
    assert chosen[0] == 0
    assert all(10 <= right - left <= 11 for left, right in pairwise(chosen))
    with pytest.raises(ValueError, match="count is 104; there are 103"):
        select_evenly(items, 104)


def test_workloads_survive_the_disk(tmp_path, tokenizer):
    from workloads import build_workloads

    from poolgraph.runtime.bench_workloads import load_workloads, save_workloads

    workloads = build_workloads(tokenizer, _passages(400), 60)
    save_workloads(tmp_path / "sub" / "workloads.json", workloads)
    assert load_workloads(tmp_path / "sub" / "workloads.json") == workloads


def test_corpus_is_large_distinct_and_deterministic():
    from workloads import CORPUS, CORPUS_FILES

    passages = read_passages(CORPUS, CORPUS_FILES)
    again = read_passages(files_per_package=20)
    few = {*again}
    assert len(few) > 50
    assert [passage for passage in passages if passage in few] == again
    assert len(passages) >= 1_000 + 300
    assert len(set(passages)) == len(passages)
    words = sorted(len(passage.split()) for passage in passages)
    assert words[0] <= 5
    assert words[-1] >= 512
    assert not any("\n" in passage or ">>>" in passage.split() for passage in passages)


def test_batches_are_sorted_padded_and_complete():
    from batches import plan_batches

    ids = [[5] * length for length in (3, 9, 1, 9, 4)]
    batches = list(plan_batches(ids, 2, pad_id=7))
    assert [batch.rows.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]
    assert batches[1].inputs["input_ids"].tolist() == [[5, 5, 5, 5], [5, 5, 5, 7]]
    assert batches[1].inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert not batches[1].inputs["token_type_ids"].any()


def test_runs_are_interleaved():
    from rounds import plan_runs

    runs = plan_runs(["m"], ["a", "b", "c"], 2)
    assert [(run.round, run.engine) for run in runs] == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (1, "c")]


def test_a_batch_size_reaches_the_adapter_only_where_there_is_one(monkeypatch):
    from engines import EngineRow

    calls = []

    class Adapter:
        def embed(self, engine, texts, **options):
            calls.append(options)

    monkeypatch.setattr(EngineRow, "adapter", Adapter())
    EngineRow(module="engine_poolgraph").embed(None, ["a"], None)
    EngineRow(module="engine_poolgraph").embed(None, ["a"], 8)
    assert calls == [{}, {"batch_size": 8}]


def test_cosines_refuse_nan_and_wrong_shapes():
    from run_one import compare_rows

    reference = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    assert compare_rows(reference * 3, reference).tolist() == [1.0, 1.0]
    assert compare_rows(reference[::-1], reference).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="1 numbers of the answer are NaN"):
        compare_rows(np.array([[np.nan, 0.0], [0.0, 2.0]], dtype=np.float32), reference)
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        compare_rows(reference[:1], reference)


def test_reference_of_other_texts_is_refused(tmp_path):
    from run_one import load_reference, save_reference

    stored = Workload(name="mixed", texts=("a", "b"), lengths=(3, 3))
    save_reference(tmp_path / "r.npz", [stored], {"mixed": np.ones((2, 3), dtype=np.float32)})
    assert load_reference(tmp_path / "r.npz", [stored])["mixed"].shape == (2, 3)
    with pytest.raises(ValueError, match="other texts"):
        load_reference(tmp_path / "r.npz", [Workload(name="mixed", texts=("a", "c"), lengths=(3, 3))])


def _line(engine: str, seconds: float, **change):
    measured = {
        name: {
            "median_s": seconds,
            "repeats": 5,
            "batch_size": 8,
            "texts_per_s": 1 / seconds,
            "tokens_per_s": tokens / seconds,
            "min_cosine": 0.999,
            "mean_cosine": 0.9995,
        }
        for name, tokens in (("8x128", 1024), ("mixed", 512))
    }
    line = {"engine": engine, "label": engine.upper(), "model": "minilm", "load_s": 1.0, "peak_rss_bytes": 2**30}
    return line | {"workloads": measured} | change


def test_summary_takes_medians_and_keeps_failures():
    from rounds import group_lines, summarize_engine

    lines = [_line("a", seconds) for seconds in (1.0, 4.0, 2.0)]
    lines.append({"engine": "b", "label": "B", "model": "minilm", "error": "no kernel"})
    lines.append(_line("a", 9.0, model="other"))
    grouped = group_lines(lines, "minilm", ["b", "a", "c"])
    assert list(grouped) == ["b", "a"]
    summary = summarize_engine(grouped["a"])
    assert summary["workloads"]["8x128"]["tokens_per_s"] == 512
    assert summary["workloads"]["8x128"]["rounds_s"] == [1.0, 4.0, 2.0]
    assert summary["peak_rss_mib"] == 1024
    assert summarize_engine(grouped["b"]) == {"label": "B", "error": "no kernel"}


@pytest.fixture
def results():
    from engines import REFERENCE, SUBJECT
    from rounds import summarize_engine

    return {
        "name": "canned",
        "date": "2026-01-02",
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_gib": 8.0, "cpu_features": ["avx2"], "system": "Linux"},
        "versions": {"python": "3.11"},
        "settings": {"rounds": 3},
        "models": {
            "minilm": {
                "description": "real weights",
                "workloads": {
                    "8x128": {"num_texts": 8, "num_tokens": 1024},
                    "mixed": {"num_texts": 9, "num_tokens": 512},
                },
                "engines": {
                    SUBJECT: summarize_engine([_line("pool", 0.5)]),
                    REFERENCE: summarize_engine([_line("st", 1.0)]),
                    "openvino-int8": {"label": "OpenVINO int8", "error": "no | kernel"},
                },
            }
        },
    }


def test_report_shows_speeds_ratios_and_failures(results):
    from report import render_report

    lines = render_report(results).splitlines()
    assert "| engine | 8x128 | mixed | mixed / best uniform | min cosine | load s | peak MiB |" in lines
    assert "| POOL | 2,048 (2.00) | 1,024 (2.00) | 0.50 | 0.99900 | 1.0 | 1,024 |" in lines
    assert "| OpenVINO int8 | failed: no / kernel |  |  |  |  |  |" in lines
    assert "| ST | 2.00 | 2.00 |" in lines
    assert json.loads(json.dumps(results)) == results


def test_report_without_the_reference_shows_plain_speeds(results):
    from engines import REFERENCE
    from report import render_report

    del results["models"]["minilm"]["engines"][REFERENCE]
    assert "| POOL | 2,048 | 1,024 | 0.50 | 0.99900 | 1.0 | 1,024 |" in render_report(results).splitlines()


def test_every_engine_has_the_three_names():
    from engines import ENGINES, REFERENCE, SUBJECT

    assert {REFERENCE, SUBJECT} <= set(ENGINES)
    for row in ENGINES.values():
        assert row.adapter.label
        assert callable(row.adapter.load)
        assert callable(row.adapter.embed)
    labels = [row.label for row in ENGINES.values()]
    assert len(set(labels)) == len(labels)


def test_listing_engines_loads_no_engine():
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import engines\n"
        "labels = [row.label for row in engines.ENGINES.values()]\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'openvino', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(BENCHMARKS)], check=True)
