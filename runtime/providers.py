"""Which variant runs on which execution provider: a pure choice over the manifest and what loads here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from poolgraph.errors import ArtifactError, ProviderError
from poolgraph.graphs.manifest import Manifest, Variant
from poolgraph.runtime.cpu import has_cpu_features
from poolgraph.runtime.native_library import has_operators

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"

PROVIDER_NAMES: Final = MappingProxyType({"cuda": CUDA_PROVIDER, "cpu": CPU_PROVIDER, "tensorrt": TENSORRT_PROVIDER})
"""Short names."""

AUTOMATIC: Final = (CUDA_PROVIDER, CPU_PROVIDER)
"""What is tried where nobody asked for a provider, the fastest first; TensorRT builds engines for minutes."""

INSTALL_CURES: Final = MappingProxyType(
    {
        CUDA_PROVIDER: 'pip install "poolgraph[gpu]"',
        CPU_PROVIDER: 'pip install "poolgraph[cpu]"',
        TENSORRT_PROVIDER: 'pip install "poolgraph[tensorrt]"',
    }
)

OTHER_CURES: Final = "; or choose another with provider=..., or pass fallback=True"
"""What helps where a provider does not load, beside what makes it load."""

PORTABLE: Final = "portable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the caller asked for; None leaves the choice open."""

    provider: str | None = None
    precision: str | None = None
    variant: str | None = None
    fallback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine offers.

    Attributes:
        providers: Full names of the providers that load.
        cpu_features: Instruction sets of the processor.
        operators: Libraries of operators that load beside ONNX Runtime's own.
    """

    providers: tuple[str, ...]
    cpu_features: Collection[str] = ()
    operators: Collection[str] = ()

    def runs(self, variant: Variant) -> bool:
        """Whether the processor and the libraries have what a variant needs."""
        return has_cpu_features(variant, self.cpu_features) and has_operators(variant, self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A variant and the provider that runs it; ``warning`` says what was asked for and is not there."""

    variant: Variant
    provider: str
    warning: str | None = None


def resolve_provider(name: str) -> str:
    """Return the full name of an execution provider.

    Raises:
        ProviderError: not a name of a provider that poolgraph runs on.
    """
    full = PROVIDER_NAMES.get(name.lower(), name)
    if full not in PROVIDER_NAMES.values():
        known = [*PROVIDER_NAMES, *PROVIDER_NAMES.values()]
        raise ProviderError(f"unknown provider {name!r}; poolgraph runs on {known}")
    return full


def choose_variant(manifest: Manifest, wish: Wish, machine: Machine) -> Choice:
    """Choose the best variant for a wish.

    The best provider that loads and has a variant comes first, then the artifact's own order of precisions. A portable
    variant is taken only by name or where its provider has no variant of its own in that precision.

    Raises:
        ProviderError: the provider asked for does not load here, or is unknown.
        ArtifactError: the artifact has no such variant.
    """
    available = machine.providers
    providers = list(AUTOMATIC) if wish.provider is None else [resolve_provider(wish.provider)]
    variants = manifest.variants if wish.variant is None else (manifest.variant(wish.variant),)
    warning = None
    missing = [name for name in providers if name not in available]
    if wish.provider is not None and missing:
        warning = _explain_missing(missing[0], available)
        if not wish.fallback:
            raise ProviderError(warning + OTHER_CURES)
        providers = list(AUTOMATIC)
    lacking = None
    for provider in (name for name in providers if name in available):
        lacking = lacking or _find_lacking(variants, provider, wish, machine)
        fitting = _fitting_variants([v for v in variants if machine.runs(v)], provider, wish)
        if fitting:
            return Choice(
                variant=fitting[0],
                provider=provider,
                warning=warning or _explain_passed_over(lacking, fitting[0], machine),
            )
    raise _explain_no_variant(variants, wish, providers, machine, lacking)


def check_verified(variant: Variant, path: object) -> None:
    """Refuse a variant that verification never passed.

    Raises:
        ArtifactError: naming the two ways to load it.
    """
    if not variant.verified:
        raise ArtifactError(
            f"variant {variant.name!r} was never verified: run `poolgraph verify {path}` on a machine that has "
            f"{' or '.join(variant.providers)}{_and_needs(variant)}, or pass allow_unverified=True"
        )


