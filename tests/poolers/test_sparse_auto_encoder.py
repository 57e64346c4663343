"""Sparse auto-encoders and the choice of the largest values, against numpy, and as what finishes a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from poolgraph.poolers.head import Head, Normalize
from poolgraph.poolers.sparse_auto_encoder import KeepLargest, SparseAutoEncoder


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_encoder(shape: tuple[int, ...], *, normalize: bool) -> None:
    torch.manual_seed(0)
    module = SparseAutoEncoder(6, 11, normalize=normalize)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    given = torch.randn(shape)
    x = given.numpy().astype(np.float64)
    if normalize:
        x = x - x.mean(-1, keepdims=True)
        x = x / (x.std(-1, ddof=1, keepdims=True) + 1e-5)
    weight, before, after = (
        it.detach().numpy().astype(np.float64) for it in (module.encoder.weight, module.pre_bias, module.latent_bias)
    )
    expected = np.maximum((x - before) @ weight.T + after, 0)
    torch.testing.assert_close(module(given).detach().numpy().astype(np.float64), expected, rtol=1e-5, atol=1e-5)
    assert sorted(module.state_dict()) == ["encoder.weight", "latent_bias", "pre_bias"]


@pytest.mark.parametrize("number", [1, 3, 7, 70])
def test_keep_largest(number: int) -> None:
    given = torch.randperm(35, generator=torch.Generator().manual_seed(0)).reshape(5, 7).float()
    found = KeepLargest(number)(given).numpy()
    for row, kept in zip(given.numpy(), found, strict=True):
        order = np.argsort(-row)[:number]
        expected = np.zeros(7)
        expected[order] = row[order]
        assert np.array_equal(kept, expected)


@pytest.mark.parametrize(
    ("modules", "norm_is_of_kept"), [([KeepLargest(2), Normalize()], True), ([Normalize(), KeepLargest(2)], False)]
)
def test_a_head_is_finished_by_both(modules: list[nn.Module], *, norm_is_of_kept: bool) -> None:
    head = Head([nn.ReLU(), *modules])
    raw, finished = head.forward_pooled(torch.tensor([[3.0, -1.0, 4.0, 12.0]]))
    assert raw.tolist() == [[3.0, 0.0, 4.0, 12.0]]
    norm = np.sqrt(160 if norm_is_of_kept else 169)
    torch.testing.assert_close(finished, torch.tensor([[0.0, 0.0, 4.0, 12.0]]) / norm)


def test_what_stands_before_the_finish_is_raw() -> None:
    raw, finished = Head([Normalize(), nn.ReLU(), Normalize(), Normalize()]).forward_pooled(torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(raw, finished)
    torch.testing.assert_close(raw.norm(), torch.tensor(1.0))
