"""Which reboot a DPU's host gets: type from the DPU, command from the DPUNode (provisioning.md 3.4, 1.11)."""

from __future__ import annotations

from typing import Final, NamedTuple

from controllers.provisioning.dpu_pass import parse_bool
from twin.model.names import Annotation
from twin.model.provisioning import Dpu, DpuNode

COMMANDS: Final = ("cycle", "reset", "skip")


class RebootPlan(NamedTuple):
    """`command` is cycle, reset or skip; a cold reboot goes through ipmitool, a warm one through bf-slr.sh."""

    cold: bool
    command: str


def reboot_plan(dpu: Dpu, node: DpuNode) -> RebootPlan:
    """Raises ValueError with upstream's text for an annotation that names no known command."""
    wanted = dpu.metadata.annotations.get(Annotation.HOST_POWER_CYCLE_REQUIRED)
    cold = wanted is not None and parse_bool(wanted)
    name, default = (Annotation.POWERCYCLE_COMMAND, "cycle") if cold else (Annotation.REBOOT_COMMAND, "reset")
    command = node.metadata.annotations.get(name, default)
    if command not in COMMANDS:
        known = " ".join(f'"{c}"' for c in COMMANDS)
        raise ValueError(f'invalid value "{command}", supported values: [{known}]')
    return RebootPlan(cold, command)
