"""The targets of an export: which rows of the table a wish stands for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from poolgraph.errors import InputError
from poolgraph.export import exporter
from poolgraph.export.architectures import ARCHITECTURES
from poolgraph.export.targets import DEFAULT_PRECISIONS, choose_targets, resolve_targets
from poolgraph.graphs.pipeline import (
    CPU_FP32,
    CPU_INT8,
    CUBLASLT_BF16,
    CUBLASLT_FP16,
    CUBLASLT_PACKED_FP16,
    CUDA_BF16,
    CUDA_FP16,
    CUDA_PACKED_FP16,
    NATIVE_BF16,
    NATIVE_FP32,
    NATIVE_INT8,
    PORTABLE,
    PORTABLE_INT8,
    TARGETS,
    Target,
)
from poolgraph.runtime.native_library import can_run

FLOAT32 = (PORTABLE, *((NATIVE_FP32,) if can_run(NATIVE_FP32) else ()), CPU_FP32)


def test_portable_is_always_made_and_comes_first() -> None:
    assert choose_targets(["cpu"], ["fp32"]) == FLOAT32
    assert choose_targets([], []) == (PORTABLE,)
    assert choose_targets(["portable"], ["fp32"]) == (PORTABLE,)
    assert choose_targets(["cpu", "cpu"], ["fp32", "fp32"]) == FLOAT32


def test_int8_alone_is_portable_in_int8_and_the_first_precision_comes_first() -> None:
    def choose(*precisions: str) -> tuple[Target, ...]:
        return choose_targets(["cpu"], precisions, lambda _target: True)

    assert choose("int8") == (PORTABLE_INT8, NATIVE_INT8, CPU_INT8)
    assert choose("fp32", "int8") == (PORTABLE, NATIVE_FP32, CPU_FP32, NATIVE_INT8, CPU_INT8)
    assert choose("int8", "fp32") == (PORTABLE, NATIVE_INT8, CPU_INT8, NATIVE_FP32, CPU_FP32)


def test_bf16_for_the_cpu_is_kept_where_it_cannot_be_verified() -> None:
    assert choose_targets(["cpu"], ["bf16"], lambda _target: True) == (PORTABLE, NATIVE_BF16)
    assert choose_targets(["cpu"], ["bf16"], lambda target: target.operators is None) == (PORTABLE, NATIVE_BF16)
    assert choose_targets(["cpu", "cuda"], ["bf16"], lambda _target: True) == (PORTABLE, NATIVE_BF16, CUDA_BF16)


def test_a_target_is_made_in_the_precisions_that_it_has() -> None:
    chosen = choose_targets(["cpu", "cuda"], ["fp32", "fp16"])
    assert chosen == (*FLOAT32, CUDA_PACKED_FP16, CUDA_FP16)
    assert choose_targets(["cuda"], ["bf16"]) == (PORTABLE, CUDA_BF16)
    assert choose_targets(["cublaslt"], ["bf16"]) == (PORTABLE, CUBLASLT_BF16)


def test_targets_that_cannot_be_verified_here_are_left_out() -> None:
    chosen = choose_targets(["cpu"], ["int8"], lambda target: target.operators is None)
    assert chosen == (PORTABLE_INT8, CPU_INT8)
    assert choose_targets(["cpu"], ["fp32"], lambda target: target.operators is None) == (PORTABLE, CPU_FP32)
    chosen = choose_targets(["cublaslt"], ["bf16"], lambda target: target.operators is None)
    assert chosen == (PORTABLE, CUBLASLT_BF16)  # as all that is for a GPU, it may be verified elsewhere


CUDA_IN_HALF = (CUDA_PACKED_FP16, CUDA_FP16)
CUBLASLT_IN_HALF = (CUBLASLT_PACKED_FP16, CUBLASLT_FP16)


@pytest.mark.parametrize(
    ("targets", "unfit", "chosen"),
    [
        ([], (), (PORTABLE,)),
        (["portable"], (), (PORTABLE,)),
        (["cpu"], (), FLOAT32),
        (["cpu"], ("fp16",), FLOAT32),
        (["cuda"], (), (PORTABLE, *CUDA_IN_HALF)),
        (["cuda"], ("fp16",), (PORTABLE, CUDA_BF16)),
        (["cublaslt"], (), (PORTABLE, *CUBLASLT_IN_HALF)),
        (["cublaslt"], ("fp16",), (PORTABLE, CUBLASLT_BF16)),
        (["cuda", "cpu", "cuda"], (), (*FLOAT32, *CUDA_IN_HALF)),
        (["cuda", "cpu"], ("fp16",), (*FLOAT32, CUDA_BF16)),
        (["cublaslt", "cuda"], (), (PORTABLE, *CUDA_IN_HALF, *CUBLASLT_IN_HALF)),
    ],
)
def test_an_open_precision_is_each_targets_own(
    targets: list[str], unfit: tuple[str, ...], chosen: tuple[Target, ...]
) -> None:
    assert choose_targets(targets, None, unfit=unfit) == chosen


def test_every_word_has_precisions_that_it_is_offered_in() -> None:
    assert DEFAULT_PRECISIONS.keys() == {target.word for target in TARGETS}
    pairs = {(word, precision) for word, precisions in DEFAULT_PRECISIONS.items() for precision in precisions}
    assert pairs <= {(target.word, target.precision) for target in TARGETS}


def test_an_open_precision_of_an_unknown_target_or_of_a_model_that_runs_in_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--target tpu is not offered; what is: --target portable --precision fp32"):
        choose_targets(["cpu", "tpu"], None)
    with pytest.raises(InputError, match=r"^--target cuda is made in fp16 or bf16, and the model runs in none of them"):
        choose_targets(["cuda"], None, unfit=("bf16", "fp16"))


def test_what_a_models_row_refuses_is_passed_over_where_open_and_an_error_where_asked_for() -> None:
    gemma = SimpleNamespace(architecture="Gemma2Model", row=ARCHITECTURES["Gemma2Model"])
    assert resolve_targets(gemma, ["cuda"], None) == (PORTABLE, CUDA_BF16)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^Gemma2Model cannot be exported with --precision fp16: its activations go"):
        resolve_targets(gemma, ["cuda"], ("bf16", "fp16"))  # type: ignore[arg-type]
    bert = SimpleNamespace(architecture="BertModel", row=ARCHITECTURES["BertModel"])
    assert resolve_targets(bert, ["cuda"], None) == (PORTABLE, *CUDA_IN_HALF)  # type: ignore[arg-type]
    assert resolve_targets(bert, ["cuda"], None, ("fp16",)) == (PORTABLE, CUDA_BF16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "precisions", "asked"),
    [
        (["tpu"], ["fp32"], "--target tpu --precision fp32"),
        (["cpu"], ["fp4"], "--target cpu --precision fp4"),
        (["cpu"], ["fp8"], "--target cpu --precision fp8"),
        (["portable"], ["fp4"], "--target portable --precision fp4"),
        (["cpu", "tpu"], ["fp32"], "--target tpu --precision fp32"),
        (["cpu"], ["fp32", "fp16"], "--target cpu --precision fp16"),
        (["cuda"], ["fp32"], "--target cuda --precision fp32"),
    ],
)
def test_pairs_that_are_not_offered_list_what_is(targets: list[str], precisions: list[str], asked: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_targets(targets, precisions)
    message = str(caught.value)
    assert message.startswith(f"{asked} is not offered; what is: ")
    for pair in ("--target portable --precision fp32", "--target cpu --precision fp32"):
        assert pair in message.partition("what is: ")[2]


def test_what_is_not_offered_is_refused_before_a_hub_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporter, "open_checkpoint", lambda *_: pytest.fail("the checkpoint was opened"))
    for options, message in (
        ({"precisions": ("fp4",)}, "is not offered"),
        ({"targets": ("tpu",)}, "--target tpu is not offered"),
        ({"task": "generate"}, "is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            exporter.export_model("org/name", tmp_path / "artifact", **options)
    assert list(tmp_path.iterdir()) == []
