"""What a run means for its DPUs: phases, outages and waits, read off every change of the stored objects and hardware.

An observer like any checker: it sees all changes at once and acts on nothing.

Outage causes: `drain` (the host is cordoned), `install` (from OS Installing until the DPU's next Ready, a deletion
before it and an end in Error included), `reboot` (phase Rebooting, or its host reboots), `fault` (its host is down by
a fault). Waits name a constraint: what a DPU stood still for. Marks are for known issues that nothing else shows.
"""

from __future__ import annotations

from typing import Any, cast

from twin.actors.podviews import selected
from twin.model.core import Node, NodeMaintenance
from twin.model.fleet import Fleet
from twin.model.meta import Key, Object, condition
from twin.model.names import Label
from twin.model.provisioning import Bfb, Dpu, DpuDevice, DpuNode, DpuSet, DpuStatus, Phase, Taint
from twin.model.rollout import max_unavailable
from twin.sim.clock import SECOND
from twin.sim.host import BOOTING, SimHost
from twin.sim.kube import ApiServer
from twin.sim.trace import BUDGET, FOREIGN_TAINT, WANTED, Trace

DOWN = (Phase.OS_INSTALLING, Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.HOST_NETWORK_CONFIGURATION,
        Phase.DPU_CLUSTER_CONFIG, Phase.DELETING)
"""Phases in which the DPU carries no traffic, beside Rebooting."""

REASONS = {
    "DPUNodeNotFound": "registration", "DPUDeviceNotFound": "registration",
    "DPUInstallInterfaceNotProvided": "registration", "DPUOOBBridgeNotConfigured": "br-dpu",
    "ExternalNodeEffect": "operator", "WaitingForManualPowerCycleOrReboot": "operator",
    "WaitingForScriptToRebootNode": "reboot script",
    "JobIsStarted": "custom action", "JobIsNotFinished": "custom action",
    "NodeNotFound": "join", "NodeNotReady": "join", "FailedToGetDPUCapacity": "dms",
    "DPUFlavorNotFound": "flavor", "InvalidNodeEffect": "node effect",
    "ListDPFOperatorConfigsError": "DPFOperatorConfig", "DPFOperatorConfigCountError": "DPFOperatorConfig",
    "CreateGRPCConnectionError": "dms", "ExecuteDMSDebugCmdError": "dms", "DeleteBFBCFGFileError": "volume",
    "DeleteNodeError": "dpu-cluster", "NewConfigError": "dpu-cluster", "GetNodeError": "dpu-cluster",
    "FailedToGetHostUptime": "host boot",
}
"""A False condition's reason -> what the DPU waits for. Reasons with an object in them are handled in code."""

UNDRAINED = "maintenance"
"""Waiting for a slot of the maintenance operator; behind it follow `drain`, or `pdb ns/name` where one forbids it."""


