import asyncio
import random
import threading

import numpy as np
import pytest
from fake_batches import in_loop, until
from live_model import IDS, Server, make_texts, vectors
from tiny_artifact import SIZE, write_artifact

from poolgraph import PoolingModel, PoolingParams
from poolgraph.errors import InputError, SessionError
from poolgraph.graphs.probe_files import save_probes
from poolgraph.runtime.requests import read_options
from poolgraph.runtime.score_request import plan_score_request
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.serving.engine_errors import AnswerTooLarge, DeadlineExceeded, EngineStopped, NotReady, QueueFull
from poolgraph.serving.urgency import Urgency


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("served") / "artifact")


@in_loop
async def test_two_hundred_clients_get_the_bits_of_the_direct_call(artifact):
    rng = random.Random(5)
    texts = make_texts(400)
    with PoolingModel.load(artifact) as model:
        expected = dict(zip(texts, model.embed(texts, prompt=""), strict=True))
        rows = dict(zip(texts, model.token_embed(texts, prompt=""), strict=True))
    async with Server(artifact) as server:
        num_wrong, num_answers = 0, 0

        async def client(number):
            nonlocal num_wrong, num_answers
            for _ in range(8):
                chosen = rng.choices(texts, k=rng.choice([1, 1, 1, 3, 40]))
                task, oracle = ("token_embed", rows) if rng.random() < 0.2 else ("embed", expected)
                asked = asyncio.create_task(server.ask(chosen, task, num_chars=rng.choice([10, 99999])))
                if rng.random() < 0.05:
                    await asyncio.sleep(0)
                    asked.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await asked
                    continue
                for text, output in zip(chosen, await asked, strict=True):
                    num_answers += 1
                    num_wrong += output.outputs.data.tobytes() != oracle[text].tobytes()

        await asyncio.gather(*map(client, range(200)))
        assert num_answers > 5000
        assert num_wrong == 0
        assert server.model.engine.is_idle


@in_loop
async def test_options_and_errors_are_those_of_llm(artifact):
    async with Server(artifact) as server:
        (raw,) = await server.ask("w1 w2", params=PoolingParams(use_activation=False))
        assert abs(np.linalg.norm(raw.outputs.data) - 1) > 0.01
        for num_chars in (10, 99999):
            with pytest.raises(InputError, match="maximum context length is 16"):
                await server.ask("w1 " * 20, num_chars=num_chars)
            with pytest.raises(SessionError, match="text 1 holds NaN"):
                await server.ask(["w1", "nan"], num_chars=num_chars)
        assert server.observer.of("failed") == [("nan",), ("nan",)]
        assert len(await server.ask("w1")) == 1


@in_loop
async def test_little_is_tokenized_in_the_event_loop_and_more_in_a_thread(artifact):
    async with Server(artifact, inline_chars=10) as server:
        in_the_loop = []

        def work():
            in_the_loop.append(threading.current_thread() is threading.main_thread())
            outputs = yield from server.work("w1")()
            in_the_loop.append(threading.current_thread() is threading.main_thread())
            return outputs

        for num_chars in (10, 11):
            assert len(await server.model.answer(work, num_chars=num_chars)) == 1
        assert in_the_loop == [True, True, False, False]


@in_loop
async def test_scores_go_through_the_queue(artifact):
    async with Server(artifact) as server:
        options = read_options(
            pooling_params=None,
            use_tqdm=False,
            lora_request=None,
            tokenization_kwargs=None,
            truncate_prompt_tokens=None,
        )
        runner = server.model.runner
        request = plan_score_request(runner, ["w1 w2"], ["w1 w2", "w3"], options, None)
        outputs = await server.model.answer(lambda: answer_scores(runner, request, IDS), num_chars=10)
        with PoolingModel.load(artifact) as model:
            expected = model.score("w1 w2", ["w1 w2", "w3"])
        np.testing.assert_allclose([output.outputs.score for output in outputs], expected, rtol=1e-6)
        await until(lambda: server.num_ran == 3)


