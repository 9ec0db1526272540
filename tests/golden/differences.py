"""Every difference that we allow between a recording of 2025-02 and our play of it as v25.4, with its reason.

A `Difference` is a rule on facts (`views`): it renames a fact of one side, drops it, sets it apart (compared as a
sequence of its own, because its place among the object's writes is accidental), or carries its write into the object's
next one (because two writes of one side are one of the other). A `Limit` says what of a case v25.4 cannot play.
Sections are those of provisioning.md.
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
    cases: tuple[str, ...] = ("*",)

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


def _says(id_: str, fact: str, why: str, *cases: str) -> Difference:
    """A condition with which v25.4 says what was silent before."""
    return Difference(id_, OURS, "DPU/.*", f"cond {fact}", None, why, cases=cases or ("*",))


def _reads(id_: str, fact: str, to: str, why: str, *cases: str) -> Difference:
    """A condition that reads otherwise in v25.4."""
    return Difference(id_, RECORDED, "DPU/.*", f"cond {fact}", f"cond {to}", why, cases=cases or ("*",))


NAMES_AND_PHASES: Final = (
    Difference("dpu-labels-of-2025-02", RECORDED, "DPU/.*",
               f"label {P}(dpu-host-ip|dpu-pciAddress|dpu-pf-name)=.*", None,
               "2.5, 1.10: v25.4 links a DPU to its DPUNode and DPUDevice by other labels"),
    Difference("dpu-labels-of-v25.4", OURS, "DPU/.*", f"label {P}(dpunode-name|dpudevice-.*)=.*", None,
               "1.10: labels that are new in v25.4"),
    Difference("config-fw-parameters", OURS, "DPU/.*", "phase=Config FW Parameters", None,
               "2.5: Feb 2025 never entered Config FW Parameters on the gNOI path", carry=True),
    Difference("checking-host-reboot", OURS, "DPU/.*", "phase=Checking Host Reboot Required", None,
               "2.1 row 7: new in v25.4; before, every install was followed by Rebooting", carry=True),
    Difference("leaves-install-to-deleting", BOTH, "DPU/.*", "phase=Rebooting", SAME,
               "2.4: v25.4 honours a deletion one phase earlier, in Checking Host Reboot Required", carry=True,
               cases=("a6-*", "d8-*", "f13-*")),
    Difference("rebooted-before-phase", RECORDED, "DPU/.*", "cond Rebooted=True/Rebooted/", SAME,
               "2.5: a poll between the script's return and the host's going down sets Rebooted early; a race",
               carry=True, cases=("c1-*", "c2-*")),
    Difference("reboot-never-gives-up", RECORDED, "DPU/.*", "phase=Error", None,
               "3.4 trap (a): v25.4 stays in Rebooting after eleven failures", cases=("f9-*",)),
)

NEW_CONDITIONS: Final = (
    _says("fw-configured", "FWConfigured=True/ConfigureFWParameters/", "2.1 row 5: the condition of a new phase"),
    _says("checked-host-reboot", "CheckedHostRebootNeed=True/CheckedHostRebootNeed/",
          "2.1 row 7: the condition of a new phase"),
    _says("host-network-in-progress", "HostNetworkReady=False/HostNetworkSetupInProgress/operation in progress",
          "2.2 phase 9: v25.4 runs a script in the background and says so"),
    _says("says-host-is-down", "Rebooted=False/FailedToGetHostUptime/.*",
          "3.4 against 2.5: before, polls while the host was down were silent"),
    _says("says-node-is-not-there", "DPUClusterReady=False/(NodeNotFound/node .* not found|NodeNotReady/.*)",
          "2.2 phase 10 against 2.5: before, DPU Cluster Config waited without a condition"),
    _says("says-maintenance-is-not-ready",
          "NodeEffectReady=False/NodeMaintenanceIsNotReady/node maintenance is not ready",
          "6: while a drain lasts there was no condition in Feb 2025"),
    _says("says-bfb-is-gone", "OSInstalled=False/BFBNotFound/.* not found",
          "2.2 phase 6 against 2.5: before, a missing BFB in OS Installing was silent", "a6-*"),
    _says("says-dpunode-is-missing", "Initialized=False/DPUNodeNotFound/.* not found",
          "2.2 phase 1 against 2.5: before, a missing host Node was silent", "f7-*"),
    _says("says-dpunode-was-modified", "Initialized=False/UpdateDPUNodeError/Operation cannot be fulfilled .*",
          "2.2 phase 1: the DPUNode, new in v25.4, is written by its own controller at that moment too", "f7-*"),
    _says("says-config-is-missing", "HostNetworkReady=False/DPFOperatorConfigCountError/.*",
          "2.2 phase 9 against 2.5: before, only the log told", "f11-*"),
    _says("says-cluster-is-gone", "Ready=False/DPUClusterNotFound/.* not found",
          "2.2 phase 11 against 2.5: before, a lost DPUCluster changed nothing in Ready", "k1-*"),
    _says("says-node-cannot-be-deleted", 'Deleting=False/DeleteNodeError/failed to delete node, err: Delete ".*',
          "8.6 against g3: before, the same text stood in the log only", "g3-*"),
)

REASONS_AND_TEXTS: Final = (
    _reads("interface-initialized", "DMSRunning=True/DMSRunning/", "InterfaceInitialized=True/DMSInitialized/",
           "2.1 row 4, 2.5: the DMS belongs to the host now"),
    _reads("message-rebooting", "(OSInstalled=True/OSInstalled/)DPU is rebooting", r"\1",
           "2.1: messages of success are empty in v25.4"),
    _reads("message-joining", "(HostNetworkReady=True/HostNetworkReady/)waiting for dpu joining cluster", r"\1",
           "2.1: messages of success are empty in v25.4"),
    _reads("cluster-ready", "Ready=True/Ready/cluster configured",
           "DPUClusterReady=True/DPUClusterReady/cluster configured",
           "2.1 row 10: DPU Cluster Config has its own condition in v25.4"),
    _reads("dpu-ready", "Ready=True/DPUNodeReady/", "Ready=True/DPUReady/", "2.2 phase 11: reason renamed"),
    _reads("cluster-not-allocated", "Initialized=False/DPUClusterNotReady/(.*)",
           r"Initialized=False/DPUClusterNotAllocated/\1", "2.5, 2.2 phase 1: reason renamed"),
    _reads("bfb-not-found", "BFBReady=False/GetBFBFailed/(.* not found)", r"BFBReady=False/BFBNotFound/\1",
           "2.5, 2.2 phase 2: reason split"),
    _reads("node-not-ready", "Ready=False/DPUNodeNotReady/(.*)", r"Ready=False/NodeNotReady/\1",
           "2.5, 2.2 phase 11: reason renamed"),
    _reads("node-not-found", "Ready=False/DPUNodeGetError/(nodes .* not found)", r"Ready=False/NodeNotFound/\1",
           "2.5, 2.2 phase 11: reason split"),
    _reads("cluster-api-is-down",
           'Ready=False/DPUNodeGetError/failed to get server groups: Get ".*": (dial tcp ).*(: connect: .*)',
           r"Ready=False/GetNodeError/Get: \1\2",
           "2.2 phase 11: reason split; 7.1: v25.4 keeps its clients, and a kept client asks for no server groups"),
    Difference("cluster-api-is-down-here", OURS, "DPU/.*",
               'cond Ready=False/GetNodeError/Get ".*": (dial tcp ).*(: connect: .*)',
               r"cond Ready=False/GetNodeError/Get: \1\2", "addresses differ"),
    Difference("address", BOTH, "DPUCluster/.*",
               '(cond Ready=False/HealthCheckFailed/Get ").*(/version": dial tcp ).*(: connect.*)', r"\1\2\3",
               "addresses differ"),
    Difference("retry-texts", RECORDED, "DPU/.*",
               r"cond OSInstalled=False/OSInstalled/DMS task .* retried \d times, error: .*", None,
               "2.2 phase 6, 2.5: v25.4 changes no condition between attempts (test_engine counts them)"),
    _reads("install-error", "(OSInstalled=False/InstallationFailed/)rpc error: .* bfb-install failed",
           r"\1DPU reboot failed, status: FAILURE",
           "the recording's stand-in refuses Activate, our card fails under way (3.2 step 6)", "f3-*"),
    _reads("reboot-error", "(Rebooted=False/RebootFailed/.* exit code )2, output: .*", r"\g<1>1",
           "the recording's stand-in script and our command exit with other codes", "f9-*"),
    Difference("mock-annotations", RECORDED, "DPU/.*", f"annotation {P}override-.*", None,
               "1.11: leftovers of mock-dms, no effect in v25.4", cases=("m1-*",)),
    Difference("mock-node", BOTH, "dpu:Node/.*",
               r"label (node-role\.dpf\.nvidia\.com/fake|kubernetes\.io/(arch|hostname))=.*", None,
               "upstream's mock makes a Node with a label of its own", cases=("m1-*",)),
)

OTHER_OBJECTS: Final = (
    Difference("drain-spares-dms", OURS, "NodeMaintenance/.*", f"drain podSelector={P}component!=dms", None,
               "6: the selector is new in v25.4"),
    Difference("finalizer-race", BOTH, "DPUCluster/.*", "finalizer .*clean-up=yes", SAME,
               "two processes add their finalizers at the same time; both orders are recorded", apart="finalizers"),
    Difference("finalizer-race-at-end", BOTH, "DPUCluster/.*", "finalizer .*clean-up=-", None,
               "two processes drop them at the same time, and who is last is seen as the object's end"),
    Difference("deletes-again-count", BOTH, "Event/DPUSet/.* SuccessfulDelete: .*", "count=.*", None,
               "1.13: every pass repeats it while the DPU is going; the count (3 to 7) is the number of passes"),
    Difference("events-run-out", BOTH, "Event/DPUSet/.* SuccessfulCreate: .*", "count=2", None,
               "a client records 25 events of one object at once, then one in 5 min; how often deletions are "
               "repeated decides whose announcement is lost (test_engine)", cases=("d1-*",)),
    Difference("foreground-race", BOTH, "DPU/.*", f"finalizer (foregroundDeletion|{P}dpu-protection)=-", None,
               "2.5: nothing is owned by a v25.4 DPU without a drain, so the garbage collector and the DPU controller "
               "drop their finalizers at the same time", cases=("e4-*",)),
    Difference("statistics-in-flight", BOTH, "DPUSet/.*", "statistics .*", None,
               "5.4: they follow passes in flight; compared where nothing moves (test_cases)"),
)

DIFFERENCES: Final = (*NAMES_AND_PHASES, *NEW_CONDITIONS, *REASONS_AND_TEXTS, *OTHER_OBJECTS)


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

AFTER_NODE_EFFECT: Final = (
    "Initialize Interface", "Config FW Parameters", "OS Installing", "Checking Host Reboot Required", "Rebooting",
    "Host Network Configuration", "DPU Cluster Config", "Ready")

LIMITS: Final[Mapping[str, Limit]] = {
    "e2-scale-down-up": Limit(
        "5.1: v25.4 does not watch DPUNodes, the policy does; 8.5: a deleted host Node leaves its DPU in Deleting",
        until="delete Node/worker3", policies=("dpuset-watches-dpunodes",)),
    "e9-other-namespace": Limit(
        "5.1: DPUNodes and DPUDevices of other namespaces never match, so tenant-a's DPUSet makes no DPU (#4427091)",
        kinds=("BFB", "DPUCluster")),
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
        without=("DPU/.*", "dpu:Node/.*"), same=dict.fromkeys(AFTER_NODE_EFFECT, "Error")),
    "g3-dpu-api-down": Limit(
        "the recording's own watch of the DPU cluster's Nodes ended with that API server", without=("dpu:Node/.*",)),
}
