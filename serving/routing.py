"""Which model answers a request, and by which task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from poolgraph.errors import TaskNotSupported
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.score_request import choose_scoring
from poolgraph.runtime.sparse import weighs_words
from poolgraph.serving.http_errors import TaskNotServed

if TYPE_CHECKING:
    from poolgraph.runtime.requests import RequestRunner
    from poolgraph.serving.registry import ModelRegistry
    from poolgraph.serving.served_model import ServedModel


def find_model(registry: ModelRegistry, name: str | None, task: str | None, api: str) -> ServedModel:
    """Return the model of a request; without a name, the only one, or the only one that does the task.

    Where several score pairs, that is the only one made for it: embedding models score too, by the way.

    Args:
        registry: The models.
        name: As the request has it.
        task: What it must be able to do, as for ``can``; None for whatever it does.
        api: The route's name, for the message.

    Raises:
        ModelNotFound: no model of this name.
        TaskNotServed: it does something else.
    """
    if not name and task is not None:
        able = [model for model in registry.models if can(model, task)]
        chosen = able if len(able) == 1 else [model for model in able if _is_made_for(model, task)]
        if len(chosen) == 1:
            return chosen[0]
    model = registry.find(name or None)
    if task is not None and not can(model, task):
        raise TaskNotServed(
            f"The model `{name or show_name(model)}` does not support the {api} API. Its tasks are "
            f"{list(model.manifest.tasks)}."
        )
    return model


def _is_made_for(model: ServedModel, task: str) -> bool:
    scoring = model.manifest.scoring
    return task == "score" and scoring is not None and scoring.kind != "bi_encoder"


def list_names(model: ServedModel) -> tuple[str, ...]:
    """Return the names of a model that are told to clients: no path of this machine, unless it has no other name."""
    shown = tuple(name for name in model.names if not PurePath(name).is_absolute())
    return shown or model.names[:1]


def show_name(model: ServedModel) -> str:
    """Return the name under which a model answers a request that names none."""
    return list_names(model)[0]


def can(model: ServedModel, task: str) -> bool:
    """Return whether a model does a task.

    ``score`` is one here, and so are ``embeddings``, of texts or of each token, and ``embed_sparse``.
    """
    if task == "score":
        return can_score(model)
    if task == "embeddings":
        return bool({"embed", "token_embed"} & {*model.manifest.tasks})
    if task == "embed_sparse":
        return weighs_words(model.manifest)
    return task in model.manifest.tasks


def choose_runner(model: ServedModel, *, refuses_long: bool) -> RequestRunner:
    """Return a model's runner; a request that wants long texts refused has its way, whatever the server's rule."""
    return replace(model.runner, long_texts=LongTexts()) if refuses_long else model.runner


def can_score(model: ServedModel) -> bool:
    """Return whether a model scores pairs."""
    runner = model.runner
    try:
        choose_scoring(runner.manifest, runner.default_task, template=runner.chat_template)
    except TaskNotSupported:
        return False
    return True


def list_paths(registry: ModelRegistry) -> dict[str, str]:
    """Return the paths of this machine that belong to models, longest first, and each model's name."""
    found = {
        path: show_name(model)
        for model in registry.models
        for path in (*model.names, str(model.runner.model.path), model.manifest.source.model)
        if PurePath(path).is_absolute() and path != show_name(model)
    }
    return dict(sorted(found.items(), key=lambda row: -len(row[0])))
