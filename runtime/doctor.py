"""What this machine offers to poolgraph, and what would be picked; it reports what is missing and never fails."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from types import MappingProxyType, ModuleType
from typing import Final

from poolgraph import __version__
from poolgraph.graphs.manifest import CUDA_OPERATORS, NATIVE_OPERATORS
from poolgraph.runtime.cache import cache_dir
from poolgraph.runtime.cpu import CpuInfo, read_cpu_info
from poolgraph.runtime.doctor_cuda import CudaReport, examine_cuda, format_cuda
from poolgraph.runtime.native_library import available_operators, find_library, used_instructions
from poolgraph.runtime.provider_libraries import LIBRARIES, explain_failure, preload_libraries
from poolgraph.runtime.provider_trial import FATAL, try_provider
from poolgraph.runtime.providers import AUTOMATIC, CUDA_PROVIDER, INSTALL_CURES, PROVIDER_NAMES
from poolgraph.runtime.threads import Parallelism, choose_parallelism
from poolgraph.runtime.versions import read_version

PACKAGES: Final = ("numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "pyarrow", "torch", "transformers")
EXTRAS: Final = ("cpu", "gpu", "tensorrt", "files", "export", "serve", "otel", "bench")
USEFUL_CPU_FEATURES: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""What ONNX Runtime's kernels make use of, on x86 and on Arm."""

WITHOUT_OPERATORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        NATIVE_OPERATORS: "the CPU runs on ONNX Runtime's operators, slower, as all processors without AVX2 and FMA",
        CUDA_OPERATORS: "variants of --target cublaslt do not run",
    }
)
"""What it means that a library of operators is not there."""

_MANY_BATCHES: Final = 1000
_WARNING: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCheck:
    """Whether a session really runs on an execution provider, and why not."""

    name: str
    loads: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraCheck:
    """An optional part of poolgraph and the packages of it that are not installed."""

    name: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What was found.

    Attributes:
        poolgraph: Version.
        python: Version.
        system: Operating system and machine.
        packages: Versions by name; None where a package is not installed.
        extras: The optional parts.
        cpu: The processor.
        operators: The libraries of poolgraph's own operators that load, with their versions.
        compiled_for: The instruction sets that these libraries were compiled for.
        uses: Those that they use here beyond these.
        providers: The providers that ONNX Runtime lists, and those that poolgraph could use.
        provider: The provider that would be picked; None when none loads.
        cuda: What CUDA needs, and the kernel that attention runs on.
        many_batches: Concurrent runs and threads on the CPU for many batches.
        one_batch: The same for a lone one.
        cache: The folder where exported checkpoints are kept.
    """

    poolgraph: str
    python: str
    system: str
    packages: dict[str, str | None]
    extras: tuple[ExtraCheck, ...]
    cpu: CpuInfo
    operators: tuple[str, ...]
    compiled_for: Mapping[str, tuple[str, ...]]
    uses: Mapping[str, tuple[str, ...]]
    providers: tuple[ProviderCheck, ...]
    provider: str | None
    cuda: CudaReport
    many_batches: Parallelism
    one_batch: Parallelism
    cache: str


def examine(import_onnxruntime: Callable[[], ModuleType] | None = None) -> DoctorReport:
    """Look at this machine; ``import_onnxruntime`` returns the module to ask, the installed one unless told."""
    cpu = read_cpu_info()
    providers = check_providers(import_onnxruntime or (lambda: import_module("onnxruntime")))
    return DoctorReport(
        poolgraph=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: read_version(name) for name in PACKAGES},
        extras=tuple(check_extra(name) for name in EXTRAS),
        cpu=cpu,
        operators=available_operators(),
        compiled_for={name: found.cpu_features for name in WITHOUT_OPERATORS if (found := find_library(name))},
        uses={name: used_instructions(name) for name in WITHOUT_OPERATORS},
        providers=providers,
        provider=choose_provider(providers),
        cuda=examine_cuda(cuda_loads=any(check.loads for check in providers if check.name == CUDA_PROVIDER)),
        many_batches=choose_parallelism(_MANY_BATCHES, cpu.num_cores),
        one_batch=choose_parallelism(1, cpu.num_cores),
        cache=str(cache_dir()),
    )


def check_providers(import_onnxruntime: Callable[[], ModuleType]) -> tuple[ProviderCheck, ...]:
    """Try a session on each provider that ONNX Runtime lists; a provider of ours that it lacks is reported too."""
    try:
        onnxruntime = import_onnxruntime()
        listed = list(onnxruntime.get_available_providers())
    except Exception as error:
        reason = f"onnxruntime does not load: {_first_line(error)}"
        return tuple(ProviderCheck(name=name, loads=False, reason=reason) for name in PROVIDER_NAMES.values())
    preload_libraries()
    absent = [name for name in PROVIDER_NAMES.values() if name not in listed]
    # A provider whose libraries are missing writes about it to stderr; the report says it once, in order.
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        tried = [_check_provider(onnxruntime, name) for name in listed]
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    return (*tried, *(_report_absent(name) for name in absent))


def _report_absent(name: str) -> ProviderCheck:
    return ProviderCheck(name=name, loads=False, reason=f"not in this onnxruntime; {INSTALL_CURES[name]}")


def _check_provider(onnxruntime: ModuleType, name: str) -> ProviderCheck:
    message = try_provider(onnxruntime, name)
    if message is None:
        return ProviderCheck(name=name, loads=True)
    if name in LIBRARIES:
        return ProviderCheck(name=name, loads=False, reason=explain_failure(name, message))
    reason = _first_line(message) if message else "it fell back to another provider"
    return ProviderCheck(name=name, loads=False, reason=reason)


def choose_provider(providers: tuple[ProviderCheck, ...]) -> str | None:
    """Return the preferred provider among those that load."""
    loading = {check.name for check in providers if check.loads}
    return next((name for name in AUTOMATIC if name in loading), None)


def check_extra(name: str) -> ExtraCheck:
    """Return which packages of an optional part are missing, as poolgraph's own metadata lists them."""
    try:
        requirements = metadata.requires("poolgraph") or []
    except metadata.PackageNotFoundError:
        return ExtraCheck(name=name, missing=("poolgraph itself is not installed as a package",))
    packages = [_parse_name(line) for line in requirements if re.search(rf'extra == "{name}"', line)]
    return ExtraCheck(name=name, missing=tuple(package for package in packages if read_version(package) is None))


