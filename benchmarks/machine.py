"""The machine and the versions that the numbers belong to; no host name and no path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from psutil import virtual_memory

PACKAGES = (
    "poolgraph",
    "onnxruntime",
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "nncf",
    "tokenizers",
    "numpy",
)
NOTED_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)

_PATH = re.compile(r"(?<![\w:/])/(?:[^\s/'\":]+/)+")


def num_cores() -> int:
    """Return how many cores this process may use; every engine gets exactly these."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, object]:
    """Describe the processor, the memory and the system."""
    cpuinfo = _read_cpuinfo()
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return {
        "cpu": cpuinfo.get("model name", platform.processor() or platform.machine()),
        "cpu_family_model": f"{cpuinfo.get('cpu family', '?')}/{cpuinfo.get('model', '?')}",
        "cores": num_cores(),
        "cpu_features": [feature for feature in NOTED_FEATURES if feature in flags],
        "memory_gib": round(virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def read_versions() -> dict[str, str]:
    """Return the versions of Python, of poolgraph's commit and of every engine; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _read_commit()
    return versions | ({"poolgraph commit": commit} if commit else {})


def read_peak_rss_bytes() -> int:
    """Return the largest resident size of this process so far.

    ``ru_maxrss`` would include the parent's size at the fork; the kernel's per-image high-water mark does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match.group(1)) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def hide_paths(message: str) -> str:
    """Return ``message`` with absolute folders removed, file names kept."""
    return _PATH.sub("", message)


def _read_cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_commit() -> str | None:
    """Return the short commit of the working tree, with a mark when it has changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None if done.returncode == 0 else None
