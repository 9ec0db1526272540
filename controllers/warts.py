"""Upstream's warts: what v25.4 does that its users would rather it did not, and the policies that fix some of them.

The default is upstream's behaviour (HOUSE rule). Each place in the code that reproduces a wart carries the mark
`# upstream: <id>`, and each id stands here once; tests/controllers/test_warts.py holds the two together.
A policy is switched on by `policies: [...]` of a scenario or `--policy NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wart:
    """One wart. `issue` is upstream's number where there is one; `policy` names our fix, '' when we offer none."""

    id: str
    what: str
    source: str
    issue: str = ""
    policy: str = ""


WARTS: Final[tuple[Wart, ...]] = (
    Wart("allocator-first-cluster-only",
         "Only the first DPUCluster by name is ever considered; when it is full or not ready, DPUs wait although "
         "another has room", "provisioning.md 5.5", policy="allocator-spills-over"),

    # --- DPU
    Wart("stable-errors-are-swallowed",
         "A failure whose condition text stays the same is polled every 5 s, one whose text changes backs off; "
         "in Error nothing polls", "provisioning.md 2.0"),
    Wart("unknown-phase-is-stuck", "A DPU in a phase this release does not know is retried without end",
         "provisioning.md 2.0"),
    Wart("tasks-lost-on-restart",
         "OS installs, warm reboots and host network scripts live in process memory: a restarted controller starts "
         "them again, a second OS install beside the first", "provisioning.md 2.0, 10.1",
         policy="no-duplicate-os-install"),
    Wart("tasks-retried-without-pause",
         "A failed task is started again with the next pass: eleven attempts at a host that is down are over in about "
         "two minutes, sooner than a host has rebooted", "provisioning.md 2.0, 2.3"),
    Wart("unknown-part-passes", "The capacity check lets a card of unknown part number pass", "provisioning.md 2.2"),
    Wart("deletion-ignored-in-config-fw", "Config FW Parameters never looks at the deletion timestamp",
         "provisioning.md 2.2, 2.4"),
    Wart("bfb-gone-wedges-install",
         "In OS Installing a missing BFB is looked up before the task and before any deletion: the DPU cannot leave "
         "the phase", "provisioning.md 2.2, 4.1", issue="4426349", policy="deletion-ends-os-install"),
    Wart("deletion-waits-for-install", "A DPU deleted while installing waits for all attempts of the install task",
         "provisioning.md 2.2, 2.4", issue="4123204", policy="deletion-ends-os-install"),
    Wart("grpc-setup-failure-is-final",
         "A missing client Secret or DMS address sends a DPU to Error in phases 7 and 8; elsewhere it is retried",
         "provisioning.md 2.3"),
    Wart("any-reboot-counts", "A host rebooted by anybody since Initialize Interface counts as rebooted by DPF",
         "provisioning.md 3.4, 10.1"),
    Wart("reboot-ignores-siblings",
         "A host is rebooted for one of its DPUs while another is installing: that install breaks, and its DPU ends "
         "in Error, or starts anew and takes this reboot for its own", "provisioning.md 3.4, 10",
         policy="reboot-waits-for-siblings"),
    Wart("power-cycle-reissued", "A cold power cycle is sent again in every pass until the host is down",
         "provisioning.md 3.4"),
    Wart("warm-reboot-starts-over", "After eleven failed warm reboots the DPU stays in Rebooting and counts from one",
         "provisioning.md 3.4"),
    Wart("reboot-outlives-its-dpu",
         "A DPU deleted in Rebooting leaves its warm reboot behind: the host goes down during the install of the DPU "
         "made in its place, which ends in Error", "provisioning.md 2.0, 2.4"),
    Wart("no-warm-reboot-outside-kubernetes", "A warm reboot of a host outside Kubernetes does nothing, without end",
         "provisioning.md 3.4"),
    Wart("rebooted-condition-means-asked",
         "external and script reboots take any Rebooted condition, even of an earlier failure, as proof that the "
         "reboot was asked for", "provisioning.md 3.4"),
    Wart("skipped-reboot-is-ready", "With reboot-command skip a DPU becomes Ready with old firmware and nvconfig",
         "provisioning.md 3.4, 10.1"),
    Wart("no-join-timeout", "A DPU that never joins its DPU cluster stays in DPU Cluster Config for ever",
         "provisioning.md 2.2", policy="join-timeout"),
    Wart("bootstrap-token-expires",
         "The join token lives two hours from the start of the OS installation: a DPU that comes to join later (one "
         "busy worker, an external reboot) hangs in DPU Cluster Config", "provisioning.md 4.5, 10",
         policy="bootstrap-token-lasts-a-day"),
    Wart("ready-never-leaves", "Trouble with the Node turns the Ready condition False, the phase stays Ready",
         "provisioning.md 2.2"),
    Wart("joined-by-stale-node", "A stale Ready Node of the DPU's name makes it Ready without having joined",
         "provisioning.md 8.6, 10.1"),
    Wart("dpu-cluster-client-cached", "A rotated kubeconfig of a DPUCluster is not noticed before a restart",
         "provisioning.md 7.1, 10.1", policy="follow-kubeconfig-rotation"),
    Wart("deletion-needs-dms-and-cluster",
         "Deleting needs the host's DMS and the DPU cluster's API server; there is no way past a dead one",
         "provisioning.md 8.5, 8.6", issue="4403130"),
    Wart("node-left-in-lost-cluster", "A DPU deleted after its DPUCluster leaves its Node in the DPU cluster",
         "provisioning.md 8.6"),
    Wart("dpunode-finalizer-not-counted", "The first DPU of a host to be deleted takes the DPUNode's finalizer away",
         "provisioning.md 8.6", policy="dpunode-finalizer-ref-count"),

    # --- node effects
    Wart("node-effect-presence-not-truth",
         "nodeEffect drain: false is valid and means no effect, but the worker's Node is still needed in Ready",
         "provisioning.md 1.8, 6"),
    Wart("node-by-dpunode-name", "The worker's Node is looked up by the DPUNode's name, not by kubeNodeRef",
         "provisioning.md 6"),
    Wart("foreign-taint-removed", "A user's own taint with the effect's key is removed when the DPU is Ready",
         "provisioning.md 6, 10.1"),
    Wart("custom-label-on-dpunode", "customLabel is set on the DPUNode and removed from the core Node",
         "provisioning.md 6"),
    Wart("hold-annotation-set-again", "Removing the hold annotation sets it again; only a false value releases",
         "provisioning.md 6"),
    Wart("custom-action-no-timeout", "A customAction Job without conditions is waited for without end",
         "provisioning.md 6"),
    Wart("ready-needs-core-node", "hold and customAction on a host outside Kubernetes end in Error once Ready",
         "provisioning.md 6"),
    Wart("joins-terminating-maintenance", "A DPU adds its request to a NodeMaintenance that is being deleted",
         "provisioning.md 6"),
    Wart("drain-owned-by-first-dpu",
         "A NodeMaintenance belongs to the DPU that asked first and goes with it, needed by others or not",
         "provisioning.md 6", policy="node-effect-ref-count"),
    Wart("node-effect-not-counted",
         "With several DPUs in a host the first to be Ready, in Error or deleted lifts the effect for all",
         "provisioning.md 6", policy="node-effect-ref-count"),

    # --- webhooks
    Wart("bfb-guard-compares-dpu-name",
         "The BFB webhook compares the BFB's name with DPUs' own names, so DPUs in flight do not protect their BFB",
         "provisioning.md 4.1", issue="4426349"),
    Wart("empty-rolling-update-panics", "rollingUpdate without a value is answered with 500 and a Go panic",
         "provisioning.md 9.2"),
    Wart("annotation-error-misplaced",
         "The refusal of a bad power-cycle annotation names a path that does not exist and leaves the value out",
         "provisioning.md 9.2"),
    Wart("webhook-prints-a-pointer", "The refusal of a strategy shows a Go struct with a pointer in it",
         "provisioning.md 9.2"),

    # --- BFB
    Wart("bfb-shared-file-name",
         "A BFB whose file is on the volume already is Ready with that file, whoever downloaded it from wherever",
         "provisioning.md 4.1", issue="4143309", policy="bfb-unique-file-name"),
    Wart("bfb-delete-removes-shared-file", "Deleting one of two BFBs of a file takes the file from the other",
         "provisioning.md 4.1", policy="bfb-unique-file-name"),
    Wart("download-unchecked",
         "A BFB comes by one plain GET: a broken transfer ends in Error, and content that is no BFB is taken as it is",
         "provisioning.md 4.1, 10.1", policy="checked-downloads"),
    Wart("bfb-versions-immutable",
         "A BFB whose file is fetched again with other versions stays in Downloading: its status can never be written",
         "provisioning.md 4.1, 10.1"),
    Wart("bfb-unreadable-version-loop",
         "A BFB whose versions cannot be read stays in Downloading, with an event every 5 s",
         "provisioning.md 4.1, 10.1"),

    # --- DPUSet
    Wart("no-throttle-on-create", "A DPUSet makes the DPUs of all its devices at once, whatever maxUnavailable says",
         "provisioning.md 5.1", policy="throttle-initial-create"),
    Wart("sweep-of-unavailable",
         "A roll-out deletes all outdated DPUs that are not available at once, outside its budget",
         "provisioning.md 5.2, 10.1"),
    Wart("deletes-again", "While a DPU is being deleted each pass of its DPUSet deletes it again and says so",
         "provisioning.md 1.13", policy="dpuset-deletes-once"),
    Wart("two-sets-one-device",
         "Two DPUSets that select one device: the second fails for ever, and its later devices may never get a DPU",
         "provisioning.md 5.1, 10.1", policy="dpuset-skips-taken-devices"),
    Wart("dpuset-blind-to-dpunodes",
         "A label put on a DPUNode or taken from it acts with the next device event or resync, up to 10 minutes later",
         "provisioning.md 5.1", policy="dpuset-watches-dpunodes"),
    Wart("dpuset-only-own-namespace", "A DPUSet outside the operator's namespace finds no DPUNodes, silently",
         "provisioning.md 5.1", issue="4427091"),
    Wart("ondelete-keeps-node-labels", "Changed cluster.nodeLabels reach existing DPUs under RollingUpdate only",
         "provisioning.md 5.3"),
    Wart("node-labels-never-removed", "A label taken out of cluster.nodeLabels stays on DPUs and Nodes",
         "provisioning.md 5.3, 10.1"),
    Wart("dpuset-gone-before-its-dpus", "A deleted DPUSet is gone while its DPUs are still being deleted",
         "provisioning.md 5.4"),

    # --- Node, DPUNode
    Wart("dms-pod-not-recreated", "A DMS pod that is deleted is not made again while its DPUNode lives",
         "provisioning.md 3.1, 10.1", policy="dms-pod-self-heal"),
    Wart("dms-does-not-tolerate-nodeeffect", "A nodeEffect taint NoExecute evicts the DMS pod of its own host",
         "provisioning.md 3.1"),
    Wart("dms-pod-pending-for-ever", "A DMS pod that stays Pending never times out", "provisioning.md 2.5, 8.2"),
    Wart("dpunode-ready-without-dms-pod", "A DPUNode without a DMS pod keeps the Ready condition it had",
         "provisioning.md 8.2, 10.1", policy="dms-pod-self-heal"),
    Wart("dpunode-checked-once", "A DMS server lost after its DPUNode was Ready shows at the next event or resync",
         "provisioning.md 8.2", policy="dpunode-rechecks-dms"),
    Wart("dpunode-keeps-node-labels", "Labels and annotations a Node has lost stay on its DPUNode",
         "provisioning.md 8.1, 8.2", policy="dpunode-drops-stale-features"),
    Wart("dpudevice-labels-leak",
         "A DPUDevice that lacks a field is labelled with the value of the device before it on the same node",
         "provisioning.md 8.2", policy="dpudevice-labels-per-device"),
    Wart("invalid-dpu-details-stays", "InvalidDPUDetails stays True after the device was put right",
         "provisioning.md 8.2"),
    Wart("dpunode-goes-with-its-node", "A worker that is removed leaves its DPUs in Deleting without end",
         "provisioning.md 8.5", issue="4403130"),

    # --- DPUCluster
    Wart("dpucluster-no-periodic-health-check", "An outage of a Ready DPUCluster shows at the next event or resync",
         "provisioning.md 7.1", policy="dpucluster-health-poll"),
    Wart("dpucluster-silent-without-kubeconfig",
         "A missing kubeconfig Secret or key leaves the DPUCluster in Creating without a word on it",
         "provisioning.md 7.1"),
    Wart("dpucluster-deletion-unguarded", "A DPUCluster is gone at once, with DPUs on it", "provisioning.md 7.1"),
    Wart("keepalived-ready-without-pods", "KeepalivedReady says that the DaemonSet exists, not that a pod runs",
         "provisioning.md 7.3"),
    Wart("kamaji-service-has-no-owner", "The NodePort Service of a Kamaji cluster outlives its DPUCluster",
         "provisioning.md 7.3", policy="kamaji-service-goes-with-its-cluster"),

    # --- DPUDeployment
    Wart("duplicate-suffix-flaps",
         "Two dpuSets entries of one nameSuffix write over each other without end and re-provision their DPUs",
         "services.md 2.2.4", issue="4413138", policy="dpudeployment-first-suffix-wins"),
)

POLICIES: Final[dict[str, str]] = {w.policy: w.what for w in WARTS if w.policy}
"""Every policy by name, with the wart it fixes."""
