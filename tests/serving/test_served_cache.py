import asyncio

import numpy as np
import pytest
from fake_batches import in_loop, until
from live_model import Server, make_texts, vectors
from tiny_artifact import write_artifact

from poolgraph import PoolingModel, PoolingParams


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("served") / "artifact")


@in_loop
async def test_the_cache_answers_with_the_same_bits(artifact):
    async with Server(artifact, cache_bytes=1 << 20) as server:
        texts = make_texts(20, seed=9)
        fresh = vectors(await server.ask(texts))
        await until(lambda: server.num_ran == 20)
        assert vectors(await server.ask(texts[:7])).tobytes() == fresh[:7].tobytes()
        await asyncio.sleep(0.02)
        assert server.num_ran == 20
        raw = vectors(await server.ask(texts[0], params=PoolingParams(use_activation=False)))
        assert abs(np.linalg.norm(raw) - 1) > 0.01
        mixed = [texts[3], "w9 w9 w9", texts[5], "w8 w1"]
        with PoolingModel.load(artifact) as model:
            assert vectors(await server.ask(mixed)).tobytes() == model.embed(mixed, prompt="").tobytes()
        (tokens,) = await server.ask(texts[0], "token_embed")
        assert tokens.outputs.data.ndim == 2
        assert server.observer.of("cache") == [(0, 20), (7, 0), (1, 0), (2, 2), (0, 1)]
        (again,) = await server.ask(texts[0], "token_embed")
        assert again.outputs == tokens.outputs


@in_loop
async def test_the_cache_on_disk_outlives_the_process(artifact, tmp_path):
    texts, file = make_texts(20, seed=11), tmp_path / "cache" / "answers.sqlite"
    answers, hits = [], []
    for _ in range(2):
        async with Server(artifact, cache_bytes=1 << 20, cache_path=file) as server:
            answers.append(vectors(await server.ask(texts)))
            hits.append(server.observer.of("cache"))
    assert answers[0].tobytes() == answers[1].tobytes()
    assert hits == [[(0, 20)], [(20, 0)]]


@in_loop
async def test_both_levels_of_the_cache_and_the_model_answer_one_request(artifact, tmp_path):
    """Some texts in memory, some in the file alone, some nowhere; also all of them in memory, with a file behind."""
    texts, file = make_texts(9, seed=12), tmp_path / "answers.sqlite"
    async with Server(artifact, cache_bytes=1 << 20, cache_path=file) as server:
        fresh = vectors(await server.ask(texts))
        assert vectors(await server.ask(texts)).tobytes() == fresh.tobytes()
        (alone,) = await server.ask(texts[4])
        assert alone.outputs.data.tobytes() == fresh[4].tobytes()
    async with Server(artifact, cache_bytes=1 << 20, cache_path=file) as server:
        await server.ask(texts[:3])
        mixed = [texts[1], "w9 w9 w9", *texts[2:]]
        with PoolingModel.load(artifact) as model:
            assert vectors(await server.ask(mixed)).tobytes() == model.embed(mixed, prompt="").tobytes()
        assert server.observer.of("cache") == [(3, 0), (len(mixed) - 1, 1)]
