"""What is read of late-interaction checkpoints, and their token ids, against MultiVectorEncoder."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_colbert import (
    HIDDEN_SIZE,
    MARKERS,
    VECTOR_SIZE,
    colbert_tokenizer,
    load_oracle,
    mixed_texts,
    save_native,
    save_pylate,
    save_stanford,
    write_json,
)
from tiny_models import HeadSpec, dense, save_checkpoint, xlm_roberta_tokenizer
from transformers import AutoTokenizer

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.late_interaction import parse_late_interaction
from poolgraph.export.late_interaction_files import Expansion
from poolgraph.export.late_interaction_plan import LateInteractionPlan
from poolgraph.export.late_interaction_tokens import describe_late_interaction, register_markers
from poolgraph.export.sentence_transformers import parse_sentence_transformers
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, Report, Source, Tokenization
from poolgraph.runtime.late_interaction import encode_side, resolve_side, scored_tokens
from poolgraph.runtime.tokenizer import TextTokenizer
from poolgraph.tasks import Side

PUNCTUATION = tuple(string.punctuation)

PYLATE = {
    "model_type": "ColBERT",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 12,
    "document_length": 40,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(PUNCTUATION),
}
"""config_sentence_transformers.json as PyLate 3 writes it."""


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "stanford": lambda folder: save_stanford(folder, {"query_maxlen": 12, "doc_maxlen": 40}),
    "stanford, attending": lambda folder: save_stanford(
        folder,
        {"query_maxlen": 12, "attend_to_mask_tokens": True, "mask_punctuation": False, "query_token_id": "[unused1]"},
    ),
    "stanford without metadata": save_stanford,
    "pylate": lambda folder: save_pylate(folder, PYLATE),
    "pylate with prompts": lambda folder: save_pylate(
        folder,
        without(PYLATE | {"prompts": {"query": "[Q] find: ", "document": "passage: "}}, "skiplist_words"),
    ),
    "pylate without expansion": lambda folder: save_pylate(folder, PYLATE | {"do_query_expansion": False}),
    "pylate, attending": lambda folder: save_pylate(
        folder, without(PYLATE, "query_length") | {"attend_to_expansion_tokens": True, "document_length": None}
    ),
    "pylate, queries longer than documents": lambda folder: save_pylate(
        folder, PYLATE | {"query_length": 50, "document_length": None}
    ),
    "pylate of today": lambda folder: save_pylate(
        folder,
        without(PYLATE, "query_length", "attend_to_expansion_tokens")
        | {"query_expansion": {"strategy": "min", "length": 9, "token": "[unused0]"}, "query_length": 30},
    ),
    "pylate with options of the module": lambda folder: save_pylate(
        folder, PYLATE, transformer={"document_length": 20, "query_expansion": None}
    ),
    "pylate without a model type": lambda folder: save_pylate(folder, without(PYLATE, "model_type")),
    "native": lambda folder: save_native(folder, document_length=40, query_length=20),
    "native, expanding": lambda folder: save_native(
        folder,
        prompts={"query": "query: ", "document": "document: ", "other": "x"},
        mask={"skiplist_words": [".", "the", "no such word"], "skiplist_tasks": ["query", "document"]},
        query_expansion={"strategy": "min", "length": 10, "attend": True},
    ),
    "native, skipping in queries": lambda folder: save_native(
        folder, mask={"skiplist_words": ["the", "."], "skiplist_tasks": "query"}, query_length=6
    ),
}


def parse(folder: Path, **options: Any) -> LateInteractionPlan:
    plan = parse_late_interaction(open_checkpoint(folder), **options)
    assert plan is not None
    return plan


def encoding_parts(folder: Path, plan: LateInteractionPlan) -> tuple[TextTokenizer, Manifest]:
    """Return the runtime's tokenizer and a manifest without graphs, written beside the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    register_markers(tokenizer, plan.markers)
    declared = plan.sentence_transformer.max_seq_length or tokenizer.model_max_length
    artifact = folder.with_name("artifact")
    artifact.mkdir()
    tokenizer.backend_tokenizer.save(str(artifact / "tokenizer.json"))
    manifest = Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="tiny", revision=None, content_hash=""),
        architecture="",
        tasks=("token_embed",),
        default_task="token_embed",
        pooler=Pooler(pooling=(), embedding_size=VECTOR_SIZE),
        limits=Limits(max_model_len=max(declared, plan.longest), vocab_size=len(tokenizer)),
        tokenization=Tokenization(pad_token_id=0, needs_token_type_ids=True),
        prompts=dict(plan.sentence_transformer.prompts),
        late_interaction=describe_late_interaction(plan, tokenizer),
        variants=(),
        report=Report(reference=""),
        files={},
    )
    return TextTokenizer(artifact, msgspec.structs.replace(manifest)), manifest


