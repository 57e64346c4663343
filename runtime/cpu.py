"""The processor as this process may use it: its model, the cores allowed, the instruction sets."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

ROOT: Final = Path("/")

_MODEL_KEYS: Final = ("model name", "Processor", "Hardware")
_FEATURE_KEYS: Final = ("flags", "Features")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The processor under this process.

    Attributes:
        model: The name that the processor gives itself.
        num_cores: Cores that the affinity mask and the control group's quota leave to this process.
        features: Instruction sets in the kernel's words, such as ``avx512_vnni``, ``amx_int8`` or ``asimddp``, sorted.
    """

    model: str
    num_cores: int
    features: tuple[str, ...]


def read_cpu_info(root: Path = ROOT) -> CpuInfo:
    """Read what the operating system says about the processor; ``root`` is where /proc and /sys hang."""
    fields = _read_cpuinfo(root)
    model = next((fields[key] for key in _MODEL_KEYS if key in fields), platform.processor() or platform.machine())
    features = next((fields[key] for key in _FEATURE_KEYS if key in fields), "")
    return CpuInfo(model=model, num_cores=count_cores(root), features=tuple(sorted(features.split())))


class _Needs(Protocol):
    @property
    def cpu_features(self) -> tuple[str, ...]: ...


def has_cpu_features(needed: _Needs, features: Collection[str]) -> bool:
    """Whether a processor with ``features`` has what is needed: of each entry, names with bars between them, one."""
    return all(set(entry.split("|")) & set(features) for entry in needed.cpu_features)


def count_cores(root: Path = ROOT) -> int:
    """Count the cores that this process may use: the affinity mask, cut to the control group's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def read_cpu_quota(root: Path = ROOT) -> float | None:
    """Return the smallest CPU quota of this process's control groups in cores, None where nothing limits it."""
    quotas = [_read_quota(folder) for folder in _group_folders(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_cpuinfo(root: Path) -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty where there is none."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _group_folders(root: Path) -> Iterator[Path]:
    """Yield this process's control groups and the groups above them, of version 2 and of version 1's cpu controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / group.strip("/")
        yield from (f for f in (folder, *folder.parents) if f.is_relative_to(top))


def _read_quota(folder: Path) -> float | None:
    """Return one group's own quota in cores: ``cpu.max`` (version 2) or ``cpu.cfs_*`` (version 1)."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
