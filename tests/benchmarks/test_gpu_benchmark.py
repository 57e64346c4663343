"""The GPU benchmark where there is no GPU: its plans, counts and reports, and a run of everything on the CPU."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("model", "at_128", "at_512"),
    [("minilm", 2.87, 13.3), ("bert-base", 22.35, 96.6), ("bert-large", 78.9, 335), ("qwen3-0.6b", 114.6, 481)],
)
def test_operations_are_counted(model, at_128, at_512):
    """Against counts made by hand from the number of weights."""
    from gpu_models import MODELS, build_config, count_flops

    config = build_config(MODELS[model])
    assert count_flops(MODELS[model], config, [128]) / 1e9 == pytest.approx(at_128, rel=0.01)
    assert count_flops(MODELS[model], config, [512]) / 1e9 == pytest.approx(at_512, rel=0.01)
    assert count_flops(MODELS[model], config, [128, 512]) / 1e9 == pytest.approx(at_128 + at_512, rel=0.01)


def test_local_layers_see_less():
    from gpu_models import MODELS, build_config, count_flops

    row = MODELS["modernbert-base"]
    config = build_config(row)
    weights = 2 * (4 * 768 * 768 + 3 * 768 * 1152) * 22
    local = sum(kind == "sliding_attention" for kind in config.layer_types)
    assert 0 < local < 22
    seen = local * 128 + (22 - local) * 512
    assert count_flops(row, config, [512]) == 512 * (weights + 4 * 768 * seen)


def test_workloads_are_the_same_each_time_and_within_every_vocabulary():
    from gpu_models import MAX_SEQ_LENGTH, MODELS, SMALLEST_VOCABULARY, build_config
    from gpu_workloads import MIXED, build_workloads

    first, second = build_workloads(quick=False), build_workloads(quick=False)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(left, right) for left, right in zip(one.ids, other.ids, strict=True))
    lengths = next(it for it in first if it.name == MIXED).lengths
    assert 8 <= min(lengths) < 20
    assert max(lengths) == MAX_SEQ_LENGTH
    assert 60 < np.median(lengths) < 130
    assert max(int(row.max()) for it in first for row in it.ids) < SMALLEST_VOCABULARY
    assert all(build_config(row).vocab_size >= SMALLEST_VOCABULARY for row in MODELS.values())


def test_batches_hold_every_text_once_within_the_budget():
    from gpu_workloads import build_workloads, plan_packed, plan_padded

    lengths = build_workloads(quick=False)[-1].lengths
    for plan in (plan_padded, plan_packed):
        batches = list(plan(lengths, 2048))
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert len(batches) > 5
    padded = [[lengths[row] for row in batch] for batch in plan_padded(lengths, 2048)]
    assert all(len(batch) * max(batch) <= 2048 for batch in padded)
    assert all(min(left) >= max(right) for left, right in pairwise(padded))
    assert all(sum(lengths[row] for row in batch) <= 2048 for batch in plan_packed(lengths, 2048))


def test_texts_have_exact_numbers_of_tokens():
    from gpu_models import MAX_SEQ_LENGTH, MODELS, build_tokenizer, read_texts
    from gpu_workloads import build_text_workloads

    tokenizer = build_tokenizer(MODELS["tiny"]).backend_tokenizer
    texts, ids = build_text_workloads(tokenizer, read_texts(), quick=True)
    assert {len(tokenizer.encode(text).ids) for text in texts.texts} == {MAX_SEQ_LENGTH}
    assert len(set(texts.texts)) == len(texts.texts)
    assert ids.lengths == texts.lengths == [MAX_SEQ_LENGTH] * len(texts.texts)


def test_distances_to_the_reference():
    from gpu_child import compare

    reference = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32) + 3
    same = compare(2 * reference, reference)
    assert same["max_distance"] < 1e-12
    turned = reference[::-1].copy()
    found = compare(turned, reference)
    assert found["max_centered_distance"] > 10 * found["max_distance"] > 1e-2, "a common part hides differences"
    with pytest.raises(ValueError, match="1 numbers"):
        compare(np.where(np.arange(40).reshape(5, 8) == 7, np.nan, reference), reference)
    with pytest.raises(ValueError, match="shape"):
        compare(reference[:4], reference)


def test_engines_by_device():
    from gpu_engines import ENGINES, REFERENCE, choose_engines

    cuda, cpu = choose_engines("cuda", None), choose_engines("cpu", None)
    assert {"poolgraph-packed-graphs", "poolgraph-padded", "torch-padded", "torch-unpadded", "onnxruntime"} <= set(cuda)
    assert cpu == ["poolgraph-cpu", "torch-cpu", "torch-unpadded-cpu", "onnxruntime-cpu"]
    assert REFERENCE not in cuda
    assert choose_engines("cuda", ["torch-compiled", "torch-padded"]) == ["torch-padded", "torch-compiled"]
    assert ENGINES["torch-compiled"].one_shape_only
    with pytest.raises(SystemExit, match="unknown engines"):
        choose_engines("cuda", ["torsh"])


def cell(tokens_per_s, distance=1e-5, share=0.5):
    return {"tokens_per_s": tokens_per_s, "texts_per_s": 1.0, "share": share, "max_distance": distance}


def results(**engines):
    found = {"engines": engines, "memory": {}, "notes": ["a note"], "loading": {}}
    machine = {"cpu": "a processor", "versions": {"torch": "2"}, "gpu": "a GPU", "gpu_memory_gib": 80}
    return {"machine": machine, "rate": None, "notes": [], "elapsed_s": 1.0, "models": {"bert-base": found}}


def test_goals_are_judged_by_the_best_of_each_kind():
    from gpu_report import check_goals, write_report

    found = results(
        **{
            "poolgraph-padded": {"32x512": cell(100.0), "their ids x512": cell(100.0), "texts x512": cell(79.0)},
            "poolgraph-packed-graphs": {"32x512": cell(131.0, distance=1e-3, share=0.4)},
            "torch-padded": {"32x512": cell(90.0)},
            "torch-unpadded": {"32x512": cell(100.0), "64x128": {"error": "out of memory"}},
        }
    )
    goals = check_goals(found)
    assert goals == [
        "bert-base 32x512: times the best torch: 1.31, wanted 1.3: reached",
        "bert-base 32x512: share of the product's rate: 0.5, wanted 0.45: reached",
        "bert-base from strings: share of the rate from ids: 0.79, wanted 0.8: MISSED",
        "poolgraph: least cosine to fp32: 0.999, wanted 0.9995: MISSED",
    ]
    report = write_report(found)
    assert "| poolgraph fp16, packed, CUDA graphs | 1 | 131 | 40.0% | 1.31 | - | 1.0e-03 (too far) |" in report
    assert "out of memory" in report
    assert "a note" in report


def test_a_child_that_fails_says_why(tmp_path):
    from gpu_process import ChildFailed, ChildProcess

    request = {"engine": "torsh", "model": "tiny", "model_dir": str(tmp_path), "device": "cpu", "quick": True}
    child = ChildProcess(request | {"texts": False}, tmp_path / "log")
    with pytest.raises(ChildFailed, match="ended with 1: KeyError: 'torsh'"):
        child.receive(60)
    child.stop()


def test_a_child_that_is_late_is_ended(tmp_path, monkeypatch):
    import gpu_process

    (tmp_path / "gpu_child.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu_process, "FOLDER", tmp_path)
    child = gpu_process.ChildProcess({}, tmp_path / "log")
    with pytest.raises(gpu_process.ChildFailed, match="no answer within"):
        child.receive(0.2)
    assert child._process.poll() is not None


def test_nothing_is_measured_beyond_the_deadline(tmp_path):
    from gpu import build_plan, run

    plan = build_plan(
        ["--device", "cpu", "--models", "tiny", "--seconds", "0", "--out", str(tmp_path), "--work", str(tmp_path)]
    )
    record = run(plan)
    assert record.models["tiny"]["notes"] == ["not measured: no time was left"]
    assert json.loads((tmp_path / "gpu.json").read_text())["models"]["tiny"]["engines"] == {}
    assert (tmp_path / "gpu.md").exists()


def test_what_fails_is_a_problem_and_a_peer_that_is_missing_is_none():
    from gpu import find_problems

    cell = {"max_distance": 1e-7, "tokens_per_s": 1.0}
    good = {"poolgraph-padded": {"4x16": cell}, "torch-flash": {"4x16": {"error": "no flash attention"}}}
    notes = ["torch fp16, flash attention does not run: it is not installed", "not measured: no time was left"]
    assert find_problems({"tiny": {"engines": good, "notes": notes}}) == []
    bad = {"poolgraph-padded": {"4x16": {"error": "boom"}}, "torch-sdpa": {"4x16": {"max_distance": 0.5}}}
    notes = ["poolgraph fp16 padded does not run: no library"]
    assert find_problems({"tiny": {"engines": bad, "notes": notes}}) == [
        "tiny: poolgraph fp16 padded does not run: no library",
        "tiny, poolgraph-padded, 4x16: boom",
        "tiny, torch-sdpa, 4x16: 0.5 from fp32",
    ]


@pytest.mark.slow
def test_everything_runs_on_the_cpu(tmp_path):
    from gpu import main

    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    chosen = ["poolgraph-cpu", "torch-unpadded-cpu", "onnxruntime-cpu"]
    options = ["--device", "cpu", "--quick", "--models", "tiny", "--seconds", "300", "--engines", ",".join(chosen)]
    assert main([*options, *folders]) == 0
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    engines = found["models"]["tiny"]["engines"]
    assert list(engines) == chosen
    for name, cells in engines.items():
        assert {"4x16", "2x32", "mixed", "their ids x512"} <= set(cells), name
        for one in cells.values():
            assert one["tokens_per_s"] > 0
            assert one["share"] > 0
            assert one["max_distance"] < 1e-6
    assert "texts x512" in engines["poolgraph-cpu"]
    assert found["rate"]["flops_per_s"] > 0
    assert found["models"]["tiny"]["notes"] == []
