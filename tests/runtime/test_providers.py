import re

import msgspec
import pytest

from poolgraph.errors import ArtifactError, ManifestError, ProviderError
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, Report, Source, Tokenization, Variant
from poolgraph.runtime.providers import Machine, Wish, check_verified, choose_variant, resolve_provider

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def variant(name, *, target="cpu", precision="fp32", provider=CPU, features=()):
    return Variant(
        name=name,
        target=target,
        precision=precision,
        layout="uniform",
        providers=(provider,),
        graphs={},
        cpu_features=features,
    )


PORTABLE = variant("portable_fp32", target="portable")
FP32 = variant("cpu_fp32")
INT8 = variant("cpu_int8", precision="int8", features=("avx512_vnni|avx_vnni",))
BF16 = variant("native_bf16", precision="bf16")
FP16 = variant("cuda_fp16", target="cuda", precision="fp16", provider=CUDA)


def manifest(*variants):
    return Manifest(
        poolgraph_version="0",
        created="",
        source=Source(model="m", revision=None, content_hash=""),
        architecture="A",
        tasks=("embed",),
        default_task="embed",
        pooler=Pooler(pooling=("mean",), embedding_size=4),
        limits=Limits(max_model_len=8, vocab_size=9),
        tokenization=Tokenization(pad_token_id=0),
        variants=variants,
        report=Report(reference=""),
        files={},
    )


ALL = (PORTABLE, FP32, INT8, FP16)


@pytest.mark.parametrize(
    ("variants", "wish", "available", "features", "expected"),
    [
        (ALL, Wish(), [CPU], (), "cpu_fp32"),
        ((PORTABLE, INT8, FP32), Wish(), [CPU], ("avx512_vnni",), "cpu_int8"),
        ((PORTABLE, INT8, FP32), Wish(), [CPU], ("avx2", "avx_vnni"), "cpu_int8"),
        (ALL, Wish(precision="int8"), [CPU], ("avx512_vnni",), "cpu_int8"),
        (ALL, Wish(), [CPU, CUDA], (), "cuda_fp16"),
        (ALL, Wish(provider="cpu"), [CPU, CUDA], (), "cpu_fp32"),
        (ALL, Wish(provider=CPU), [CPU, CUDA], (), "cpu_fp32"),
        (ALL, Wish(provider="CUDA"), [CPU, CUDA], (), "cuda_fp16"),
        (ALL, Wish(precision="fp32"), [CPU, CUDA], (), "cpu_fp32"),
        ((PORTABLE,), Wish(), [CPU], (), "portable_fp32"),
        ((PORTABLE, BF16), Wish(), [CPU], (), "native_bf16"),
        ((PORTABLE, BF16), Wish(precision="fp32"), [CPU], (), "portable_fp32"),
        ((PORTABLE, FP16), Wish(precision="fp32"), [CPU, CUDA], (), "portable_fp32"),
        (ALL, Wish(variant="portable_fp32"), [CPU], (), "portable_fp32"),
        (ALL, Wish(variant="cuda_fp16"), [CPU, CUDA], (), "cuda_fp16"),
    ],
)
def test_choices(variants, wish, available, features, expected):
    choice = choose_variant(manifest(*variants), wish, Machine(providers=tuple(available), cpu_features=features))
    assert (choice.variant.name, choice.warning) == (expected, None)
    assert choice.provider in choice.variant.providers


@pytest.mark.parametrize(
    ("variants", "expected"), [((PORTABLE, INT8, FP32), "cpu_fp32"), ((PORTABLE, INT8), "portable_fp32")]
)
def test_a_processor_that_lacks_what_int8_needs_is_told_so(variants, expected):
    choice = choose_variant(manifest(*variants), Wish(), Machine(providers=(CPU,), cpu_features=("avx2",)))
    assert choice.variant.name == expected
    assert choice.warning == f"this processor lacks avx512_vnni|avx_vnni, which cpu_int8 needs; {expected} runs instead"


NATIVE = msgspec.structs.replace(variant("native_int8", precision="int8", features=("avx512_bf16",)), operators="own/1")


