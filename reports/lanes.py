"""Plots over time, under the names of what was asked and of faults: names cover neither data, legend nor each other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from reports import palette
from reports.axes import WIDTH_IN, canvas, time_axis
from scenarios.result import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Mark(NamedTuple):
    """A name in a lane: what was asked at a time (end_s None), or a fault while it lasted."""

    start_s: float
    end_s: float | None
    label: str


LANES: Final = 5
"""So many lanes at most; what has no room in them is counted."""
_LANE_IN: Final = 0.155
_LONGEST: Final = 60
"""Characters of a name in a lane."""


def timeline(run: Run, end_s: float, height_in: float) -> tuple[Figure, Axes]:
    """A plot over time, `height_in` high, under the names of what was asked (dotted) and of faults (grey)."""
    margins_in = 0.9, 0.3
    asked, faults = _happenings(run, end_s)
    lanes, left_out = _in_lanes(sorted(asked + faults, key=lambda m: m.start_s),
                                end_s, (WIDTH_IN - sum(margins_in)) * 72)
    lanes_in = (len(lanes) + bool(left_out)) * _LANE_IN
    figure, axes = canvas(WIDTH_IN, height_in + lanes_in + 1.05, top_in=0.5 + lanes_in, left_in=margins_in[0],
                          right_in=margins_in[1])
    time_axis(axes, end_s)
    for mark in asked:
        axes.axvline(mark.start_s, color=palette.FAINT, linewidth=0.8, linestyle=":")
    for start, end in _merged(faults):
        axes.axvspan(start, end, color=palette.FAULT, linewidth=0, zorder=0)
    if lanes:
        _draw_lanes(figure, axes, lanes, left_out, end_s)
    return figure, axes


def head(axes: Axes, title: str, *, legend: bool = False) -> None:
    """The title of a plot from `timeline`, and the legend beside it: above its lanes."""
    top = axes.figure.axes[-1]
    top.set_title(title, pad=6)
    if legend:
        top.legend(*axes.get_legend_handles_labels(), loc="lower right", ncols=2, bbox_to_anchor=(1, 1),
                   borderaxespad=0.1)


def _happenings(run: Run, end_s: float) -> tuple[list[Mark], list[Mark]]:
    """What was asked, and the faults, until end_s."""
    faults, open_since = [], dict[tuple[str, str], float]()
    for fault in run.trace.faults:
        if fault.began:
            open_since[fault.kind, fault.target] = fault.t_s
        elif (start := open_since.pop((fault.kind, fault.target), None)) is not None:
            faults.append(Mark(start, min(fault.t_s, end_s), f"{fault.kind} {fault.target}".strip()))
    faults += [Mark(start, end_s, f"{kind} {target}".strip()) for (kind, target), start in open_since.items()]
    return ([Mark(ask.t_s, None, ask.why) for ask in run.trace.asks if ask.t_s <= end_s],
            [mark for mark in faults if mark.start_s <= end_s])


def _merged(faults: Sequence[Mark]) -> list[tuple[float, float]]:
    """Spans of time with a fault: faults that overlap must not darken each other."""
    spans: list[tuple[float, float]] = []
    for start, end, _ in sorted(faults):
        assert end is not None
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


def _in_lanes(marks: Sequence[Mark], end_s: float, width_pt: float) -> tuple[list[list[tuple[Mark, float]]], int]:
    """Each mark, with the points where its name begins, in the lowest lane where it meets no other; how many have
    no room.
    """
    lanes: list[list[tuple[Mark, float]]] = []
    free_pt: list[float] = []
    left_out = 0
    for mark in marks:
        mark = mark._replace(label=mark.label if len(mark.label) <= _LONGEST else mark.label[:_LONGEST - 1] + "…")
        start_pt, name_pt = mark.start_s / end_s * width_pt, _width_pt(mark.label) + 6
        begin_pt = start_pt if start_pt + name_pt <= width_pt else max(0.0, start_pt - name_pt)
        until_pt = max(begin_pt + name_pt, (mark.end_s or 0.0) / end_s * width_pt + 2)
        at = next((i for i, free in enumerate(free_pt) if free <= begin_pt), len(lanes))
        if at == LANES:
            left_out += 1
            continue
        if at == len(lanes):
            lanes.append([])
            free_pt.append(0.0)
        lanes[at].append((mark, begin_pt))
        free_pt[at] = until_pt
    return lanes, left_out


@functools.lru_cache(maxsize=1024)
def _width_pt(label: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=palette.RC["font.family"], size=_NAME_PT)
    return float(text_to_path.get_text_width_height_descent(label, font, False)[0])


_NAME_PT: Final = 7.0


def _draw_lanes(figure: Figure, axes: Axes, lanes: Sequence[Sequence[tuple[Mark, float]]], left_out: int,
                end_s: float) -> None:
    rows = len(lanes) + bool(left_out)
    box = axes.get_position()
    height = rows * _LANE_IN / figure.get_figheight()
    above = figure.add_axes((box.x0, box.y1 + 0.03 / figure.get_figheight(), box.width, height))
    above.set_axis_off()
    above.set_xlim(0, end_s)
    above.set_ylim(0, rows)
    style: dict[str, Any] = {"fontsize": _NAME_PT, "color": palette.INK, "va": "center", "parse_math": False}
    width_pt = box.width * figure.get_figwidth() * 72
    for row, lane in enumerate(lanes):
        for mark, begin_pt in lane:
            if mark.end_s is not None:
                above.barh(row + 0.5, mark.end_s - mark.start_s, left=mark.start_s, height=0.86, linewidth=0,
                           color=palette.FAULT_BAR)
                above.vlines(mark.start_s, row + 0.07, row + 0.93, color=palette.FAINT, linewidth=0.8)
            else:
                above.vlines(mark.start_s, row + 0.07, row + 0.93, color=palette.FAINT, linewidth=0.8, linestyle=":")
            above.text((begin_pt + 3) / width_pt * end_s, row + 0.47, mark.label, **style)
    if left_out:
        above.text(end_s, rows - 0.5, f"+{left_out} more", ha="right", **style)
