"""The summary of a rehearsal as a person reads it on a terminal."""

from __future__ import annotations

from typing import Final

from api.output import columns
from scenarios.result import QuantileValue, Summary
from twin.model.units import duration
from twin.version import DPF_RELEASE

_LEVELS: Final = {"p50": "half of the DPUs", "p90": "9 of 10 DPUs", "p95": "19 of 20 DPUs", "last": "all DPUs",
                  "last_p90": "all DPUs, 9 runs of 10", "last_p95": "all DPUs, 19 runs of 20"}


def text(summary: Summary, *, wide: bool = False) -> str:
    """The whole summary. `wide` adds a line for each phase and all waits."""
    parts = [_head(summary), _completion(summary), _binding(summary, wide), _phases(summary) if wide else "",
             _service(summary), _expectations(summary), _lines("NOT DONE", summary.pending),
             _lines("SLOWEST", [f"{w.object}: {w.words}" for w in summary.worst])]
    return "\n".join(part for part in parts if part)


def _head(s: Summary) -> str:
    state = f"converged after {duration(s.settled_s)}" if s.converged else \
        f"DID NOT CONVERGE after {duration(s.virtual_s)}"
    errors = f", {s.dpus.error} in Error" if s.dpus.error else ""
    seeds = f"{s.replications} replications from seed {s.seed}" if s.replications > 1 else f"seed {s.seed}"
    policies = f", policies {', '.join(s.policies)}" if s.policies else ""
    ready = f"{s.dpus.ready} of {s.dpus.total} DPUs Ready{errors}"
    return (f"{s.scenario}: {state}; {ready}\n"
            f"dpf-twin {s.version}, DPF {DPF_RELEASE}, {seeds}{policies}; {s.reconciles:,} reconciles in "
            f"{duration(s.wall_s)}\n")


def _completion(s: Summary) -> str:
    if not s.completion_s:
        return ""
    intervals = any(q.low is not None or q.high is not None for q in s.completion_s.values())
    ranges = s.replications > 1
    rows = [("READY AFTER", "TIME", *(("95 % INTERVAL",) if intervals else ()), *(("RANGE",) if ranges else ()))]
    for name, q in s.completion_s.items():
        rows.append((_LEVELS.get(name, name), _seconds(q.value), *((_interval(q),) if intervals else ()),
                     *((_range(q),) if ranges else ())))
    return columns(rows)


def _interval(q: QuantileValue) -> str:
    if q.low is None:
        return "" if q.high is None else f"up to {duration(q.high)}"
    return f"{duration(q.low)} to {duration(q.high)}" if q.high is not None else f"{duration(q.low)} or more"


def _range(q: QuantileValue) -> str:
    return "" if q.min is None or q.max is None else f"{duration(q.min)} to {duration(q.max)}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else duration(value)


def _binding(s: Summary, wide: bool) -> str:
    shown = s.binding if wide else s.binding[:5]
    if not shown:
        return ""
    rows = [("WAITED FOR", "SHARE", "DPU TIME"), *((b.constraint, f"{b.share:.1%}", duration(b.s)) for b in shown)]
    return columns(rows, right=frozenset((1, 2)))


def _phases(s: Summary) -> str:
    rows = [("PHASE", "N", "P50", "P90", "MAX", "BASIS")]
    for name, p in s.phase_s.items():
        rows.append((name, str(p.n), duration(p.p50), duration(p.p90), duration(p.max), str(p.basis)))
    return columns(rows, right=frozenset((1, 2, 3, 4)))


def _service(s: Summary) -> str:
    u = s.unavailable
    return (f"out of service: at most {u.max} DPUs at once, {u.max_per_rack} in one rack; "
            f"{duration(u.dpu_s)} of DPU time\n"
            f"reboots: {s.reboots.host} of hosts, {s.reboots.dpu} of DPUs\n")


def _expectations(s: Summary) -> str:
    if not s.expectations:
        return ""
    rows = [("EXPECTED", "", "VALUE")]
    for e in s.expectations:
        expr, value = e.row
        rows.append((expr, "holds" if e.holds else "DOES NOT HOLD", value))
    return columns(rows)


def _lines(title: str, lines: list[str]) -> str:
    return f"{title}\n" + "".join(f"  {line}\n" for line in lines) if lines else ""
