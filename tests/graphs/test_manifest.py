"""The manifest: read strictly, written so that it reads back."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from poolgraph.errors import ArtifactError, ManifestError
from poolgraph.graphs.manifest import (
    FORMAT_VERSION,
    CheckRow,
    FileRecord,
    FloatRange,
    Graph,
    Limits,
    Manifest,
    Pooler,
    Report,
    Rewrites,
    Scoring,
    Source,
    Tensor,
    Tokenization,
    Variant,
    encode_manifest,
    parse_manifest,
)

ROW = CheckRow(
    variant="cpu_fp32",
    family="sequence",
    check="alone",
    num_texts=3,
    min_cosine=0.9999999,
    max_difference=1.5e-7,
    required_cosine=0.99999,
    allowed_difference=1e-4,
    passed=True,
)


def manifest(**changes: object) -> Manifest:
    graph = Graph(
        file="onnx/model.onnx",
        inputs=(Tensor(name="input_ids", dtype="int64", shape=("batch_size", "sequence_length")),),
        outputs=(Tensor(name="pooled", dtype="float32", shape=("batch_size", 4)),),
        raw_output="pooled",
    )
    variant = Variant(
        name="cpu_fp32",
        target="cpu",
        precision="fp32",
        layout="uniform",
        providers=("CPUExecutionProvider",),
        graphs={"sequence": graph},
        session_options={"graph_optimization_level": "basic"},
        passes=(Rewrites(name="fold_reshapes", rewrites=3),),
        verified=True,
    )
    made = Manifest(
        poolgraph_version="0.1.0",
        created="2026-11-01T00:00:00+00:00",
        source=Source(model="some/model", revision=None, content_hash="0" * 64),
        architecture="BertModel",
        tasks=("embed",),
        default_task="embed",
        pooler=Pooler(pooling=("mean",), embedding_size=4),
        limits=Limits(max_model_len=8, vocab_size=10),
        tokenization=Tokenization(pad_token_id=0),
        prompts={"query": "frage: ä"},
        variants=(variant,),
        report=Report(reference="torch", rows=(ROW,), versions={"torch": "2"}, cpu="some"),
        files={"onnx/model.onnx": FileRecord(size=1, sha256="1" * 64)},
    )
    return msgspec.structs.replace(made, **changes)


def edited(**changes: object) -> bytes:
    content = json.loads(encode_manifest(manifest()))
    content.update(changes)
    return json.dumps({key: value for key, value in content.items() if value is not ...}).encode()


def test_round_trip() -> None:
    data = encode_manifest(manifest())
    assert parse_manifest(data) == manifest()
    assert encode_manifest(parse_manifest(data)) == data
    assert data.endswith(b"}\n")
    assert "frage: ä".encode() in data


def test_the_same_content_gives_the_same_bytes_in_any_order() -> None:
    files = {name: FileRecord(size=1, sha256="1" * 64) for name in ("b", "a", "c")}
    backwards = dict(reversed(files.items()))
    assert encode_manifest(manifest(files=files)) == encode_manifest(manifest(files=backwards))


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 999, 0, -1])
def test_versions_that_this_package_does_not_read(version: int) -> None:
    with pytest.raises(
        ManifestError, match=rf"format_version is {version}; this poolgraph reads 1\.\.{FORMAT_VERSION}"
    ) as caught:
        parse_manifest(edited(format_version=version))
    assert "Export the checkpoint again" in str(caught.value)
    assert isinstance(caught.value, ArtifactError)


def test_a_newer_version_is_named_before_its_unknown_keys() -> None:
    newer = FORMAT_VERSION + 1
    with pytest.raises(ManifestError, match=f"format_version is {newer}"):
        parse_manifest(edited(format_version=newer, surprising_key=1))


def test_the_range_of_fp16_is_kept_and_older_manifests_have_none() -> None:
    record = FloatRange(largest=70000.0, float32=("linear_3",), calibration="3 texts")
    variant = msgspec.structs.replace(manifest().variants[0], float_range=record)
    kept = parse_manifest(encode_manifest(manifest(variants=(variant,))))
    assert kept.variants[0].float_range == record
    assert parse_manifest(edited(format_version=3)).variants[0].float_range is None


def test_how_pairs_become_messages_is_kept_and_older_manifests_say_nothing_of_it() -> None:
    scoring = Scoring(
        kind="cross_encoder",
        template="t.jinja",
        template_kwargs={"add_generation_prompt": True, "voice": "pool"},
        content_parts=True,
        add_special_tokens=False,
    )
    assert parse_manifest(encode_manifest(manifest(scoring=scoring))).scoring == scoring
    older = parse_manifest(edited(format_version=4, scoring={"kind": "cross_encoder", "template": "t.jinja"})).scoring
    assert older == Scoring(
        kind="cross_encoder", template="t.jinja", template_kwargs={}, content_parts=None, add_special_tokens=True
    )


def test_missing_version() -> None:
    with pytest.raises(ManifestError, match="format_version is None"):
        parse_manifest(edited(format_version=...))


@pytest.mark.parametrize("version", ["1", None, True, 1.5, [1]])
def test_version_of_another_type(version: object) -> None:
    with pytest.raises(ManifestError, match="is not a manifest"):
        parse_manifest(edited(format_version=version))


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ManifestError, match="surprising_key"):
        parse_manifest(edited(surprising_key=1))
    with pytest.raises(ManifestError, match="deep_key"):
        parse_manifest(edited(limits={"max_model_len": 8, "vocab_size": 10, "deep_key": 1}))


def test_missing_keys_are_named() -> None:
    with pytest.raises(ManifestError, match="architecture"):
        parse_manifest(edited(architecture=...))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tasks", "embed"),
        ("limits", {"max_model_len": "8", "vocab_size": 10}),
        ("limits", {"max_model_len": 8.5, "vocab_size": 10}),
        ("files", [1]),
        ("files", {"a": {"size": 1, "sha256": 5}}),
        ("prompts", {"query": None}),
        ("source", None),
    ],
)
def test_wrong_types(key: str, value: object) -> None:
    with pytest.raises(ManifestError, match="is not valid"):
        parse_manifest(edited(**{key: value}))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"1", b"not json", b'{"format_version": 1', b"\x80\x04."])
def test_not_json(data: bytes) -> None:
    with pytest.raises(ManifestError, match="is not a manifest"):
        parse_manifest(data)


@pytest.mark.parametrize(
    "data",
    [
        edited(architecture="X").replace(b'"X"', b'"\xff"'),
        b'{"format_version": "\xff"}',
        b'{"a":' * 100_000,
        edited(architecture=...).replace(b"{", b'{"architecture":' + b"[" * 100_000, 1),
    ],
    ids=["bad UTF-8", "bad UTF-8 in the version", "deep", "deep value"],
)
def test_bytes_that_no_json_reader_likes(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(data)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_without_a_form_in_json_never_make_a_manifest(number: float) -> None:
    row = msgspec.structs.replace(ROW, allowed_difference=number, max_difference=number)
    with pytest.raises(ManifestError, match="is not valid"):
        encode_manifest(manifest(report=Report(reference="torch", rows=(row,))))


def test_variant_by_name() -> None:
    assert manifest().variant("cpu_fp32").layout == "uniform"
    with pytest.raises(ManifestError, match=r"no variant 'cuda_fp16'; this artifact has \['cpu_fp32'\]"):
        manifest().variant("cuda_fp16")


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        manifest().architecture = "other"
