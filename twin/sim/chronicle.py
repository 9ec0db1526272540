"""What a run means for its DPUs: phases, outages and waits, read off every change of the stored objects and hardware.

An observer like any checker: it sees all changes at once and acts on nothing.

Outage causes: `drain` (the host is cordoned), `install` (from OS Installing until the DPU's next Ready, a deletion
before it included), `reboot` (phase Rebooting), `fault` (its host is down by a fault). Waits name a constraint:
what a DPU stood still for.
"""

from __future__ import annotations

from typing import Any, cast

from twin.model.core import Node, NodeMaintenance
from twin.model.fleet import Fleet
from twin.model.meta import Key, Object, condition
from twin.model.provisioning import Dpu, DpuSet, Phase
from twin.sim.host import SimHost
from twin.sim.kube import ApiServer
from twin.sim.trace import Trace

DOWN = (Phase.OS_INSTALLING, Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.HOST_NETWORK_CONFIGURATION,
        Phase.DPU_CLUSTER_CONFIG, Phase.DELETING)
"""Phases in which the DPU carries no traffic, beside Rebooting."""

REASONS = {
    "DPUNodeNotFound": "registration", "DPUDeviceNotFound": "registration", "DPUInstallInterfaceNotProvided": "registration",
    "DPUOOBBridgeNotConfigured": "br-dpu",
    "ExternalNodeEffect": "operator", "WaitingForManualPowerCycleOrReboot": "operator",
    "WaitingForScriptToRebootNode": "reboot script", "JobIsStarted": "custom action", "JobIsNotFinished": "custom action",
    "NodeNotFound": "join", "NodeNotReady": "join", "FailedToGetDPUCapacity": "dms",
    "DPUFlavorNotFound": "flavor", "InvalidNodeEffect": "node effect",
    "ListDPFOperatorConfigsError": "DPFOperatorConfig", "DPFOperatorConfigCountError": "DPFOperatorConfig",
    "CreateGRPCConnectionError": "dms", "ExecuteDMSDebugCmdError": "dms", "DeleteBFBCFGFileError": "volume",
    "DeleteNodeError": "dpu-cluster", "NewConfigError": "dpu-cluster", "GetNodeError": "dpu-cluster",
    "FailedToGetHostUptime": "host boot",
}
"""A False condition's reason -> what the DPU waits for. Reasons with an object in them are handled in code."""