def format_doctor(report: DoctorReport) -> str:
    """Write the report for people."""
    useful = [feature for feature in USEFUL_CPU_FEATURES if feature in report.cpu.features]
    return "\n".join(
        [
            f"poolgraph {report.poolgraph}, python {report.python}, {report.system}",
            "",
            "Packages",
            *(f"  {name:<16} {version or 'not installed'}" for name, version in report.packages.items()),
            "",
            "Extras",
            *(f"  {extra.name:<16} {_describe_extra(extra)}" for extra in report.extras),
            "",
            "Processor",
            f"  {report.cpu.model}, {report.cpu.num_cores} cores for this process",
            f"  {' '.join(useful) or 'no instruction set that matters was recognized'}",
            "",
            "Operators of poolgraph's own",
            *(f"  {name:<16} {_describe_operators(name, report)}" for name in WITHOUT_OPERATORS),
            "",
            "Providers",
            *(f"  {_describe_provider(check)}" for check in report.providers),
            "",
            "CUDA",
            *(f"  {line}" for line in format_cuda(report.cuda)),
            "",
            "Picked",
            *(f"  {line}" for line in _describe_pick(report)),
            f"  cache         {report.cache}",
        ]
    )


def _describe_extra(extra: ExtraCheck) -> str:
    if not extra.missing:
        return "installed"
    return f'missing {", ".join(extra.missing)} (pip install "poolgraph[{extra.name}]")'


def _describe_operators(name: str, report: DoctorReport) -> str:
    if name in report.operators:
        parts = (("compiled for", report.compiled_for.get(name, ())), ("using", report.uses.get(name, ())))
        return ", ".join(["load", *(f"{what} {' '.join(sets)}" for what, sets in parts if sets)])
    return f"not compiled, or do not load: {WITHOUT_OPERATORS[name]}; install poolgraph anew with a C++ compiler"


def _describe_provider(check: ProviderCheck) -> str:
    return f"{check.name:<28} {'loads' if check.loads else 'does not load: ' + check.reason}"


def _describe_pick(report: DoctorReport) -> list[str]:
    if report.provider is None:
        return ['provider      none loads (pip install "poolgraph[cpu]")']
    many, one = report.many_batches, report.one_batch
    return [
        f"provider      {report.provider}",
        f"many texts    {many.runs} runs at once, {many.threads} thread(s) each (on the CPU)",
        f"a lone text   {one.runs} run, {one.threads} thread(s)",
    ]


def _parse_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match.group()


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
