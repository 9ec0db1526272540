"""What figures share: a canvas, time on an axis, step series."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from scenarios.result import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 10.0
EACH_DPU: Final = 40
"""Up to so many DPUs a figure names each; beyond, it shows them ranked or by rack."""
_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800,
                   604800)


def canvas(width_in: float, height_in: float, *, left_in: float = 0.9, right_in: float = 0.3, top_in: float = 0.5,
           bottom_in: float = 0.55) -> tuple[Figure, Axes]:
    """A figure with one plot and margins in inches. (Constrained layout costs 0.2 s a figure.)"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left_in / width_in, bottom_in / height_in, 1 - (left_in + right_in) / width_in,
                            1 - (top_in + bottom_in) / height_in))
    return figure, axes


def clock(t_s: float) -> str:
    """Virtual time on an axis: `0`, `30s`, `45m`, `2h`, `2h30`, `1d6h`."""
    whole = round(t_s)
    days, hours, minutes, seconds = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes:02d}" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{seconds:02d}" if seconds else f"{minutes}m"
    return f"{seconds}s" if seconds else "0"


def time_ticks(axis: object, end_s: float, *, most: int = 10) -> None:
    """Ticks at round times on a matplotlib axis from 0 to end_s."""
    step = next((s for s in _STEPS_S if end_s / s <= most), math.ceil(end_s / most / 604800) * 604800)
    ticks = [i * step for i in range(int(end_s // step) + 1)]
    axis.set_ticks(ticks, [clock(t) for t in ticks])  # type: ignore[attr-defined]


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts `r2` before `r10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name))


def last_change_s(runs: Sequence[Run]) -> float:
    """Until when something is to be seen: the last change of a phase or an outage, with some air, at most the end."""
    times = [1.0]
    for run in runs:
        times += [r.start_s for r in run.phases()]
        times += [r.end_s for r in run.outages() if r.end_s < run.virtual_s]
    return min(max(r.virtual_s for r in runs), max(times) * 1.04)


def thin(times: Sequence[float], values: Sequence[float], end_s: float) -> tuple[list[float], list[float]]:
    """A long step series with at most four points a pixel column: first, lowest, highest, last. The same picture."""
    if len(times) <= 4000:
        return list(times), list(values)
    keep: list[int] = []
    for _, of in itertools.groupby(range(len(times)), key=lambda i: int(times[i] / end_s * 1000)):
        column = list(of)
        extremes = {column[0], min(column, key=values.__getitem__), max(column, key=values.__getitem__), column[-1]}
        keep += sorted(extremes)
    return [times[i] for i in keep], [values[i] for i in keep]


def step(axes: Axes, times: Sequence[float], values: Sequence[float], end_s: float, **style: Any) -> None:
    times, values = thin(times, values, end_s)
    axes.step([*times, end_s], [*values, values[-1]], where="post", **style)


def time_axis(axes: Axes, end_s: float) -> None:
    axes.set_xlim(0, end_s)
    time_ticks(axes.xaxis, end_s)
    axes.set_xlabel("time since the start of the run")
