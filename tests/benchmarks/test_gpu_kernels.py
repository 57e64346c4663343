"""The kernels of a GPU call: averaged, sorted into kinds, and a call of each engine's process."""

import json
import subprocess

import pytest


def test_kernels_of_an_average_call():
    from gpu_kernels import average, describe

    found = average(
        [("ampere_fp16_gemm", 20, 4000.0), ("BiasGeluKernel", 10, 500.0), ("ampere_fp16_gemm", 10, 2000.0)], 10
    )
    assert [(it.name, it.launches, it.milliseconds) for it in found] == [
        ("ampere_fp16_gemm", 3.0, pytest.approx(0.6)),
        ("BiasGeluKernel", 1.0, pytest.approx(0.05)),
    ]
    text = describe(found, 0.9)
    assert "a call 0.90 ms, of which kernels 0.65 ms" in text
    assert "   0.600 ms  products" in text
    assert "   0.600 ms      3x  ampere_fp16_gemm" in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_NNT", "products"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_nn_n_tilesize128x256x64", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", "attention"),
        ("pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
        ("onnxruntime::contrib::cuda::SkipLayerNormKernelSmall<__half, 192, 4>", "norms"),
        ("at::native::vectorized_layer_norm_kernel<c10::Half, float>", "norms"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("onnxruntime::cuda::BiasGeluKernel<__half>", "passes over rows"),
    ],
)
def test_kinds_by_name(name, kind):
    from gpu_kernels import KernelTime

    assert KernelTime(name, 1, 1.0).kind == kind


def test_an_engine_that_does_not_run_is_told_of_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    import gpu_kernels

    def run(child, **options):
        asked.append(child[child.index("--engines") + 1])
        if asked == ["torch-padded"]:
            return subprocess.CompletedProcess(child, 1, "", "Traceback\nRuntimeError: no NVIDIA driver")
        return subprocess.CompletedProcess(child, 0, "printed by a library\n" + json.dumps("a call 1.00 ms") + "\n", "")

    asked = []
    monkeypatch.setattr(gpu_kernels, "prepare_model", lambda *_: None)
    monkeypatch.setattr(gpu_kernels.subprocess, "run", run)
    options = ["--model", "tiny", "--engines", "torch-padded,onnxruntime", "--work", str(tmp_path)]
    assert gpu_kernels.main(options) == 1
    printed = capsys.readouterr().out
    assert asked == ["torch-padded", "onnxruntime"]
    assert printed.count("## ") == 2
    assert "no NVIDIA driver" in printed
    assert printed.endswith("a call 1.00 ms\n")
