from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["the", "array", "of", "numbers", "is", "long", "and", "dense", "so", "it", "takes", "time"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def write_passages(number):
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, 90)) for _ in range(number)]


def test_texts_are_of_every_length_and_no_two_are_alike(tokenizer):
    from online_texts import LONGEST, SHORTEST, build_texts

    texts = build_texts(tokenizer, write_passages(50), 600)
    lengths = {len(encoding.ids) for encoding in tokenizer.encode_batch(texts)}
    assert len(set(texts)) == len(texts) == 600
    assert lengths == set(range(SHORTEST, LONGEST + 1))


def test_too_few_passages_are_said(tokenizer):
    from online_texts import build_texts

    with pytest.raises(ValueError, match="wanted 5000"):
        build_texts(tokenizer, write_passages(1), 5000)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n[1, 2]\n"


@pytest.mark.parametrize("size", [1, 5, 40, len(ANSWER)])
def test_answers_are_put_together_however_they_arrive(size):
    from online_client import ResponseParser

    parser = ResponseParser()
    for _ in range(2):
        parts = [parser.feed(ANSWER[start : start + size]) for start in range(0, len(ANSWER), size)]
        assert parts[-1] == b"[1, 2]\n"
        assert not any(parts[:-1])


@pytest.mark.parametrize(
    ("answer", "message"), [(ANSWER.replace(b"200", b"429"), "refused"), (ANSWER + b"x", "more bytes")]
)
def test_bad_answers_end_the_run(answer, message):
    from online_client import ResponseParser

    with pytest.raises(ValueError, match=message):
        ResponseParser().feed(answer)


def test_the_load_sends_each_request_once_and_keeps_samples():
    from online_client import SAMPLE_EVERY, run_load
    from online_texts import build_request

    seen = []

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            seen.append(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (length, seen[-1]))

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        requests = [build_request("/v1/embeddings", "m", f"text {index}") for index in range(20_000)]
        return await run_load(port, requests, 4, 0.2)

    load = asyncio.run(main())
    assert len(set(seen)) == len(seen) == len(load.answers)
    assert len(seen) > 4 * SAMPLE_EVERY
    assert sorted(load.samples) == [number for number in range(len(seen)) if number % SAMPLE_EVERY == 0]
    assert load.samples[SAMPLE_EVERY] == b'{"model": "m", "input": "text 16"}'


def test_latencies_leave_out_the_warm_up_and_what_ended_late():
    from online_client import summarize_answers

    answers = [(float(start), start + wait) for start, wait in enumerate([0.9, 0.002, 0.004, 0.006, 0.8])]
    summary = summarize_answers(answers, warm_up=1.0, until=4.0)
    assert summary["requests"] == 3
    assert summary["requests_per_s"] == pytest.approx(1.0)
    assert summary["p50_ms"] == pytest.approx(4.0)
    assert summary["max_ms"] == pytest.approx(6.0)


def test_answers_of_other_texts_are_found():
    from online_report import check_vectors

    vectors = np.eye(3, dtype=np.float32)
    assert check_vectors(vectors, vectors, exact=True) == 1.0
    near = vectors + np.float32(1e-3)
    assert check_vectors(near, vectors, exact=False) > 0.99
    with pytest.raises(ValueError, match="3 of 3 answers have other bits"):
        check_vectors(near, vectors, exact=True)
    with pytest.raises(ValueError, match="another text's"):
        check_vectors(vectors[[0, 2, 1]], vectors, exact=False)


def test_goals_are_judged_by_the_best_peer():
    from online_report import judge_goals

    def level(rate, p50):
        return {"requests_per_s": rate, "p50_ms": p50, "p99_ms": 3 * p50}

    servers = {
        "poolgraph": {"1": level(200.0, 5.0), "64": level(900.0, 70.0)},
        "slow": {"1": level(40.0, 25.0), "64": level(60.0, 900.0)},
        "fast": {"1": level(20.0, 50.0), "64": level(90.0, 700.0)},
    }
    summary = {"servers": servers, "offline": {"texts_per_s": 1000.0, "call_p50_ms": 4.0}}
    assert judge_goals(summary, "poolgraph") == {
        "share_of_offline_rate": 0.9,
        "p99_over_p50": 3.0,
        "lone_client_above_call_ms": 1.0,
        "times_best_peer_at_1": 5.0,
        "times_best_peer_at_64": 10.0,
    }
