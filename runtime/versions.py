"""Versions of installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata


def read_version(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    found = {package: read_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}
