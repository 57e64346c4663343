"""The machine and the versions that measured numbers belong to; no host name and no path."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from poolgraph.runtime.cpu import read_cpu_info
from poolgraph.runtime.versions import installed_versions

PACKAGES: Final = (
    "poolgraph",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "nncf",
    "tokenizers",
    "numpy",
)
NOTED_FEATURES: Final = (
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

_PATH: Final = re.compile(r"(?<![\w:/])/(?:[^\s/'\":]+/)+")


def describe_machine() -> dict[str, object]:
    """Describe the processor, the memory and the system."""
    cpu = read_cpu_info()
    return {
        "cpu": cpu.model,
        "cores": cpu.num_cores,
        "cpu_features": [feature for feature in NOTED_FEATURES if feature in cpu.features],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def read_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages; absent ones are left out."""
    return {"python": platform.python_version()} | installed_versions(packages)


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
