"""Colours that all figures share. Phases stay apart for people with any colour vision (a test simulates it).

Ready is quiet, Error is loud.
"""

from __future__ import annotations

from typing import Any, Final

from twin.model.provisioning import Phase

ABSENT: Final = "#ffffff"
PHASE_COLOURS: Final[dict[str, str]] = {
    Phase.INITIALIZING: "#d9b3ff",
    Phase.PENDING: "#addaf5",
    Phase.NODE_EFFECT: "#f0e442",
    Phase.INITIALIZE_INTERFACE: "#3d9ade",
    Phase.CONFIG_FW_PARAMETERS: "#2463b8",
    Phase.PREPARE_BFB: "#0f2f66",
    Phase.OS_INSTALLING: "#e69f00",
    Phase.CHECKING_HOST_REBOOT_REQUIRED: "#5e4010",
    Phase.REBOOTING: "#cc55a5",
    Phase.HOST_NETWORK_CONFIGURATION: "#86d66f",
    Phase.DPU_CLUSTER_CONFIG: "#00735c",
    Phase.READY: "#ececec",
    Phase.ERROR: "#ff1f3c",
    Phase.DELETING: "#111111",
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
FAULT: Final = "#e6e6e6"
FAULT_BAR: Final = "#cfcfcf"

RC: Final[Any] = {  # Any: matplotlib types each key
    "svg.hashsalt": "dpf-twin", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.titlesize": 11.0, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#eeeeee",
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.0, "savefig.facecolor": "white",
}
def ink_on(colour: str) -> str:
    """A colour that shows on this one (#rrggbb)."""
    red, green, blue = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"


def phase_colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, UNKNOWN_PHASE)