@in_loop
async def test_a_cancelled_request_leaves_the_queue(artifact, monkeypatch):
    async with Server(artifact) as server:
        gate = server.hold(monkeypatch)
        running = asyncio.create_task(server.ask("w1"))
        await until(lambda: len(server.batches) == 1)
        waiting = asyncio.create_task(server.ask(["w1 w2"] * 3))
        await until(lambda: server.observer.last_queue == (3, 12))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert server.observer.last_queue == (0, 0)
        assert server.observer.of("dropped") == [("disconnected", 3)]
        gate.set()
        assert len(await running) == 1
        await until(lambda: server.num_ran == 1)


@in_loop
async def test_a_deadline_passes_while_the_model_is_busy(artifact, monkeypatch):
    async with Server(artifact) as server:
        gate = server.hold(monkeypatch)
        running = asyncio.create_task(server.ask("w1", urgency=Urgency(timeout=0.05)))
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineExceeded, match=r"within its 0\.02 s"):
            await server.ask("w2", urgency=Urgency(timeout=0.02))
        gate.set()
        assert len(await running) == 1
        assert server.observer.of("dropped") == [("deadline", 1)]


@in_loop
async def test_a_full_queue_is_an_error_of_the_request(artifact, monkeypatch):
    async with Server(artifact, max_queue_tokens=10) as server:
        gate = server.hold(monkeypatch)
        first = asyncio.create_task(server.ask("w1"))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(server.ask(["w1"] * 5))
        await until(lambda: server.observer.last_queue == (5, 15))
        with pytest.raises(QueueFull) as caught:
            await server.ask("w1")
        assert caught.value.retry_after == 1
        gate.set()
        assert [len(outputs) for outputs in await asyncio.gather(first, second)] == [1, 5]


@in_loop
async def test_closing_finishes_what_is_under_way_and_refuses_the_rest(artifact, monkeypatch):
    server = Server(artifact)
    gate = server.hold(monkeypatch)
    running = asyncio.create_task(server.ask(["w1", "w2 w3"]))
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(server.registry.close(5))
    await asyncio.sleep(0.02)
    assert not server.model.is_alive
    with pytest.raises(EngineStopped, match="is closing"):
        await server.ask("w1")
    gate.set()
    await closing
    assert len(await running) == 2


@in_loop
async def test_what_the_grace_is_too_short_for_fails(artifact, monkeypatch):
    server = Server(artifact)
    gate = server.hold(monkeypatch)
    running = asyncio.create_task(server.ask("w1"))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(server.ask("w2"))
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(server.registry.close(0.05))
    with pytest.raises(EngineStopped, match="was closed before"):
        await waiting
    gate.set()
    await closing
    assert len(await running) == 1


@in_loop
async def test_truncate(artifact):
    async with Server(artifact, long_text="truncate") as server:
        (output,) = await server.ask("w1 " * 20)
        assert (len(output.prompt_token_ids), output.num_truncated_tokens) == (16, 6)
        (own,) = await server.ask("w1 " * 20, truncate_prompt_tokens=5)
        assert (len(own.prompt_token_ids), own.num_truncated_tokens) == (5, 17)