class Chronicle:
    """Attach once per run; `trace` is told."""

    def __init__(self, fleet: Fleet, server: ApiServer, trace: Trace) -> None:
        self._trace = trace
        self._server = server
        self._waiting: dict[str, str] = {}
        self._outdated: dict[str, str] = {}
        self._down: dict[str, str] = {}
        self._cards = {h.name: tuple(c.name for c in h.cards) for h in fleet.hosts}
        server.observers.setdefault(Dpu, []).append(self._dpu)
        server.observers.setdefault(Node, []).append(self._node)
        server.observers.setdefault(DpuSet, []).append(self._set)

    # --- DPUs

    def _dpu(self, old: Object | None, new: Object | None, at: int) -> None:
        was, dpu = cast("Dpu | None", old), cast("Dpu | None", new)
        about = dpu or was
        assert about is not None
        name, trace = about.metadata.name, self._trace
        before = was.status.phase if was is not None and was.status is not None else ""
        phase = dpu.status.phase if dpu is not None and dpu.status is not None else ""
        if dpu is None:
            trace.phase(at, name, "")
        elif phase != before or was is None:
            trace.phase(at, name, phase or Phase.INITIALIZING)
        if phase != before:
            self._place(name, phase, at)
            if phase == Phase.DELETING or dpu is None:
                self._no_longer_outdated(name, at)
        status = dpu.status if dpu is not None else None
        if status is not None and (was is None or was.status is not status):
            self._wait(name, self._constraint(cast(Dpu, dpu)), at)
        elif dpu is None:
            self._wait(name, "", at)
        if dpu is not None and dpu.spec.cluster.name and (was is None or not was.spec.cluster.name):
            place = trace.places.get(name)
            if place is not None:
                cluster = f"{dpu.spec.cluster.namespace}/{dpu.spec.cluster.name}"
                trace.place(name, place.rack, place.host, cluster)

    def _place(self, name: str, phase: str, at: int) -> None:
        """Open and close the outage that the phase stands for."""
        cause = "reboot" if phase == Phase.REBOOTING else "install" if phase in DOWN else ""
        if not phase or (not cause and phase not in (Phase.READY, Phase.ERROR) and self._down.get(name)):
            cause = self._down.get(name, "")  # between a deletion and the next install the DPU is still out
        held = self._down.get(name, "")
        if cause == held:
            return
        if held:
            self._trace.outage_end(at, name, held)
            del self._down[name]
        if cause:
            self._trace.outage_begin(at, name, cause)
            self._down[name] = cause

    def _constraint(self, dpu: Dpu) -> str:
        status = dpu.status
        assert status is not None
        if status.phase in (Phase.READY, Phase.ERROR):
            return ""
        for c in reversed(status.conditions):
            if c.status == "True":
                continue
            if c.reason == "DPUClusterNotAllocated":
                return _cluster_constraint(c.message)
            if c.reason in ("BFBIsNotReady", "BFBNotFound"):
                return f"BFB {dpu.metadata.namespace}/{dpu.spec.bfb}"
            if c.reason == "NodeMaintenanceIsNotReady":
                return self._maintenance(dpu)
            return REASONS.get(c.reason, "")
        return ""

    def _maintenance(self, dpu: Dpu) -> str:
        """Why the host is not drained yet: a slot, or pods that a PodDisruptionBudget protects."""
        found = self._server.find(NodeMaintenance, Key(dpu.metadata.namespace, dpu.spec.dpu_node_name))
        ready = condition(found.status.conditions, "Ready") if found is not None and found.status is not None else None
        if ready is not None and ready.reason == "Draining":
            return "drain"
        return "maintenance"

    def _wait(self, name: str, constraint: str, at: int) -> None:
        held = self._waiting.get(name, "")
        if held == constraint:
            return
        if held:
            self._trace.wait_end(at, name, held)
        if constraint:
            self._trace.wait_begin(at, name, constraint)
            self._waiting[name] = constraint
        else:
            del self._waiting[name]

    # --- roll-outs

    def _set(self, old: Object | None, new: Object | None, at: int) -> None:
        """A new template: its DPUs wait for their turn within maxUnavailable."""
        was, dpuset = cast("DpuSet | None", old), cast("DpuSet | None", new)
        if dpuset is None:
            return
        spec = dpuset.spec.dpu_template.spec
        if was is None:
            self._trace.asked(at, f"DPUSet {dpuset.key} created")
            return
        if was.spec is dpuset.spec or was.spec.dpu_template.spec == spec:
            return
        if dpuset.spec.strategy is None or dpuset.spec.strategy.type != "RollingUpdate":
            return
        asked = []
        for dpu in self._server.table(Dpu).values():
            d = cast(Dpu, dpu)
            if not any(r.uid == dpuset.metadata.uid for r in d.metadata.owner_references):
                continue
            if d.spec.bfb != spec.bfb.name or d.spec.dpu_flavor != spec.dpu_flavor:
                asked.append(d.metadata.name)
                if d.metadata.name not in self._outdated and not d.deleting:
                    constraint = f"maxUnavailable DPUSet/{dpuset.key}"
                    self._trace.wait_begin(at, d.metadata.name, constraint)
                    self._outdated[d.metadata.name] = constraint
            else:
                self._no_longer_outdated(d.metadata.name, at)
        if asked:
            self._trace.asked(at, f"DPUSet {dpuset.key} changed", asked)

    def _no_longer_outdated(self, name: str, at: int) -> None:
        constraint = self._outdated.pop(name, None)
        if constraint is not None:
            self._trace.wait_end(at, name, constraint)

    # --- hosts

    def _node(self, old: Object | None, new: Object | None, at: int) -> None:
        was, node = cast("Node | None", old), cast("Node | None", new)
        before = was is not None and was.spec.unschedulable
        now = node is not None and node.spec.unschedulable
        if before == now:
            return
        about = cast(Any, node or was)
        for dpu in self._cards.get(about.metadata.name, ()):
            if now:
                self._trace.outage_begin(at, dpu, "drain")
            else:
                self._trace.outage_end(at, dpu, "drain")

    def fault_began(self, host: SimHost, at: int) -> None:
        """The host went down by a fault."""
        for dpu in self._cards.get(host.name, ()):
            self._trace.outage_begin(at, dpu, "fault")

    def fault_ended(self, host: SimHost, at: int) -> None:
        for dpu in self._cards.get(host.name, ()):
            self._trace.outage_end(at, dpu, "fault")


def _cluster_constraint(message: str) -> str:
    """`cluster ns/name is full, ...` and its like -> the constraint's name."""
    words = message.split()
    if "full" in message:
        return f"cluster-capacity {words[1] if len(words) > 1 else ''}".strip()
    return "dpu-cluster"
