"""Colours and axes that all figures share. Distinct to people with any colour vision, and in grey.

Phases that run side by side differ in lightness, not only in hue; Ready is quiet, Error is loud.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from twin.model.provisioning import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABSENT: Final = "#ffffff"
PHASE_COLOURS: Final[dict[str, str]] = {
    Phase.INITIALIZING: "#deebf7",
    Phase.PENDING: "#9ecae1",
    Phase.NODE_EFFECT: "#f0e442",
    Phase.INITIALIZE_INTERFACE: "#56b4e9",
    Phase.CONFIG_FW_PARAMETERS: "#2c7fb8",
    Phase.PREPARE_BFB: "#0b559f",
    Phase.OS_INSTALLING: "#e69f00",
    Phase.CHECKING_HOST_REBOOT_REQUIRED: "#8c510a",
    Phase.REBOOTING: "#a0307c",
    Phase.HOST_NETWORK_CONFIGURATION: "#66c2a5",
    Phase.DPU_CLUSTER_CONFIG: "#007a5e",
    Phase.READY: "#e6e6e6",
    Phase.ERROR: "#d7191c",
    Phase.DELETING: "#4d4d4d",
}
UNKNOWN_PHASE: Final = "#c51b8a"
READY_LINE: Final = "#0072b2"
UNAVAILABLE: Final = "#d55e00"
BUDGET_LINE: Final = "#333333"
WORK: Final = "#dddddd"
WAIT_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a5195")
OTHER: Final = "#777777"
BASIS_MARKS: Final = {"measured": "[M]", "published": "[P]", "expert": "[E]"}
INK: Final = "#222222"
FAINT: Final = "#888888"

RC: Final[Any] = {  # Any: matplotlib types each key
    "svg.hashsalt": "dpf-twin", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 11.0, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#eeeeee",
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.0, "savefig.facecolor": "white",
}
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


def phase_colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, UNKNOWN_PHASE)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts `r2` before `r10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name))
