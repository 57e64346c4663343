"""Models that are served without a queue: each request runs at once, on a tiny artifact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from little_classifiers import VOCABULARY, build_classifier
from little_scorers import build_scorer

from poolgraph.graphs.artifact import record_files, save_manifest
from poolgraph.graphs.manifest import Limits, Manifest, parse_manifest
from poolgraph.runtime.model_arguments import ModelArguments, load_runner
from poolgraph.runtime.requests import RequestRunner
from poolgraph.runtime.work import Work, drive
from poolgraph.serving.engine_errors import ModelNotFound
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.settings import ServeSettings
from poolgraph.serving.urgency import Urgency

SIZE = 16
PROMPTS = {"query": "w1 w2 ", "document": "w3 ", "odd": "w4 "}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }} {{ message['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def build_embedder(
    folder: Path, *, chat_template: str | None = None, sparse: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """A tiny model that embeds texts and tokens."""
    fields = {"tasks": ("embed", "token_embed"), "default_task": "embed", "prompts": PROMPTS}
    pooler = sparse or {"activation": None, "normalize": True, "is_matryoshka": True}
    columns = tuple(f"column{index}" for index in range(SIZE))
    build_classifier(folder, labels=columns, pooler=pooler, **(fields | changes))
    if chat_template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
    manifest = parse_manifest((folder / "poolgraph.json").read_bytes())
    save_manifest(folder, msgspec.structs.replace(manifest, labels=(), files=record_files(folder)))
    return folder


SPLADE = {"activation": None, "sparse": True, "max_active_dims": 5}


def build_bge_m3(folder: Path) -> Path:
    """A tiny model that embeds texts and tokens and weighs words."""
    from tiny_bge_m3 import OVERRIDES, save_bge_m3

    from poolgraph import export_model

    export_model(save_bge_m3(folder.with_name("checkpoint")), folder, hf_overrides=OVERRIDES)
    return folder


def build_router(folder: Path) -> Path:
    """A tiny inference-free SPLADE: queries are weighed by a table, documents by a graph, by default."""
    from tiny_router import save_router

    from poolgraph import export_model

    export_model(save_router(folder.with_name("checkpoint")), folder)
    return folder


def build_csr(folder: Path) -> Path:
    """A tiny sparse auto-encoder behind a mean."""
    from tiny_sparse import auto_encoder, save_csr

    from poolgraph import export_model

    export_model(save_csr(folder.with_name("checkpoint"), [auto_encoder()]), folder)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "embedder": build_embedder,
    "chatty": lambda folder: build_embedder(folder, chat_template=CHAT_TEMPLATE),
    "plain": lambda folder: build_embedder(folder, prompts={}),
    "splade": lambda folder: build_embedder(folder, sparse=SPLADE, tasks=("embed",)),
    "bge_m3": build_bge_m3,
    "router": build_router,
    "csr": build_csr,
    "tokens": lambda folder: build_embedder(folder, tasks=("token_embed",), default_task="token_embed"),
    "classifier": build_classifier,
    "reranker": lambda folder: build_scorer(folder, limits=Limits(max_model_len=128, vocab_size=len(VOCABULARY))),
    "tagger": lambda folder: build_classifier(folder, "token_classifier"),
}


@dataclass
class FakeServedModel:
    """What the HTTP layer sees of a model; ``failure`` is raised in place of an answer, ``delay`` comes before it."""

    runner: RequestRunner
    names: tuple[str, ...]
    created: int = 1_764_000_000
    is_alive: bool = True
    is_warm: bool = True
    failure: Exception | None = None
    delay: float = 0.0
    num_calls: int = 0
    num_cancelled: int = 0
    urgencies: list[Urgency] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        return self.runner.manifest

    async def answer(self, work: Callable[[], Work[Any]], urgency: Urgency, *, num_chars: int) -> Any:
        self.num_calls += 1
        self.urgencies.append(urgency)
        if self.failure is not None:
            raise self.failure
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return drive(self.runner.model, work())

    async def check_ready(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass
class FakeRegistry:
    """Models by name."""

    models: tuple[FakeServedModel, ...]

    def find(self, name: str | None) -> FakeServedModel:
        if name is None and len(self.models) == 1:
            return self.models[0]
        for model in self.models:
            if name in model.names:
                return model
        raise ModelNotFound(name, tuple(name for model in self.models for name in model.names))


def load_model(folder: Path, name: str, *more_names: str) -> FakeServedModel:
    """Serve a tiny model of a kind."""
    runner = load_runner(ModelArguments(model=BUILDERS[name](folder / name)))
    return FakeServedModel(runner=replace(runner, name=name), names=(name, *more_names))


def build_settings(**changes: Any) -> ServeSettings:
    """Settings of a server."""
    return ServeSettings(engine=EngineSettings(), **changes)
