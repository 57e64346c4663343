"""The target and the precision that a checkpoint is exported for, for what its caller wishes to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    graph_precision,
    resolve_provider,
)
from poolgraph.runtime.session import available_providers, provider_loads

Loads = Callable[[str], bool]
"""Whether an execution provider runs here, by its full name."""

MADE_FOR: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {CUDA_PROVIDER: ("fp16", "bf16"), CPU_PROVIDER: ("fp32", "int8", "bf16"), TENSORRT_PROVIDER: ("fp32", "fp16")}
)
"""An export's precisions by provider. TensorRT runs the portable graph."""


@dataclass(frozen=True, slots=True)
class Made:
    """Variants of one name that an export makes.

    Attributes:
        target: Word of ``--target``.
        providers: Execution providers that run them, first what is taken where nobody asks for one.
        precisions: The last part of their names.
    """

    target: str
    providers: tuple[str, ...]
    precisions: tuple[str, ...]


_CPU, _CUDA = (CPU_PROVIDER,), (CUDA_PROVIDER,)

VARIANTS: Final[Mapping[str, Made]] = MappingProxyType(
    {
        "portable": Made("cpu", (CPU_PROVIDER, TENSORRT_PROVIDER), ("fp32", "int8")),
        "native": Made("cpu", _CPU, ("fp32", "int8", "bf16")),
        "cpu": Made("cpu", _CPU, ("fp32", "int8")),
        "cuda_packed": Made("cuda", _CUDA, ("fp16",)),
        "cuda": Made("cuda", _CUDA, ("fp16", "bf16")),
        "cublaslt_packed": Made("cublaslt", _CUDA, ("fp16",)),
        "cublaslt": Made("cublaslt", _CUDA, ("fp16", "bf16")),
    }
)
"""By the name before the precision: what the table of targets makes, which graphs has."""


def plan_precision(wish: Wish, loads: Loads | None = None) -> dict[str, str]:
    """Return the options of an export that makes what is wished for.

    With nothing asked for it is the best provider that loads, and the precision is left to the export.

    Args:
        wish: Of a model that is still a checkpoint.
        loads: Found out by a session unless given.

    Raises:
        InputError: a precision that no export makes, or none of the provider's; a variant that no export makes, or
            another than the precision and the provider beside it say.
        ProviderError: the provider asked for does not load here, or is unknown; or none that has the precision does.
    """
    _check_precision(wish)
    loads = loads or _loads_here
    if wish.variant is not None:
        return _plan_variant(wish, wish.variant, loads)
    provider = _choose_provider(wish, loads)
    made, precision = MADE_FOR[provider], wish.precision
    if precision not in (None, *made):
        raise InputError(
            f"a checkpoint is not exported in {precision} for {provider}, but in {' or '.join(made)}",
            parameter="precision",
            value=precision,
        )
    if provider == TENSORRT_PROVIDER:
        return {}
    return _options("cuda" if provider == CUDA_PROVIDER else "cpu", precision)


def _options(target: str, precision: str | None) -> dict[str, str]:
    """Return the options without those that are an export's defaults."""
    options = {} if target == "cpu" else {"target": target}
    return options if precision in (None, "fp32") else options | {"precision": str(precision)}


def _check_precision(wish: Wish) -> None:
    known = list(dict.fromkeys(name for made in MADE_FOR.values() for name in made))
    if wish.precision not in (None, *known):
        raise InputError(
            f"unknown precision {wish.precision!r}; an export makes {sorted(known)}",
            parameter="precision",
            value=wish.precision,
        )


def _choose_provider(wish: Wish, loads: Loads) -> str:
    if wish.provider is not None:
        provider = resolve_provider(wish.provider)
        if loads(provider):
            return provider
        if not wish.fallback:
            raise ProviderError(_explain(provider) + OTHER_CURES)
    fitting = [provider for provider in AUTOMATIC if wish.precision in (None, *MADE_FOR[provider])]
    found = next(filter(loads, fitting), None)
    if found is None:
        raise ProviderError(f"precision {wish.precision!r} is for a GPU: {_explain(fitting[0])}")
    return found


def _plan_variant(wish: Wish, variant: str, loads: Loads) -> dict[str, str]:
    made, precision = _parse_variant(variant)
    providers = [it for it in made.providers if graph_precision(it, None) in (None, precision)]
    provider = providers[0] if wish.provider is None else resolve_provider(wish.provider)
    if provider not in providers:
        raise _contradiction(variant, f"runs on {' or '.join(providers)}", "provider", wish.provider)
    if graph_precision(provider, wish.precision) not in (None, precision):
        raise _contradiction(variant, f"is in {precision}", "precision", wish.precision)
    tried = (provider, providers[0]) if wish.fallback else (provider,)
    if not any(map(loads, tried)):
        raise ProviderError(f"variant {variant!r} is for {provider}: {_explain(provider)}")
    return _options(made.target, precision)


def _parse_variant(variant: str) -> tuple[Made, str]:
    name, _, precision = variant.rpartition("_")
    made = VARIANTS.get(name)
    if made is None or precision not in made.precisions:
        known = [f"{name}_{precision}" for name, made in VARIANTS.items() for precision in made.precisions]
        raise InputError(
            f"unknown variant {variant!r}; an export makes {known}, of which a model has those that fit it",
            parameter="variant",
            value=variant,
        )
    return made, precision


def _contradiction(variant: str, what: str, parameter: str, value: str | None) -> InputError:
    return InputError(
        f"variant {variant!r} {what}, but {parameter} {value!r} is asked for; leave one of them out",
        parameter=parameter,
        value=value,
    )


def _explain(provider: str) -> str:
    return f"provider {provider} does not load on this machine; install it with `{INSTALL_CURES[provider]}`"


def _loads_here(provider: str) -> bool:
    return provider in available_providers() and provider_loads(provider)
