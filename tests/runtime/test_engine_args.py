import pytest

from poolgraph.errors import InputError
from poolgraph.runtime.engine_args import WITHOUT_EFFECT, check_engine_args, resolve_precision


def test_arguments_of_the_engine_change_nothing():
    check_engine_args({"gpu_memory_utilization": 0.5, "tensor_parallel_size": 1, "seed": 1})


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


def test_what_has_an_effect_is_not_listed_as_without():
    assert {"chat_template", "hf_overrides", "pooler_config"}.isdisjoint(WITHOUT_EFFECT)


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
