"""How urgent a request is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """A request's place among others.

    Attributes:
        priority: The lower, the sooner, as vLLM's ``priority``; a text never runs before one of a lower number.
        timeout: Seconds from its start after which texts that still wait are not run; None for no limit.
    """

    priority: int = 0
    timeout: float | None = None


NO_HURRY = Urgency()
"""What a request has that says nothing."""