@pytest.mark.parametrize(
    ("features", "operators", "expected", "why"),
    [
        (("avx512_vnni", "avx512_bf16"), ("own/1",), "native_int8", None),
        (
            ("avx512_vnni",),
            ("own/1",),
            "cpu_int8",
            None,
        ),  # nobody can install instructions, and the precision is the same
        (
            ("avx512_vnni", "avx512_bf16"),
            (),
            "cpu_int8",
            "the library of operators own/1, which native_int8 needs, is not",
        ),
        (("avx512_vnni", "avx512_bf16"), ("own/2",), "cpu_int8", "the library of operators own/1"),
        (("avx512_vnni",), (), "cpu_int8", None),
    ],
)
def test_operators_beside_onnxruntimes_own(features, operators, expected, why):
    machine = Machine(providers=(CPU,), cpu_features=features, operators=operators)
    choice = choose_variant(manifest(PORTABLE, NATIVE, INT8), Wish(), machine)
    assert choice.variant.name == expected
    assert choice.warning is None if why is None else choice.warning.startswith(why)
    assert why is None or choice.warning.endswith("; cpu_int8 runs instead")


CUBLASLT = msgspec.structs.replace(variant("own_fp16", precision="fp16", provider=CUDA), operators="own/1")
LACK = r"the library of operators own/1, which own_fp16 needs, is not installed .*; install poolgraph anew"


@pytest.mark.parametrize("variants", [(PORTABLE, CUBLASLT), (PORTABLE, FP32, CUBLASLT)])
def test_a_gpu_without_the_operators_is_told_so_before_the_cpu_takes_over(variants):
    machine = Machine(providers=(CUDA, CPU))
    choice = choose_variant(manifest(*variants), Wish(), machine)
    assert choice.provider == CPU
    assert re.match(LACK, choice.warning)
    assert choice.warning.endswith(f"; {variants[-2].name} runs instead")
    named, of_cuda, of_both = Wish(variant="own_fp16"), Wish(provider="cuda"), Wish(provider="cuda", precision="fp16")
    for wish in (named, of_cuda, of_both, Wish(precision="fp16")):
        with pytest.raises((ProviderError, ArtifactError), match=f"(does not run on this machine|runs here).*: {LACK}"):
            choose_variant(manifest(*variants), wish, machine)


def test_a_precision_asked_for_is_no_reason_to_warn_of_another():
    choice = choose_variant(
        manifest(PORTABLE, INT8), Wish(precision="fp32"), Machine(providers=(CPU,), cpu_features=("avx2",))
    )
    assert (choice.variant.name, choice.warning) == ("portable_fp32", None)


def test_a_provider_that_does_not_load_is_an_error():
    with pytest.raises(ProviderError) as caught:
        choose_variant(manifest(*ALL), Wish(provider="cuda"), Machine(providers=(CPU,), cpu_features=()))
    for part in (CUDA, f"['{CPU}'] do", 'pip install "poolgraph[gpu]"', "fallback=True"):
        assert part in str(caught.value)


def test_fallback_takes_another_with_a_warning():
    choice = choose_variant(
        manifest(*ALL), Wish(provider="cuda", fallback=True), Machine(providers=(CPU,), cpu_features=())
    )
    assert choice.variant.name == "cpu_fp32"
    assert "CUDAExecutionProvider does not load" in choice.warning


def test_fallback_warns_of_what_was_asked_for_before_what_was_passed_over():
    choice = choose_variant(
        manifest(PORTABLE, INT8, FP32), Wish(provider="cuda", fallback=True), Machine(providers=(CPU,))
    )
    assert choice.variant.name == "cpu_fp32"
    assert "CUDAExecutionProvider does not load" in choice.warning


TRT = "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("wish", "available", "expected"),
    [
        (Wish(), [TRT, CPU], ("cpu_fp32", CPU)),
        (Wish(), [TRT, CUDA, CPU], ("cuda_fp16", CUDA)),
        (Wish(provider="tensorrt"), [TRT, CUDA, CPU], ("portable_fp32", TRT)),
        (Wish(provider=TRT, precision="fp16"), [TRT, CUDA, CPU], ("portable_fp32", TRT)),
        (Wish(provider="tensorrt", precision="fp32"), [TRT, CPU], ("portable_fp32", TRT)),
        (Wish(provider="tensorrt", fallback=True), [CUDA, CPU], ("cuda_fp16", CUDA)),
    ],
)
def test_tensorrt_runs_the_portable_graph_and_only_when_asked(wish, available, expected):
    choice = choose_variant(manifest(*ALL), wish, Machine(providers=tuple(available)))
    assert (choice.variant.name, choice.provider) == expected


