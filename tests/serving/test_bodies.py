"""Bodies whose fields are null where another default is meant, or numbers in another form."""

from __future__ import annotations

import msgspec
import pytest
from good_bodies import GOOD

from poolgraph.serving import bodies
from poolgraph.serving.bodies import build_decoder
from poolgraph.serving.schema_cohere import CohereEmbedRequest
from poolgraph.serving.schema_embeddings import EmbeddingsRequest
from poolgraph.serving.schema_pooling import ClassifyRequest, PoolingRequest
from poolgraph.serving.schema_tei import TeiEmbedRequest, TeiPredictRequest
from poolgraph.serving.schema_tokens import TokenizeRequest

DEFAULTS = {
    "/v1/embeddings": ("encoding_format", "embed_dtype", "endianness", "priority", "add_generation_prompt"),
    "/v2/embed": ("truncate", "priority"),
    "/pooling": ("encoding_format", "priority"),
    "/rerank": ("top_n", "max_tokens_per_doc"),
    "/tokenize": ("add_generation_prompt", "return_token_strs"),
    "/embed": ("normalize", "truncation_direction"),
    "/embed_all": ("truncation_direction",),
}


@pytest.mark.parametrize(("path", "fields"), DEFAULTS.items())
def test_null_is_what_is_left_out(make_site, path, fields):
    site = make_site()
    expected = site.post(path, GOOD[path])
    answer = site.post(path, GOOD[path] | dict.fromkeys(fields))
    assert answer.status_code == expected.status_code == 200
    unlike = {"id", "created"}
    got, wanted = answer.json(), expected.json()
    if isinstance(wanted, dict):
        got, wanted = ({key: value for key, value in one.items() if key not in unlike} for one in (got, wanted))
    assert got == wanted


@pytest.mark.parametrize(
    ("path", "plain", "loose"),
    [
        ("/v1/embeddings", {"dimensions": 4}, {"dimensions": 4.0}),
        ("/v1/embeddings", {"dimensions": 4, "priority": 0}, {"dimensions": "4", "priority": None}),
        ("/v1/embeddings", {"input": [5, 6]}, {"input": [5.0, 6.0]}),
        ("/rerank", {"top_n": 1}, {"top_n": 1.0}),
        ("/embed", {"normalize": False}, {"normalize": "false"}),
        ("/embed", {"inputs": "12", "dimensions": 4}, {"inputs": "12", "dimensions": 4.0}),
    ],
)
def test_numbers_in_another_form(make_site, path, plain, loose):
    """What pydantic reads by default, and so vLLM."""
    site = make_site()
    expected, answer = (site.post(path, GOOD[path] | fields) for fields in (plain, loose))
    assert answer.status_code == expected.status_code == 200, answer.text
    got, wanted = answer.json(), expected.json()
    keys = ("data", "results")
    assert got == wanted or [got.get(key) for key in keys] == [wanted.get(key) for key in keys]


@pytest.mark.parametrize("value", [4.5, "4.5", "four", [4], {}])
def test_what_is_no_number(make_site, value):
    answer = make_site().post("/v1/embeddings", GOOD["/v1/embeddings"] | {"dimensions": value})
    assert answer.status_code == 400
    assert "('body', 'dimensions')" in answer.json()["error"]["message"]


def test_null_of_predict(make_site):
    site = make_site("classifier")
    body = {"inputs": "w1", "raw_scores": None, "truncation_direction": None}
    assert site.post("/predict", body).json() == site.post("/predict", {"inputs": "w1"}).json()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/embeddings", EmbeddingsRequest),
        ("/v2/embed", CohereEmbedRequest),
        ("/pooling", PoolingRequest),
        ("/classify", ClassifyRequest),
        ("/tokenize", TokenizeRequest),
        ("/embed", TeiEmbedRequest),
        ("/predict", TeiPredictRequest),
    ],
)
def test_every_field_with_a_default_takes_null(path, kind):
    decode = build_decoder(kind)
    optional = [field.encode_name for field in msgspec.structs.fields(kind) if not field.required]
    assert len(optional) > 3
    assert decode(msgspec.json.encode(dict.fromkeys(optional) | GOOD[path])) == decode(msgspec.json.encode(GOOD[path]))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (EmbeddingsRequest, b'{"input": 5}'),
        (EmbeddingsRequest, b'{"input": 5, "user": null}'),
        (EmbeddingsRequest, b'{"encoding_format": "null"}'),
        (EmbeddingsRequest, b'{"priority": [null]}'),
        (EmbeddingsRequest, b"null"),
        (EmbeddingsRequest, b"[null]"),
        (EmbeddingsRequest, b'{"priority": null, "input": '),
        (EmbeddingsRequest, b'{"priority": null}}'),
        (EmbeddingsRequest, b'{"late_chunking_params": {"chunk_size": null}}'),
        (TeiEmbedRequest, b'{"inputs": null, "normalize": true}'),
    ],
)
def test_other_errors_are_those_of_msgspec(kind, body):
    with pytest.raises(msgspec.DecodeError) as plain:
        msgspec.json.decode(body, type=kind)
    with pytest.raises(msgspec.DecodeError) as own:
        build_decoder(kind)(body)
    assert (type(own.value), str(own.value)) == (type(plain.value), str(plain.value))


def test_what_else_is_wrong_is_told():
    with pytest.raises(msgspec.ValidationError, match=r"at `\$.input`"):
        build_decoder(EmbeddingsRequest)(b'{"priority": null, "input": 5}')


def test_a_body_that_fits_is_read_once(monkeypatch):
    monkeypatch.setattr(bodies, "_build_dropper", lambda kind: None)
    found = build_decoder(EmbeddingsRequest)(b'{"input": "w1", "dimensions": null, "unknown": null}')
    assert found == EmbeddingsRequest(input="w1")
