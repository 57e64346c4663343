"""Values that no field expects, in every field of every route: each gets an answer, and none a 5xx."""

from __future__ import annotations

import random

import msgspec
import pytest
from good_bodies import GOOD

ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, 1e308, -0.0),
    *("", " ", "w1", "\x00", "é" * 3, "../../etc/passwd", "http://example.org/x", "{{ 1 }}{% for i in x %}", "w" * 500),
    *([], {}, [None], [[]], [[[]]], [1, "a"], [-1], [2**70], [True], ["w1", 2], [{"role": "user", "content": "w1"}]),
    *({"a": 1}, {"content": []}, {"content": [{"type": "image_url"}]}, {"chunk_size": 1}, [{"content": None}]),
    *({"source_sentence": "w1", "sentences": []}, {"messages": 1, "chat_template": "x"}, [[2, 3], "w1"]),
)


def read_fields(site, path):
    schemas = site.get("/openapi.json").json()["components"]["schemas"]
    body = site.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    return sorted(set(schemas[name]["properties"]) - {"model"})


@pytest.mark.parametrize("kind", ["chatty", "reranker", "tokens"])
def test_odd_values(make_site, kind):
    site = make_site(kind, trust_request_chat_template=True, max_texts=50, max_text_chars=400)
    paths = {path for path, methods in site.get("/openapi.json").json()["paths"].items() if "post" in methods}
    random.seed(5)
    statuses = set()
    for path, good in GOOD.items():
        if path not in paths:
            continue
        fields = read_fields(site, path)
        bodies = [good | {field: value} for field in fields for value in random.sample(ODD, 12)]
        bodies += [
            good | {field: random.choice(ODD) for field in random.sample(fields, min(3, len(fields)))}
            for _ in range(20)
        ]
        answers = site.post_all(path, [msgspec.json.encode(body) for body in bodies])
        for body, answer in zip(bodies, answers, strict=True):
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 413), (path, body, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()) == {"error"}
    assert statuses == {200, 400, 413}
