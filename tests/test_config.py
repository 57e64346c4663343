import dataclasses
import subprocess
import sys

import pytest

from poolgraph.config import PoolerConfig, PoolingParams, parse_pooler_config, verify_pooling_params
from poolgraph.errors import InputError


@pytest.mark.parametrize("older", ["normalize", "softmax", "activation"])
@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
@pytest.mark.parametrize("value", [True, False])
def test_older_spellings_become_use_activation(kind, older, value):
    assert kind(**{older: value}) == kind(use_activation=value)


@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
def test_spellings_that_agree_are_fine_and_those_that_do_not_are_refused(kind):
    assert kind(use_activation=True, normalize=True).use_activation is True
    with pytest.raises(InputError, match=r"'use_activation': True, 'normalize': False.*contradict each other"):
        kind(use_activation=True, normalize=False)
    with pytest.raises(InputError, match="contradict"):
        kind(normalize=True, softmax=False)


@pytest.mark.parametrize("kind", [PoolingParams, PoolerConfig])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dimensions", 3.5, "dimensions must be an int, not float"),
        ("dimensions", True, "dimensions must be an int, not bool"),
        ("use_activation", "yes", "use_activation must be a bool, not str"),
        ("normalize", 1, "normalize must be a bool, not int"),
        ("step_tag_id", "7", "step_tag_id must be an int, not str"),
        ("returned_token_ids", 7, "returned_token_ids must be a list of ints, not int"),
        ("returned_token_ids", ["a"], "returned_token_ids must be an int, not str"),
        ("task", "rank", "unknown task 'rank'; allowed are"),
    ],
)
def test_wrong_values_name_field_and_value(kind, field, value, message):
    with pytest.raises(InputError, match=message) as caught:
        kind(**{field: value})
    assert caught.value.parameter == field


@pytest.mark.parametrize("value", [0, -2])
def test_truncation_keeps_something(value):
    with pytest.raises(InputError, match=r"truncate_prompt_tokens must be -1 .* or a positive"):
        PoolingParams(truncate_prompt_tokens=value)


def test_records_are_frozen_slotted_hashable_and_survive_replace():
    ids = [1, 2]
    params = PoolingParams(returned_token_ids=ids, normalize=False)
    ids.append(3)
    assert params.returned_token_ids == (1, 2)
    assert hash(params) == hash(dataclasses.replace(params))
    assert dataclasses.replace(params, dimensions=4).use_activation is False
    assert not hasattr(params, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.dimensions = 3
    with pytest.raises(TypeError, match="positional"):
        PoolingParams(True)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("CLS", "seq_pooling_type"),
        ("LAST", "seq_pooling_type"),
        ("MEAN", "seq_pooling_type"),
        ("ALL", "tok_pooling_type"),
        ("STEP", "tok_pooling_type"),
    ],
)
def test_pooling_type_is_a_convenience(kind, field):
    config = PoolerConfig(pooling_type=kind)
    assert config == PoolerConfig(**{field: kind})
    assert dataclasses.replace(config, dimensions=2) == PoolerConfig(**{field: kind}, dimensions=2)


@pytest.mark.parametrize("field", ["seq_pooling_type", "tok_pooling_type"])
def test_pooling_type_excludes_the_others(field):
    value = "CLS" if field == "seq_pooling_type" else "ALL"
    with pytest.raises(InputError, match=f"Cannot set both `pooling_type` and `{field}`"):
        PoolerConfig(pooling_type="CLS", **{field: value})


def test_unknown_pooling_types_name_the_allowed_ones():
    with pytest.raises(InputError, match=r"unknown pooling_type 'MAX'; allowed are \['CLS', 'LAST', 'MEAN', 'ALL', 'S"):
        PoolerConfig(pooling_type="MAX")
    with pytest.raises(InputError, match=r"unknown seq_pooling_type 'ALL'; allowed are \['CLS', 'LAST', 'MEAN'\]"):
        PoolerConfig(seq_pooling_type="ALL")


def test_logit_sigma_divides():
    assert PoolerConfig(logit_mean=1, logit_sigma=0.5).logit_sigma == 0.5
    with pytest.raises(InputError, match=r"logit_sigma cannot be 0 \(division by zero\)"):
        PoolerConfig(logit_sigma=0)
    with pytest.raises(InputError, match="logit_mean must be a number, not str"):
        PoolerConfig(logit_mean="1")


def test_pooler_config_from_json_as_the_process_reward_example_writes_it():
    config = PoolerConfig.from_json('{"pooling_type": "STEP", "step_tag_id": 123, "returned_token_ids": [456, 789]}')
    assert config == PoolerConfig(tok_pooling_type="STEP", step_tag_id=123, returned_token_ids=(456, 789))


def test_parse_pooler_config_takes_every_form():
    config = PoolerConfig(use_activation=False)
    assert parse_pooler_config(config) is config
    assert parse_pooler_config(None) == PoolerConfig()
    assert parse_pooler_config({"normalize": False}) == config
    assert parse_pooler_config('{"normalize": false}') == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "pooler_config is not JSON"),
        ("[1]", "pooler_config must be .* not list"),
        (3, "pooler_config must be .* not int"),
        ({"pooling_typ": "CLS"}, "pooler_config has no key 'pooling_typ'; did you mean 'pooling_type'?"),
        ({"xyzzy": 1}, "pooler_config has no key 'xyzzy'; known keys are"),
    ],
)
def test_parse_pooler_config_refuses(value, message):
    with pytest.raises(InputError, match=message):
        parse_pooler_config(value)


@pytest.mark.parametrize("task", ["embed", "token_embed"])
def test_embedding_tasks_take_dimensions(task):
    verify_pooling_params(PoolingParams(dimensions=4, use_activation=True), task)


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        (
            "classify",
            PoolingParams(dimensions=4),
            "Task 'classify' only supports ['use_activation'] parameters, does not support ['dimensions'] parameters",
        ),
        (
            "embed",
            PoolingParams(step_tag_id=1, returned_token_ids=[2]),
            "Task embed only supports ['dimensions', 'use_activation'] parameters, "
            "does not support ['step_tag_id', 'returned_token_ids'] parameters",
        ),
        (
            "embed",
            PoolingParams(task="classify"),
            "You cannot overwrite pooling_params.task='classify' with pooling_task='embed'!",
        ),
    ],
)
def test_parameters_without_meaning_are_refused(task, params, message):
    with pytest.raises(InputError) as caught:
        verify_pooling_params(params, task)
    assert str(caught.value) == message


def test_step_parameters_belong_to_step_pooling():
    params = PoolingParams(step_tag_id=1)
    verify_pooling_params(params, "token_classify", tok_pooling_type="STEP")
    with pytest.raises(InputError, match="does not support"):
        verify_pooling_params(params, "token_classify", tok_pooling_type="ALL")


def test_config_loads_nothing_heavy():
    code = "import sys, poolgraph.config; print([m for m in ('numpy', 'msgspec', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
