"""Upstream's warts: what v25.4 does that its users would rather it did not, and the policies that fix some of them.

The default is upstream's behaviour (HOUSE rule). Each place in the code that reproduces a wart carries the mark
`# upstream: <id>`, and each id stands here once; tests/controllers/test_warts.py holds the two together.
A policy is switched on by `policies: [...]` of a scenario or `--policy NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wart:
    """One wart. `issue` is upstream's number where there is one; `policy` the name of our fix, '' when we offer none."""

    id: str
    what: str
    source: str
    issue: str = ""
    policy: str = ""


WARTS: Final[tuple[Wart, ...]] = (
    Wart("allocator-first-cluster-only",
         "Only the first DPUCluster by name is ever considered; when it is full or not ready, DPUs wait although "
         "another has room", "provisioning.md 5.5", policy="allocator-spills-over"),
)

POLICIES: Final[dict[str, str]] = {w.policy: w.what for w in WARTS if w.policy}
"""Every policy by name, with the wart it fixes."""
