"""Options: what is allowed, and the record of them that the manifest keeps."""

from __future__ import annotations

from typing import Any

import pytest

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.export.options import ExportOptions, parse_overrides
from poolgraph.tasks import CONVERSIONS, EXPORT_TASKS, RUNNERS


@pytest.mark.parametrize("task", EXPORT_TASKS)
def test_every_task_is_accepted(task: str) -> None:
    assert ExportOptions(task=task).task == task


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("task", "translate", EXPORT_TASKS),
        ("task", "", EXPORT_TASKS),
        ("task", "Embed", EXPORT_TASKS),
        ("task", "encode", EXPORT_TASKS),
        ("convert", "reward", CONVERSIONS),
        ("convert", "CLASSIFY", CONVERSIONS),
        ("runner", "generate", RUNNERS),
        ("runner", "draft", RUNNERS),
    ],
)
def test_unknown_words_list_the_known_ones(name: str, value: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        ExportOptions(**{name: value})
    assert str(caught.value) == f"--{name} {value} is unknown; choose one of {', '.join(allowed)}"


@pytest.mark.parametrize("value", ["{}", [("a", 1)], 3])
def test_overrides_of_another_type(value: Any) -> None:
    with pytest.raises(InputError, match="hf_overrides must be a mapping"):
        ExportOptions(hf_overrides=value)


@pytest.mark.parametrize(
    ("options", "record"),
    [
        (ExportOptions(), {}),
        (ExportOptions(task="score", convert="classify", runner="pooling"), "task convert runner"),
        (ExportOptions(hf_overrides={"b": [1, 2], "a": None}), "hf_overrides"),
        (ExportOptions(pooler_config=PoolerConfig(pooling_type="STEP", returned_token_ids=[3, 1])), "pooler_config"),
        (ExportOptions(pooler_config=PoolerConfig(pooling_type="MEAN", normalize=False)), "pooler_config"),
        (
            ExportOptions(pooler_config=PoolerConfig(logit_mean=0.1, logit_sigma=1e-3, task="classify", step_tag_id=0)),
            "pooler_config",
        ),
    ],
)
def test_record_holds_what_differs_and_reads_back(options: ExportOptions, record: Any) -> None:
    written = options.to_record()
    assert set(written) == set(record.split() if isinstance(record, str) else record)
    assert all(isinstance(value, str) for value in written.values())
    assert ExportOptions.from_record(written) == options


def test_record_does_not_depend_on_the_order_of_overrides() -> None:
    first, second = (ExportOptions(hf_overrides=dict(items)) for items in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert first.to_record() == second.to_record()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, {}), ("{}", {}), ('{"a": [1]}', {"a": [1]}), ({"a": 1}, {"a": 1})],
)
def test_overrides_are_a_mapping_or_json(value: Any, expected: dict[str, Any]) -> None:
    assert parse_overrides(value) == expected


@pytest.mark.parametrize(
    ("value", "message"), [("{", "is not JSON"), ("[]", "must be a JSON object"), ("3", "must be a JSON object")]
)
def test_overrides_that_are_no_object(value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_overrides(value)
