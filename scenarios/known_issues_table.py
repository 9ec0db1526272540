"""The table of known issues of DPF v25.4 in provisioning; `known_issues` detects, `known_issues_page` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class KnownIssue:
    """`ref` is upstream's number or a wart's id. `rules` are those of `check`, `warts` those of `controllers.warts`.

    `symptom` begins small and has no full stop: it follows a reference in reports.
    """

    ref: str
    symptom: str
    source: str
    scenarios: tuple[str, ...]
    rules: tuple[str, ...] = ()
    warts: tuple[str, ...] = ()
    way_out: str = ""


def _issue(ref: str, symptom: str, scenarios: str, *, rules: str = "", warts: str = "", way_out: str = "",
           source: str = "provisioning.md 10") -> KnownIssue:
    return KnownIssue(ref, symptom, source, tuple(scenarios.split()), tuple(rules.split()), tuple(warts.split()),
                      way_out)


def _wart(ref: str, symptom: str, scenarios: str, *, row: int = 0, rules: str = "", warts: str = "",
          way_out: str = "", source: str = "") -> KnownIssue:
    """A row of provisioning.md 10.1, or another wart."""
    return _issue(ref, symptom, scenarios, rules=rules, warts=warts.strip("-") or ref * (warts != "-"), way_out=way_out,
                  source=f"provisioning.md 10.1 ({row})" if row else f"provisioning.md {source}")


ISSUES: Final[tuple[KnownIssue, ...]] = (
    _issue("4241297", "objects created before the controllers run are refused by the webhooks that do not answer yet",
           "issue-4241297-objects-before-controllers", way_out="apply them again"),
    _issue("4200717", "a flavor that leaves the DPU too little memory: its OS hangs after the install",
           "issue-4200717-flavor-too-big", rules="flavor-memory", way_out="another flavor, and re-provision by hand"),
    _issue("4143309", "two BFBs of one file name: one of them stands for the wrong image",
           "issue-4143309-shared-file-name issue-4143309-shared-file-name-fixed", rules="bfb-file-shared",
           warts="bfb-shared-file-name bfb-delete-removes-shared-file", way_out="a file name for each BFB"),
    _issue("3751863", "a DPU whose p0 is down loses its control plane", "issue-3751863-p0-down",
           way_out="bring p0 up"),
    _issue("3917006", "a changed controlPlaneMTU does not reach hosts that are set up", "issue-3917006-mtu-change",
           rules="mtu-edit", way_out="install anew"),
    _issue("4424305", "a DPU that was reset outside DPF does not get its control plane back",
           "issue-4424305-reset-outside-dpf issue-4424305-reset-outside-dpf-repaired", way_out="power-cycle the host"),
    _issue("4410218", "an edited nodeEffect of a DPUDeployment does not reach its DPUSets",
           "issue-4410218-deployment-effect-edit", rules="deployment-effect-edit",
           way_out="make the DPUDeployment anew, which re-provisions"),
    _issue("4403130", "a DPU whose worker is gone stays in Deleting", "issue-4403130-host-removed-for-good "
           "host-lost-and-returned scale-down-hosts", rules="host-removed",
           warts="dpunode-goes-with-its-node deletion-needs-dms-and-cluster", way_out="bring the worker back"),
    _issue("4426349", "a BFB that goes away during OS installs holds its DPUs in OS Installing, deleted or not",
           "issue-4426349-bfb-deleted-while-installing issue-4426349-bfb-deleted-while-installing-fixed "
           "issue-4426349-bfb-comes-back", rules="bfb-deleted operator-config-deleted",
           warts="bfb-gone-wedges-install bfb-guard-compares-dpu-name", way_out="apply a BFB of that name"),
    _issue("4413138", "two dpuSets of one nameSuffix write one DPUSet over and over",
           "issue-4413138-duplicate-suffix issue-4413138-duplicate-suffix-fixed", rules="name-suffix",
           warts="duplicate-suffix-flaps", way_out="a suffix for each"),
    _issue("4427091", "a DPUSet outside the operator's namespace makes no DPUs", "issue-4427091-other-namespace",
           rules="namespace", warts="dpuset-only-own-namespace", way_out="use dpf-operator-system"),
    _issue("4123204", "without the NFS server deletions and OS installs hang; a deletion waits for all attempts of an "
           "install", "issue-4123204-nfs-down-deletion issue-4123204-nfs-down-install "
           "issue-4123204-delete-while-installing issue-4123204-delete-while-installing-fixed",
           warts="deletion-waits-for-install", way_out="restore the server; wait"),
    _issue("4445649", "the default nodeEffect cannot be applied to a host that is no Kubernetes node",
           "issue-4445649-drain-without-kubernetes", rules="effect-needs-node",
           way_out="noEffect on such hosts"),
    _issue("one-dpu-per-host", "the reboot of a host for one DPU breaks the OS install of its other DPU for good",
           "issue-one-dpu-per-host issue-one-dpu-per-host-fixed two-dpus-on-a-host", rules="several-dpus",
           warts="reboot-ignores-siblings tasks-retried-without-pause", source="provisioning.md 10, until 25.10",
           way_out="one DPU at a time; delete the DPU that is in Error"),
    _issue("token-expiry", "a reboot more than two hours after the install: the join token has expired",
           "issue-token-expiry issue-token-expiry-fixed", rules="slow-reboot", warts="bootstrap-token-expires",
           source="provisioning.md 10 (documentation)",
           way_out="re-provision"),
    _issue("4583693", "hostPowerCycleRequired of a flavor is ignored", "issue-4583693-power-cycle-flag-ignored",
           rules="host-power-cycle-ignored", way_out="the annotation on the DPUSet's template"),
    _issue("doca-platform 26", "an edit of a DPUSet that belongs to a DPUDeployment is taken back and re-provisions "
           "all the same", "issue-26-owned-dpuset-edited", source="FIELD.md A.1, services.md 2.2.4",
           way_out="edit the DPUDeployment"),

    _wart("bfb-error-parks-dpus", "a BFB that cannot be downloaded holds all its DPUs in Pending",
          "wart-bfb-error-parks-dpus wart-bfb-volume-away wart-bfb-not-on-server fault-image-server-down "
          "wart-download-breaks wart-download-breaks-fixed", row=1, warts="download-unchecked",
          rules="image-unreachable", way_out="delete the BFB and make it anew"),
    _wart("bfb-unreadable-version-loop", "a BFB whose versions cannot be read stays in Downloading and complains "
          "every 5 s", "wart-bfb-unreadable-version-loop", row=1),
    _wart("dms-pod-not-recreated", "a lost DMS pod is not made again; everything that needs it fails",
          "wart-dms-pod-lost wart-dms-pod-lost-fixed wart-taint-evicts-dms", row=2, rules="taint-evicts-dms",
          warts="dms-pod-not-recreated dpunode-ready-without-dms-pod dms-does-not-tolerate-nodeeffect"),
    _wart("tasks-lost-on-restart", "a controller that restarts during OS installs starts them a second time",
          "wart-duplicate-install wart-duplicate-install-fixed two-leaders", row=3),
    _wart("one-worker-black-hole", "calls into a DMS that swallows connections hold the only worker: all DPUs wait",
          "wart-black-holed-dms", row=4, warts="-"),
    _wart("one-worker-saturated", "polls of Ready DPUs keep the only worker busy: every step waits for it",
          "wart-one-worker-saturated", row=5, rules="one-worker", warts="-"),
    _wart("pdb-blocked-drain", "a PodDisruptionBudget that allows nothing holds a DPU in Node Effect",
          "wart-pdb-blocks-drain wart-pdb-never-allows", row=6, rules="drain-stuck", warts="-"),
    _wart("two-sets-one-device", "two DPUSets that select one device: the second fails without end, and its later "
          "devices may get no DPU", "wart-two-sets-one-device wart-two-sets-one-device-starves "
          "wart-two-sets-one-device-starves-fixed", row=7, rules="overlap"),
    _wart("allocator-first-cluster-only", "DPUs wait for the first DPUCluster although another has room",
          "wart-first-cluster-only wart-first-cluster-only-fixed two-dpu-clusters", row=8, rules="cluster-capacity"),
    _wart("dpu-cluster-client-cached", "a rotated kubeconfig of a DPUCluster is not noticed: its DPUs turn not Ready",
          "wart-kubeconfig-rotated wart-kubeconfig-rotated-fixed", row=9, way_out="restart the controller"),
    _wart("skipped-reboot-is-ready", "a skipped reboot leaves DPUs Ready with old firmware", "wart-skipped-reboot",
          row=10, rules="reboot-command"),
    _wart("sweep-of-unavailable", "outdated DPUs that are not Ready are deleted at once, outside maxUnavailable",
          "wart-sweep-of-unavailable", row=11),
    _wart("any-reboot-counts", "a host rebooted after Initialize Interface, by anybody or for another of its DPUs, is "
          "not rebooted again: firmware may stay old", "wart-any-reboot-counts "
          "issue-one-dpu-per-host-old-firmware", row=12),
    _wart("node-labels-never-removed", "a node label taken out of a template stays on DPUs and Nodes",
          "wart-node-labels-never-removed", row=13, rules="label-removal"),
    _wart("bfb-versions-immutable", "a BFB whose file was fetched again with other versions stays in Downloading",
          "wart-bfb-replaced wart-bfb-replaced-on-volume", row=14),
    _wart("joined-by-stale-node", "a Node that an earlier DPU of the name left behind is taken for the new one's",
          "wart-joined-by-stale-node", row=15, rules="cluster-deleted",
          warts="joined-by-stale-node node-left-in-lost-cluster dpucluster-deletion-unguarded"),
    _wart("foreign-taint-removed", "a user's own taint with the effect's key is removed", "wart-foreign-taint-removed",
          row=16),

    _wart("no-join-timeout", "a DPU that never joins stays in DPU Cluster Config",
          "wart-no-join-timeout wart-no-join-timeout-fixed", source="2.2"),
    _wart("no-throttle-on-create", "first installs drain more hosts at once than maxUnavailable says",
          "wart-no-throttle-on-create wart-no-throttle-on-create-fixed", source="5.1"),
    _wart("node-effect-not-counted", "the first Ready DPU of a host gives the host back while another installs",
          "wart-node-effect-not-counted wart-node-effect-not-counted-fixed", rules="several-dpus", source="6",
          warts="node-effect-not-counted drain-owned-by-first-dpu"),
    _wart("dpunode-finalizer-not-counted", "the first DPU of a host to go frees the DPUNode for deletion",
          "wart-dpunode-finalizer wart-dpunode-finalizer-fixed", rules="several-dpus", source="8.6"),
    _wart("deletes-again", "a DPUSet deletes a DPU that is being deleted again with every pass",
          "wart-deletes-again wart-deletes-again-fixed", source="1.13"),
    _wart("dpuset-blind-to-dpunodes", "a label put on a worker makes a DPU only with the next resync",
          "wart-dpuset-blind-to-dpunodes wart-dpuset-blind-to-dpunodes-fixed", source="5.1"),
    _wart("dpunode-checked-once", "a DPUNode stays Ready when its DMS is lost later",
          "wart-dpunode-checked-once wart-dpunode-checked-once-fixed", source="8.2"),
    _wart("dpunode-keeps-node-labels", "a DPUNode keeps labels that its Node has lost: the br-dpu gate stays open",
          "wart-dpunode-keeps-labels wart-dpunode-keeps-labels-fixed", source="8.1"),
    _wart("dpudevice-labels-leak", "a DPUDevice gets label values of the device before it",
          "wart-device-labels-leak wart-device-labels-leak-fixed", rules="several-dpus", source="8.2"),
    _wart("dpucluster-no-periodic-health-check", "a DPUCluster that went down is still Ready",
          "wart-cluster-outage-unseen wart-cluster-outage-unseen-fixed", source="7.1"),
    _wart("kamaji-service-has-no-owner", "the NodePort Service of a deleted DPUCluster stays",
          "wart-kamaji-service-stays wart-kamaji-service-stays-fixed", source="7.3"),
    _wart("warm-reboot-starts-over", "warm reboots that fail are tried without end", "wart-warm-reboot-starts-over",
          source="3.4"),
    _wart("reboot-outlives-its-dpu", "a DPU deleted in Rebooting: its host goes down all the same, under the OS "
          "install of the next DPU", "wart-reboot-outlives-its-dpu", source="2.4",
          way_out="delete the DPU that is in Error once its host is back"),
    _wart("no-warm-reboot-outside-kubernetes", "a warm reboot of a host outside Kubernetes does nothing, for ever",
          "wart-warm-reboot-outside-kubernetes", rules="reboot-method", source="3.4"),
    _wart("unknown-part-passes", "a card of unknown part number passes the capacity check", "wart-unknown-part",
          rules="part-unknown", source="2.2"),
    _wart("invalid-dpu-details-stays", "InvalidDPUDetails stays True after the device was put right",
          "wart-invalid-details-stay", source="8.2"),
    _wart("custom-label-on-dpunode", "customLabel goes to the DPUNode and stays there", "effect-custom-label",
          source="6"),
    _wart("hold-annotation-set-again", "a hold released by removing its annotation, as documented, is set again",
          "wart-hold-set-again", rules="hold-release", source="6"),
    _wart("ready-needs-core-node", "hold and customAction on a host outside Kubernetes end in Error once Ready",
          "wart-hold-outside-kubernetes", rules="effect-needs-node", source="6"),
)

NOT_SHOWN: Final[dict[str, str]] = {
    "4174183, 4213229, 4252072, 4359857, 4382535, 4401382, 4214285": "services, chains and Argo CD",
    "4241324": "DPUServices without a DPU: services",
    "4178221, 4241306, 4188044, 4191019, 4236521, 4238288, 4241388, 4220185, 4223176, 4448292, 4448355, 4217296":
        "traffic, OVN-Kubernetes, HBN, SR-IOV pods: not simulated in this half",
    "4445638": "dmsinit run by hand on hosts outside Kubernetes: such hosts are registered already when a story begins",
    "4202272, 4206910, 4203694, 4217345, 4214500": "fixed before v25.4",
    "4553212, 4641260, 4634335, 4686635, 4713965, 4719221, 4723795, 4757191, 4858205, 4857064":
        "later releases; `check` has the rules `reboot-method-edit` (4641260) and `old-firmware` (4634335)",
    "upgrades from an earlier release": "the twin knows one release",
}
"""Rows of provisioning.md 10 without a scenario, and why."""

HEAD: Final = (
    "# Known issues of DPF v25.4 that the twin reproduces",
    "",
    "<!-- Generated: python -m scenarios.known_issues_page > docs/known-issues.md -->",
    "",
    "Upstream's behaviour is the default of every rehearsal.",
    "Each row has a scenario whose expectations hold only while the symptom is there;",
    "`dpf-twin check` flags what its rule can see beforehand, and a policy of that name, where there is one, fixes it",
    "(`policies: [NAME]` in a scenario, or `--policy NAME`).",
    "Reports name the issues that a run met where the last column says so.",
    "",
)