def oracle_encoding(model: Any, side: Side, text: str) -> dict[str, np.ndarray]:
    """Return what MultiVectorEncoder hands to its backbone for one text, and which tokens it scores."""
    features = model.preprocess([text], prompt=model.prompts[side] or None, task=side)
    seen = features["attention_mask"].clone()
    mask = next(module for module in model if type(module).__name__ == "MultiVectorMask")
    scored = mask(dict(features), task=side)["attention_mask"].bool()
    return {
        name: value[0].numpy()
        for name, value in (
            ("ids", features["input_ids"]),
            ("types", features["token_type_ids"]),
            ("seen", seen),
            ("scored", scored),
        )
    }


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_token_ids_are_those_of_multi_vector_encoder(name: str, tmp_path: Path) -> None:
    folder = CHECKPOINTS[name](tmp_path / "checkpoint")
    model = load_oracle(folder)
    tokenizer, manifest = encoding_parts(folder, parse(folder))
    texts = mixed_texts()
    for side in ("query", "document"):
        rules = resolve_side(manifest, side)  # type: ignore[arg-type]
        for text, found in zip(texts, encode_side(tokenizer, rules, texts, truncate=True), strict=True):
            expected = oracle_encoding(model, side, text)  # type: ignore[arg-type]
            assert found.input_ids.tolist() == expected["ids"].tolist(), (side, text)
            assert found.token_type_ids is None, "which means zeros"
            assert not expected["types"].any()
            attended = np.ones(found.num_tokens, dtype=np.int64) if found.attended is None else found.attended
            assert attended.tolist() == expected["seen"].tolist(), (side, text)
            assert scored_tokens(rules, found.input_ids).tolist() == expected["scored"].tolist(), (side, text)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_options_are_those_of_multi_vector_encoder(name: str, tmp_path: Path) -> None:
    folder = CHECKPOINTS[name](tmp_path / "checkpoint")
    model, plan = load_oracle(folder), parse(folder)
    assert dict(plan.sentence_transformer.prompts) == model.prompts
    assert plan.sentence_transformer.similarity_fn_name == model.similarity_fn_name
    assert (plan.query_length, plan.document_length) == (model[0].query_length, model[0].document_length)
    expansion = None if plan.expansion is None else msgspec.structs.asdict(plan.expansion)
    assert expansion == model[0].query_expansion
    heads = [type(module).__name__ for module in model][1:]
    assert [step.kind for step in plan.head] == [kind for kind in heads if kind != "MultiVectorMask"]


def test_stanford_defaults(tmp_path: Path) -> None:
    plan = parse(save_stanford(tmp_path / "checkpoint"))
    assert plan.expansion == Expansion(strategy="fixed", length=32)
    assert plan.longest == 32
    assert plan.skip_words == PUNCTUATION
    assert plan.head[0].config["out_features"] == VECTOR_SIZE
    assert plan.head[0].tensors["linear.weight"].name == "linear.weight"


def test_native_options(tmp_path: Path) -> None:
    options = {"query_length": 30, "document_length": 90, "query_expansion": {"strategy": "min", "length": 8}}
    plan = parse(save_native(tmp_path / "checkpoint", similarity="meanmaxsim", normalize=False, **options))
    assert plan.sentence_transformer.similarity_fn_name == "meanmaxsim"
    assert [step.kind for step in plan.head] == ["Dense"]
    assert plan.longest == 90
    assert plan.markers == ()