@in_loop
async def test_long_texts_are_embedded_chunk_by_chunk(artifact):
    words = [f"w{number}" for number in range(32)]
    async with Server(artifact, long_text="chunk", chunk_overlap=3) as server:
        long, short = await server.ask([" ".join(words), "w1 w2"])
        with PoolingModel.load(artifact) as model:
            spans = [words[0:14], words[11:25], words[22:32]]
            chunks = model.embed([" ".join(span) for span in spans], prompt="", normalize=False).astype(np.float64)
            alone = model.embed("w1 w2", prompt="")[0]
        chunks /= np.linalg.norm(chunks, axis=1, keepdims=True)
        mean = np.average(chunks, axis=0, weights=[14, 14, 10])
        np.testing.assert_allclose(long.outputs.data, mean / np.linalg.norm(mean), rtol=1e-5)
        assert (long.text_chunks.num_chunks, long.text_chunks.num_tokens) == (3, 16 + 16 + 12)
        assert (len(long.prompt_token_ids), long.num_truncated_tokens) == (34, 0)
        assert short.outputs.data.tobytes() == alone.tobytes()
        assert short.text_chunks is None
        (as_ids,) = await server.ask([long.prompt_token_ids])
        assert (as_ids.text_chunks.num_chunks, as_ids.text_chunks.num_tokens) == (3, 16 + 16 + 8)
        assert as_ids.prompt_token_ids == long.prompt_token_ids
        assert np.linalg.norm(as_ids.outputs.data) == pytest.approx(1.0)
        with pytest.raises(InputError, match="maximum context length"):
            await server.ask(" ".join(words), "token_embed")
        (cut,) = await server.ask(" ".join(words), truncate_prompt_tokens=-1)
        assert (cut.num_truncated_tokens, cut.text_chunks) == (18, None)


@in_loop
async def test_readiness_needs_the_stored_answer(tmp_path):
    path = write_artifact(tmp_path / "artifact")
    with PoolingModel.load(path) as model:
        texts = ["w1 w2 w3", "w4", "w5 w6"]
        raw = model.run_sequence(model.tokenizer.encode(texts))
    for number, wrong in enumerate((0.0, 0.5)):
        folder = write_artifact(tmp_path / f"probed{number}")
        save_probes(folder, texts, "", list(raw + wrong), None)
        async with Server(folder) as server:
            assert server.model.probe.text.input_ids.tolist() == [2, 8, 3]
            if wrong:
                with pytest.raises(NotReady, match="to the reference"):
                    await server.model.check_ready()
                assert server.observer.of("failed") == [("ready",)]
                continue
            await server.model.check_ready()
            server.model.is_warm = False
            with pytest.raises(NotReady, match="warming up"):
                await server.model.check_ready()


@in_loop
async def test_readiness_without_stored_answers_needs_the_first_one_again(artifact, monkeypatch):
    async with Server(artifact) as server:
        await server.model.check_ready()
        await server.model.check_ready()
        real = server.model.runner.model.run_batch

        def run_batch(*args, **kwargs):
            answer = real(*args, **kwargs)
            answer.rows[:] += 1e-3
            return answer

        monkeypatch.setattr(server.model.runner.model, "run_batch", run_batch)
        with pytest.raises(NotReady, match="to the first answer"):
            await server.model.check_ready()


@in_loop
@pytest.mark.parametrize(
    ("settings", "urgency"),
    [({"max_queue_tokens": 100}, {}), ({}, {"urgency": Urgency(priority=-(1 << 31))})],
    ids=["behind the queue", "behind the most urgent client"],
)
async def test_readiness_does_not_wait(settings, urgency, artifact, monkeypatch):
    async with Server(artifact, **settings) as server:
        gate = server.hold(monkeypatch)
        flood = asyncio.create_task(server.ask(make_texts(500), **urgency))
        await until(lambda: len(server.batches) == server.model.engine._rules.slots.runs)
        waiting = server.observer.last_queue[0]
        check = asyncio.create_task(server.model.check_ready())
        await until(lambda: server.observer.last_queue[0] == waiting + 1)
        held = len(server.batches)
        gate.set()
        await asyncio.gather(check, flood)
        assert [server.model.probe.text.input_ids.tolist()] in server.batches[held : held + 2]


