"""Every difference that we allow between a recording of 2025-02 and our play of it as v25.4, with its reason.

A `Difference` is a rule on facts (`views`): it renames a fact of one side, drops it, sets it apart (compared as a
sequence of its own, because its place among the object's writes is accidental), or carries it into the object's next
write (because two writes there are one here). Sections are those of provisioning.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

RECORDED, OURS, BOTH = "recorded", "ours", "both"


@dataclass(frozen=True)
class Difference:
    """`subject` and `fact` are patterns of a whole `KIND/name` and a whole `name=value`. `to` None: dropped."""

    id: str
    side: str
    subject: str
    fact: str
    to: str | None
    why: str
    carry: bool = False
    apart: str = ""
    cases: tuple[str, ...] = field(default=("*",))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return re.compile(self.subject), re.compile(self.fact, re.DOTALL)

    def applies(self, case: str, side: str) -> bool:
        return self.side in (side, BOTH) and any(fnmatchcase(case, c) for c in self.cases)

    def on(self, subject: str, fact: str) -> tuple[str | None, bool]:
        """The fact as this rule leaves it, and whether the rule is about it."""
        about, what = self._patterns
        if about.fullmatch(subject) is None:
            return fact, False
        found = what.fullmatch(fact)
        if found is None:
            return fact, False
        return (found.expand(self.to) if self.to is not None else None), True


SAME: Final = r"\g<0>"
P: Final = r"provisioning\.dpu\.nvidia\.com/"

DIFFERENCES: Final[tuple[Difference, ...]] = (
    # --- how DPUs are named and linked
    Difference("dpu-labels-of-2025-02", RECORDED, "DPU/.*", f"label {P}(dpu-host-ip|dpu-pciAddress|dpu-pf-name)=.*", None,
               "2.5, 1.10: v25.4 links a DPU to its DPUNode and DPUDevice by other labels"),
    Difference("dpu-labels-of-v25.4", OURS, "DPU/.*", f"label {P}(dpunode-name|dpudevice-.*)=.*", None,
               "1.10: labels that are new in v25.4"),
    # --- phases and conditions that are new or renamed
    Difference("interface-initialized", RECORDED, "DPU/.*", "cond DMSRunning=True/DMSRunning/",
               "cond InterfaceInitialized=True/DMSInitialized/", "2.1 row 4, 2.5: renamed with the DPUNode's DMS"),
    Difference("config-fw-parameters", OURS, "DPU/.*", "phase=Config FW Parameters", None,
               "2.5: Feb 2025 never entered Config FW Parameters on the gNOI path", carry=True),
    Difference("fw-configured", OURS, "DPU/.*", "cond FWConfigured=True/ConfigureFWParameters/", None,
               "2.1 row 5: the condition of that phase"),
    Difference("checking-host-reboot", OURS, "DPU/.*", "phase=Checking Host Reboot Required", None,
               "2.1 row 7: new in v25.4; before, every install was followed by Rebooting", carry=True),
    Difference("checked-host-reboot", OURS, "DPU/.*", "cond CheckedHostRebootNeed=True/CheckedHostRebootNeed/", None,
               "2.1 row 7: the condition of that phase"),
    Difference("leaves-install-to-deleting", BOTH, "DPU/.*", "phase=Rebooting", SAME,
               "2.4: v25.4 honours a deletion one phase earlier, in Checking Host Reboot Required", carry=True,
               cases=("a6-*", "d8-*", "f13-*")),
    Difference("message-rebooting", RECORDED, "DPU/.*", "(cond OSInstalled=True/OSInstalled/)DPU is rebooting", r"\1",
               "2.1: messages of success are empty in v25.4"),
    Difference("message-joining", RECORDED, "DPU/.*",
               "(cond HostNetworkReady=True/HostNetworkReady/)waiting for dpu joining cluster", r"\1",
               "2.1: messages of success are empty in v25.4"),
    Difference("host-network-in-progress", OURS, "DPU/.*", "cond HostNetworkReady=False/HostNetworkSetupInProgress/.*",
               None, "2.2 phase 9: v25.4 runs a script in the background and says so"),
    Difference("cluster-ready", RECORDED, "DPU/.*", "cond Ready=True/Ready/cluster configured",
               "cond DPUClusterReady=True/DPUClusterReady/cluster configured",
               "2.1 row 10: DPU Cluster Config has its own condition in v25.4"),
    Difference("dpu-ready", RECORDED, "DPU/.*", "cond Ready=True/DPUNodeReady/", "cond Ready=True/DPUReady/",
               "2.2 phase 11: reason renamed"),
    Difference("rebooted-before-phase", RECORDED, "DPU/.*", "cond Rebooted=True/Rebooted/", SAME,
               "2.5: a poll between the script's return and the host's going down sets Rebooted early; a race",
               carry=True, cases=("c1-*", "c2-*")),
    Difference("says-host-is-down", OURS, "DPU/.*", "cond Rebooted=False/FailedToGetHostUptime/.*", None,
               "3.4 against 2.5: v25.4 says that the uptime cannot be read; before, such polls were silent"),
    Difference("says-node-is-not-there", OURS, "DPU/.*", "cond DPUClusterReady=False/(NodeNotFound|NodeNotReady)/.*", None,
               "2.2 phase 10 against 2.5: before, DPU Cluster Config waited without a condition"),
    Difference("says-maintenance-is-not-ready", OURS, "DPU/.*",
               "cond NodeEffectReady=False/NodeMaintenanceIsNotReady/node maintenance is not ready", None,
               "6: while a drain lasts there was no condition in Feb 2025"),
    Difference("says-bfb-is-gone", OURS, "DPU/.*", "cond OSInstalled=False/BFBNotFound/.*", None,
               "2.2 phase 6 against 2.5: before, a missing BFB in OS Installing was silent", cases=("a6-*",)),
    Difference("says-dpunode-is-missing", OURS, "DPU/.*", "cond Initialized=False/DPUNodeNotFound/.*", None,
               "2.2 phase 1 against 2.5: before, a missing host Node was silent", cases=("f7-*",)),
    Difference("says-dpunode-was-modified", OURS, "DPU/.*", "cond Initialized=False/UpdateDPUNodeError/Operation cannot be .*",
               None, "2.2 phase 1: the DPUNode, new in v25.4, is written by its own controller at that moment too", cases=("f7-*",)),
    Difference("says-config-is-missing", OURS, "DPU/.*", "cond HostNetworkReady=False/DPFOperatorConfigCountError/.*",
               None, "2.2 phase 9 against 2.5: before, only the log told", cases=("f11-*",)),
    Difference("says-cluster-is-gone", OURS, "DPU/.*", "cond Ready=False/DPUClusterNotFound/.*", None,
               "2.2 phase 11 against 2.5: before, a lost DPUCluster changed nothing in Ready", cases=("k1-*",)),
    Difference("says-node-cannot-be-deleted", OURS, "DPU/.*", "cond Deleting=False/DeleteNodeError/failed to delete node, err: Delete .*", None,
               "8.6 against g3: before, the same text stood in the log only", cases=("g3-*",)),
    # --- reasons and texts
    Difference("cluster-not-allocated", RECORDED, "DPU/.*", "cond Initialized=False/DPUClusterNotReady/(.*)",
               r"cond Initialized=False/DPUClusterNotAllocated/\1", "2.5, 2.2 phase 1: reason renamed"),
    Difference("bfb-not-found", RECORDED, "DPU/.*", "cond BFBReady=False/GetBFBFailed/(.* not found)",
               r"cond BFBReady=False/BFBNotFound/\1", "2.5, 2.2 phase 2: reason split"),
    Difference("node-not-ready", RECORDED, "DPU/.*", "cond Ready=False/DPUNodeNotReady/(.*)",
               r"cond Ready=False/NodeNotReady/\1", "2.5, 2.2 phase 11: reason renamed"),
    Difference("node-not-found", RECORDED, "DPU/.*", "cond Ready=False/DPUNodeGetError/(.* not found)",
               r"cond Ready=False/NodeNotFound/\1", "2.5, 2.2 phase 11: reason split"),
    Difference("cluster-api-is-down", RECORDED, "DPU/.*",
               'cond Ready=False/DPUNodeGetError/failed to get server groups: Get ".*": (dial tcp ).*(: connect: .*)',
               r"cond Ready=False/GetNodeError/Get: \1\2",
               "2.2 phase 11: reason split; 7.1: v25.4 keeps its clients, a kept client asks for no server groups"),
    Difference("cluster-api-is-down-here", OURS, "DPU/.*", 'cond Ready=False/GetNodeError/Get ".*": (dial tcp ).*(: connect: .*)',
               r"cond Ready=False/GetNodeError/Get: \1\2", "addresses differ"),
    Difference("address", BOTH, "DPUCluster/.*", '(cond Ready=False/HealthCheckFailed/Get ").*(/version": dial tcp ).*(: connect.*)',
               r"\1\2\3", "addresses differ"),
    Difference("retry-texts", RECORDED, "DPU/.*", r"cond OSInstalled=False/OSInstalled/DMS task .* retried \d times, error: .*",
               None, "2.2 phase 6, 2.5: v25.4 changes no condition between attempts (they are counted in test_engine)"),
    Difference("install-error", RECORDED, "DPU/.*", "(cond OSInstalled=False/InstallationFailed/)rpc error: .* bfb-install failed",
               r"\1DPU reboot failed, status: FAILURE", "their stand-in refuses Activate, our card fails under way (3.2 step 6)"),
    Difference("reboot-error", RECORDED, "DPU/.*", "(cond Rebooted=False/RebootFailed/.* exit code )2, output: .*", r"\g<1>1",
               "the stand-in's script and our command fail with other codes"),
    Difference("reboot-never-gives-up", RECORDED, "DPU/.*", "phase=Error", None,
               "3.4 trap (a): v25.4 stays in Rebooting after eleven failures", cases=("f9-*",)),
    # --- upstream's mock DMS
    Difference("mock-annotations", RECORDED, "DPU/.*", f"annotation {P}override-.*", None,
               "1.11: leftovers of mock-dms, no effect in v25.4", cases=("m1-*",)),
    Difference("mock-node", BOTH, "dpu:Node/.*", "label (node-role.dpf.nvidia.com/fake|kubernetes.io/(arch|hostname))=.*", None,
               "the mock makes a Node with a label of its own", cases=("m1-*",)),
    # --- node effects
    Difference("drain-spares-dms", OURS, "NodeMaintenance/.*",
               "drain podSelector=provisioning.dpu.nvidia.com/component!=dms", None, "6: the selector is new in v25.4"),
    # --- DPUCluster
    Difference("finalizer-race", BOTH, "DPUCluster/.*", "finalizer .*clean-up=yes", SAME,
               "two processes add their finalizers at the same time; both orders are recorded", apart="finalizers"),
    # --- events
    Difference("events-run-out", BOTH, "Event/DPUSet/.* SuccessfulCreate: .*", "count=2", None,
               "a client records 25 events of one object at once, then one in 5 min; how many deletions repeat decides whose "
               "are lost (test_engine)", cases=("d1-*",)),
    Difference("deletes-again-count", BOTH, "Event/DPUSet/.* SuccessfulDelete: .*", r"count=.*", None,
               "1.13: every pass repeats it while the DPU is going; the count (3 to 7) is the number of passes"),
    Difference("foreground", RECORDED, "DPU/.*", "finalizer foregroundDeletion=.*", None,
               "2.5: in v25.4 nothing is owned by a DPU without a drain, so foreground deletion has nothing to wait for",
               cases=("e4-*",)),
    # --- counts
    Difference("statistics-in-flight", BOTH, "DPUSet/.*", "statistics .*", None,
               "5.4: passes in flight; compared where nothing moves (test_statistics)"),
)


@dataclass(frozen=True)
class Limit:
    """What of a case v25.4 cannot play, and why."""

    why: str = ""
    until: str = ""
    """Words of the first step that is not played; '' plays all."""
    skip: tuple[str, ...] = ()
    """Steps that are not played."""
    without: tuple[str, ...] = ()
    """Patterns of subjects that are not compared."""
    kinds: tuple[str, ...] = ()
    """What is compared; empty: everything."""
    policies: tuple[str, ...] = ()
    config_until: str = ""
    """A DPFOperatorConfig exists from the start until a DPU enters this phase."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Phases that count as another one when a step waits for its situation."""