@pytest.mark.parametrize("name", ["linear.weight", "colbert_linear.weight"])
@pytest.mark.parametrize("architecture", ["ColBERTModernBertModel", "ColBERTJinaRobertaModel", "ColBERTLfm2Model"])
def test_a_backbone_with_a_projection_by_its_name_alone(name: str, architecture: str, tmp_path: Path) -> None:
    folder = save_stanford(tmp_path / "checkpoint", name=name)
    change_json(folder / "config.json", architectures=["BertModel"])
    assert parse_late_interaction(open_checkpoint(folder)) is None
    plan = parse(folder, architectures=[architecture])
    assert plan.head[0].tensors["linear.weight"].name == name
    assert (plan.expansion, plan.query_length, plan.document_length, plan.skip_words) == (None, None, None, ())
    assert plan.sentence_transformer.prompts == {"query": "", "document": ""}


def test_a_backbone_with_a_projection_in_a_folder(tmp_path: Path) -> None:
    folder = save_pylate(tmp_path / "checkpoint", {})
    (folder / "modules.json").unlink()
    plan = parse(folder, architectures=["ColBERTModernBertModel"])
    assert [step.kind for step in plan.head] == ["Dense", "Normalize"]
    assert plan.head[0].tensors["linear.weight"].folder == folder / "1_Dense"


def test_a_dense_model_is_none_of_late_interaction(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "checkpoint", "BertModel"))
    assert parse_late_interaction(checkpoint) is None


def test_a_dense_model_by_its_overridden_name(tmp_path: Path) -> None:
    spec = HeadSpec(modules=[dense(HIDDEN_SIZE, VECTOR_SIZE), ("Normalize", {}, {})])
    plan = parse(save_checkpoint(tmp_path / "checkpoint", "BertModel", spec), architectures=["ColBERTModernBertModel"])
    assert [step.kind for step in plan.head] == ["Dense", "Normalize"]
    assert plan.sentence_transformer.pooling == ()
    assert plan.skip_words == ()


def test_a_dense_model_without_a_projection_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "checkpoint", "BertModel"))
    with pytest.raises(ExportError, match="no Dense module to project tokens with"):
        parse_late_interaction(checkpoint, architectures=["ColBERTModernBertModel"])


def test_no_projection_at_all(tmp_path: Path) -> None:
    folder = save_stanford(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    del tensors["linear.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"no token projection: neither a tensor linear\.weight"):
        parse(folder)


def change_json(file: Path, **fields: Any) -> None:
    write_json(file, json.loads(file.read_text()) | fields)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown strategy": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "max", "length": 8}},
        "query_expansion.strategy",
    ),
    "unknown key": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "min", "length": 8, "side": "left"}},
        "unknown field `side`",
    ),
    "no length": ("sentence_bert_config.json", {"query_expansion": {"strategy": "min"}}, "required field `length`"),
    "length 0": (
        "sentence_bert_config.json",
        {"query_expansion": {"strategy": "min", "length": 0}},
        "expands queries to 0 tokens",
    ),
    "shorter than expanded": (
        "sentence_bert_config.json",
        {"query_length": 4, "query_expansion": {"strategy": "min", "length": 8}},
        "cuts queries to 4 tokens and expands them to 8",
    ),
    "processing options": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"max_length": 5}}},
        "processing_kwargs for \\['text'\\]",
    ),
    "image tokens": ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [5]}, "keeps only the tokens"),
    "skip list": (
        "2_MultiVectorMask/config.json",
        {"skiplist_words": [5]},
        "configuration of MultiVectorMask at .* not what it should be",
    ),
    "another feature": ("1_Dense/config.json", {"module_input_name": "hidden"}, "Dense at '1_Dense' reads 'hidden'"),
    "lengths of another kind": ("sentence_bert_config.json", {"document_length": "40"}, "document_length"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused(name: str, tmp_path: Path) -> None:
    file, fields, message = REFUSED[name]
    folder = save_native(tmp_path / "checkpoint")
    change_json(folder / file, **fields)
    with pytest.raises(ExportError, match=message):
        parse(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling", "Hierarchical"),
        ("sentence_transformers.models.LayerNorm", "LayerNorm"),
        ("somewhere.Dense", "somewhere"),
    ],
)
def test_unknown_modules_are_refused_by_name(kind: str, message: str, tmp_path: Path) -> None:
    folder = save_native(tmp_path / "checkpoint")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 4, "name": "4", "path": "4_More", "type": kind})
    write_json(folder / "modules.json", modules)
    with pytest.raises(ExportError, match=f"{message}.*cannot be compiled into the graph; those that can are.*Mask"):
        parse(folder)


