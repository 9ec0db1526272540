"""Known issues of DPF v25.4 that the twin reproduces, and how a run shows that it met one."""

from __future__ import annotations

from scenarios.result import Run


def met(run: Run) -> list[str]:
    """The known issues that this run met, in words."""
    return []
