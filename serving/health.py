"""Whether the process is alive, and whether its models answer as they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolgraph.serving.engine_errors import NotReady

if TYPE_CHECKING:
    from poolgraph.serving.registry import ModelRegistry


async def is_healthy(registry: ModelRegistry) -> bool:
    """Return whether every model's engine is alive; nothing is run."""
    return all(model.is_alive for model in registry.models)


async def check_ready(registry: ModelRegistry) -> None:
    """Check that every model is alive, warm, and still gives a stored probe its vector.

    Raises:
        NotReady: a model is not alive or not warm.
        PoolgraphError: the probe's answer differs, or could not be had.
    """
    for model in registry.models:
        if not model.is_alive:
            raise NotReady(f"the engine of {model.names[0]} is down")
        if not model.is_warm:
            raise NotReady(f"{model.names[0]} is warming up")
        await model.check_ready()
