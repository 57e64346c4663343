"""A model on a provider that runs in buckets, from loading to closing: ONNX Runtime's CPU provider plays its part."""

from __future__ import annotations

import gc
import json
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
from bound_graphs import add_to_artifact, reference, reference_rows

from poolgraph.errors import ArtifactError, InputError, SessionError
from poolgraph.graphs.artifact import open_artifact
from poolgraph.runtime import bound_executor, loaded, loading, session, task_embed
from poolgraph.runtime.bound_executor import BoundExecutor
from poolgraph.runtime.bound_slot import BoundSlot
from poolgraph.runtime.bucket_file import encode_buckets
from poolgraph.runtime.buckets import Bucket, packed_bucket
from poolgraph.runtime.loading import BucketWish, resolve_settings, tensorrt_folder
from poolgraph.runtime.model import PoolingModel
from poolgraph.runtime.provider_options import ProviderSettings
from poolgraph.runtime.providers import Choice, Wish

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
LAYOUTS = ("padded", "packed")
TEXTS = ["w1 w2 w3", "", "w4", " ".join(f"w{number}" for number in range(14)), "w5 w6"] * 7


@pytest.fixture
def bound(artifact, monkeypatch):
    """The tiny artifact with variants in both layouts, on a CPU provider that runs in buckets, without CUDA graphs."""
    for layout in LAYOUTS:
        add_to_artifact(artifact, open_artifact(artifact), layout, (CPU,))
    for module in (bound_executor, loaded, loading):
        monkeypatch.setattr(module, "BOUND_DEVICES", {CPU: "cpu"})
    return artifact


