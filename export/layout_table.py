"""The table of published layouts, one row a file."""

from __future__ import annotations

from poolgraph.export.layout_gte import GTE
from poolgraph.export.layouts import Layout

LAYOUTS: tuple[Layout, ...] = (GTE,)
"""The first that recognizes a ``config.json`` holds."""
