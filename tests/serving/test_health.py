"""Alive and ready are two questions."""

import asyncio
from types import SimpleNamespace

import pytest
from fake_app import FakeModel

from poolgraph.serving.engine_errors import NotReady
from poolgraph.serving.health import check_ready, is_healthy


def registry(**changes):
    model = FakeModel()
    for name, value in changes.items():
        setattr(model, name, value)
    return SimpleNamespace(models=(FakeModel(), model))


def test_a_dead_engine_is_not_healthy():
    assert asyncio.run(is_healthy(registry()))
    assert not asyncio.run(is_healthy(registry(is_alive=False)))


@pytest.mark.parametrize(
    ("changes", "said"), [({"is_alive": False}, "the engine of fake is down"), ({"is_warm": False}, "warming up")]
)
def test_a_model_that_is_down_or_cold_is_not_ready(changes, said):
    asyncio.run(check_ready(registry()))
    with pytest.raises(NotReady, match=said):
        asyncio.run(check_ready(registry(**changes)))


def test_a_probe_that_fails_is_not_ready():
    async def fail() -> None:
        raise NotReady("the probe's vector differs")

    with pytest.raises(NotReady, match="differs"):
        asyncio.run(check_ready(registry(check_ready=fail)))
