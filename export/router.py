"""Routers of sentence-transformers: an inference-free SPLADE, whose queries take a weight a token from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.transformer_options import read_form
from poolgraph.tasks import SIDES, Side

ROUTERS: Final = ("Router", "Asym")
"""Names of the module, Asym the older one."""

ROUTER_FILES: Final = ("router_config.json", "config.json")
"""Where its structure is, the older place last."""

SUPPORTED: Final = (
    "what can be compiled is a route 'query' of a SparseStaticEmbedding alone and a route 'document' of a Transformer "
    "(or MLMTransformer) and a SpladePooling"
)


class Module(msgspec.Struct, frozen=True):
    """A row of modules.json."""

    type: str
    path: str

    @property
    def name(self) -> str:
        """The class without its package."""
        return self.type.rpartition(".")[2]


class _Parameters(msgspec.Struct, frozen=True):
    default_route: str | None = None
    allow_empty_key: bool = True
    route_mappings: dict[str, Any] | None = None


class _Router(msgspec.Struct, frozen=True):
    """What is read of a Router's file."""

    types: dict[str, str]
    structure: dict[str, list[str]]
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRoute:
    """The route of queries.

    Attributes:
        path: Folder of its SparseStaticEmbedding in the checkpoint.
        default_route: The route of texts of which nobody says what they are; None refuses them.
    """

    path: str
    default_route: Side | None


def read_router(checkpoint: Checkpoint, modules: Sequence[Module]) -> tuple[list[Module], StaticRoute] | None:
    """Read the routes of a checkpoint whose first module is a Router of sentence-transformers.

    Returns:
        The modules of the route ``document`` and the route of queries; None where there is no Router in front.

    Raises:
        ExportError: routes that cannot be compiled.
    """
    if not modules or modules[0].name not in ROUTERS or not modules[0].type.startswith("sentence_transformers."):
        return None
    router = _read_file(checkpoint, modules[0].path)
    behind = [module.name for module in modules[1:]]
    if behind:
        raise ExportError(f"modules.json has {behind} behind its {modules[0].name}; {SUPPORTED}, and nothing behind it")
    routes = {name: _resolve_modules(router, ids, modules[0].path) for name, ids in router.structure.items()}
    kinds = {name: [module.name for module in found] for name, found in routes.items()}
    if (
        set(routes) != set(SIDES)
        or kinds["query"] != ["SparseStaticEmbedding"]
        or "SpladePooling" not in kinds["document"]
    ):
        raise ExportError(
            f"modules.json has a {modules[0].name} with the routes {kinds}, which cannot be compiled; {SUPPORTED}"
        )
    return routes["document"], StaticRoute(path=routes["query"][0].path, default_route=_choose_default(router))


def _read_file(checkpoint: Checkpoint, path: str) -> _Router:
    names = [PurePosixPath(path, name).as_posix() for name in ROUTER_FILES]
    name = next((name for name in names if (checkpoint.folder / name).is_file()), None)
    if name is None:
        raise ExportError(f"modules.json has a Router without its file; looked for {names}")
    router = read_form(checkpoint, name, _Router)
    assert router is not None
    if router.parameters.route_mappings:
        raise ExportError(
            f"{name} has route_mappings {router.parameters.route_mappings}, which cannot be compiled; {SUPPORTED}"
        )
    return router


def _resolve_modules(router: _Router, ids: Sequence[str], path: str) -> list[Module]:
    missing = [name for name in ids if name not in router.types]
    outside = [name for name in ids if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if missing or outside:
        raise ExportError(f"the Router's structure names {missing or outside}, which are no modules of its types")
    return [Module(type=router.types[name], path=PurePosixPath(path, name).as_posix()) for name in ids]


def _choose_default(router: _Router) -> Side | None:
    """Return the route of texts without a task: the first one where none is named and that is allowed."""
    parameters = router.parameters
    name = parameters.default_route
    if name is None and parameters.allow_empty_key:
        name = next(iter(router.structure))
    found = next((side for side in SIDES if side == name), None)
    if name is not None and found is None:
        raise ExportError(f"the Router's default_route is {name!r}, but its routes are {list(router.structure)}")
    return found
