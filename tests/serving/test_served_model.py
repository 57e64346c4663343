import asyncio
import random
import threading
from itertools import count

import numpy as np
import pytest
from fake_batches import Recorder, in_loop, until
from tiny_artifact import SIZE, write_artifact

from poolgraph import PoolingModel, PoolingParams
from poolgraph.errors import InputError, SessionError
from poolgraph.graphs.probe_files import save_probes
from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.runtime.prompts import parse_prompts
from poolgraph.runtime.requests import read_options
from poolgraph.runtime.score_request import plan_score_request
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.serving.engine_errors import AnswerTooLarge, DeadlineExceeded, EngineStopped, NotReady, QueueFull
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.registry import open_registry
from poolgraph.serving.urgency import Urgency

IDS = count()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("served") / "artifact")


class Server:
    """One served model, closed with the test."""

    def __init__(self, artifact, *, grace=5.0, arguments=(), **settings):
        self.observer, self.grace, self.batches = Recorder(), grace, []
        settings = EngineSettings(**{"warm_up_seconds": 0.2} | settings)
        self.registry = open_registry([ModelArguments(model=artifact, **dict(arguments))], settings, self.observer)
        self.model = self.registry.find(None)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.registry.close(self.grace)

    @property
    def num_ran(self):
        """Texts that ran; told after their answers were handed over."""
        return sum(event[0] for event in self.observer.of("ran"))

    def work(self, prompts, task="embed", params=None, **kwargs):
        options = read_options(
            pooling_params=params,
            use_tqdm=False,
            lora_request=None,
            tokenization_kwargs=kwargs or None,
            truncate_prompt_tokens=None,
        )
        return lambda: self.model.runner.answer_prompts(parse_prompts(prompts), task, options, IDS)

    async def ask(self, prompts, *args, urgency=Urgency(), num_chars=10, **kwargs):  # noqa: B008 - frozen
        return await self.model.answer(self.work(prompts, *args, **kwargs), urgency, num_chars=num_chars)

    def hold(self, monkeypatch):
        """Keep batches from ending until the event that is returned is set, and list them in ``batches``."""
        gate, real = threading.Event(), self.model.runner.model.run_batch

        def run_batch(texts, *args, **kwargs):
            self.batches.append([text.input_ids.tolist() for text in texts])
            assert gate.wait(10)
            return real(texts, *args, **kwargs)

        monkeypatch.setattr(self.model.runner.model, "run_batch", run_batch)
        return gate


def vectors(outputs):
    return np.stack([output.outputs.data for output in outputs])


def make_texts(number, seed=0, longest=14):
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randint(1, longest))) for _ in range(number)]


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
        mean = np.average(chunks, axis=0, weights=[14, 14, 10])
        np.testing.assert_allclose(long.outputs.data, mean / np.linalg.norm(mean), rtol=1e-5)
        assert (long.text_chunks.num_chunks, long.text_chunks.num_tokens) == (3, 16 + 16 + 12)
        assert (len(long.prompt_token_ids), long.num_truncated_tokens) == (34, 0)
        assert short.outputs.data.tobytes() == alone.tobytes()
        assert short.text_chunks is None
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
async def test_readiness_does_not_wait_behind_the_queue(artifact, monkeypatch):
    async with Server(artifact, max_queue_tokens=100) as server:
        gate = server.hold(monkeypatch)
        flood = asyncio.create_task(server.ask(make_texts(500)))
        await until(lambda: len(server.batches) == server.model.engine._rules.slots.runs)
        waiting = server.observer.last_queue[0]
        check = asyncio.create_task(server.model.check_ready())
        await until(lambda: server.observer.last_queue[0] == waiting + 1)
        held = len(server.batches)
        gate.set()
        await asyncio.gather(check, flood)
        assert [server.model.probe.text.input_ids.tolist()] in server.batches[held : held + 2]


@in_loop
async def test_no_client_is_more_urgent_than_readiness(artifact, monkeypatch):
    async with Server(artifact) as server:
        gate = server.hold(monkeypatch)
        urgent = Urgency(priority=-(1 << 31))
        flood = asyncio.create_task(server.ask(make_texts(500), urgency=urgent))
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


def test_a_model_of_another_limit(artifact):
    async def main():
        async with Server(artifact, arguments={"max_model_len": 5}) as server:
            assert server.model.manifest.limits.max_model_len == 5
            with pytest.raises(InputError, match="maximum context length is 5"):
                await server.ask("w1 w2 w3 w4")

    asyncio.run(main())


@in_loop
async def test_padded_batches_mix_lengths(tmp_path):
    path = write_artifact(tmp_path / "padded", variants=("portable_fp32",))
    texts = make_texts(60, seed=4)
    with PoolingModel.load(path) as model:
        expected = model.embed(texts, prompt="")
    async with Server(path) as server:
        answers = await asyncio.gather(*(server.ask(text) for text in texts))
        np.testing.assert_allclose(vectors([one for (one,) in answers]), expected, rtol=1e-5, atol=1e-6)
        await until(lambda: server.num_ran == 60)
        assert any(padded > real for _, real, padded in server.observer.of("ran"))
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
