"""What one run's trace says about its DPUs: provisionings, unavailability, waits. Pure functions, times in seconds.

`end_s` is the end of observation (the horizon or the moment everything had settled).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from twin.model.provisioning import Phase
from twin.sim.trace import PhaseRow, Place, SpanRow, Trace, Wish


class Provisioning(NamedTuple):
    """One way of a DPU from being asked to Ready. `ready_s` is None when it was not Ready by the end."""

    dpu: str
    attempt: int
    asked_s: float
    ready_s: float | None

    @property
    def completion_s(self) -> float:
        """`ready_s - asked_s`; `math.inf` for a DPU that never got there."""
        return math.inf if self.ready_s is None else self.ready_s - self.asked_s


class Unavailability(NamedTuple):
    """DPUs out of service at once (a step series from 0 s), its maxima, and their sum over time in DPU-seconds."""

    steps: list[tuple[float, int]]
    max: int
    max_per_rack: int
    dpu_s: float


def by_dpu(rows: Iterable[PhaseRow]) -> dict[str, list[PhaseRow]]:
    """Phase rows of each DPU, in order of time; DPUs in the order they first appeared."""
    out: dict[str, list[PhaseRow]] = {}
    for row in rows:
        out.setdefault(row.dpu, []).append(row)
    return out


def provisionings(trace: Trace, end_s: float) -> list[Provisioning]:
    """Every provisioning of every DPU, in order of time for each DPU.

    Asked means: the latest ask for the DPU by name, or by the creation of the DPUSet that made it, at or before the
    attempt began, after the DPU was last Ready, and not withdrawn. A record that names no DPU asks only for the first
    attempt of one of which nothing else was known by then. Without an ask it is the moment the DPU last left Ready,
    or, the first time and after it had gone for good, the moment its object became Initializing. Ready is the first
    time `status.phase` is Ready in that attempt. An attempt that dies (Error, deletion) before Ready is part of the
    provisioning that follows it.
    """
    everyone = [Wish(a.t_s, wanted=True) for a in trace.asks if not a.dpus]
    rows = by_dpu(trace.phases(end_s))
    out: list[Provisioning] = []
    for dpu, stays in rows.items():
        wishes = trace.wishes.get(dpu)
        out += _of_dpu(dpu, stays, sorted(wishes, key=_when) if wishes else (), everyone)
    for dpu, wishes in trace.wishes.items():
        if dpu not in rows and (asked_s := _asked(sorted(wishes, key=_when))) is not None:
            out.append(Provisioning(dpu, 1, asked_s, None))
    return out


def _when(wish: Wish) -> float:
    return wish.t_s


def _of_dpu(dpu: str, stays: Sequence[PhaseRow], wishes: Sequence[Wish],
            everyone: Sequence[Wish]) -> list[Provisioning]:
    out: list[Provisioning] = []
    free_s = -math.inf  # since when a new ask counts: the DPU's last Ready
    left_s: float | None = None  # when it last left Ready
    asked_s: float | None = None
    gone_s = math.inf
    attempt = 0
    for stay in stays:
        if stay.attempt != attempt:
            attempt, began_s = stay.attempt, stay.start_s
            if any(not w.wanted and gone_s <= w.t_s <= began_s for w in wishes):
                asked_s = left_s = None  # it had gone for good
            if asked_s is None:
                unknown = attempt == 1 and not (wishes and wishes[0].t_s <= began_s)
                asked_s = _asked(everyone if unknown else wishes, free_s, began_s)
                if asked_s is None:
                    asked_s = began_s if left_s is None else left_s
        if stay.phase == Phase.READY:
            if asked_s is not None:
                out.append(Provisioning(dpu, attempt, asked_s, stay.start_s))
            asked_s, free_s, left_s = None, stay.start_s, stay.end_s
        gone_s = stay.end_s if stay.outcome == "gone" else math.inf
    if asked_s is None:
        again = _asked(wishes, free_s)
        if again is not None:  # the end of the run cut it off
            out.append(Provisioning(dpu, attempt + 1, again, None))
    elif stays[-1].outcome != "gone":
        out.append(Provisioning(dpu, attempt, asked_s, None))
    return out


def _asked(wishes: Sequence[Wish], free_s: float = -math.inf, until_s: float = math.inf) -> float | None:
    """The latest ask in (free_s, until_s] that was not withdrawn by then. The wishes are in order of time."""
    found: float | None = None
    for wish in wishes:
        if wish.t_s > until_s:
            break
        if not wish.wanted:
            found = None
        elif wish.t_s > free_s:
            found = wish.t_s
    return found


def completions(trace: Trace, end_s: float) -> dict[str, Provisioning]:
    """Each DPU's last provisioning. A DPU that was removed for good has none."""
    gone = {dpu for dpu, stays in by_dpu(trace.phases(end_s)).items() if stays[-1].outcome == "gone"}
    last = {p.dpu: p for p in provisionings(trace, end_s)}
    return {dpu: p for dpu, p in last.items() if dpu not in gone or p.ready_s is None}


