"""The figures of a report: pure functions from runs to matplotlib figures. Several runs are replications.

Same runs, same bytes: SVG with a fixed hash salt and no dates, text as text.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from reports import palette
from reports.axes import WIDTH_IN, canvas, clock, last_change_s, step, thin
from reports.lanes import head, timeline
from reports.strip import phases_by_rack
from reports.waits import waits
from scenarios.result import Run, Summary
from twin.model.provisioning import Phase
from twin.sim.stats import quantile
from twin.sim.trace import BUDGET, PhaseRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(runs: Sequence[Run], summary: Summary) -> dict[str, Figure]:
    """All figures, by file name without suffix, in the order a report shows them."""
    import matplotlib

    with matplotlib.rc_context(palette.RC):
        return {
            "completion": completion(runs, summary),
            "phases-by-rack": phases_by_rack(runs[0]),
            "unavailable": unavailable(runs),
            "waits": waits(runs[0]),
            "phase-durations": phase_durations(runs, summary),
        }


def render(figure: Figure, suffix: str) -> bytes:
    """The bytes of a figure as `svg` or `png`; the same on every call."""
    import matplotlib

    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[suffix]
    out = io.BytesIO()
    with matplotlib.rc_context(palette.RC):
        figure.savefig(out, format=suffix, metadata=metadata, dpi=110)
    return out.getvalue()


def _ready_steps(rows: Sequence[PhaseRow]) -> tuple[list[float], list[int]]:
    turns = sorted([(r.start_s, 1) for r in rows if r.phase == Phase.READY]
                   + [(r.end_s, -1) for r in rows if r.phase == Phase.READY and r.outcome != "open"])
    times, counts = [0.0], [0]
    for t, turn in turns:
        times.append(t)
        counts.append(counts[-1] + turn)
    return times, counts


# --- completion


def completion(runs: Sequence[Run], summary: Summary) -> Figure:
    """DPUs Ready over time. Replications are thin lines; the first run is the bold one."""
    end_s = last_change_s(runs)
    figure, axes = timeline(runs[0], end_s, 2.5)
    top = 1
    for run in reversed(runs):
        times, counts = _ready_steps(run.phases())
        first = run is runs[0]
        step(axes, times, counts, end_s, color=palette.READY_LINE, linewidth=2.0 if first else 0.7,
              alpha=1.0 if first else 0.35)
        top = max(top, max(counts), len(run.trace.phase_now()))
    total = summary.dpus.total
    axes.axhline(total, color=palette.FAINT, linewidth=0.8, linestyle="--")
    axes.annotate(f"{total} DPUs", (1, total), (-3, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8, color=palette.FAINT)
    axes.set_ylim(0, top * 1.1)
    _whole_numbers(axes)
    axes.set_ylabel("DPUs Ready")
    head(axes, f"DPUs Ready over time ({summary.dpus.ready} of {total} at the end)")
    return figure


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


# --- unavailable


def unavailable(runs: Sequence[Run]) -> Figure:
    """DPUs out of service at once, against how many may be (the sum of what the DPUSets allow)."""
    end_s = last_change_s(runs)
    figure, axes = timeline(runs[0], end_s, 2.1)
    top = 1.0
    for run in reversed(runs):
        found = run.unavailability()
        times, counts = thin([t for t, _ in found.steps], [n for _, n in found.steps], end_s)
        top = max(top, found.max)
        if run is runs[0]:
            axes.fill_between([*times, end_s], [*counts, counts[-1]], step="post", color=palette.UNAVAILABLE,
                              alpha=0.25, linewidth=0)
        step(axes, times, counts, end_s, color=palette.UNAVAILABLE, linewidth=1.6 if run is runs[0] else 0.6,
              alpha=1.0 if run is runs[0] else 0.35, label="unavailable" if run is runs[0] else None)
    budget = runs[0].trace.counters.get(BUDGET, [])
    if budget:
        step(axes, [t for t, _ in budget], [n for _, n in budget], end_s, color=palette.BUDGET_LINE, linewidth=1.4,
              linestyle="--", label="budget (maxUnavailable)")
        top = max(top, *(n for _, n in budget))
    axes.set_ylim(0, top * 1.12)
    _whole_numbers(axes)
    axes.set_ylabel("DPUs unavailable")
    head(axes, f"DPUs unavailable at once (at most {max(run.unavailability().max for run in runs)})",
         legend=bool(budget))
    return figure


# --- phase durations

FEW: Final = 12
"""Up to so many stays in a phase are drawn one by one."""


def phase_durations(runs: Sequence[Run], summary: Summary) -> Figure:
    """How long each phase took: quartiles, P5 to P95, the longest; every stay as a dot when there are few."""
    samples: dict[str, list[float]] = {p: [] for p in summary.phase_s}
    for run in runs:
        for row in run.phases():
            if row.phase in samples and row.outcome != "open":
                samples[row.phase].append(max(row.end_s - row.start_s, 1e-3))
    figure, axes = canvas(WIDTH_IN, 0.31 * max(1, len(samples)) + 1.2, left_in=3.1, bottom_in=0.6)
    for i, (phase, values) in enumerate(samples.items()):
        _distribution(axes, i, sorted(values), palette.phase_colour(phase))
    axes.set_xscale("log")
    _log_time_ticks(axes, [v for values in samples.values() for v in values])
    axes.set_ylim(len(samples) - 0.4, -0.6)
    axes.set_yticks(range(len(samples)), [f"{p} {_mark(summary, p)} n={summary.phase_s[p].n}" for p in samples])
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color="#eeeeee")
    few, many = (any(few == (len(v) <= FEW) for v in samples.values()) for few in (True, False))
    marks = ["box: quartiles, line: P5 to P95, cross: longest"] * many + ["dot: one stay"] * few
    axes.set_xlabel("; ".join([*marks, "basis: [M]easured, [P]ublished, [E]xpert"]))
    axes.set_title("How long each phase took")
    return figure


def _mark(summary: Summary, phase: str) -> str:
    return palette.BASIS_MARKS.get(summary.phase_s[phase].basis or "", "")


def _distribution(axes: Axes, row: int, ordered: Sequence[float], colour: str) -> None:
    if len(ordered) <= FEW:
        axes.plot(ordered, [row] * len(ordered), "o", markersize=6, color=colour, markeredgecolor="#666666",
                  markeredgewidth=0.5, alpha=0.9)
        return
    p5, p25, p50, p75, p95 = (quantile(ordered, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.plot([p5, p95], [row, row], color="#666666", linewidth=1.0, zorder=2)
    axes.barh(row, p75 - p25, left=p25, height=0.55, color=colour, edgecolor="#666666", linewidth=0.6, zorder=3)
    axes.plot([p50, p50], [row - 0.27, row + 0.27], color=palette.ink_on(colour), linewidth=1.6, zorder=4)
    axes.plot([ordered[-1]], [row], "x", markersize=4, color="#666666", zorder=4)


def _log_time_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values, default=1.0) / 1.3, max(values, default=1.0) * 1.3
    ticks = [t for t in (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 86400, 864000) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{t:g}s" if t < 1 else clock(t) for t in ticks])
    axes.set_xlim(low, high)