def test_expansion_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = save_native(tmp_path / "checkpoint", query_expansion={"strategy": "min", "length": 8})
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [row for row in modules if "Mask" not in row["type"]])
    with pytest.raises(ExportError, match="has no MultiVectorMask, which would score"):
        parse(folder)


def test_two_masks_are_refused(tmp_path: Path) -> None:
    folder = save_native(tmp_path / "checkpoint")
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*modules, {**modules[2], "idx": 4, "name": "4"}])
    with pytest.raises(ExportError, match="2 MultiVectorMask modules"):
        parse(folder)


def test_an_embedder_still_refuses_modules_on_tokens(tmp_path: Path) -> None:
    kind, config, tensors = dense(HIDDEN_SIZE, VECTOR_SIZE)
    spec = HeadSpec(modules=[(kind, {**config, "module_input_name": "token_embeddings"}, tensors)])
    checkpoint = open_checkpoint(save_checkpoint(tmp_path / "checkpoint", "BertModel", spec))
    with pytest.raises(ExportError, match="only sentence_embedding can be compiled"):
        parse_sentence_transformers(checkpoint)


def test_markers_of_the_vocabulary_become_one_token() -> None:
    tokenizer = colbert_tokenizer()
    assert tokenizer.tokenize("[unused0] a") != ["[unused0]", "a"]
    assert register_markers(tokenizer, ["[unused0] ", "[unused1] "]) == MARKERS
    assert tokenizer.tokenize("[unused0] a") == ["[unused0]", "a"]
    assert register_markers(tokenizer, ["[unused0] "]) == ()


def test_added_markers_are_found_in_spite_of_lower_casing() -> None:
    tokenizer = colbert_tokenizer()
    tokenizer.add_tokens(["[Q] "])
    size = len(tokenizer)
    assert register_markers(tokenizer, ["[Q] ", "", "  "]) == ("[Q] ",)
    assert len(tokenizer) == size
    assert tokenizer.tokenize("[Q] a") == ["[Q] ", "a"]


def test_unknown_markers_stay_text() -> None:
    tokenizer = colbert_tokenizer(())
    size = len(tokenizer)
    assert register_markers(tokenizer, ["[Q] ", "query: "]) == ()
    assert len(tokenizer) == size


@pytest.mark.parametrize(("token", "mask", "expected"), [(None, True, 4), (None, False, 2), ("[unused0]", True, None)])
def test_the_token_of_an_expansion(token: str | None, mask: bool, expected: int | None, tmp_path: Path) -> None:
    plan = parse(
        save_native(tmp_path / "checkpoint", query_expansion={"strategy": "fixed", "length": 8, "token": token})
    )
    tokenizer = colbert_tokenizer()
    if not mask:
        tokenizer = xlm_roberta_tokenizer()
        tokenizer.mask_token = None
    late = describe_late_interaction(plan, tokenizer)
    assert late.query_expansion is not None
    wanted = tokenizer.convert_tokens_to_ids(token) if expected is None else expected
    assert late.query_expansion.token_id == wanted


def test_an_expansion_whose_token_is_not_there(tmp_path: Path) -> None:
    options = {"query_expansion": {"strategy": "fixed", "length": 8, "token": "[unused0]"}}
    plan = parse(save_native(tmp_path / "checkpoint", **options))
    with pytest.raises(ExportError, match=r"its tokenizer has no token '\[unused0\]'"):
        describe_late_interaction(plan, colbert_tokenizer(()))
    bare = parse(save_native(tmp_path / "bare", query_expansion={"strategy": "fixed", "length": 8}))
    tokenizer = colbert_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ExportError, match="no mask token or end token"):
        describe_late_interaction(bare, tokenizer)


def test_words_that_are_no_tokens_are_left_out_of_the_skip_list(tmp_path: Path) -> None:
    words = ["no such word", ".", "[UNK]", ","]
    plan = parse(save_native(tmp_path / "checkpoint", mask={"skiplist_words": words}))
    tokenizer = colbert_tokenizer()
    expected = sorted(tokenizer.convert_tokens_to_ids([".", "[UNK]", ","]))
    assert list(describe_late_interaction(plan, tokenizer).skip_token_ids) == expected
