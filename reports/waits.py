"""What DPUs waited for: a bar a DPU, or all of them ranked when they are many."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from reports import palette
from reports.axes import EACH_DPU, WIDTH_IN, canvas, natural, time_ticks
from scenarios.measure import provisioning_windows, provisionings, waiting
from scenarios.result import Run
from twin.model.provisioning import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
MEASURE: Final = "time from asked to Ready without Error", "all provisionings of the DPU"
Layers = dict[str, dict[str, float]]


def _totals(run: Run) -> tuple[dict[str, float], set[str]]:
    """Seconds from asked to Ready (or the end) without Error over all provisionings of each DPU; the DPUs not Ready."""
    windows = provisioning_windows(run.trace, run.virtual_s)
    never = {p.dpu for p in provisionings(run.trace, run.virtual_s) if p.ready_s is None}
    return {dpu: sum(end - start for start, end in of) for dpu, of in windows.items()}, never


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
    axes.set_xlabel(", ".join(MEASURE))
    return figure, axes


def _wait_ranks(run: Run, layers: Layers, colours: dict[str, str], total: dict[str, float], never: set[str],
                bottom_in: float) -> tuple[Figure, Axes]:
    order = sorted(total, key=lambda d: (d in never, total[d], d))
    bins = min(len(order), 250)
    edges = sorted({*(i * len(order) // bins for i in range(bins + 1)), len(order) - len(never)})
    figure, axes = canvas(WIDTH_IN, 3.2 + bottom_in, left_in=1.1, bottom_in=bottom_in)
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
    axes.set_ylabel(",\n".join(MEASURE))
    return figure, axes


def _ceiling(total: dict[str, float], never: set[str]) -> float:
    """DPUs that never get Ready must not flatten all others."""
    done = [s for dpu, s in total.items() if dpu not in never]
    return (max(done) * 1.08 if done else max(total.values(), default=1.0)) or 1.0
