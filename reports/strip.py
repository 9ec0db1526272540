"""The heat strip: the phase of every DPU over time, racks kept together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from reports import palette
from reports.axes import EACH_DPU, WIDTH_IN, canvas, last_change_s, natural, time_axis
from scenarios.result import Run
from twin.model.provisioning import PHASES, Phase
from twin.sim.trace import PhaseRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRIP_ROWS: Final = 1200
STRIP_COLUMNS: Final = 1400


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
                extent=(0, end_s, len(cells), 0),
                cmap=ListedColormap([palette.ABSENT, *(palette.phase_colour(p) for p in phases)]))
    axes.grid(False)
    _label_rows(axes, order, racks, names)
    time_axis(axes, end_s)
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