NO_LIMIT: Final = Limit()

LIMITS: Final[Mapping[str, Limit]] = {
    "e2-scale-down-up": Limit(
        "5.1: v25.4 does not watch DPUNodes, the policy does; 8.5: a deleted host Node leaves its DPU in Deleting",
        until="delete Node/worker3", policies=("dpuset-watches-dpunodes",)),
    "e9-other-namespace": Limit(
        "5.1: DPUNodes and DPUDevices of other namespaces never match, so tenant-a's DPUSet makes no DPU (#4427091)",
        until="create Secret/dpf-provisioning-client-secret", kinds=("BFB", "DPUCluster")),
    "f1-dms-never-ready": Limit(
        "3.1: the DMS pod belongs to the host; while it is Pending there is no DPUNode, DPUDevice or DPU",
        until="phase: Initialize Interface", kinds=("BFB", "DPUCluster")),
    "f2-dms-pod-failures": Limit(
        "3.1: DMS pods belong to hosts; their failures show on DPUNodes (8.2)",
        until="delete DPU/worker1", kinds=("BFB", "DPUCluster")),
    "f7-node-missing-or-unlabelled": Limit(
        "3.1: a Node without DPU labels has no DPUDevice, so nothing can be created for it",
        skip=("create Node/worker[34]", "create DPUSet/dpuset-[xy]"), without=("Node/worker[34]", ".*/dpuset-[xy].*")),
    "f9-reboot-fails": Limit(
        "3.4 trap (a): in v25.4 the DPU stays in Rebooting and starts over", same={"Error": "OS Installing"}),
    "f11-operatorconfig-missing": Limit(
        "9.1: v25.4 wants the DPFOperatorConfig for DMS pods and bf.cfg already, so it only goes after the install",
        config_until="Checking Host Reboot Required"),
    "f14-unsupported-dpumode-and-two-sets": Limit(
        "2.5: v25.4 refuses dpuMode nic in Config FW Parameters (2.2 phase 5), so the DPU ends in Error there",
        without=("DPU/.*", "dpu:Node/.*"), same=dict.fromkeys(
            ("Initialize Interface", "Config FW Parameters", "OS Installing", "Checking Host Reboot Required", "Rebooting",
             "Host Network Configuration", "DPU Cluster Config", "Ready"), "Error")),
    "g3-dpu-api-down": Limit(
        "the recording's own watch of the DPU cluster's Nodes ended with that API server", without=("dpu:Node/.*",)),
}
