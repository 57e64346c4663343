"""Which model answers a request, and by which task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolgraph.errors import TaskNotSupported
from poolgraph.runtime.score_request import choose_scoring
from poolgraph.serving.http_errors import TaskNotServed

if TYPE_CHECKING:
    from poolgraph.serving.registry import ModelRegistry
    from poolgraph.serving.served_model import ServedModel


def find_model(registry: ModelRegistry, name: str | None, task: str | None, api: str) -> ServedModel:
    """Return the model of a request; without a name, the only one, or the first that does the task.

    Args:
        registry: The models.
        name: As the request has it.
        task: What it must be able to do: ``embed`` (also each token), ``classify``, ``token_embed``, ``score``; None
            for whatever it does.
        api: The route's name, for the message.

    Raises:
        ModelNotFound: no model of this name.
        TaskNotServed: it does something else.
    """
    if not name and task is not None:
        able = [model for model in registry.models if can(model, task)]
        if len(able) == 1:
            return able[0]
    model = registry.find(name or None)
    if task is not None and not can(model, task):
        raise TaskNotServed(
            f"The model `{name or model.names[0]}` does not support the {api} API. Its tasks are "
            f"{list(model.manifest.tasks)}."
        )
    return model


def can(model: ServedModel, task: str) -> bool:
    """Return whether a model does a task; ``score`` is one here, and ``embed`` may be of each token."""
    if task == "score":
        return can_score(model)
    if task == "embed":
        return bool({"embed", "token_embed"} & {*model.manifest.tasks})
    return task in model.manifest.tasks


def can_score(model: ServedModel) -> bool:
    """Return whether a model scores pairs."""
    runner = model.runner
    try:
        choose_scoring(runner.manifest, runner.default_task, template=runner.chat_template)
    except TaskNotSupported:
        return False
    return True