def test_tensorrt_that_does_not_load_is_an_error_with_the_cure():
    with pytest.raises(ProviderError, match=r"TensorrtExecutionProvider does not load .*poolgraph\[tensorrt\]"):
        choose_variant(manifest(*ALL), Wish(provider="tensorrt"), Machine(providers=(CPU,)))


def test_tensorrt_runs_no_variant_of_another_provider():
    with pytest.raises(ArtifactError, match="no variant for precision 'int8' and provider Tensorrt"):
        choose_variant(manifest(*ALL), Wish(provider="tensorrt", precision="int8"), Machine(providers=(TRT,)))


def test_tensorrt_is_not_given_a_graph_in_8_bits_that_nobody_asked_for():
    small = variant("portable_int8", target="portable", precision="int8")
    with pytest.raises(ArtifactError, match="no variant for provider Tensorrt"):
        choose_variant(manifest(small), Wish(provider="tensorrt"), Machine(providers=(TRT,)))


@pytest.mark.parametrize("name", ["tpu", "OpenVINOExecutionProvider", ""])
def test_unknown_providers(name):
    with pytest.raises(ProviderError, match=r"unknown provider .*poolgraph runs on \['cuda', 'cpu', "):
        resolve_provider(name)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(precision="bf16"), "no variant for precision 'bf16'; it has portable_fp32"),
        (Wish(provider="cpu", precision="fp16"), "no variant for precision 'fp16' and provider CPU"),
        (Wish(precision="int8"), "needs avx512_vnni"),
        (Wish(variant="cpu_fp32", precision="int8"), "no variant for precision 'int8'; it has cpu_fp32"),
        (Wish(variant="cuda_fp16", provider="cpu"), "no variant for provider CPUExec.*; it has cuda_fp16"),
    ],
)
def test_what_the_artifact_does_not_have(wish, message):
    with pytest.raises(ArtifactError, match=message):
        choose_variant(manifest(*ALL), wish, Machine(providers=(CPU,), cpu_features=()))


def test_provider_without_a_variant():
    with pytest.raises(ArtifactError, match=r"no variant for provider CUDAExecutionProvider; it has .*cpu_fp32 \(fp32"):
        choose_variant(manifest(PORTABLE, FP32), Wish(provider="cuda"), Machine(providers=(CPU, CUDA), cpu_features=()))


def test_unknown_variant_lists_those_there_are():
    with pytest.raises(ManifestError, match=r"no variant 'x'; this artifact has \['cpu_fp32'\]"):
        choose_variant(manifest(FP32), Wish(variant="x"), Machine(providers=(CPU,), cpu_features=()))


def test_named_variant_that_does_not_run_here():
    why = r"variant cuda_fp16 \(fp16, CUDA.* does not run on this machine.*; install it with `pip install"
    with pytest.raises(ProviderError, match=why):
        choose_variant(manifest(*ALL), Wish(variant="cuda_fp16"), Machine(providers=(CPU,), cpu_features=()))


def test_a_precision_of_which_one_provider_loads_is_refused_for_what_that_one_lacks():
    of_cuda = variant("cuda_int8", target="cuda", precision="int8", provider=CUDA)
    with pytest.raises(ArtifactError, match="for precision 'int8' that runs here: this processor lacks avx512_vnni"):
        choose_variant(manifest(PORTABLE, INT8, of_cuda), Wish(precision="int8"), Machine(providers=(CPU,)))


@pytest.mark.parametrize("wish", [Wish(precision="fp16"), Wish(provider="cuda", precision="fp16", fallback=True)])
def test_a_precision_whose_provider_does_not_load_here(wish):
    """The artifact has it, so that its list alone would be no reason."""
    why = (
        r"'fp16' is that of cuda_fp16 for CUDAExec.*, which does not load .*`pip install .poolgraph\[gpu\].`, or leave"
    )
    with pytest.raises(ProviderError, match=why):
        choose_variant(manifest(*ALL), wish, Machine(providers=(CPU,)))


def test_only_verified_variants_run():
    with pytest.raises(ArtifactError, match=r"`poolgraph verify some/dir` .* allow_unverified=True"):
        check_verified(FP32, "some/dir")
    check_verified(msgspec.structs.replace(FP32, verified=True), "some/dir")