def load(bound, layout, **options):
    return PoolingModel.load(bound, variant=f"cuda_{layout}", cuda_graphs=False, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_method_answers(bound, layout):
    with load(bound, layout) as model:
        assert isinstance(model._executor, BoundExecutor)
        encoded = model.tokenizer.encode(TEXTS)
        expected = np.stack([reference(text) for text in encoded])
        np.testing.assert_allclose(model.run_sequence(encoded), expected, atol=1e-5)
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(model.embed(TEXTS), unit, atol=1e-5)
        for rows, text in zip(model.run_token(encoded), encoded, strict=True):
            np.testing.assert_allclose(rows, reference_rows(text), atol=1e-5)
        assert model.padding.real_tokens == 3 * sum(text.num_tokens for text in encoded)
        assert model.padding.padded_tokens > 0


def test_the_model_is_warm_when_it_is_loaded(bound):
    told = []
    with load(bound, "padded", on_warm_up=lambda *pair: told.append(pair)) as model:
        assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
        assert len(told) == len(model.buckets) > 1
        assert model.padding.runs == 0


def test_buckets_from_beside_the_artifact_from_a_file_and_given(bound, tmp_path):
    stored = Bucket(max_length=16, batch_size=2)
    (bound / "buckets.json").write_bytes(encode_buckets([stored]))
    with load(bound, "padded") as model:
        assert model._executor.buckets == (stored,)
    other = packed_bucket(32, 16, 4)
    file = tmp_path / "mine.json"
    file.write_bytes(encode_buckets([other]))
    with load(bound, "packed", buckets=file) as model:
        assert model._executor.buckets == (other,)
    with load(bound, "padded", buckets=[Bucket(max_length=8, batch_size=3)]) as model:
        assert len(model.embed(TEXTS)) == len(TEXTS), "texts beyond the longest bucket have their own"
    with pytest.raises(InputError, match="the variant runs in the packed one"):
        load(bound, "packed", buckets=[stored])


def test_a_warning_of_stored_buckets_points_at_the_caller(bound):
    (bound / "buckets.json").write_text("{")
    with pytest.warns(UserWarning, match="Buckets are planned without it") as caught:
        PoolingModel.load(bound, variant="cuda_padded", cuda_graphs=False).close()
    assert caught[0].filename == __file__


def test_the_budget_of_tokens_is_that_of_the_largest_planned_bucket(bound):
    with load(bound, "padded", max_batch_tokens=64) as model:
        assert model._executor.buckets[0].size == 64
    with pytest.raises(InputError, match="gpu_mem_limit must be at least 1"):
        load(bound, "padded", gpu_mem_limit=0)


def test_the_first_window_is_short_where_running_is_faster_than_tokenizing(bound, artifact, monkeypatch):
    seen = []
    with load(bound, "padded") as model:
        encode = model.tokenizer.encode
        monkeypatch.setattr(
            model.tokenizer, "encode", lambda texts, **rest: seen.append(len(texts)) or encode(texts, **rest)
        )
        assert model.embed(["w1"] * 1600).shape == (1600, 8)
    assert seen == [512, 1024, 64]


def test_a_layout_that_no_bucket_has(bound):
    with pytest.raises(
        ArtifactError, match=r"'cpu_fp32' has the layout 'uniform'; on CPU.* runs \['packed', 'padded'\]"
    ):
        PoolingModel.load(bound, variant="cpu_fp32")


def test_a_closed_model_refuses(bound):
    model = load(bound, "padded")
    model.close()
    with pytest.raises(SessionError, match="the model is closed; load it again"):
        model.embed(["w1"])


def test_the_cpu_counts_its_tokens_too(artifact):
    with PoolingModel.load(artifact, variant="portable_fp32") as model:
        model.embed(["w1", "w1 w2 w3"])
        assert (model.padding.real_tokens, model.padding.runs) == (3 + 5, 1)
        assert model.padding.padded_tokens == 2
        assert model.buckets == ()
    with PoolingModel.load(artifact, variant="cpu_fp32") as model:
        model.embed(["w1", "w1 w2 w3"])
        assert (model.padding.real_tokens, model.padding.padded_tokens) == (3 + 5, 0)


# --- what a provider is told


def settings(directory, provider, wish=None, bucket_wish=None, variant="portable_fp32"):
    manifest = open_artifact(directory)
    choice = Choice(variant=manifest.variant(variant), provider=provider)
    return resolve_settings(directory, manifest, choice, wish or Wish(), bucket_wish or BucketWish())


def test_the_cpu_is_told_nothing(artifact):
    assert settings(artifact, CPU) == ProviderSettings()


def test_tensorrt_keeps_its_engines_in_a_folder_of_its_own(artifact):
    made = settings(artifact, TENSORRT, bucket_wish=BucketWish(gpu_mem_limit=7, max_batch_tokens=32))
    assert made.cache_folder == artifact / "tensorrt"
    assert made.cache_folder.is_dir()
    assert (made.half, made.uses_graphs, made.gpu_mem_limit, made.buckets[0].size) == (True, False, 7, 32)
    assert not settings(artifact, TENSORRT, Wish(precision="fp32")).half
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_artifact(artifact, check_hashes="all")


def test_beside_a_read_only_artifact_the_engines_go_into_the_cache(artifact, monkeypatch, tmp_path):
    monkeypatch.setenv("POOLGRAPH_CACHE", str(tmp_path / "cache"))
    (artifact / "tensorrt").write_text("a file, where no folder can be made")
    folder = tensorrt_folder(artifact, "sha256:0/1")
    assert folder.is_dir()
    assert folder.parent.name == "tensorrt"
    assert folder.name == "sha256_0_1"
    assert not folder.is_relative_to(artifact)


def test_the_manifest_is_unchanged_by_all_of_it(bound):
    before = json.loads((bound / "poolgraph.json").read_text())
    load(bound, "padded").close()
    assert json.loads((bound / "poolgraph.json").read_text()) == before


def keep_sessions(monkeypatch):
    """Return the list of weak references to the sessions that are opened from here on."""
    opened = []
    build = session.open_session

    def keep(*arguments, **options):
        made = build(*arguments, **options)
        opened.append(weakref.ref(made))
        return made

    monkeypatch.setattr(session, "open_session", keep)
    return opened


@pytest.mark.parametrize("variant", ["cuda_padded", "cuda_packed", "cpu_fp32"])
def test_a_model_that_is_let_go_of_frees_its_sessions_at_once(bound, monkeypatch, variant):
    """Not when the collector comes by: sessions hold the device's memory, and the next model needs it."""
    if variant == "cpu_fp32":
        monkeypatch.undo()
    opened = keep_sessions(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        model = PoolingModel.load(bound, variant=variant)
        model.embed(TEXTS)
        model.run_token(model.tokenizer.encode(TEXTS))
        assert len(opened) >= 2
        del model
        deadline = time.monotonic() + 5.0  # the inference thread may still be leaving
        while any(one() for one in opened) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(one() for one in opened)
    finally:
        gc.enable()


def test_a_load_that_fails_keeps_no_session_though_its_traceback_is_kept(bound, monkeypatch):
    opened = keep_sessions(monkeypatch)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        load(bound, "padded", on_warm_up=fail)
    assert opened
    assert caught.tb is not None
    assert not any(one() for one in opened)
    monkeypatch.setattr(loaded, "check_verified", fail)
    with pytest.raises(KeyboardInterrupt):
        load(bound, "padded")
    assert not any(one() for one in opened)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_runs_while_the_answer_of_the_one_before_is_finished(bound, layout, monkeypatch):
    """On the code before, no batch of a window ran before the caller was through with the last one."""
    ran, seen = [], threading.Event()
    monkeypatch.setattr(loaded, "FIRST_BOUND_WINDOW", 7)
    finish = task_embed.finish_embeddings

    def finish_slowly(raw, **options):
        if not ran:
            ran.append(len(raw))
            assert seen.wait(10), "the second window is under way"
        return finish(raw, **options)

    run_sequence = BoundExecutor.run_sequence

    def watched(executor, encoded, **options):
        if options["first_index"]:
            seen.set()
        return run_sequence(executor, encoded, **options)

    monkeypatch.setattr(BoundExecutor, "run_sequence", watched)
    monkeypatch.setattr(task_embed, "finish_embeddings", finish_slowly)
    told = []
    with load(bound, layout) as model:
        expected = np.stack([reference(text) for text in model.tokenizer.encode(TEXTS)])
        found, _ = model.embed_chunk(TEXTS, normalize=False, on_progress=told.append)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(told) == len(TEXTS)


def test_a_caller_that_stops_waits_for_no_more_than_the_batches_under_way(bound, monkeypatch):
    monkeypatch.setattr(loaded, "FIRST_BOUND_WINDOW", 5)
    runs = []
    run = BoundSlot.run
    monkeypatch.setattr(BoundSlot, "run", lambda slot: (runs.append(slot), time.sleep(0.02), run(slot)))

    def stop(num_texts):
        raise KeyboardInterrupt

    with load(bound, "padded", buckets=[Bucket(max_length=16, batch_size=1)]) as model:
        runs.clear()
        with pytest.raises(KeyboardInterrupt):
            model.embed_chunk(TEXTS * 20, on_progress=stop)
        assert len(runs) < 12
        assert len(model.embed(TEXTS)) == len(TEXTS)
