"""Whether attention can take cuDNN's kernel: told when a padded encoder is loaded on CUDA."""

import warnings
from types import SimpleNamespace

import pytest

from poolgraph.graphs.artifact import open_artifact
from poolgraph.graphs.manifest import Graph, Variant
from poolgraph.runtime import loaded
from poolgraph.runtime.attention_route import (
    SWITCH,
    load_cudnn_version,
    name_cudnn_version,
    warn_of_slow_attention,
    why_slow,
)
from poolgraph.runtime.provider_libraries import CUDNN
from poolgraph.runtime.session import SessionPool

CUDA = "CUDAExecutionProvider"


def load_fake(name):
    def ask():
        return 91002

    assert name == CUDNN
    return SimpleNamespace(cudnnGetVersion=ask)


def load_nothing(name):
    raise OSError(name)


def test_versions_of_cudnn():
    assert load_cudnn_version(load_fake) == 91002
    assert load_cudnn_version(load_nothing) is None
    assert [name_cudnn_version(number) for number in (90300, 91300, 92001)] == ["9.3.0", "9.13.0", "9.20.1"]


@pytest.mark.parametrize(
    ("cudnn", "environment", "reason"),
    [
        (90300, {}, None),
        (91002, {}, None),
        (91300, {SWITCH: "1"}, None),
        (91300, {SWITCH: "0"}, f"{SWITCH}=0 switches cuDNN's attention off: unset it"),
        (None, {}, 'cuDNN is missing: pip install "poolgraph[gpu]"'),
        (90201, {}, "cuDNN 9.2.1 is not one that ONNX Runtime's attention takes: install 9.3 or newer"),
        (91000, {}, "cuDNN 9.10.0 is not one"),
        (91001, {}, "cuDNN 9.10.1 is not one"),
    ],
)
def test_why_attention_is_slow(cudnn, environment, reason):
    found = why_slow(cudnn, environment)
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


def tell(tmp_path, *, operator=b"MultiHeadAttention", layout="padded", provider=CUDA, cudnn=None):
    """Return what is warned of."""
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a" + operator + b"\x00")
    graph = Graph(file="model.onnx", inputs=(), outputs=(), raw_output="raw")
    variant = Variant(
        name="cuda_fp16",
        target="cuda",
        precision="fp16",
        layout=layout,
        providers=(provider,),
        graphs={"sequence": graph},
        verified=True,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_slow_attention(tmp_path, variant, provider, load_version=lambda: cudnn, environment={})
    return [str(warning.message) for warning in told]


def test_a_padded_encoder_without_cudnn_says_so(tmp_path):
    [message] = tell(tmp_path)
    assert message == (
        'cuda_fp16: attention runs on a slow kernel, since cuDNN is missing: pip install "poolgraph[gpu]"'
    )


def test_it_is_said_before_the_buckets_are_warm(artifact, monkeypatch):
    said = []
    manifest = open_artifact(artifact)
    executor = SimpleNamespace(warm_up=lambda *_: said.append("warm"))
    monkeypatch.setattr(loaded, "build_bound_executor", lambda *_: executor)
    monkeypatch.setattr(loaded, "warn_of_slow_attention", lambda *arguments: said.append(arguments))
    variant = manifest.variant("cpu_fp32")
    sessions = SessionPool(directory=artifact, variant=variant, provider=CUDA)
    assert loaded._warm_executor(sessions, manifest, None) is executor
    assert said == [(artifact, variant, CUDA), "warm"]


@pytest.mark.parametrize(
    "case",
    [
        {"cudnn": 91300},
        {"layout": "packed", "operator": b"PackedMultiHeadAttention"},
        {"operator": b"GroupQueryAttention"},
        {"provider": "CPUExecutionProvider"},
        {"provider": "TensorrtExecutionProvider"},
    ],
)
def test_nothing_is_said_where_no_slow_kernel_is_near(tmp_path, case):
    assert tell(tmp_path, **case) == []