class Chronicle:
    """Attach once per run; `trace` is told."""

    def __init__(self, fleet: Fleet, server: ApiServer, trace: Trace) -> None:
        self._trace = trace
        self._server = server
        self._waiting: dict[str, str] = {}
        self._outdated: dict[str, str] = {}
        self._down: dict[str, str] = {}  # DPU -> why its phase puts it out of service
        self._rebooting: dict[str, None] = {}  # DPUs whose host reboots
        self._out: dict[str, str] = {}  # DPU -> the outage told for either
        self._fleet = fleet
        self._installing: dict[str, None] = {}
        self._undrained: dict[str, Key] = {}
        self._forbidden: dict[str, str] = {}  # host -> the budget that forbids its drain
        self._owned: dict[str, dict[str, None]] = {}  # DPUSet uid -> its DPUs
        self._born: dict[str, int] = {}  # DPUSet uid -> when it was created
        self._maxima: dict[str, int | str | None] = {}  # DPUSet uid -> maxUnavailable, of those that roll out
        self._allowed = 0
        self._taints: dict[str, list[Taint]] = {}  # Node -> those that the DPU controller has put there
        self.reasons: dict[str, int] = {}
        """How often a DPU's newest condition that says no had this reason: by REASON and by PHASE/REASON."""
        self._cards = {h.name: tuple(c.name for c in h.cards) for h in fleet.hosts}
        observers: tuple[tuple[type[Object], Any], ...] = (
            (Dpu, self._dpu), (Node, self._node), (DpuSet, self._set), (Bfb, self._bfb),
            (NodeMaintenance, self._node_maintenance), (DpuNode, self._dpu_node), (DpuDevice, self._device))
        for kind, observer in observers:
            server.observers.setdefault(kind, []).append(observer)

    def meet(self, dpu: str, host: str) -> None:
        """A DPU that the fleet does not name is in this host."""
        if dpu not in (cards := self._cards.get(host, ())):
            self._cards[host] = (*cards, dpu)

    # --- DPUs

    def _dpu(self, was: Dpu | None, dpu: Dpu | None, at: int) -> None:
        about = dpu or was
        assert about is not None
        name, trace = about.metadata.name, self._trace
        if name in self._outdated and (dpu is None or dpu.deleting):
            self._no_longer_outdated(name, at)  # its turn has come
        if was is None or dpu is None or was.status is not dpu.status:
            before = was.status.phase if was is not None and was.status is not None else ""
            phase = dpu.status.phase if dpu is not None and dpu.status is not None else ""
            if dpu is None:
                trace.phase(at, name, "")
            elif phase != before or was is None:
                trace.phase(at, name, phase or Phase.INITIALIZING)
            if phase != before:
                self._place(name, phase, at)
                if phase == Phase.OS_INSTALLING:
                    self._installing[name] = None
                elif before == Phase.OS_INSTALLING:
                    self._installing.pop(name, None)
            if dpu is None or was is None:
                self._count(about, dpu is not None, at)
            if dpu is None:
                self._wait(name, "", at)
            elif dpu.status is not None:
                self._wait(name, self._constraint(dpu, dpu.status), at)
        if dpu is not None and dpu.spec.cluster.name and (was is None or not was.spec.cluster.name):
            place = trace.places.get(name)
            if place is not None:
                cluster = f"{dpu.spec.cluster.namespace}/{dpu.spec.cluster.name}"
                trace.place(name, place.rack, place.host, cluster)

    def _place(self, name: str, phase: str, at: int) -> None:
        """Note the outage that the phase stands for."""
        cause = "reboot" if phase == Phase.REBOOTING else "install" if phase in DOWN else ""
        if not phase or (not cause and phase != Phase.READY and self._down.get(name)):
            # In Error, and between a deletion and the next install, the DPU is still out.
            cause = self._down.get(name, "")
        if cause == self._down.get(name, ""):
            return
        if cause:
            self._down[name] = cause
        else:
            del self._down[name]
        self._show(name, at)

    def _show(self, name: str, at: int) -> None:
        """Tell the outage that the phase stands for, or that of the host's reboot where it stands for none."""
        cause = self._down.get(name) or ("reboot" if name in self._rebooting else "")
        held = self._out.get(name, "")
        if cause == held:
            return
        if held:
            self._trace.outage_end(at, name, held)
            del self._out[name]
        if cause:
            self._trace.outage_begin(at, name, cause)
            self._out[name] = cause

    def _constraint(self, dpu: Dpu, status: DpuStatus) -> str:
        name = dpu.metadata.name
        self._undrained.pop(name, None)
        for c in reversed(status.conditions):
            if c.status == "True":
                continue
            for said in (c.reason, f"{status.phase}/{c.reason}"):
                self.reasons[said] = self.reasons.get(said, 0) + 1
            if status.phase in (Phase.READY, Phase.ERROR):
                return ""
            if c.reason == "DPUClusterNotAllocated":
                return _cluster_constraint(c.message)
            if c.reason in ("BFBIsNotReady", "BFBNotFound"):
                return self._image(Key(dpu.metadata.namespace, dpu.spec.bfb))
            if c.reason == "NodeMaintenanceIsNotReady":
                self._undrained[name] = Key(dpu.metadata.namespace, dpu.spec.dpu_node_name)
                return self._maintenance(self._undrained[name])
            return REASONS.get(c.reason, "")
        return ""

    def _maintenance(self, key: Key) -> str:
        """Why the host is not drained yet: a slot, its pods, or a PodDisruptionBudget that protects them."""
        found = self._server.find(NodeMaintenance, key)
        ready = condition(found.status.conditions, "Ready") if found is not None and found.status is not None else None
        if ready is not None and ready.reason == "Draining":
            return self._forbidden.get(key.name, "drain")
        return UNDRAINED

    def _node_maintenance(self, old: NodeMaintenance | None, new: NodeMaintenance | None, at: int) -> None:
        about = new or old
        assert about is not None
        ready = condition(about.status.conditions, "Ready") if about.status is not None else None
        if new is None or ready is None or ready.reason != "Draining":
            self._forbidden.pop(about.spec.node_name, None)
        self._look_again(about.spec.node_name, at)

    def forbidden(self, host: str, budget: Key, at: int) -> None:
        """An eviction from this host was refused for the sake of this PodDisruptionBudget."""
        if self._forbidden.setdefault(host, f"pdb {budget}") == f"pdb {budget}":
            self._look_again(host, at)

    def _look_again(self, host: str, at: int) -> None:
        for name in self._cards.get(host, ()):
            if name in self._undrained:
                self._wait(name, self._maintenance(self._undrained[name]), at)

    # --- images

    def _image(self, key: Key) -> str:
        """What a DPU waits for that needs this BFB: the server it comes from, or the BFB where none is delivering."""
        bfb = self._server.find(Bfb, key)
        if bfb is not None and bfb.spec is not None and bfb.status is not None and bfb.status.phase == "Downloading":
            server = self._fleet.image_server(bfb.spec.url)
            if server is not None:
                return f"image-server {server.name}"
        return f"BFB {key}"

    def _bfb(self, was: Bfb | None, bfb: Bfb | None, at: int) -> None:
        about = bfb or was
        if about is None or (was and was.status and was.status.phase) == (bfb and bfb.status and bfb.status.phase):
            return
        server = self._fleet.image_server(about.spec.url) if about.spec is not None else None
        names = (f"BFB {about.key}", f"image-server {server.name}" if server is not None else "")
        for name in [n for n, constraint in self._waiting.items() if constraint in names]:
            dpu = self._server.find(Dpu, Key(about.metadata.namespace, name))
            if dpu is not None and dpu.spec.bfb == about.metadata.name:
                self._wait(name, self._image(about.key), at)

    def transferred(self, name: str, link: str, beyond_ns: int, at: int) -> None:
        """A transfer ended; sharing links with others cost it `beyond_ns`. Streams into DMS are DPUs' waits."""
        verb, _, host = name.partition(" ")
        if verb != "OS.Install" or beyond_ns < SECOND:
            return
        for dpu in self._cards.get(host, ()):
            if dpu in self._installing:
                constraint = link or "shared links"
                self._trace.wait_begin(at - beyond_ns, dpu, constraint)
                self._trace.wait_end(at, dpu, constraint)

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

    def _set(self, was: DpuSet | None, dpuset: DpuSet | None, at: int) -> None:
        """A new template: its DPUs wait for their turn within maxUnavailable."""
        if was is not None and dpuset is not None and was.spec is dpuset.spec:
            return
        self._maximum(cast("DpuSet", dpuset or was), dpuset is not None, at)
        if dpuset is None:
            self._dissolved(cast("DpuSet", was), at)
            return
        spec = dpuset.spec.dpu_template.spec
        if was is None:
            self._born[dpuset.metadata.uid] = at
            self._trace.asked(at, f"DPUSet {dpuset.key} created")
            return
        if (was.spec.dpu_node_selector != dpuset.spec.dpu_node_selector
                or was.spec.dpu_selector != dpuset.spec.dpu_selector):
            self._selected(was, dpuset, at)
        if dpuset.spec.strategy is None or dpuset.spec.strategy.type != "RollingUpdate":
            for name in self._owned.get(dpuset.metadata.uid, ()):
                self._withdraw(name, at)
            return
        if was.spec.dpu_template.spec == spec:
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
                self._withdraw(d.metadata.name, at)
        if asked:
            self._trace.asked(at, f"DPUSet {dpuset.key} changed", asked)

    def _selected(self, was: DpuSet, dpuset: DpuSet, at: int) -> None:
        """Other selectors: they ask for the devices that they select anew, and no longer for those they leave."""
        for key, device in self._server.table(DpuDevice).items():
            before, now = self._selects(was, cast(DpuDevice, device)), self._selects(dpuset, cast(DpuDevice, device))
            if before != now and self._absent(key):
                self._trace.wish(at, key.name, wanted=now)

    def _absent(self, device: Key) -> bool:
        """Has the device no DPU, or one that is going?"""
        dpu = self._server.find(Dpu, device)
        return dpu is None or dpu.deleting

    def _dissolved(self, dpuset: DpuSet, at: int) -> None:
        """The DPUSet has gone: what it asked for, nobody asks for any more."""
        uid = dpuset.metadata.uid
        self._born.pop(uid, None)
        for key, device in self._server.table(DpuDevice).items():
            if self._selects(dpuset, cast(DpuDevice, device)) and self._absent(key):
                self._trace.wish(at, key.name, wanted=False)
        for name in self._owned.get(uid, ()):
            self._no_longer_outdated(name, at)
            self._trace.wish(at, name, wanted=False)

    def _maximum(self, dpuset: DpuSet, there: bool, at: int) -> None:
        """What this DPUSet allows; one without a roll-out allows nothing and forbids nothing."""
        strategy, uid = dpuset.spec.strategy, dpuset.metadata.uid
        if there and strategy is not None and strategy.type == "RollingUpdate":
            rolling = strategy.rolling_update
            self._maxima[uid] = rolling.max_unavailable if rolling is not None else None
        else:
            self._maxima.pop(uid, None)
        self._budget(at)

    def _count(self, dpu: Dpu, there: bool, at: int) -> None:
        """A DPU came or went. One whose device is still there will come again: it counts on.

        It was asked for when its DPUSet was created, and no longer is once it has gone and will not come again.
        """
        meta, again = dpu.metadata, False
        device = None if there else self._server.find(DpuDevice, Key(meta.namespace, dpu.spec.dpu_device_name))
        for ref in meta.owner_references:
            if ref.kind != DpuSet.KIND:
                continue
            owned = self._owned.setdefault(ref.uid, {})
            if there:
                owned[meta.name] = None
                if ref.uid in self._born:
                    self._trace.wish(self._born[ref.uid], meta.name, wanted=True)
            elif device is None:
                owned.pop(meta.name, None)
            else:
                dpuset = self._server.find(DpuSet, Key(meta.namespace, ref.name))
                again |= (dpuset is not None and dpuset.metadata.uid == ref.uid and not dpuset.deleting
                          and self._selects(dpuset, device))
            self._budget(at)
        if not there and not again:
            self._trace.wish(at, meta.name, wanted=False)

    def _selects(self, dpuset: DpuSet, device: DpuDevice) -> bool:
        spec, labels, namespace = dpuset.spec, device.metadata.labels, dpuset.metadata.namespace
        if device.metadata.namespace != namespace or not spec.dpu_selector.items() <= labels.items():
            return False
        node = self._server.find(DpuNode, Key(namespace, labels.get(Label.DPUNODE_NAME, "")))
        return node is not None and (
            spec.dpu_node_selector is None or selected(spec.dpu_node_selector, node.metadata.labels))

    def _budget(self, at: int) -> None:
        allowed = 0
        for uid, value in self._maxima.items():
            try:
                allowed += max_unavailable(value, len(self._owned.get(uid, ())))
            except ValueError:
                continue  # the controller refuses it too, and rolls nothing out
        if allowed != self._allowed:
            self._allowed = allowed
            self._trace.counter(at, BUDGET, allowed)

    def _dpu_node(self, was: DpuNode | None, node: DpuNode | None, at: int) -> None:
        """Other labels of a DPUNode: those of its devices that a DPUSet selects from now on are asked for, and marked.

        Only for those without a DPU: a DPU that waits in Deleting for its host to register again was asked for before.
        """
        if was is None or node is None or was.metadata.labels is node.metadata.labels:
            return
        find, meta = self._server.find, node.metadata
        for key, dpuset in self._server.table(DpuSet).items():
            spec = cast(DpuSet, dpuset).spec
            nodes = spec.dpu_node_selector
            if nodes is None or key.namespace != meta.namespace:
                continue
            now = selected(nodes, meta.labels)
            if selected(nodes, was.metadata.labels) == now:
                continue
            wanted = {**spec.dpu_selector, Label.DPUNODE_NAME: meta.name}.items()
            for card in [Key(meta.namespace, ref.name) for ref in node.spec.dpus]:
                device = find(DpuDevice, card)
                if device is not None and wanted <= device.metadata.labels.items() and find(Dpu, card) is None:
                    self._trace.wish(at, card.name, wanted=now)
                    if now:
                        self._trace.mark(at, WANTED, card.name)

    def _device(self, was: DpuDevice | None, device: DpuDevice | None, at: int) -> None:
        """Labels that have a DPUSet select a device ask for its DPU; nobody asks for that of a device that has gone."""
        if was is None:
            return
        if device is None:
            if self._server.find(Dpu, was.key) is None:
                self._trace.wish(at, was.metadata.name, wanted=False)
            return
        before, now = was.metadata.labels, device.metadata.labels
        if before is now:
            return
        for dpuset in self._server.table(DpuSet).values():
            wanted = cast(DpuSet, dpuset).spec.dpu_selector.items()
            if (wanted <= before.items()) != (wanted <= now.items()) and self._absent(device.key):
                self._trace.wish(at, device.metadata.name, wanted=self._selects(cast(DpuSet, dpuset), device))

    def _no_longer_outdated(self, name: str, at: int) -> None:
        constraint = self._outdated.pop(name, None)
        if constraint is not None:
            self._trace.wait_end(at, name, constraint)

    def _withdraw(self, name: str, at: int) -> None:
        """This DPU waits for its turn no more: nobody asks for another one."""
        if name in self._outdated:
            self._no_longer_outdated(name, at)
            self._trace.wish(at, name, wanted=False)

    # --- hosts

    def _node(self, was: Node | None, node: Node | None, at: int) -> None:
        if was is not None and (node is None or was.spec is not node.spec):
            self._tainted(was, node, at)
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

    def _tainted(self, was: Node, node: Node | None, at: int) -> None:
        """Remember which taints the DPU controller puts on; mark a Node from which it takes another."""
        name = was.metadata.name
        if node is None:
            self._taints.pop(name, None)
            return
        before, now = was.spec.taints, node.spec.taints
        if before == now:
            return
        own = self._taints.setdefault(name, [])
        by_dpf = self._server.writer == "dpu"
        for taint in before:
            if taint in now:
                continue
            if taint in own:
                own.remove(taint)
            elif by_dpf:
                self._trace.mark(at, FOREIGN_TAINT, name)
        if by_dpf:
            own += [t for t in now if t not in before]

    def host_down(self, host: SimHost, at: int) -> None:
        """The host is down; where it reboots, all its DPUs are out until it is up."""
        if host.state == BOOTING:  # else it has lost its power, which is a fault
            for dpu in self._cards.get(host.name, ()):
                if self._trace.exists(dpu):
                    self._rebooting[dpu] = None
                    self._show(dpu, at)

    def host_up(self, host: SimHost, at: int) -> None:
        self.fault_ended(host, at)
        for dpu in self._cards.get(host.name, ()):
            if dpu in self._rebooting:
                del self._rebooting[dpu]
                self._show(dpu, at)

    def fault_began(self, host: SimHost, at: int) -> None:
        """The host went down by a fault. A card without a DPU was not in service."""
        for dpu in self._cards.get(host.name, ()):
            if self._trace.exists(dpu):
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
