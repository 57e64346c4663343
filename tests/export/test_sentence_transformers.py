"""Sentence-transformers' files: what is read from them, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.sentence_transformers import (
    COMPILED_MODULES,
    POOLING_FLAGS,
    SentenceTransformer,
    Splade,
    add_task_instructions,
    parse_pooling,
    parse_sentence_transformers,
)

PREFIX = "sentence_transformers.models."
PATHS = {"Transformer": "", "Pooling": "1_Pooling"}


def write(folder: Path, kinds: list[str], files: dict[str, Any] | None = None) -> Checkpoint:
    modules = [
        {"idx": index, "name": str(index), "path": PATHS.get(kind, f"{index}_{kind}"), "type": PREFIX + kind}
        for index, kind in enumerate(kinds)
    ]
    return write_files(folder, {"modules.json": modules, **(files or {})})


def write_files(folder: Path, files: dict[str, Any]) -> Checkpoint:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return Checkpoint(folder=folder, model="m", revision=None)


def parse(folder: Path, kinds: list[str], files: dict[str, Any] | None = None) -> SentenceTransformer:
    parsed = parse_sentence_transformers(write(folder, kinds, files))
    assert parsed is not None
    return parsed


def test_checkpoint_without_modules(tmp_path: Path) -> None:
    assert parse_sentence_transformers(write_files(tmp_path, {"config.json": {}})) is None


def test_every_module_kind(tmp_path: Path) -> None:
    dense = {
        "in_features": 4,
        "out_features": 2,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    parsed = parse(
        tmp_path,
        ["Transformer", "Pooling", "LayerNorm", "Dense", "Normalize"],
        {
            "1_Pooling/config.json": {"pooling_mode_cls_token": True, "include_prompt": False},
            "2_LayerNorm/config.json": {"dimension": 4},
            "3_Dense/config.json": dense,
        },
    )
    assert parsed.pooling == ("cls",)
    assert not parsed.include_prompt
    assert [(m.kind, m.path, m.config) for m in parsed.head] == [
        ("LayerNorm", "2_LayerNorm", {"dimension": 4}),
        ("Dense", "3_Dense", dense),
        ("Normalize", "4_Normalize", {}),
    ]


@pytest.mark.parametrize(
    "prefix", ["sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.pooling."]
)
def test_older_and_newer_module_paths(tmp_path: Path, prefix: str) -> None:
    modules = [{"path": "", "type": f"{prefix}Transformer"}, {"path": "1_Pooling", "type": f"{prefix}Pooling"}]
    parsed = parse_sentence_transformers(write_files(tmp_path, {"modules.json": modules}))
    assert parsed is not None
    assert parsed.pooling == ("mean",)


def test_backbone_in_its_own_folder(tmp_path: Path) -> None:
    modules = [
        {"path": "0_Transformer", "type": f"{PREFIX}Transformer"},
        {"path": "1_Pooling", "type": f"{PREFIX}Pooling"},
    ]
    files = {
        "modules.json": modules,
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 77, "do_lower_case": True},
        "sentence_bert_config.json": {"max_seq_length": 11},
    }
    parsed = parse_sentence_transformers(write_files(tmp_path, files))
    assert parsed is not None
    assert parsed.transformer_path == "0_Transformer"
    assert (parsed.max_seq_length, parsed.do_lower_case) == (77, True)


@pytest.mark.parametrize("kind", ["LSTM", "CNN", "WeightedLayerPooling", "Router", "BoW", "StaticEmbedding"])
def test_module_that_cannot_be_compiled_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ExportError, match=rf"{PREFIX}{kind}' at '2_{kind}', which cannot be compiled") as caught:
        parse(tmp_path, ["Transformer", "Pooling", kind])
    assert all(name in str(caught.value) for name in COMPILED_MODULES)


@pytest.mark.parametrize("dotted", ["my_package.Transformer", "custom_st.Pooling", "Pooling", ""])
def test_module_of_another_package_is_named(tmp_path: Path, dotted: str) -> None:
    modules = [{"path": "", "type": f"{PREFIX}Transformer"}, {"path": "1_Own", "type": dotted}]
    with pytest.raises(ExportError, match=r"1_Own.*which cannot be compiled"):
        parse_sentence_transformers(write_files(tmp_path, {"modules.json": modules}))


@pytest.mark.parametrize(
    "kinds",
    [
        [],
        ["Pooling"],
        ["Pooling", "Transformer"],
        ["Transformer", "Transformer", "Pooling"],
        ["Transformer", "Normalize", "Pooling"],
        ["Transformer", "Dense", "Pooling"],
        ["Transformer", "Pooling", "Pooling"],
    ],
)
def test_order_that_cannot_be_compiled(tmp_path: Path, kinds: list[str]) -> None:
    with pytest.raises(ExportError, match=r"modules\.json must .* to be compiled; it has"):
        parse(tmp_path, kinds)


@pytest.mark.parametrize(
    "content", [{}, {"a": 1}, "text", [1], [{"type": f"{PREFIX}Transformer"}], [None], [{"path": "", "type": None}]]
)
def test_modules_of_another_form(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ExportError, match=r"modules\.json"):
        parse_sentence_transformers(write_files(tmp_path, {"modules.json": content}))


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside", ".."])
def test_path_that_leaves_the_checkpoint(tmp_path: Path, path: str) -> None:
    modules = [{"path": "", "type": f"{PREFIX}Transformer"}, {"path": path, "type": f"{PREFIX}Pooling"}]
    with pytest.raises(ExportError, match="which leaves the checkpoint"):
        parse_sentence_transformers(write_files(tmp_path, {"modules.json": modules}))


# --- pooling


@pytest.mark.parametrize(("flag", "mode"), POOLING_FLAGS.items())
def test_older_pooling_flags(flag: str, mode: str) -> None:
    flags = dict.fromkeys(POOLING_FLAGS, False)
    assert parse_pooling({"word_embedding_dimension": 4, **flags, flag: True}) == (mode,)


def test_older_flags_are_concatenated_in_sentence_transformers_order() -> None:
    flags = dict.fromkeys(reversed(POOLING_FLAGS), True)
    expected = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    assert parse_pooling(flags) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("cls", ("cls",)), ("lasttoken", ("lasttoken",)), (["lasttoken", "mean"], ("lasttoken", "mean"))],
)
def test_current_pooling_mode_keeps_its_order(mode: Any, expected: tuple[str, ...]) -> None:
    assert parse_pooling({"pooling_mode": mode, "pooling_mode_max_tokens": True}) == expected


def test_pooling_without_a_mode_is_the_mean() -> None:
    assert parse_pooling({}) == ("mean",)
    assert parse_pooling(dict.fromkeys(POOLING_FLAGS, False)) == ("mean",)


def test_pooling_equals_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for mode in POOLING_FLAGS.values():
        config = Pooling(4, pooling_mode=mode).get_config_dict()
        assert parse_pooling(config) == (mode,)


@pytest.mark.parametrize("mode", ["median", ["mean", "median"], 5])
def test_unknown_pooling_mode(mode: Any) -> None:
    with pytest.raises(ExportError, match=r"pooling mode.* cannot be compiled; the known ones are \['cls'"):
        parse_pooling({"pooling_mode": mode})


def test_pooling_without_a_configuration_file(tmp_path: Path) -> None:
    parsed = parse(tmp_path, ["Transformer", "Pooling", "Normalize"])
    assert (parsed.pooling, parsed.include_prompt) == (("mean",), True)


# --- heads


@pytest.mark.parametrize(
    "names",
    [
        {"module_input_name": "token_embeddings"},
        {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"},
        {"module_output_name": "token_embeddings"},
        {"module_input_name": "sentence_embedding", "module_output_name": "something"},
    ],
)
def test_dense_on_other_features_is_refused(tmp_path: Path, names: dict[str, str]) -> None:
    config = {"in_features": 4, "out_features": 2, **names}
    with pytest.raises(ExportError, match=r"module Dense at '2_Dense' reads .* and writes"):
        parse(tmp_path, ["Transformer", "Pooling", "Dense"], {"2_Dense/config.json": config})


def test_dense_that_names_the_sentence_embedding(tmp_path: Path) -> None:
    names = {"module_input_name": "sentence_embedding", "module_output_name": None}
    parsed = parse(tmp_path, ["Transformer", "Pooling", "Dense"], {"2_Dense/config.json": names})
    assert [module.kind for module in parsed.head] == ["Dense"]


# --- limits and settings


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_limits(tmp_path: Path, name: str) -> None:
    parsed = parse(tmp_path, ["Transformer", "Pooling"], {name: {"max_seq_length": 256, "do_lower_case": False}})
    assert (parsed.max_seq_length, parsed.do_lower_case) == (256, False)


@pytest.mark.parametrize("limits", [{}, {"max_seq_length": None}])
def test_no_limit(tmp_path: Path, limits: dict[str, Any]) -> None:
    assert parse(tmp_path, ["Transformer", "Pooling"], {"sentence_bert_config.json": limits}).max_seq_length is None


def test_settings(tmp_path: Path) -> None:
    settings = {
        "prompts": {"query": "query: ", "passage": "passage: "},
        "default_prompt_name": "passage",
        "similarity_fn_name": "dot",
        "__version__": {"torch": "2"},
    }
    parsed = parse(tmp_path, ["Transformer", "Pooling"], {"config_sentence_transformers.json": settings})
    assert parsed.prompts == settings["prompts"]
    assert (parsed.default_prompt_name, parsed.similarity_fn_name) == ("passage", "dot")


def test_settings_that_are_empty(tmp_path: Path) -> None:
    settings = {"prompts": None, "default_prompt_name": None, "similarity_fn_name": None}
    parsed = parse(tmp_path, ["Transformer", "Pooling"], {"config_sentence_transformers.json": settings})
    assert (parsed.prompts, parsed.default_prompt_name, parsed.similarity_fn_name) == ({}, None, "cosine")


def test_task_instructions_are_prompts_beside_those_of_the_files() -> None:
    sentence = SentenceTransformer(prompts={"query": "q: "}, default_prompt_name="query")
    assert add_task_instructions(sentence, None) is sentence
    both = add_task_instructions(sentence, {"query": "unused: ", "text-matching": "match: "})
    assert both == replace(sentence, prompts={"query": "q: ", "text-matching": "match: "})


@pytest.mark.parametrize("instructions", [["query: "], {"query": 1}, "query: "])
def test_task_instructions_that_are_no_texts(instructions: object) -> None:
    with pytest.raises(ExportError, match="task_instructions"):
        add_task_instructions(SentenceTransformer(), instructions)


def test_default_prompt_that_there_is_not(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "passage"}
    with pytest.raises(ExportError, match="passage"):
        parse(tmp_path, ["Transformer", "Pooling"], {"config_sentence_transformers.json": settings})


# --- what would change the answers

BERT_FILE = "sentence_bert_config.json"
FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality_config": {"text": FORWARD, "message": {**FORWARD, "format": "flat"}}}, "the modality 'message'"),
        ({"query_length": 8, "document_length": 12}, r"has \['query_length', 'document_length'\]"),
        ({"query_expansion": {"strategy": "fixed", "length": 12}}, r"has \['query_expansion'\]"),
        ({"tokenizer_name_or_path": "other"}, "names another tokenizer, 'other'"),
        ({"model_kwargs": {"attention_type": "other"}}, r"the model the arguments \['attention_type'\]"),
    ],
)
def test_options_that_change_the_answers_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        parse(tmp_path, ["Transformer", "Pooling"], {BERT_FILE: options})


def test_options_that_change_nothing_are_passed_over(tmp_path: Path) -> None:
    options = {"add_pooling_layer": False, "low_cpu_mem_usage": True, "use_safetensors": True}
    files = {BERT_FILE: {"model_kwargs": options, "query_length": None, "query_expansion": None}}
    assert parse(tmp_path, ["Transformer", "Pooling"], files).config_options == {}


@pytest.mark.parametrize("name", ["processor_kwargs", "tokenizer_args"])
def test_the_tokenizers_own_limit_goes_before_max_seq_length(tmp_path: Path, name: str) -> None:
    files = {BERT_FILE: {"max_seq_length": 60, name: {"model_max_length": 20}}}
    assert parse(tmp_path, ["Transformer", "Pooling"], files).max_seq_length == 20


def test_a_similarity_that_is_not_known_is_the_cosine(tmp_path: Path) -> None:
    settings = {"config_sentence_transformers.json": {"similarity_fn_name": "dot_product"}}
    with pytest.warns(UserWarning, match="'dot_product' is none of"):
        assert parse(tmp_path, ["Transformer", "Pooling"], settings).similarity_fn_name == "cosine"


def test_a_splade_pools_scores_of_words(tmp_path: Path) -> None:
    files = {"sentence_bert_config.json": {"transformer_task": "fill-mask"}}
    unknown = {"config_sentence_transformers.json": {"similarity_fn_name": "dot_product"}}
    assert parse(tmp_path / "task", ["Transformer", "SpladePooling"], files).similarity_fn_name == "dot"
    with pytest.warns(UserWarning, match="dot is taken, as by sentence-transformers"):
        old = parse(tmp_path / "old", ["MLMTransformer", "SpladePooling", "Normalize"], unknown)
    assert (old.splade, old.similarity_fn_name) == (Splade(), "dot")
    with pytest.raises(ExportError, match="behind a Transformer without transformer_task"):
        parse(tmp_path / "none", ["Transformer", "SpladePooling"])
    with pytest.raises(
        ExportError, match="behind its SpladePooling, after which embeddings are weights of words no more"
    ):
        parse(tmp_path / "dense", ["MLMTransformer", "SpladePooling", "Dense"])


def test_a_default_prompt_that_every_model_has(tmp_path: Path) -> None:
    settings = {"config_sentence_transformers.json": {"default_prompt_name": "document", "prompts": {"other": "x: "}}}
    parsed = parse(tmp_path, ["Transformer", "Pooling"], settings)
    assert (parsed.default_prompt_name, parsed.prompts) == ("document", {"document": "", "other": "x: "})
