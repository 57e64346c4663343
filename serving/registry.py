"""The models of a process, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from poolgraph.errors import InputError
from poolgraph.graphs.manifest import MANIFEST_FILE
from poolgraph.runtime.long_texts import LongTexts
from poolgraph.runtime.model_arguments import ModelArguments, load_runner
from poolgraph.runtime.requests import RequestRunner
from poolgraph.serving.answer_cache import AnswerCache
from poolgraph.serving.cached_runs import CachedRuns
from poolgraph.serving.chat import find_server_template
from poolgraph.serving.disk_cache import DiskCache
from poolgraph.serving.engine import Engine
from poolgraph.serving.engine_errors import ModelNotFound
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.observer import Observer
from poolgraph.serving.probe import choose_probe
from poolgraph.serving.routing import list_names
from poolgraph.serving.scheduler import Rules
from poolgraph.serving.served_model import ServedModel
from poolgraph.serving.warm_up import warm_up
from poolgraph.tasks import TASK_FAMILY, GraphFamily

_DEFAULT_OVERLAP: Final = 32
_LARGEST_OVERLAP: Final = 4
"""Chunks share at most this part of the model's limit: the more they share, the more of them a text is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRegistry:
    """The models of a process.

    Attributes:
        models: In the order in which they were given.
        disk: The cache on disk that they share, if any.
    """

    models: tuple[ServedModel, ...]
    disk: DiskCache | None = None

    def find(self, name: str | None) -> ServedModel:
        """Return the model of a name; None is the only one there is.

        Raises:
            ModelNotFound: there is none, or several and no name.
        """
        if name is None and len(self.models) == 1:
            return self.models[0]
        for model in self.models:
            if name in model.names:
                return model
        raise ModelNotFound(name, tuple(name for model in self.models for name in list_names(model)))

    async def close(self, grace: float) -> None:
        """Close every model, all of them within ``grace`` seconds, then the cache."""
        await asyncio.gather(*(model.close(grace) for model in self.models))
        if self.disk is not None:
            await asyncio.to_thread(self.disk.close)


def open_registry(
    arguments: Sequence[ModelArguments],
    settings: EngineSettings,
    observer: Observer,
    served_model_names: Sequence[str] = (),
) -> ModelRegistry:
    """Load models, warm them up and start their engines.

    Args:
        arguments: One a model.
        settings: Of every engine.
        observer: Told what happens.
        served_model_names: Names in place of the models' own: all for the one model, or one for each of several.

    Raises:
        InputError: no model, names that do not fit the models, two models of one name, a wrong argument, or a chat
            template that cannot be used.
        PoolgraphError: a model does not load; see ``load_runner``.
    """
    names = plan_names([argument.model for argument in arguments], served_model_names)
    memory = AnswerCache(settings.cache_bytes) if settings.cache_bytes else None
    runners = [load_runner(argument) for argument in arguments]
    for runner in runners:
        find_server_template(runner)
    with_disk = memory is not None and settings.cache_path is not None
    disk = DiskCache(settings.cache_path, settings.cache_disk_bytes) if with_disk and settings.cache_path else None
    models = tuple(
        _open_model(own, runner, settings, observer, memory, disk) for own, runner in zip(names, runners, strict=True)
    )
    for model in models:
        model.engine.start()
    return ModelRegistry(models=models, disk=disk)


def plan_names(models: Sequence[str | Path], served: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the names of each model: as it was given and, of a folder, its last component; or what the caller says.

    Raises:
        InputError: no model, names that do not fit the models, or two models of one name.
    """
    if not models:
        raise InputError("no model to serve; name at least one", parameter="models")
    if served and len(models) > 1 and len(served) != len(models):
        raise InputError(
            f"{len(served)} names for {len(models)} models; give one for each",
            parameter="served_model_name",
            value=list(served),
        )
    names = [_own_names(model) for model in models]
    if served:
        names = [tuple(served)] if len(models) == 1 else [(name,) for name in served]
    flat = [name for own in names for name in own]
    if twice := sorted({name for name in flat if flat.count(name) > 1}):
        raise InputError(
            f"two models would go by the name {twice[0]!r}; give each its own with --served-model-name",
            parameter="served_model_name",
            value=twice,
        )
    return names


def _own_names(model: str | Path) -> tuple[str, ...]:
    given = str(model)
    folder = Path(model)
    return tuple(dict.fromkeys((given, folder.resolve().name))) if folder.is_dir() else (given,)


def _open_model(
    names: tuple[str, ...],
    runner: RequestRunner,
    settings: EngineSettings,
    observer: Observer,
    memory: AnswerCache | None,
    disk: DiskCache | None,
) -> ServedModel:
    model = runner.model
    slots = model.plan_slots()
    if settings.max_batch_tokens is not None:
        slots = replace(slots, max_batch_tokens=settings.max_batch_tokens)
    families = _order_families(runner)
    probe = choose_probe(model, families[0])
    rules = Rules(slots=slots, max_wait=settings.max_wait_ms / 1000)
    cache = None
    if memory is not None:
        salt = _hash_model(runner)
        cache = CachedRuns(name=names[0], salt=salt, memory=memory, disk=disk, observer=observer)
    served = ServedModel(
        names=names,
        runner=replace(runner, name=names[0], long_texts=choose_long_texts(settings, runner)),
        engine=Engine(names[0], model, rules, settings, observer),
        settings=settings,
        observer=observer,
        probe=probe,
        cache=cache,
    )
    warm_up(model, probe.text, families, settings.warm_up_seconds)
    served.is_warm = True
    return served


def choose_long_texts(settings: EngineSettings, runner: RequestRunner) -> LongTexts:
    """Return the server's rule for long texts; where it has none, that of the model's pooler config.

    Raises:
        InputError: ``chunk_overlap`` is more than a quarter of the model's limit.
    """
    overlap = choose_overlap(settings.chunk_overlap, runner.manifest.limits.max_model_len)
    if settings.long_text == "error" and runner.long_texts.kind == "chunk":
        return runner.long_texts if settings.chunk_overlap is None else replace(runner.long_texts, overlap=overlap)
    return replace(runner.long_texts, kind=settings.long_text, overlap=overlap)


def choose_overlap(wanted: int | None, max_model_len: int) -> int:
    """Return how many tokens neighbouring chunks share.

    Raises:
        InputError: ``wanted`` is more than a quarter of the model's limit.
    """
    most = max_model_len // _LARGEST_OVERLAP
    if wanted is not None and wanted > most:
        raise InputError(
            f"chunks of {max_model_len} tokens, the model's limit, may share {most} tokens at most, got {wanted}",
            parameter="chunk_overlap",
            value=wanted,
        )
    return min(_DEFAULT_OVERLAP, most) if wanted is None else wanted


def _order_families(runner: RequestRunner) -> tuple[GraphFamily, ...]:
    """Return the graphs that the model's tasks need, that of the default task first."""
    tasks = [runner.default_task or "", *runner.manifest.tasks]
    return tuple(dict.fromkeys(TASK_FAMILY[task] for task in tasks if task in TASK_FAMILY))


def _hash_model(runner: RequestRunner) -> bytes:
    """Return what names an artifact's bytes and the variant that runs: the manifest lists the hash of each file."""
    manifest = (runner.model.path / MANIFEST_FILE).read_bytes()
    return sha256(manifest + runner.model.variant.name.encode() + runner.model.provider.encode()).digest()
