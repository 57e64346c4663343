"""Resolution: what a checkpoint and its options come to, and what is refused with what is offered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig, DistilBertConfig, ElectraConfig, MPNetConfig, RobertaConfig

from poolgraph.errors import ExportError, InputError, TaskNotSupported, UnsupportedArchitecture
from poolgraph.export.architectures import ARCHITECTURES
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.resolve import EXPORT_TASKS, LATER_TASKS, ExportPlan, choose_targets, resolve_limits, resolve_plan
from poolgraph.graphs.pipeline import CPU_FP32, PORTABLE

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def write(folder: Path, config: Any, *architectures: str, modules: bool = False, **files: Any) -> Path:
    config.architectures = list(architectures) or None
    config.save_pretrained(folder)
    contents = {**({"modules.json": MODULES} if modules else {}), **files}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def plan(folder: Path, **options: Any) -> ExportPlan:
    given = {"task": "auto", "precisions": ("fp32",), "targets": ("cpu",), "trust_remote_code": False, **options}
    return resolve_plan(open_checkpoint(folder), **given)


# --- targets and tasks


def test_portable_is_always_made_and_comes_first() -> None:
    assert choose_targets(["cpu"], ["fp32"]) == (PORTABLE, CPU_FP32)
    assert choose_targets([], []) == (PORTABLE,)
    assert choose_targets(["portable"], ["fp32"]) == (PORTABLE,)
    assert choose_targets(["cpu", "cpu"], ["fp32", "fp32"]) == (PORTABLE, CPU_FP32)


@pytest.mark.parametrize(
    ("targets", "precisions", "asked"),
    [
        (["tpu"], ["fp32"], "--target tpu --precision fp32"),
        (["cpu"], ["fp4"], "--target cpu --precision fp4"),
        (["portable"], ["fp4"], "--target portable --precision fp4"),
        (["cpu", "tpu"], ["fp32"], "--target tpu --precision fp32"),
    ],
)
def test_pairs_that_are_not_offered_list_what_is(targets: list[str], precisions: list[str], asked: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_targets(targets, precisions)
    message = str(caught.value)
    assert message.startswith(f"{asked} is not offered; what is: ")
    for pair in ("--target portable --precision fp32", "--target cpu --precision fp32"):
        assert pair in message.partition("what is: ")[2]


@pytest.mark.parametrize("task", LATER_TASKS)
def test_later_tasks(tmp_path: Path, task: str) -> None:
    with pytest.raises(
        TaskNotSupported, match=f"--task {task} cannot be exported by this version; it exports auto, embed"
    ):
        plan(write(tmp_path, BertConfig(), "BertModel"), task=task)


@pytest.mark.parametrize("task", ["translate", "", "Embed"])
def test_unknown_tasks(tmp_path: Path, task: str) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"--task {task} is unknown; choose one of {', '.join(EXPORT_TASKS)}")
    ):
        plan(write(tmp_path, BertConfig(), "BertModel"), task=task)


@pytest.mark.parametrize(("task", "default"), [("auto", "embed"), ("embed", "embed"), ("token_embed", "token_embed")])
def test_default_task(tmp_path: Path, task: str, default: str) -> None:
    assert plan(write(tmp_path, BertConfig(), "BertModel"), task=task).default_task == default


# --- architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_name_classes_of_transformers_and_modules_of_ours(name: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, name).config_class()
    made = plan(write(tmp_path, config, name))
    assert (made.architecture, made.row) == (name, ARCHITECTURES[name])
    assert made.model_class.__name__ == name
    assert callable(made.family.build_backbone)
    assert made.hidden_size == 768


@pytest.mark.parametrize("task", ["auto", "embed"])
@pytest.mark.parametrize("modules", [True, False])
def test_masked_language_model_is_taken_as_its_backbone(tmp_path: Path, task: str, modules: bool) -> None:
    made = plan(write(tmp_path, MPNetConfig(), "MPNetForMaskedLM", modules=modules), task=task)
    assert (made.architecture, made.row.family, made.model_class.__name__) == ("MPNetModel", "mpnet", "MPNetModel")
    assert made.pooling == (("mean",) if modules else ("cls",))


def test_checkpoint_without_architectures_is_taken_as_the_backbone_of_its_type(tmp_path: Path) -> None:
    assert plan(write(tmp_path, BertConfig())).architecture == "BertModel"


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_classifier_is_refused_unless_embeddings_are_asked_for(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, BertConfig(), name)
    with pytest.raises(
        UnsupportedArchitecture, match=f"architecture {name} cannot be exported .*--task embed"
    ) as caught:
        plan(folder)
    assert isinstance(caught.value, ExportError)
    assert plan(folder, task="embed").architecture == "BertModel"


def test_class_without_a_row(tmp_path: Path) -> None:
    made = plan(write(tmp_path, ElectraConfig(), "ElectraModel"))
    assert (made.architecture, made.row.family, made.pooling) == ("ElectraModel", "interface", ("cls",))


def test_model_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "from_next_year", "architectures": ["NextYearModel"]}')
    with pytest.raises(UnsupportedArchitecture, match="from_next_year"):
        plan(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_config_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"config\.json"):
        plan(tmp_path)


def test_remote_code_does_not_run_unless_it_is_allowed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "own.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    with pytest.raises(UnsupportedArchitecture):
        plan(tmp_path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("config", "name", "size"),
    [(DistilBertConfig(dim=24, n_heads=4), "DistilBertModel", 24), (BertConfig(hidden_size=48), "BertModel", 48)],
)
def test_hidden_size_by_any_name(tmp_path: Path, config: Any, name: str, size: int) -> None:
    assert plan(write(tmp_path, config, name)).hidden_size == size


# --- limits


def limit(made: ExportPlan, model_max_length: Any, max_seq_length: int | None = None) -> int:
    made = replace(made, sentence_transformer=replace(made.sentence_transformer, max_seq_length=max_seq_length))
    return resolve_limits(made, SimpleNamespace(model_max_length=model_max_length)).max_model_len  # type: ignore[arg-type]


HUGE = int(1e30)
"""What transformers writes where a tokenizer knows no limit."""


def test_the_roberta_family_loses_positions_to_its_padding(tmp_path: Path) -> None:
    made = plan(write(tmp_path, RobertaConfig(max_position_embeddings=514, pad_token_id=1), "RobertaModel"))
    assert limit(made, HUGE) == 512
    assert limit(made, 514) == 512
    assert limit(made, 128) == 128


def test_mpnet_too(tmp_path: Path) -> None:
    assert (
        limit(plan(write(tmp_path, MPNetConfig(max_position_embeddings=514, pad_token_id=1), "MPNetModel")), HUGE)
        == 512
    )


def test_max_seq_length_replaces_the_tokenizers_limit(tmp_path: Path) -> None:
    made = plan(write(tmp_path, BertConfig(max_position_embeddings=512, vocab_size=77), "BertModel"))
    assert limit(made, 128) == 128
    assert limit(made, 128, max_seq_length=256) == 256
    assert limit(made, 512, max_seq_length=64) == 64
    assert limit(made, 128, max_seq_length=4096) == 512
    assert limit(made, HUGE) == 512
    assert resolve_limits(made, SimpleNamespace(model_max_length=9)).vocab_size == 77  # type: ignore[arg-type]


def test_no_limit_anywhere(tmp_path: Path) -> None:
    made = replace(plan(write(tmp_path, BertConfig(), "BertModel")), config=SimpleNamespace())  # type: ignore[arg-type]
    assert limit(made, HUGE, max_seq_length=99) == 99
    with pytest.raises(ExportError, match="set max_seq_length"):
        limit(made, HUGE)


@pytest.mark.parametrize("length", [-1, -512])
def test_limit_that_leaves_no_token(tmp_path: Path, length: int) -> None:
    made = plan(write(tmp_path, BertConfig(), "BertModel"))
    for given in ((128, length), (length, None)):
        with pytest.raises(ExportError, match=str(length)):
            limit(made, *given)
