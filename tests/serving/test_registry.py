import asyncio

import pytest
from fake_batches import in_loop
from tiny_artifact import write_artifact

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.serving.engine_errors import ModelNotFound
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.observer import NullObserver
from poolgraph.serving.registry import choose_overlap, open_registry, plan_names

QUICK = EngineSettings(warm_up_seconds=0.0)


@in_loop
async def test_models_are_found_by_their_names(tmp_path):
    folders = [write_artifact(tmp_path / name) for name in ("first", "second")]
    registry = open_registry([ModelArguments(model=str(folder)) for folder in folders], QUICK, NullObserver())
    first, second = registry.models
    assert first.names == (str(folders[0]), "first")
    assert registry.find("first") is registry.find(str(folders[0])) is first
    assert registry.find("second") is second
    with pytest.raises(ModelNotFound, match=r"^The model `third` does not exist\.$"):
        registry.find("third")
    with pytest.raises(ModelNotFound, match="model is required where several are served"):
        registry.find(None)
    assert first.is_alive
    assert first.is_warm
    await registry.close(1)
    assert not first.is_alive


@in_loop
async def test_a_lone_model_needs_no_name(tmp_path):
    registry = open_registry([ModelArguments(model=write_artifact(tmp_path / "a"))], QUICK, NullObserver(), ["x", "y"])
    assert registry.find(None) is registry.find("y")
    with pytest.raises(ModelNotFound):
        registry.find("a")
    await registry.close(1)


@pytest.mark.parametrize(
    ("models", "served", "names"),
    [
        (["owner/name"], [], [("owner/name",)]),
        (["owner/name"], ["a", "b"], [("a", "b")]),
        (["owner/name", "other"], ["a", "b"], [("a",), ("b",)]),
    ],
)
def test_names(models, served, names):
    assert plan_names(models, served) == names


@pytest.mark.parametrize(
    ("models", "served", "message"),
    [
        ([], [], "no model to serve"),
        (["a", "b"], ["x"], "1 names for 2 models"),
        (["a", "a"], [], "two models would go by the name 'a'"),
        (["a", "b"], ["x", "x"], "two models would go by the name 'x'"),
    ],
)
def test_names_that_do_not_fit(models, served, message):
    with pytest.raises(InputError, match=message):
        plan_names(models, served)


def test_a_damaged_artifact_is_refused_before_anything_is_served(tmp_path):
    path = write_artifact(tmp_path / "a")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json has 2 bytes"):
        open_registry([ModelArguments(model=path)], QUICK, NullObserver())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_queue_tokens": 0}, "max_queue_tokens must be at least 1, got 0"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms must be at least"),
        ({"cache_bytes": True}, "cache_bytes must be at least"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1 or None"),
        ({"chunk_overlap": -1}, "chunk_overlap must be at least 0 or None, got -1"),
        ({"long_text": "cut"}, r"long_text must be one of \['error', 'truncate', 'chunk'\], got 'cut'"),
        ({"cache_path": "x"}, "needs one in memory in front of it"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        EngineSettings(**changes)


@pytest.mark.parametrize(("wanted", "limit", "chosen"), [(None, 512, 32), (None, 40, 10), (0, 512, 0), (128, 512, 128)])
def test_the_overlap_of_chunks(wanted, limit, chosen):
    assert choose_overlap(wanted, limit) == chosen


def test_the_pooler_configs_chunks_are_the_servers_where_it_has_no_rule(tmp_path):
    config = {"enable_chunked_processing": True, "max_embed_len": 99}
    arguments = [ModelArguments(model=write_artifact(tmp_path / "a"), pooler_config=config)]
    for long_text, kind, overlap in (("error", "chunk", 0), ("truncate", "truncate", 4), ("chunk", "chunk", 4)):
        registry = open_registry(arguments, EngineSettings(warm_up_seconds=0.0, long_text=long_text), NullObserver())
        assert registry.models[0].runner.long_texts == LongTexts(kind=kind, overlap=overlap, max_tokens=99)
        asyncio.run(registry.close(1))


def test_an_overlap_that_makes_too_many_chunks():
    with pytest.raises(InputError, match="the model's limit, may share 128 tokens at most, got 129"):
        choose_overlap(129, 512)


def test_the_budget_of_a_batch_may_be_set(tmp_path):
    settings = EngineSettings(warm_up_seconds=0.0, max_batch_tokens=77)
    registry = open_registry([ModelArguments(model=write_artifact(tmp_path / "a"))], settings, NullObserver())
    assert registry.models[0].engine._rules.slots.max_batch_tokens == 77
    asyncio.run(registry.close(1))
