import msgspec
import pytest

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Manifest
from poolgraph.runtime.engine_args import (
    check_engine_args,
    plan_export_options,
    resolve_default_task,
    resolve_precision,
    resolve_requested_task,
)
from poolgraph.runtime.manifest_overrides import check_pooler_config, override_manifest


@pytest.fixture
def manifest(artifact) -> Manifest:
    return open_artifact(artifact)


def test_arguments_of_the_engine_change_nothing():
    check_engine_args({"gpu_memory_utilization": 0.5, "tensor_parallel_size": 1, "enforce_eager": True, "seed": 1})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpu_memory_utilisation", 0.5, "no argument 'gpu_memory_utilisation'; did you mean gpu_memory_utilization?"),
        ("max_model_length", 5, "did you mean max_model_len"),
        ("xyzzy", 1, "no argument 'xyzzy'; those with an effect are"),
        ("quantization", "fp8", "quantization is not supported; choose a precision when exporting"),
        ("enable_lora", True, "enable_lora is not supported; merge the adapter"),
    ],
)
def test_other_arguments_are_refused(name, value, message):
    with pytest.raises(InputError, match=message):
        check_engine_args({name: value})


def test_refused_arguments_may_be_off():
    check_engine_args({"quantization": None, "enable_lora": False})


class Dtype:
    def __str__(self):
        return "torch.float16"


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("auto", None), ("float", "fp32"), ("float32", "fp32"), ("half", "fp16"), (Dtype(), "fp16"), ("bfloat16", "bf16")],
)
def test_dtype_is_a_precision(dtype, precision):
    assert resolve_precision(dtype) == precision


def test_unknown_dtype():
    with pytest.raises(InputError, match=r"unknown dtype 'fp8'; allowed are \['auto', 'float', 'float32', 'half'"):
        resolve_precision("fp8")


@pytest.mark.parametrize(
    ("runner", "convert", "task", "config", "wanted"),
    [
        ("auto", "auto", None, PoolerConfig(), None),
        ("pooling", "none", "auto", PoolerConfig(), None),
        ("pooling", "embed", None, PoolerConfig(), "embed"),
        ("pooling", "embed", "reward", PoolerConfig(), "reward"),
        ("pooling", "classify", "embed", PoolerConfig(task="token_embed"), "token_embed"),
    ],
)
def test_requested_task(runner, convert, task, config, wanted):
    assert resolve_requested_task(runner, convert, task, config) == wanted


@pytest.mark.parametrize(
    ("runner", "convert", "task", "message"),
    [
        ("generate", "auto", None, "runner 'generate' is not supported: poolgraph runs pooling models"),
        ("auto", "reward", None, r"unknown convert 'reward'; allowed are \['auto', 'none', 'embed', 'classify'\]"),
        ("auto", "auto", "generate", "unknown task 'generate'; allowed are"),
    ],
)
def test_what_no_pooling_model_does(runner, convert, task, message):
    with pytest.raises(InputError, match=message):
        resolve_requested_task(runner, convert, task, PoolerConfig())


def test_export_options():
    assert plan_export_options(None, trust_remote_code=False) == {}
    assert plan_export_options("embedding", trust_remote_code=False) == {"task": "embed"}
    assert plan_export_options("score", trust_remote_code=True) == {"task": "score", "trust-remote-code": "true"}


@pytest.mark.parametrize(
    ("task", "meaning"), [(None, "embed"), ("embed", "embed"), ("score", "embed"), ("token_embed", "token_embed")]
)
def test_default_task(manifest, task, meaning):
    assert resolve_default_task(manifest, task) == meaning


def test_default_task_that_the_artifact_lacks(manifest):
    with pytest.raises(
        TaskNotSupported, match=r"does not support task 'reward'; it supports \['embed', 'token_embed'\]"
    ):
        resolve_default_task(manifest, "reward")


def test_overrides_give_a_new_manifest(manifest):
    before = msgspec.json.encode(manifest)
    changed = override_manifest(manifest, {"matryoshka_dimensions": [2, 4]}, 5)
    assert changed.pooler.matryoshka_dimensions == (2, 4)
    assert changed.pooler.is_matryoshka
    assert changed.limits.max_model_len == 5
    assert override_manifest(manifest, {"is_matryoshka": True}, None).pooler.is_matryoshka
    assert override_manifest(manifest, None, None) == manifest
    assert msgspec.json.encode(manifest) == before


@pytest.mark.parametrize(
    ("overrides", "limit", "message"),
    [
        ({"architectures": ["X"]}, None, r"hf_overrides \['architectures'\] would need another export"),
        (3, None, "hf_overrides must be a mapping, not int"),
        ({"matryoshka_dimensions": [2, 99]}, None, r"matryoshka_dimensions must be a list of ints from 1 to 8"),
        ({"matryoshka_dimensions": 4}, None, r"matryoshka_dimensions must be a list of ints from 1 to 8"),
        (
            None,
            17,
            r"User-specified max_model_len \(17\) is greater than the derived max_model_len \(max_model_len=16 ",
        ),
        (None, 0, "max_model_len must be a number of tokens from 1 to 16"),
        (None, "8", "max_model_len must be a number of tokens from 1 to 16"),
    ],
)
def test_overrides_that_are_refused(manifest, overrides, limit, message):
    with pytest.raises(InputError, match=message):
        override_manifest(manifest, overrides, limit)


def test_pooling_is_compiled_in(manifest):
    check_pooler_config(PoolerConfig(pooling_type="MEAN", use_activation=False), manifest)
    check_pooler_config(PoolerConfig(pooling_type="ALL"), manifest)
    with pytest.raises(InputError, match=r"pooling CLS was asked for, but \['mean'\] is compiled into the artifact"):
        check_pooler_config(PoolerConfig(pooling_type="CLS"), manifest)
    with pytest.raises(InputError, match="STEP pooling needs a process reward model"):
        check_pooler_config(PoolerConfig(pooling_type="STEP"), manifest)
    with pytest.raises(InputError, match=r"logit_mean has no meaning for tasks \['embed', 'token_embed'\]"):
        check_pooler_config(PoolerConfig(logit_mean=1.0), manifest)