@in_loop
async def test_many_who_ask_for_readiness_share_one_probe(artifact, monkeypatch):
    async with Server(artifact) as server:
        gate = server.hold(monkeypatch)
        checks = [asyncio.create_task(server.model.check_ready()) for _ in range(50)]
        await until(lambda: len(server.batches) == 1)
        checks[0].cancel()
        gate.set()
        results = await asyncio.gather(*checks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [None] * 49
        assert len(server.batches) == 1
        await server.model.check_ready()
        assert len(server.batches) == 2


@in_loop
async def test_answers_that_would_not_fit_are_refused_before_they_are_computed(artifact):
    most, limit = 10, 10 * 4 * SIZE
    async with Server(artifact, max_answer_bytes=limit) as server:
        assert len(await server.ask(["w1"] * 100)) == 100
        (rows,) = await server.ask(" ".join(["w1"] * (most - 2)), "token_embed")
        assert rows.outputs.data.shape == (most, SIZE)
        await until(lambda: server.num_ran == 101)
        with pytest.raises(AnswerTooLarge, match=f"would take {limit + 4 * SIZE} bytes; this server allows {limit}"):
            await server.ask(" ".join(["w1"] * (most - 1)), "token_embed")
        await server.ask("w2")
        await until(lambda: server.num_ran == 102)


def test_a_model_of_another_limit(artifact):
    async def main():
        async with Server(artifact, arguments={"max_model_len": 5}) as server:
            assert server.model.manifest.limits.max_model_len == 5
            with pytest.raises(InputError, match="maximum context length is 5"):
                await server.ask("w1 w2 w3 w4")

    asyncio.run(main())


@in_loop
async def test_padded_batches_mix_lengths(tmp_path, monkeypatch):
    path = write_artifact(tmp_path / "padded", variants=("portable_fp32",))
    texts = make_texts(60, seed=4)
    with PoolingModel.load(path) as model:
        expected = model.embed(texts, prompt="")
    async with Server(path) as server:
        gate = server.hold(monkeypatch)  # so that texts wait together, however fast the model is
        asked = asyncio.gather(*(server.ask(text) for text in texts))
        await until(lambda: server.batches and server.observer.last_queue[0] + sum(map(len, server.batches)) == 60)
        gate.set()
        np.testing.assert_allclose(vectors([one for (one,) in await asked]), expected, rtol=1e-5, atol=1e-6)
        await until(lambda: server.num_ran == 60)
        assert any(padded > real for _, real, padded in server.observer.of("ran"))
        await server.model.check_ready()


@pytest.mark.parametrize("task", ["embed", "token_embed"])
@in_loop
async def test_packed_batches_mix_lengths_and_compute_no_padding(tmp_path, monkeypatch, task):
    path = write_artifact(tmp_path / "packed", variants=("packed_fp32",))
    texts = make_texts(60, seed=4)
    with PoolingModel.load(path) as model:
        expected = getattr(model, task)(texts, prompt="")
    async with Server(path) as server:
        runs = server.model.engine._rules.slots.runs
        gate = server.hold(monkeypatch)
        first = asyncio.create_task(server.ask(make_texts(60, seed=5), task))
        await until(lambda: len(server.batches) == runs)  # every slot is taken when the texts come
        waiting = server.observer.last_queue[0]
        asked = asyncio.gather(*(server.ask(text, task) for text in texts))
        await until(lambda: server.observer.last_queue[0] == waiting + 60)
        gate.set()
        for (answer,), rows in zip(await asked, expected, strict=True):
            np.testing.assert_allclose(answer.outputs.data, rows, rtol=1e-5, atol=1e-6)
        await first
        await until(lambda: server.num_ran == 120)
        assert all(padded == real for _, real, padded in server.observer.of("ran"))
        largest = max(server.batches[runs:], key=len)
        assert len(largest) >= 30 / runs  # an even share of what waits, in texts of 16 tokens
        assert len(set(map(len, largest))) > 1
        await server.model.check_ready()


@in_loop
async def test_a_model_that_died_says_so_and_comes_back(artifact, monkeypatch):
    async with Server(artifact, restart_delay=0.05) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.model.runner.model, "run_batch", lambda *_, **__: 1 / 0)
            with pytest.raises(EngineStopped, match="died of ZeroDivisionError"):
                await server.ask("w1")
            assert not server.model.is_alive
        await until(lambda: server.model.is_alive)
        assert len(await server.ask("w1")) == 1
