"""Conditions as the service controllers keep them (services.md 6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from twin.model.meta import Condition, Conditions, set_condition

READY: Final = "Ready"
SEVERITY: Final = {"AwaitingDeletion": 3, "Failure": 2, "Pending": 1}
"""What decides the summary's reason. `Error` has no rank, so an error shows as Pending (upstream's rule)."""


def set_true(conditions: Conditions, type_: str, now: float, generation: int) -> Conditions:
    return set_condition(conditions, type_, "True", "Success", "", now, generation)


def set_false(conditions: Conditions, type_: str, reason: str, message: str, now: float, generation: int) -> Conditions:
    return set_condition(conditions, type_, "False", reason, message, now, generation)


def ensure(conditions: Conditions, types: Iterable[str], now: float, generation: int) -> Conditions:
    """Add those that are missing, as Unknown."""
    have = {c.type for c in conditions}
    for type_ in types:
        if type_ not in have:
            conditions = set_condition(conditions, type_, "Unknown", "Pending", "", now, generation)
    return conditions


def summarize(conditions: Conditions, now: float, generation: int) -> Conditions:
    """Ready from all the others; then the stored order: Ready first, the rest by generation and name."""
    bad = [c for c in conditions if c.type != READY and c.status != "True"]
    if not bad:
        conditions = set_true(conditions, READY, now, generation)
    else:
        reason = max((c.reason for c in bad), key=lambda r: SEVERITY.get(r, 0))
        reason = reason if reason in SEVERITY else "Pending"
        message = "\n".join(["The following conditions are not ready:", *(f"* {c.type}" for c in bad)])
        conditions = set_false(conditions, READY, reason, message, now, generation)
    return tuple(sorted(conditions, key=_place))


def _place(c: Condition) -> tuple[bool, int, str]:
    return (c.type != READY, -(c.observed_generation or 0), c.type)
