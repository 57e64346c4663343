"""Queries that a table answers go the way of all texts: queue, limits, cache, metrics."""

import asyncio

import numpy as np
import pytest
from fake_batches import in_loop, until
from live_model import Server
from tiny_router import save_router

from poolgraph import PoolingModel, PoolingParams, export_model
from poolgraph.errors import InputError
from poolgraph.serving.engine_errors import DeadlineExceeded, QueueFull
from poolgraph.serving.urgency import Urgency

QUERY = PoolingParams(extra_kwargs={"side": "query"})
TEXTS = ["the lazy dog", "a quick fox", "fox fox a fox", "", "dog"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    export_model(save_router(folder / "checkpoint"), folder / "artifact")
    return folder / "artifact"


@pytest.fixture(scope="module")
def expected(artifact):
    with PoolingModel.load(artifact) as model:
        return {side: model.embed(TEXTS, side=side) for side in ("query", "document")}


def rows(outputs):
    return np.stack([output.outputs.data for output in outputs])


@in_loop
async def test_queries_run_as_batches_of_the_queue(artifact, expected):
    async with Server(artifact) as server:
        assert np.array_equal(rows(await server.ask(TEXTS, params=QUERY)), expected["query"])
        await until(lambda: server.num_ran == len(TEXTS))
        assert sum(event[1] for event in server.observer.of("ran")) == 11, "the tokens of all texts"
        assert np.array_equal(rows(await server.ask(["", ""], params=QUERY)), expected["query"][[3, 3]])


@in_loop
async def test_a_full_queue_refuses_queries(artifact, monkeypatch):
    async with Server(artifact, max_queue_tokens=2) as server:
        gate = server.hold(monkeypatch)
        first = asyncio.create_task(server.ask("fox", params=QUERY))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(server.ask(["fox", ""], params=QUERY))
        await until(lambda: server.observer.last_queue == (2, 2))
        with pytest.raises(QueueFull):
            await server.ask("fox", params=QUERY)
        gate.set()
        assert [len(outputs) for outputs in await asyncio.gather(first, second)] == [1, 2]


@in_loop
async def test_a_deadline_holds_for_queries(artifact, monkeypatch):
    async with Server(artifact) as server:
        gate = server.hold(monkeypatch)
        running = asyncio.create_task(server.ask("fox", params=QUERY))
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineExceeded):
            await server.ask("a dog", params=QUERY, urgency=Urgency(timeout=0.02))
        gate.set()
        assert len(await running) == 1
        assert server.observer.of("dropped") == [("deadline", 1)]


@in_loop
async def test_a_query_is_never_answered_with_a_documents_vector(artifact, expected, tmp_path):
    """Token ids of a document, special tokens included, as a query: equal tokens, another answer."""
    async with Server(artifact, cache_bytes=1 << 22, cache_path=tmp_path / "answers.sqlite") as server:
        documents = await server.ask(TEXTS)
        assert np.array_equal(rows(documents), expected["document"])
        ids = documents[0].prompt_token_ids
        (first,), (again,) = await server.ask([ids], params=QUERY), await server.ask([ids], params=QUERY)
        assert not np.array_equal(first.outputs.data, expected["document"][0])
        assert np.count_nonzero(first.outputs.data) <= len(ids)
        assert np.array_equal(again.outputs.data, first.outputs.data)
        assert server.observer.of("cache") == [(0, 5), (0, 1), (1, 0)]
        assert np.array_equal(rows(await server.ask([ids])), expected["document"][:1])
        assert np.array_equal(rows(await server.ask(TEXTS, params=QUERY)), expected["query"])
    async with Server(artifact, cache_bytes=1 << 22, cache_path=tmp_path / "answers.sqlite") as server:
        assert np.array_equal(rows(await server.ask(TEXTS, params=QUERY)), expected["query"])
        assert server.observer.of("cache") == [(5, 0)]


@in_loop
async def test_clients_of_both_sides_at_once(artifact, expected):
    async with Server(artifact, cache_bytes=1 << 22) as server:

        async def client(number):
            kinds = ["query" if (number + place) % 3 else "document" for place in range(len(TEXTS))]
            params = [QUERY if kind == "query" else PoolingParams() for kind in kinds]
            for _ in range(4):
                found = rows(await server.ask(TEXTS, params=params, num_chars=10 if number % 2 else 99999))
                assert np.array_equal(found, [expected[kind][place] for place, kind in enumerate(kinds)])

        await asyncio.gather(*map(client, range(40)))
        assert server.model.engine.is_idle


@in_loop
async def test_long_queries_are_cut_or_refused_but_never_chunked(artifact):
    long = "fox " * 30 + "dog " * 30
    with PoolingModel.load(artifact) as model, pytest.warns(UserWarning, match="were cut"):
        cut = model.embed([long], side="query", truncate=True)
    async with Server(artifact, long_text="truncate") as server:
        (output,) = await server.ask([long], params=QUERY)
        assert np.array_equal(output.outputs.data, cut[0])
        assert output.num_truncated_tokens == 20
    async with Server(artifact, long_text="chunk") as server:
        with pytest.raises(InputError, match="the limit of queries is 40"):
            await server.ask([long], params=QUERY)
        (output,) = await server.ask([long * 4])
        assert output.text_chunks is not None
        (output,) = await server.ask([long], params=QUERY, truncate_prompt_tokens=-1)
        assert np.array_equal(output.outputs.data, cut[0])