def unavailability(spans: Sequence[SpanRow], places: dict[str, Place]) -> Unavailability:
    """How many DPUs have at least one outage open, over time; causes that overlap on a DPU count once."""
    merged = _union(spans)
    steps, top = _sweep((start, end) for of in merged.values() for start, end in of)
    racks: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for dpu, of in merged.items():
        racks[places.get(dpu, Place()).rack] += of
    return Unavailability(
        steps, top, max((_sweep(of)[1] for of in racks.values()), default=0),
        math.fsum(end - start for of in merged.values() for start, end in of))


def _union(spans: Sequence[SpanRow]) -> dict[str, list[tuple[float, float]]]:
    out: dict[str, list[tuple[float, float]]] = {}
    for span in sorted(spans, key=lambda s: s.start_s):
        of = out.setdefault(span.dpu, [])
        if of and span.start_s <= of[-1][1]:
            of[-1] = (of[-1][0], max(of[-1][1], span.end_s))
        else:
            of.append((span.start_s, span.end_s))
    return out


def _sweep(spans: Iterable[tuple[float, float]]) -> tuple[list[tuple[float, int]], int]:
    """A step series of how many spans are open, and its maximum. Ends come before starts of the same instant."""
    delta: dict[float, int] = defaultdict(int)
    for start, end in spans:
        delta[start] += 1
        delta[end] -= 1
    steps, level = [(0.0, 0)], 0
    for t in sorted(delta):
        if delta[t] == 0:
            continue
        level += delta[t]
        if steps[-1][0] == t:
            steps[-1] = (t, level)
        else:
            steps.append((t, level))
    return steps, max(n for _, n in steps)


def waiting(trace: Trace, end_s: float) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds each DPU waited, by constraint, while it was being provisioned; and all seconds of provisioning.

    Waits outside a provisioning (of a Ready DPU's polls) do not count, nor does time in Error. Seconds in which a
    DPU waits for several constraints are shared equally among them, so the shares of all constraints and of work add
    up to one.
    """
    windows = provisioning_windows(trace, end_s)
    spans: dict[str, list[SpanRow]] = defaultdict(list)
    for wait in trace.waits(end_s):
        spans[wait.dpu].append(wait)
    out = {dpu: shared(spans.get(dpu, []), of) for dpu, of in windows.items()}
    return out, math.fsum(end - start for of in windows.values() for start, end in of)


def provisioning_windows(trace: Trace, end_s: float) -> dict[str, list[tuple[float, float]]]:
    """When each DPU was on its way from asked to Ready (or to the end), without its stays in Error.

    Every DPU with a provisioning is there, also one without any such time.
    """
    failed: dict[str, list[PhaseRow]] = defaultdict(list)
    for row in sorted(trace.phases(end_s), key=lambda r: r.start_s):
        if row.phase == Phase.ERROR:
            failed[row.dpu].append(row)
    out: dict[str, list[tuple[float, float]]] = {}
    for p in provisionings(trace, end_s):
        of = out.setdefault(p.dpu, [])
        start_s, until_s = p.asked_s, end_s if p.ready_s is None else p.ready_s
        for stay in failed.get(p.dpu, ()):
            if stay.end_s > start_s and stay.start_s < until_s:
                if stay.start_s > start_s:
                    of.append((start_s, stay.start_s))
                start_s = stay.end_s
        if until_s > start_s:
            of.append((start_s, until_s))
    return out


def shared(spans: Sequence[SpanRow], windows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Seconds by label within the windows; seconds under several labels are shared equally among them."""
    clipped = [(max(s.start_s, start), min(s.end_s, end), s.label) for s in spans for start, end in windows
               if s.start_s < end and s.end_s > start]
    out: dict[str, float] = {}
    turns = sorted([(start, 1, label) for start, _, label in clipped] + [(end, -1, label) for _, end, label in clipped])
    opened: dict[str, int] = {}
    last_s = 0.0
    for t, turn, label in turns:
        if opened and t > last_s:
            for name in opened:
                out[name] = out.get(name, 0.0) + (t - last_s) / len(opened)
        last_s = t
        opened[label] = opened.get(label, 0) + turn
        if opened[label] == 0:
            del opened[label]
    return out
