"""Heads: each module against its formula, and the split of raw and finished value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from poolgraph.poolers.head import (
    NORMALIZE_EPSILON,
    Dense,
    Head,
    LayerNorm,
    LogSaturation,
    Normalize,
    Standardize,
    WeightedVectors,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (4,)])
def test_dense(shape: tuple[int, ...]) -> None:
    module = Dense(4, 6, bias=True, activation=nn.Tanh(), use_residual=False)
    given = rows(*shape)
    expected = torch.tanh(given @ module.linear.weight.T + module.linear.bias)
    torch.testing.assert_close(module(given), expected)
    assert sorted(module.state_dict()) == ["linear.bias", "linear.weight"]


def test_dense_without_bias_and_activation() -> None:
    module = Dense(4, 6, bias=False, activation=nn.Identity(), use_residual=False)
    given = rows(2, 4)
    torch.testing.assert_close(module(given), given @ module.linear.weight.T)
    assert sorted(module.state_dict()) == ["linear.weight"]


def test_dense_with_a_residual_of_the_same_width_adds_its_input() -> None:
    module = Dense(4, 4, bias=True, activation=nn.GELU(), use_residual=True)
    given = rows(2, 4)
    torch.testing.assert_close(module(given), nn.functional.gelu(module.linear(given)) + given)
    assert sorted(module.state_dict()) == ["linear.bias", "linear.weight"]


def test_dense_with_a_residual_of_another_width_projects_it() -> None:
    module = Dense(4, 6, bias=True, activation=nn.Tanh(), use_residual=True)
    given = rows(2, 4)
    expected = torch.tanh(module.linear(given)) + given @ module.residual.weight.T
    torch.testing.assert_close(module(given), expected)
    assert sorted(module.state_dict()) == ["linear.bias", "linear.weight", "residual.weight"]


@pytest.mark.parametrize("out_features", [4, 6])
@pytest.mark.parametrize("use_residual", [True, False])
def test_dense_equals_sentence_transformers(out_features: int, use_residual: bool) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense as Reference

    reference = Reference(4, out_features, activation_function=nn.Tanh(), use_residual=use_residual)
    module = Dense(4, out_features, bias=True, activation=nn.Tanh(), use_residual=use_residual)
    module.load_state_dict(reference.state_dict())
    given = rows(3, 4)
    torch.testing.assert_close(module(given), reference({"sentence_embedding": given})["sentence_embedding"])


def test_layer_norm() -> None:
    module = LayerNorm(4)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    given = rows(2, 3, 4)
    array = given.numpy().astype(np.float64)
    scaled = (array - array.mean(-1, keepdims=True)) / np.sqrt(array.var(-1, keepdims=True) + 1e-5)
    expected = scaled * module.norm.weight.detach().numpy() + module.norm.bias.detach().numpy()
    np.testing.assert_allclose(module(given).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert sorted(module.state_dict()) == ["norm.bias", "norm.weight"]


def test_normalize() -> None:
    given = rows(2, 3, 4)
    found = Normalize()(given)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3))
    torch.testing.assert_close(found * given.norm(dim=-1, keepdim=True), given)


def test_normalize_leaves_rows_of_zeros_zero_and_finite() -> None:
    found = Normalize()(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert found.tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
    tiny = torch.tensor([[NORMALIZE_EPSILON / 4, 0.0]])
    assert Normalize()(tiny).tolist() == [pytest.approx([0.25, 0.0])]


def test_head_keeps_a_trailing_normalization_apart() -> None:
    dense = Dense(4, 3, bias=True, activation=nn.Identity(), use_residual=False)
    head = Head([dense, Normalize()])
    given = rows(2, 4)
    raw, finished = head(given)
    assert head.finishes
    torch.testing.assert_close(raw, dense(given))
    torch.testing.assert_close(finished, Normalize()(dense(given)))
    assert sorted(head.state_dict()) == ["chain.0.linear.bias", "chain.0.linear.weight"]


def test_head_without_a_trailing_normalization_is_finished_when_it_is_raw() -> None:
    norm = LayerNorm(4)
    head = Head([Normalize(), norm])
    given = rows(2, 4)
    raw, finished = head(given)
    assert not head.finishes
    torch.testing.assert_close(raw, norm(Normalize()(given)))
    assert torch.equal(raw, finished)


def test_empty_head_hands_its_input_through() -> None:
    head = Head([])
    given = rows(2, 4)
    assert not head.finishes
    assert all(torch.equal(value, given) for value in head(given))


def test_only_the_last_normalization_is_kept_apart() -> None:
    given = rows(2, 4)
    raw, finished = Head([Normalize(), Normalize()])(given)
    torch.testing.assert_close(raw.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(raw, finished)


@pytest.mark.parametrize(
    ("mean", "sigma", "formula"),
    [
        (0.5, 4.0, lambda logits: (logits - 0.5) / 4.0),
        (0.5, None, lambda logits: logits - 0.5),
        (None, 0.25, lambda logits: logits / 0.25),
        (0.0, -2.0, lambda logits: logits / -2.0),
        (None, None, lambda logits: logits),
    ],
)
@pytest.mark.parametrize("shape", [(3, 1), (2, 5, 4)])
def test_standardize(mean: float | None, sigma: float | None, formula, shape: tuple[int, ...]) -> None:
    given = rows(*shape)
    before = given.clone()
    torch.testing.assert_close(Standardize(mean, sigma)(given), formula(given))
    assert torch.equal(given, before)
    assert not list(Standardize(mean, sigma).parameters())


def test_pooled_vectors_pass_modules_of_their_own_first() -> None:
    pooler = Dense(4, 6, bias=True, activation=nn.Tanh(), use_residual=False)
    classifier = Dense(6, 3, bias=True, activation=nn.Identity(), use_residual=False)
    head = Head([classifier, Standardize(0.5, 2.0)], [pooler])
    given = rows(2, 4)
    (raw,) = head.forward_pooled(given)
    torch.testing.assert_close(raw, (classifier.linear(torch.tanh(pooler.linear(given))) - 0.5) / 2.0)
    assert sorted(head.state_dict()) == [
        "chain.0.linear.bias",
        "chain.0.linear.weight",
        "pooled.0.linear.bias",
        "pooled.0.linear.weight",
    ]


def test_token_rows_do_not_pass_what_is_for_pooled_vectors() -> None:
    pooler = Dense(4, 4, bias=True, activation=nn.Tanh(), use_residual=False)
    classifier = Dense(4, 3, bias=True, activation=nn.Identity(), use_residual=False)
    head = Head([classifier], [pooler])
    given = rows(2, 5, 4)
    raw, finished = head(given)
    torch.testing.assert_close(raw, classifier.linear(given))
    assert torch.equal(raw, finished)
    assert not torch.allclose(head.forward_pooled(given[:, 0])[0], raw[:, 0])


def test_pooled_vectors_are_normalized_last() -> None:
    norm = LayerNorm(4)
    head = Head([Normalize()], [norm])
    given = rows(2, 4)
    raw, finished = head.forward_pooled(given)
    torch.testing.assert_close(raw, norm(given))
    torch.testing.assert_close(finished, Normalize()(norm(given)))


def test_token_rows_pass_modules_of_their_own_instead() -> None:
    weighted = WeightedVectors(4, 3)
    head = Head([Normalize()], token_modules=[weighted])
    given = rows(2, 5, 4)
    (found,) = head.forward_tokens(given)
    assert torch.equal(found[..., :3], weighted.vector(given))
    assert torch.equal(found[..., 3:], weighted.weight(given).relu())
    raw, finished = head.forward_pooled(given[0])
    assert torch.equal(raw, given[0])
    torch.testing.assert_close(finished.norm(dim=-1), torch.ones(5))
    raw, finished = Head([Normalize()]).forward_tokens(given)
    assert torch.equal(raw, given)
    assert finished.shape == given.shape


@pytest.mark.parametrize("times", [1, 2])
def test_saturation(times: int) -> None:
    given = torch.tensor([-2.0, -0.0, 0.5, 3.0, 1e30])
    expected = given.double().clamp(min=0)
    for _ in range(times):
        expected = expected.log1p()
    torch.testing.assert_close(LogSaturation(times)(given).double(), expected, rtol=1e-6, atol=0)
