"""The application over tiny models, asked in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import pytest
from fake_engine import FakeRegistry, FakeServedModel, build_settings, load_model

from poolgraph.serving.app import build_app
from poolgraph.serving.asgi_types import ASGIApp
from poolgraph.serving.observer import NullObserver


@dataclass(frozen=True)
class Site:
    """An application and its models."""

    app: ASGIApp
    models: tuple[FakeServedModel, ...]

    @property
    def model(self) -> FakeServedModel:
        return self.models[0]

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **options)

    def post_all(self, path: str, bodies: Sequence[bytes]) -> list[httpx.Response]:
        """Send JSON bodies one after another over one client."""

        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"content-type": "application/json"}
                return [await client.post(path, content=body, headers=headers) for body in bodies]

        return asyncio.run(send())


@pytest.fixture(scope="session")
def find_model(tmp_path_factory) -> Callable[[str], FakeServedModel]:
    """Return a function from a kind of ``fake_engine.BUILDERS`` to a model of that kind."""
    return cache(lambda kind: load_model(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture
def make_site(find_model) -> Callable[..., Site]:
    """Return a function that serves models of kinds; keywords are the server's settings."""

    def make(*kinds: str, observer: Any = None, **settings: Any) -> Site:
        models = tuple(find_model(kind) for kind in kinds or ("embedder",))
        for model in models:
            model.failure, model.delay, model.num_calls, model.num_cancelled = None, 0.0, 0, 0
            model.urgencies.clear()
        app = build_app(FakeRegistry(models), build_settings(**settings), observer or NullObserver())
        return Site(app, models)

    return make
