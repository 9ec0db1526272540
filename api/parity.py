"""Parity: a library scenario in virtual time and on a lab of real parts goes the same way.

What is compared, per DPU: phases and conditions (type, status, reason) in the one order in which the API server was
told of them, less the conditions of `WAITING`; and what is pending at the end. Of the whole run: the final objects of
DPF's kinds, field by field (`reports.diff_runs`). Times are not compared: controllers keep their own intervals on a lab
while hardware and timeline run faster.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from reports.diff_runs import CONFLICT, GONE, History
from scenarios.result import Run
from twin.backends.kube import Cluster
from twin.model.provisioning import Dpu

WAITING: Final[Mapping[str, str]] = {
    "DPUInstallInterfaceNotProvided": "a host's DMS pod starts faster with --speed than a DPUCluster's API server",
    "DPUClusterNotAllocated": "a real API server takes seconds to start, which no --speed shortens",
    "BFBIsNotReady": "downloads run faster with --speed, the poll that sees them does not",
    "NodeMaintenanceIsNotReady": "drains run faster with --speed, the poll that sees them does not",
    "FailedToGetHostUptime": "boots run faster with --speed, the poll that sees them does not",
    "NodeNotFound": "a join runs faster with --speed, the poll that sees it does not",
    "NodeNotReady": "a CNI runs faster with --speed, the poll that sees it does not",
}
"""Reasons that say only that a poll came while something else was under way -> why that differs between the worlds.

Left out too: a condition that says that a write met another one (`reports.diff_runs.CONFLICT`). Who comes first is a
matter of milliseconds, and the next pass writes again.
"""


def told(entries: Iterable[str]) -> list[str]:
    """What was told of one DPU, less what tells of waiting: a condition that is back as it was has not changed."""
    out: list[str] = []
    known: dict[str, str] = {}
    for entry in entries:
        type_, _, rest = entry.partition("=")
        if not rest:  # a phase
            known = {} if entry.endswith(GONE) else known
        elif rest.partition(" ")[2] in WAITING or rest.endswith(CONFLICT) or known.get(type_) == rest:
            continue
        else:
            known[type_] = rest
        out.append(entry)
    return out


def differences(sim: History, lab: History) -> list[str]:
    """Where what was told of DPUs differs, as lines for people."""
    return [f"{name}: {line}" for name in sorted({**sim.told, **lab.told})
            for line in _diff(_texts(sim, name), _texts(lab, name))]


def _texts(history: History, name: str) -> list[str]:
    return told(text for _, text in history.told.get(name, ()))


def _diff(one: list[str], two: list[str]) -> Iterator[str]:
    lines = list(difflib.unified_diff(one, two, "virtual time", "lab", n=2, lineterm=""))
    return iter(lines[2:])


def _within(few: Iterable[str], many: Iterable[str]) -> bool:
    """Are these among those, in this order?"""
    rest = iter(many)
    return all(text in rest for text in few)


class Pace:
    """A lab is as far as a simulated run when all was told of each DPU that was told there, in the same order.

    See `api.rehearse_lab.Pace`.
    """

    def __init__(self, simulated: Run) -> None:
        self.pending = simulated.pending
        self._simulated = History()
        self._lab = History()
        self._lock = threading.Lock()
        for version in sorted(simulated.trace.versions, key=lambda v: v.t_s):
            if isinstance(version.object, Dpu) and not version.cluster:
                _see(self._simulated, version.object, version.op == "DELETED", version.t_s)

    def watch(self, cluster: Cluster) -> None:
        cluster.watch(Dpu, self.seen)

    def seen(self, old: Any, new: Any) -> None:
        """The lab's API server tells of a version of a DPU; None: it was not there, it is gone."""
        with self._lock:
            if old is not new and (new or old) is not None:
                _see(self._lab, new or old, new is None, time.monotonic())

    def reached(self, at_s: float) -> bool:
        with self._lock:
            return all(_within(told(text for t_s, text in entries if t_s < at_s), _texts(self._lab, name))
                       for name, entries in self._simulated.told.items())

    def at_rest(self, at_s: float) -> bool:
        """Had every DPU there was become Ready, or gone, just before?"""
        last = [[text for t_s, text in entries if t_s < at_s and text.startswith("-> ")]
                for entries in self._simulated.told.values()]
        return any(last) and all(phases[-1] in ("-> Ready", f"-> {GONE}") for phases in last if phases)


def _see(history: History, dpu: Dpu, gone: bool, t_s: float) -> None:
    status = dpu.status
    phase = GONE if gone else (status.phase if status else "") or "Initializing"
    conditions = [(c.type, c.status, c.reason, c.message) for c in status.conditions] if status else []
    history.see(dpu.metadata.name, phase, conditions, t_s)
