"""What Jamba's graphs compute otherwise than torch."""

from __future__ import annotations

import torch

from poolgraph.export.arch_jamba import softplus


def test_softplus_equals_torch_where_the_logarithm_is_near_1() -> None:
    values = torch.tensor([-80.0, -30.0, -16.7, -8.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 8.0, 30.0, 100.0])
    torch.testing.assert_close(softplus(values), torch.nn.functional.softplus(values), rtol=1e-6, atol=0)
