import numpy as np
import pytest
import torch

from poolgraph.errors import ArtifactError
from poolgraph.graphs.manifest import Pooler
from poolgraph.runtime.activations import ACTIVATIONS, choose_activation, finish_logits

TORCH_MODULES = {
    "identity": torch.nn.Identity(),
    "sigmoid": torch.nn.Sigmoid(),
    "softmax": torch.nn.Softmax(dim=-1),
    "softmin": torch.nn.Softmin(dim=-1),
    "log_sigmoid": torch.nn.LogSigmoid(),
    "log_softmax": torch.nn.LogSoftmax(dim=-1),
    "tanh": torch.nn.Tanh(),
    "relu": torch.nn.ReLU(),
    "relu6": torch.nn.ReLU6(),
    "leaky_relu": torch.nn.LeakyReLU(),
    "elu": torch.nn.ELU(),
    "selu": torch.nn.SELU(),
    "gelu": torch.nn.GELU(),
    "silu": torch.nn.SiLU(),
    "mish": torch.nn.Mish(),
    "softplus": torch.nn.Softplus(),
    "softsign": torch.nn.Softsign(),
    "tanhshrink": torch.nn.Tanhshrink(),
    "hardtanh": torch.nn.Hardtanh(),
    "hardsigmoid": torch.nn.Hardsigmoid(),
    "hardswish": torch.nn.Hardswish(),
}
EXTREMES = np.array([-1e4, -700, -90, -20.5, -1, -1e-20, -0.0, 0.0, 1e-7, 1, 20.5, 90, 700, 1e4], dtype=np.float32)


def random_rows(*shape, seed=0, scale=6.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def test_every_name_has_its_module():
    assert set(TORCH_MODULES) == set(ACTIVATIONS) - {"auto"}


@pytest.mark.parametrize("name", TORCH_MODULES)
@pytest.mark.parametrize("shape", [(40, 1), (40, 2), (7, 11, 5)])
def test_same_as_torch(name, shape):
    raw = random_rows(*shape)
    expected = TORCH_MODULES[name](torch.from_numpy(raw.astype(np.float64))).numpy()
    found = finish_logits(raw, name)
    assert found.dtype == np.float32
    # torch's Softplus is the identity above 20, which is 2e-9 off.
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["auto", *TORCH_MODULES])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_finite_at_the_extremes(name, size):
    raw = np.concatenate([np.resize(EXTREMES, (len(EXTREMES), size)), np.full((1, size), -1e4, dtype=np.float32)])
    with np.errstate(all="raise", under="ignore"):
        found = finish_logits(raw, name)
    assert np.isfinite(found).all()
    if name in TORCH_MODULES:
        expected = TORCH_MODULES[name](torch.from_numpy(raw.astype(np.float64))).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["auto", *TORCH_MODULES])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 33, 300])
def test_a_rows_bits_depend_on_no_other_row(name, size):
    rng = np.random.default_rng(size)
    raw = random_rows(64, size, seed=size)
    whole = finish_logits(raw, name)
    alone = np.concatenate([finish_logits(raw[row : row + 1], name) for row in range(64)])
    np.testing.assert_array_equal(alone, whole)
    for _ in range(20):
        rows = rng.permutation(64)[: rng.integers(1, 64)]
        np.testing.assert_array_equal(finish_logits(raw[rows], name), whole[rows])
        np.testing.assert_array_equal(finish_logits(raw[None, rows], name)[0], whole[rows])
    columns_apart = np.repeat(raw, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(finish_logits(columns_apart, name), whole)


def test_auto_is_the_sigmoid_of_one_value_and_the_softmax_of_several():
    one, two = random_rows(9, 1), random_rows(9, 2)
    np.testing.assert_array_equal(finish_logits(one, "auto"), finish_logits(one, "sigmoid"))
    np.testing.assert_array_equal(finish_logits(two, "auto"), finish_logits(two, "softmax"))
    np.testing.assert_allclose(finish_logits(two, "auto").sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_a_new_array_and_the_input_as_it_was(name):
    raw = random_rows(5, 3)
    before = raw.copy()
    found = finish_logits(raw, name)
    assert not np.shares_memory(found, raw)
    np.testing.assert_array_equal(raw, before)
    if name is None:
        np.testing.assert_array_equal(found, raw)


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_no_rows(name):
    assert finish_logits(np.empty((0, 3), dtype=np.float32), name).shape == (0, 3)


def test_an_unknown_name():
    with pytest.raises(ArtifactError, match=r"activation 'rrelu' is not one of \['auto', 'identity'"):
        finish_logits(random_rows(1, 1), "rrelu")


@pytest.mark.parametrize("said", [True, False])
def test_the_request_wins_over_the_pooler(said):
    pooler = Pooler(pooling=(), embedding_size=2, activation="tanh", use_activation=said)
    assert choose_activation(pooler, None) == ("tanh" if said else None)
    assert choose_activation(pooler, use_activation=True) == "tanh"
    assert choose_activation(pooler, use_activation=False) is None
