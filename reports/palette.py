"""Colours that all figures share. Distinct to people with any colour vision, and in grey.

Phases that run side by side differ in lightness, not only in hue; Ready is quiet, Error is loud.
"""

from __future__ import annotations

from typing import Any, Final

from twin.model.provisioning import Phase

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
def phase_colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, UNKNOWN_PHASE)
