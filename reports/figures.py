"""The figures of a report: pure functions from runs to matplotlib figures. Several runs are replications.

Same runs, same bytes: SVG with a fixed hash salt and no dates, text as text.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from reports import palette
from reports.palette import canvas, clock, natural, time_ticks
from scenarios.measure import provisionings, unavailability, waiting
from scenarios.result import Run, Summary
from twin.model.provisioning import PHASES, Phase
from twin.sim.stats import quantile
from twin.sim.trace import BUDGET, PhaseRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 10.0
EACH_DPU: Final = 40
"""Up to so many DPUs a figure names each; beyond, it shows them ranked or by rack."""
STRIP_ROWS: Final = 1200
STRIP_COLUMNS: Final = 1400


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


def last_change_s(runs: Sequence[Run]) -> float:
    """Until when something is to be seen: the last change of a phase or an outage, with some air, at most the end."""
    times = [1.0]
    for run in runs:
        times += [r.start_s for r in run.phases()]
        times += [r.end_s for r in run.outages() if r.end_s < run.virtual_s]
    return min(max(r.virtual_s for r in runs), max(times) * 1.04)


def _ready_steps(rows: Sequence[PhaseRow]) -> tuple[list[float], list[int]]:
    turns = sorted([(r.start_s, 1) for r in rows if r.phase == Phase.READY]
                   + [(r.end_s, -1) for r in rows if r.phase == Phase.READY and r.outcome != "open"])
    times, counts = [0.0], [0]
    for t, turn in turns:
        times.append(t)
        counts.append(counts[-1] + turn)
    return times, counts


def _thin(times: Sequence[float], values: Sequence[float], end_s: float) -> tuple[list[float], list[float]]:
    """A long step series with at most four points a pixel column: first, lowest, highest, last. The same picture."""
    if len(times) <= 4000:
        return list(times), list(values)
    keep: list[int] = []
    for _, of in itertools.groupby(range(len(times)), key=lambda i: int(times[i] / end_s * 1000)):
        column = list(of)
        extremes = {column[0], min(column, key=values.__getitem__), max(column, key=values.__getitem__), column[-1]}
        keep += sorted(extremes)
    return [times[i] for i in keep], [values[i] for i in keep]


def _step(axes: Axes, times: Sequence[float], values: Sequence[float], end_s: float, **style: Any) -> None:
    times, values = _thin(times, values, end_s)
    axes.step([*times, end_s], [*values, values[-1]], where="post", **style)


def _happenings(axes: Axes, run: Run, end_s: float) -> None:
    """When something was asked (dotted) and when faults lasted (grey bands), with their names at the top."""
    open_since: dict[tuple[str, str], float] = {}
    for fault in run.trace.faults:
        if fault.began:
            open_since[fault.kind, fault.target] = fault.t_s
        elif (start := open_since.pop((fault.kind, fault.target), None)) is not None:
            _band(axes, start, fault.t_s, f"{fault.kind} {fault.target}")
    for (kind, target), start in open_since.items():
        _band(axes, start, end_s, f"{kind} {target}")
    free_s = 0.0
    for ask in run.trace.asks:
        axes.axvline(ask.t_s, color=palette.FAINT, linewidth=0.8, linestyle=":")
        if ask.t_s < free_s or ask.t_s > end_s:
            continue  # its name would run into the one before
        free_s = ask.t_s + len(ask.why) * 0.0075 * end_s
        axes.annotate(ask.why, (ask.t_s, 1), (3, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                      fontsize=7, color=palette.FAINT, va="bottom", annotation_clip=True)


def _band(axes: Axes, start_s: float, end_s: float, name: str) -> None:
    axes.axvspan(start_s, end_s, color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.annotate(name, (start_s, 0.02), (-3, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  fontsize=7, color=palette.FAINT, rotation=90, va="bottom", ha="right", annotation_clip=True)


def _time_axis(axes: Axes, end_s: float) -> None:
    axes.set_xlim(0, end_s)
    time_ticks(axes.xaxis, end_s)
    axes.set_xlabel("time since the start of the run")


# --- completion


def completion(runs: Sequence[Run], summary: Summary) -> Figure:
    """DPUs Ready over time. Replications are thin lines; the first run is the bold one."""
    figure, axes = canvas(WIDTH_IN, 3.8, top_in=0.75)
    end_s = last_change_s(runs)
    top = 1
    for run in reversed(runs):
        times, counts = _ready_steps(run.phases())
        first = run is runs[0]
        _step(axes, times, counts, end_s, color=palette.READY_LINE, linewidth=2.0 if first else 0.7,
              alpha=1.0 if first else 0.35)
        top = max(top, max(counts), len(run.trace.phase_now()))
    total = summary.dpus.total
    axes.axhline(total, color=palette.FAINT, linewidth=0.8, linestyle="--")
    axes.annotate(f"{total} DPUs", (1, total), (-3, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8, color=palette.FAINT)
    axes.set_ylim(0, top * 1.1)
    _whole_numbers(axes)
    _time_axis(axes, end_s)
    _happenings(axes, runs[0], end_s)
    axes.set_ylabel("DPUs Ready")
    axes.set_title(f"DPUs Ready over time ({summary.dpus.ready} of {total} at the end)", pad=18)
    return figure


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


# --- phases by rack


def phases_by_rack(run: Run) -> Figure:
    """One row a DPU, racks together, coloured by phase. More than STRIP_ROWS DPUs are sampled evenly."""
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows = run.phases()
    order, racks = _rows_of_strip(run, rows)
    end_s = last_change_s([run])
    phases = [p for p in (*PHASES, *sorted({r.phase for r in rows} - set(PHASES))) if any(r.phase == p for r in rows)]
    code = {p: i + 1 for i, p in enumerate(phases)}
    cells = np.zeros((max(1, len(order)), STRIP_COLUMNS), dtype=np.uint8)
    scale = STRIP_COLUMNS / end_s
    for row in rows:
        at = order.get(row.dpu)
        if at is not None and row.start_s < end_s:
            start = int(row.start_s * scale)
            cells[at, start:max(start + 1, round(row.end_s * scale))] = code[row.phase]
    height_in = min(9.0, max(1.3, 0.3 * len(order) if len(order) <= EACH_DPU else 2.5 + len(order) / 160))
    legend_in = 0.19 * -(-len(phases) // 5) + 0.08
    names = len(order) <= EACH_DPU
    figure, axes = canvas(WIDTH_IN, height_in + 1.0 + legend_in, left_in=1.9 if names else 0.9,
                          bottom_in=0.5 + legend_in)
    axes.imshow(cells, aspect="auto", interpolation="nearest", vmin=0, vmax=len(phases),
                extent=(0, end_s, len(order), 0),
                cmap=ListedColormap([palette.ABSENT, *(palette.phase_colour(p) for p in phases)]))
    axes.grid(False)
    _label_rows(axes, order, racks, names)
    _time_axis(axes, end_s)
    shown = "" if len(order) == len({r.dpu for r in rows}) else f", {len(order)} of {len({r.dpu for r in rows})} DPUs"
    axes.set_title(f"Phase of each DPU, by rack{shown}")
    figure.legend(handles=[Patch(facecolor=palette.phase_colour(p), edgecolor="#999999", linewidth=0.4, label=p)
                           for p in phases], loc="lower center", ncols=5, handlelength=1.2, columnspacing=1.4)
    return figure


def _rows_of_strip(run: Run, rows: Sequence[PhaseRow]) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
    """Row of each shown DPU, and (rack, first row, row after). Within a rack, in the order DPUs were first Ready."""
    ready: dict[str, float] = {}
    for row in rows:
        ready.setdefault(row.dpu, float("inf"))
        if row.phase == Phase.READY:
            ready[row.dpu] = max(row.start_s, 0 if ready[row.dpu] == float("inf") else ready[row.dpu])
    many = len(ready) > EACH_DPU
    ranked = sorted(ready, key=lambda d: (natural(run.place(d).rack), ready[d] if many else 0,
                                          natural(run.place(d).host), natural(d)))
    if len(ranked) > STRIP_ROWS:
        ranked = [ranked[i * len(ranked) // STRIP_ROWS] for i in range(STRIP_ROWS)]
    racks: list[tuple[str, int, int]] = []
    for i, dpu in enumerate(ranked):
        rack = run.place(dpu).rack
        if racks and racks[-1][0] == rack:
            racks[-1] = (rack, racks[-1][1], i + 1)
        else:
            racks.append((rack, i, i + 1))
    return {dpu: i for i, dpu in enumerate(ranked)}, racks


def _label_rows(axes: Axes, order: dict[str, int], racks: Sequence[tuple[str, int, int]], names: bool) -> None:
    for _, start, _ in racks[1:]:
        axes.axhline(start, color="#ffffff" if names else palette.INK, linewidth=2.0 if names else 0.6)
    if names:
        axes.set_yticks([i + 0.5 for i in order.values()], list(order), fontsize=7)
        for i in range(1, len(order)):
            axes.axhline(i, color="#ffffff", linewidth=0.6)
    else:
        every = max(1, -(-len(racks) // 24))
        shown = racks[::every]
        axes.set_yticks([(start + stop) / 2 for _, start, stop in shown], [rack or "-" for rack, _, _ in shown])
        axes.set_ylabel("rack")
    axes.tick_params(axis="y", length=0)


# --- unavailable


def unavailable(runs: Sequence[Run]) -> Figure:
    """DPUs out of service at once, against how many may be (the sum of what the DPUSets allow)."""
    figure, axes = canvas(WIDTH_IN, 3.4, top_in=0.75)
    end_s = last_change_s(runs)
    top = 1.0
    for run in reversed(runs):
        found = unavailability(run.outages(), run.trace.places)
        times, counts = _thin([t for t, _ in found.steps], [n for _, n in found.steps], end_s)
        top = max(top, found.max)
        if run is runs[0]:
            axes.fill_between([*times, end_s], [*counts, counts[-1]], step="post", color=palette.UNAVAILABLE,
                              alpha=0.25, linewidth=0)
        _step(axes, times, counts, end_s, color=palette.UNAVAILABLE, linewidth=1.6 if run is runs[0] else 0.6,
              alpha=1.0 if run is runs[0] else 0.35, label="unavailable" if run is runs[0] else None)
    budget = runs[0].trace.counters.get(BUDGET, [])
    if budget:
        _step(axes, [t for t, _ in budget], [n for _, n in budget], end_s, color=palette.BUDGET_LINE, linewidth=1.4,
              linestyle="--", label="budget (maxUnavailable)")
        top = max(top, *(n for _, n in budget))
    axes.set_ylim(0, top * 1.12)
    _whole_numbers(axes)
    _time_axis(axes, end_s)
    _happenings(axes, runs[0], end_s)
    axes.set_ylabel("DPUs unavailable")
    axes.set_title(f"DPUs unavailable at once (at most {round(max(_peaks(runs)))})", pad=18)
    if budget:
        axes.legend(loc="upper right")
    return figure


def _peaks(runs: Sequence[Run]) -> list[int]:
    return [unavailability(run.outages(), run.trace.places).max for run in runs]


# --- waits


def waits(run: Run) -> Figure:
    """What each DPU waited for between asked and Ready: a bar a DPU, or all DPUs ranked by their total when many."""
    of_dpus, _ = waiting(run.trace, run.virtual_s)
    total, never = _totals(run)
    layers = _layers(of_dpus, total)
    colours = dict(zip(layers, palette.WAIT_COLOURS, strict=False))
    colours |= {OTHER: palette.OTHER, WORK: palette.WORK}
    legend_in = 0.19 * -(-len(layers) // 2) + 0.08
    draw = _wait_bars if len(total) <= EACH_DPU else _wait_ranks
    figure, axes = draw(run, layers, colours, total, never, 0.5 + legend_in)
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, handlelength=1.2)
    axes.set_title("What DPUs waited for, from asked to Ready" + (f" ({len(never)} not Ready)" if never else ""))
    return figure


OTHER: Final = "other constraints"
WORK: Final = "work"
Layers = dict[str, dict[str, float]]


def _totals(run: Run) -> tuple[dict[str, float], set[str]]:
    """Seconds from asked to Ready (or the end) over all provisionings of each DPU, and the DPUs that are not Ready."""
    total: dict[str, float] = {}
    never = set()
    for p in provisionings(run.trace, run.virtual_s):
        total[p.dpu] = total.get(p.dpu, 0.0) + (run.virtual_s if p.ready_s is None else p.ready_s) - p.asked_s
        if p.ready_s is None:
            never.add(p.dpu)
    return total, never


def _layers(of_dpus: Layers, total: dict[str, float]) -> Layers:
    """Constraint -> DPU -> seconds: the largest constraints, the others together, and work (the rest)."""
    sums: dict[str, float] = {}
    for of in of_dpus.values():
        for constraint, s in of.items():
            sums[constraint] = sums.get(constraint, 0.0) + s
    named = sorted(sums, key=lambda c: (-sums[c], c))[:len(palette.WAIT_COLOURS)]
    layers = {c: {dpu: of.get(c, 0.0) for dpu, of in of_dpus.items()} for c in named}
    if len(sums) > len(named):
        layers[OTHER] = {dpu: sum(s for c, s in of.items() if c not in named) for dpu, of in of_dpus.items()}
    layers[WORK] = {dpu: max(0.0, s - sum(of_dpus.get(dpu, {}).values())) for dpu, s in total.items()}
    return layers


def _wait_bars(run: Run, layers: Layers, colours: dict[str, str], total: dict[str, float], never: set[str],
               bottom_in: float) -> tuple[Figure, Axes]:
    order = sorted(total, key=lambda d: (natural(run.place(d).rack), natural(d)))
    figure, axes = canvas(WIDTH_IN, max(1.0, 0.28 * len(order)) + 0.5 + bottom_in, left_in=1.9, bottom_in=bottom_in)
    longest = _ceiling(total, never)
    left = [0.0] * len(order)
    for name, of in layers.items():
        widths = [of.get(d, 0.0) for d in order]
        axes.barh(range(len(order)), widths, left=left, color=colours[name], height=0.7, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, dpu in enumerate(order):
        if dpu in never:
            axes.annotate("not Ready", (min(total[dpu], longest), i), (-4, 0), textcoords="offset points",
                          ha="right", va="center", fontsize=7, color=palette.PHASE_COLOURS[Phase.ERROR])
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(False)
    axes.set_xlim(0, longest)
    time_ticks(axes.xaxis, longest)
    axes.set_xlabel("time from asked to Ready, all provisionings of the DPU")
    return figure, axes


def _wait_ranks(run: Run, layers: Layers, colours: dict[str, str], total: dict[str, float], never: set[str],
                bottom_in: float) -> tuple[Figure, Axes]:
    order = sorted(total, key=lambda d: (d in never, total[d], d))
    bins = min(len(order), 250)
    edges = sorted({*(i * len(order) // bins for i in range(bins + 1)), len(order) - len(never)})
    figure, axes = canvas(WIDTH_IN, 3.2 + bottom_in, bottom_in=bottom_in)
    base = [0.0] * (len(edges) - 1)
    for name, of in layers.items():
        values = [sum(of.get(d, 0.0) for d in order[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
        top = [a + b for a, b in zip(base, values, strict=True)]
        axes.fill_between(edges, [*base, base[-1]], [*top, top[-1]], step="post", color=colours[name], linewidth=0,
                          label=name)
        base = top
    ceiling = _ceiling(total, never)
    axes.set_xlim(0, len(order))
    axes.set_ylim(0, ceiling)
    time_ticks(axes.yaxis, ceiling, most=6)
    if never:
        first = len(order) - len(never)
        axes.axvline(first, color=palette.PHASE_COLOURS[Phase.ERROR], linewidth=1.0)
        axes.annotate(f"{len(never)} not Ready", (first, 1), (-4, -4), xycoords=("data", "axes fraction"), fontsize=8,
                      textcoords="offset points", ha="right", va="top", color=palette.PHASE_COLOURS[Phase.ERROR])
    axes.set_xlabel(f"DPUs of this run, ranked by time ({len(order)})")
    axes.set_ylabel("time from asked to Ready")
    return figure, axes


def _ceiling(total: dict[str, float], never: set[str]) -> float:
    """DPUs that never get Ready must not flatten all others."""
    done = [s for dpu, s in total.items() if dpu not in never]
    return (max(done) * 1.08 if done else max(total.values(), default=1.0)) or 1.0


# --- phase durations


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
    axes.set_xlabel("box: quartiles, line: P5 to P95, cross: longest; basis: [M]easured, [P]ublished, [E]xpert")
    axes.set_title("How long each phase took")
    return figure


def _mark(summary: Summary, phase: str) -> str:
    return palette.BASIS_MARKS.get(summary.phase_s[phase].basis or "", "")


def _distribution(axes: Axes, row: int, ordered: Sequence[float], colour: str) -> None:
    if len(ordered) <= 12:
        axes.plot(ordered, [row] * len(ordered), "o", markersize=6, color=colour, markeredgecolor="#666666",
                  markeredgewidth=0.5, alpha=0.9)
        return
    p5, p25, p50, p75, p95 = (quantile(ordered, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    axes.plot([p5, p95], [row, row], color="#666666", linewidth=1.0, zorder=2)
    axes.barh(row, p75 - p25, left=p25, height=0.55, color=colour, edgecolor="#666666", linewidth=0.6, zorder=3)
    axes.plot([p50, p50], [row - 0.27, row + 0.27], color=palette.INK, linewidth=1.6, zorder=4)
    axes.plot([ordered[-1]], [row], "x", markersize=4, color="#666666", zorder=4)


def _log_time_ticks(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values, default=1.0) / 1.3, max(values, default=1.0) * 1.3
    ticks = [t for t in (0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 86400, 864000) if low <= t <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{t:g}s" if t < 1 else clock(t) for t in ticks])
    axes.set_xlim(low, high)