def _fitting_variants(variants: Sequence[Variant], provider: str, wish: Wish) -> list[Variant]:
    precision = graph_precision(provider, wish.precision)
    runnable = [v for v in variants if runs_on(v, provider) and precision in (None, v.precision)]
    return [v for v in runnable if v.target != PORTABLE] or runnable


def runs_on(variant: Variant, provider: str) -> bool:
    """Whether a variant is made for a provider; TensorRT, which knows standard operators, runs the portable one."""
    if provider == TENSORRT_PROVIDER:
        return variant.target == PORTABLE
    return provider in variant.providers


def graph_precision(provider: str, precision: str | None) -> str | None:
    """Return the precision of the graph that a wish is about: TensorRT makes fp16 of the graph in fp32 by itself."""
    return "fp32" if provider == TENSORRT_PROVIDER and precision in (None, "fp16") else precision


def _find_lacking(variants: Sequence[Variant], provider: str, wish: Wish, machine: Machine) -> Variant | None:
    """Return the variant that would be taken if this machine had what it needs; None where it has."""
    first = next(iter(_fitting_variants(variants, provider, wish)), None)
    return first if first is not None and not machine.runs(first) else None


def _explain_passed_over(lacking: Variant | None, taken: Variant, machine: Machine) -> str | None:
    """Say why a variant is not taken; nothing where one of its precision is, for want of what no user can install."""
    if lacking is None:
        return None
    if taken.precision == lacking.precision and not has_cpu_features(lacking, machine.cpu_features):
        return None
    return f"{_explain_lack(lacking, machine)}; {taken.name} runs instead"


def _explain_lack(variant: Variant, machine: Machine) -> str:
    """Say what a variant needs and this machine lacks."""
    if not has_cpu_features(variant, machine.cpu_features):
        return f"this processor lacks {' '.join(variant.cpu_features)}, which {variant.name} needs"
    return (
        f"the library of operators {variant.operators}, which {variant.name} needs, is not installed or does not load "
        f"(here: {', '.join(machine.operators) or 'none'}); install poolgraph anew where there is a C++ compiler"
    )


def _explain_missing(provider: str, available: Sequence[str]) -> str:
    return (
        f"provider {provider} does not load on this machine, where {list(available)} do; "
        f"install it with `{INSTALL_CURES[provider]}`"
    )


def _explain_no_variant(
    variants: Sequence[Variant], wish: Wish, providers: Sequence[str], machine: Machine, lacking: Variant | None
) -> ArtifactError | ProviderError:
    available = machine.providers
    lack = "" if lacking is None else f": {_explain_lack(lacking, machine)}"
    rows = [f"{v.name} ({v.precision}, {'/'.join(v.providers)}{_needs(v)})" for v in variants]
    if wish.variant is not None and wish.provider is None and wish.precision is None:
        cure = lack or _install_cure(variants[0], available)
        return ProviderError(f"variant {rows[0]} does not run on this machine, where {list(available)} load{cure}")
    made = [v for v in variants if v.precision == wish.precision]
    cures = [_install_cure(v, available) for v in made]
    if made and all(cures) and (wish.provider is None or wish.fallback):
        return ProviderError(
            f"precision {wish.precision!r} is that of {', '.join(v.name for v in made)} for {made[0].providers[0]}, "
            f"which does not load on this machine, where {list(available)} do{cures[0]}, or leave the precision open"
        )
    asked = [f"precision {wish.precision!r}"] if wish.precision is not None else []
    asked += [f"provider {providers[0]}"] if wish.provider is not None else []
    wanted = " and ".join(asked) or f"the providers {list(available)}"
    return ArtifactError(
        f"the artifact has no variant for {wanted}{lack and ' that runs here'}{lack}; it has {'; '.join(rows)}. "
        "Choose one of them, or export again with --target and --precision"
    )


def _install_cure(variant: Variant, available: Sequence[str]) -> str:
    """Return how to install the provider of a variant; nothing where one of its providers loads."""
    return (
        "" if set(variant.providers) & set(available) else f"; install it with `{INSTALL_CURES[variant.providers[0]]}`"
    )


def list_needs(variant: Variant) -> list[str]:
    """Return what a variant needs of a machine beside a provider: instruction sets, a library of operators."""
    return [*variant.cpu_features, *([variant.operators] if variant.operators else [])]


def _needs(variant: Variant) -> str:
    needs = list_needs(variant)
    return f", needs {' '.join(needs)}" if needs else ""


def _and_needs(variant: Variant) -> str:
    return "".join(f" and {need}" for need in list_needs(variant))
