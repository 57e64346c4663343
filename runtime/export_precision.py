"""The precision that a checkpoint is exported in, for what its caller wishes to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from poolgraph.errors import InputError, ProviderError
from poolgraph.runtime.providers import (
    AUTOMATIC,
    CPU_PROVIDER,
    CUDA_PROVIDER,
    INSTALL_CURES,
    OTHER_CURES,
    TENSORRT_PROVIDER,
    Wish,
    resolve_provider,
)
from poolgraph.runtime.session import available_providers, provider_loads

MADE_FOR: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {CUDA_PROVIDER: ("fp16", "bf16"), CPU_PROVIDER: ("fp32", "int8", "bf16"), TENSORRT_PROVIDER: ("fp32", "fp16")}
)
"""An export's precisions by provider, first what is made where none is asked for. TensorRT runs the portable graph."""


def plan_precision(wish: Wish, loads: Callable[[str], bool] | None = None) -> dict[str, str]:
    """Return the options of an export that makes what is wished for.

    Args:
        wish: Its variant is left to the artifact, which has those of its options alone.
        loads: Whether an execution provider runs here, by its full name; found out by a session unless given.

    Raises:
        InputError: a precision that no export makes, or none of the provider's.
        ProviderError: the provider asked for does not load here, or is unknown; or none that has the precision does.
    """
    _check_precision(wish)
    provider = _choose_provider(wish, loads or _loads_here)
    made = MADE_FOR[provider]
    precision = wish.precision or made[0]
    if precision not in made:
        raise InputError(
            f"a checkpoint is not exported in {precision} for {provider}, but in {' or '.join(made)}",
            parameter="precision",
            value=precision,
        )
    if provider == CUDA_PROVIDER:
        return {"precision": precision, "target": "cuda"}
    return {} if provider == TENSORRT_PROVIDER or precision == "fp32" else {"precision": precision}


def _check_precision(wish: Wish) -> None:
    known = list(dict.fromkeys(name for made in MADE_FOR.values() for name in made))
    if wish.precision not in (None, *known):
        raise InputError(
            f"unknown precision {wish.precision!r}; an export makes {sorted(known)}",
            parameter="precision",
            value=wish.precision,
        )


def _choose_provider(wish: Wish, loads: Callable[[str], bool]) -> str:
    if wish.provider is not None:
        provider = resolve_provider(wish.provider)
        if loads(provider):
            return provider
        if not wish.fallback:
            raise ProviderError(_explain(provider) + OTHER_CURES)
    if wish.precision is None:
        return CPU_PROVIDER
    fitting = [provider for provider in AUTOMATIC if wish.precision in MADE_FOR[provider]]
    found = next(filter(loads, fitting), None)
    if found is None:
        raise ProviderError(f"precision {wish.precision!r} is for a GPU: {_explain(fitting[0])}")
    return found


def _explain(provider: str) -> str:
    return f"provider {provider} does not load on this machine; install it with `{INSTALL_CURES[provider]}`"


def _loads_here(provider: str) -> bool:
    return provider in available_providers() and provider_loads(provider)
