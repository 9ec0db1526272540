"""Which library scenarios are played in both worlds, at what speed, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

USUAL: Final = 300.0
QUICK: Final = 600.0
"""One install, and hours of nothing after it."""
NARROW: Final = 40.0
"""Two DPUs of one host finish their installs within one boot of it, not within one poll."""

CI: Final = ("reboot-not-needed", "effect-none", "node-labels-in-place", "fault-install-fails-twice")
"""The quick ones: they run with every test run."""

PLAYED: Final[Mapping[str, float]] = {
    "bfcfg-go-template": USUAL,
    "controller-restart-while-ready": USUAL,
    "cordoned-host": USUAL,
    "deployment-install": USUAL,
    "dpu-deletion": USUAL,
    "dpuset-deletion": USUAL,
    "dpuset-orphans": USUAL,
    "drain-of-workload": USUAL,
    "effect-custom-action": USUAL,
    "effect-custom-action-fails": USUAL,
    "effect-custom-label": USUAL,
    "effect-hold": USUAL,
    "effect-hold-by-task": USUAL,
    "effect-none": USUAL,
    "effect-taint": USUAL,
    "fault-bfb-file-removed": USUAL,
    "fault-bridge-missing": USUAL,
    "fault-certificate-late": USUAL,
    "fault-dms-error": USUAL,
    "fault-host-power": USUAL,
    "fault-image-server-down": USUAL,
    "fault-image-server-slow": USUAL,
    "fault-install-fails": USUAL,
    "fault-install-fails-twice": USUAL,
    "fault-manual-reboot": USUAL,
    "fault-network-script": USUAL,
    "fault-rack-power": USUAL,
    "fault-reboot-fails": USUAL,
    "fault-webhook-down": USUAL,
    "first-install": USUAL,
    "flavor-change": USUAL,
    "flavor-without-vfs": USUAL,
    "host-lost-and-returned": USUAL,
    "hosts-without-kubernetes": USUAL,
    "issue-3751863-p0-down": USUAL,
    "issue-3917006-mtu-change": USUAL,
    "issue-4123204-delete-while-installing": USUAL,
    "issue-4123204-delete-while-installing-fixed": USUAL,
    "issue-4143309-shared-file-name": USUAL,
    "issue-4410218-deployment-effect-edit": USUAL,
    "issue-4424305-reset-outside-dpf-repaired": USUAL,
    "issue-4583693-power-cycle-flag-ignored": USUAL,
    "node-labels-in-place": QUICK,
    "on-delete-update": USUAL,
    "reboot-external": USUAL,
    "reboot-for-rescan": USUAL,
    "reboot-not-needed": USUAL,
    "reboot-power-cycle": USUAL,
    "reboot-script": USUAL,
    "reboot-script-fails": USUAL,
    "rolling-bfb-update": USUAL,
    "rolling-update-half": USUAL,
    "rolling-update-quarter": USUAL,
    "scale-down-by-selector": USUAL,
    "scale-down-hosts": USUAL,
    "scale-up": USUAL,
    "static-cluster": USUAL,
    "two-dpu-clusters": USUAL,
    "two-dpus-on-a-host": NARROW,
    "wart-bfb-replaced-on-volume": USUAL,
    "wart-dpunode-checked-once": USUAL,
    "wart-dpunode-checked-once-fixed": USUAL,
    "wart-dpunode-finalizer": USUAL,
    "wart-dpunode-finalizer-fixed": USUAL,
    "wart-dpuset-blind-to-dpunodes-fixed": USUAL,
    "wart-first-cluster-only-fixed": USUAL,
    "wart-joined-by-stale-node": USUAL,
    "wart-kamaji-service-stays": USUAL,
    "wart-kamaji-service-stays-fixed": USUAL,
    "wart-no-throttle-on-create": USUAL,
    "wart-no-throttle-on-create-fixed": USUAL,
    "wart-node-labels-never-removed": USUAL,
    "wart-skipped-reboot": USUAL,
    "wart-sweep-of-unavailable": USUAL,
}
"""Scenario -> how many times faster than real its timeline and hardware are on the lab."""

# Real parts cannot be told to do this.
_SERVER = "a real API server cannot be told to be slow, to fail or to break its watches"
_VOLUME = "a mount that hangs needs a real NFS server"
_BUDGET = "the real disruption controller computes what a budget allows; the fault holds it"
_CREDENTIALS = "new credentials for a real API server need a new authority"
CANNOT: Final = (_SERVER, _VOLUME, _BUDGET, _CREDENTIALS)
# The comparison would say nothing.
_SECONDS = "it is about seconds of shared bandwidth, latency and queues, which are not compared"
_MIDDLE = "it strikes in the middle of what takes minutes in virtual time and a second on a lab"
_NOTICED = "controllers look at a DPUCluster by their own clock: half an hour's outage is seconds on a lab, seen once"
_SOON = "its horizon ends before a real DPUCluster is there"
_NEVER = "it never converges, or after hours by controllers' own clocks: how far it is when it is looked at is chance"
_RACE = "two processes write at once, and who comes first is a matter of milliseconds"
_ENDING = "a pod takes its real seconds to end on a lab: what is half an hour later in virtual time comes meanwhile"

NOT_PLAYED: Final[Mapping[str, str]] = {
    **dict.fromkeys((
        "fault-api-errors", "fault-api-slow", "fault-watch-broken", "fault-watch-duplicate"),
        _SERVER),
    **dict.fromkeys(("issue-4123204-nfs-down-deletion", "issue-4123204-nfs-down-install", "wart-bfb-volume-away"),
                    _VOLUME),
    "wart-pdb-blocks-drain": _BUDGET,
    **dict.fromkeys(("wart-kubeconfig-rotated", "wart-kubeconfig-rotated-fixed"), _CREDENTIALS),
    **dict.fromkeys((
        "fault-dpu-api-down", "wart-deletes-again", "wart-deletes-again-fixed", "wart-cluster-outage-unseen",
        "wart-cluster-outage-unseen-fixed"), _NOTICED),
    **dict.fromkeys((
        "issue-26-owned-dpuset-edited", "two-leaders", "wart-device-labels-leak", "wart-device-labels-leak-fixed",
        "wart-invalid-details-stay"), _RACE),
    "wart-dms-pod-lost-fixed": _ENDING,
    **dict.fromkeys(("shared-links", "fault-dms-slow", "drain-slots", "wart-black-holed-dms",
                     "wart-one-worker-saturated"), _SECONDS),
    **dict.fromkeys(("issue-4413138-duplicate-suffix", "issue-4413138-duplicate-suffix-fixed"), _SOON),
    **dict.fromkeys((
        "fault-dms-refused", "controller-restart-while-rebooting", "wart-any-reboot-counts", "fault-api-down",
        "fault-api-down-briefly", "wart-reboot-outlives-its-dpu",
        "wart-duplicate-install", "wart-duplicate-install-fixed", "rollback-in-the-middle",
        "wart-foreign-taint-removed", "issue-one-dpu-per-host", "issue-one-dpu-per-host-fixed",
        "issue-one-dpu-per-host-old-firmware", "wart-node-effect-not-counted", "wart-node-effect-not-counted-fixed",
        "wart-download-breaks", "wart-download-breaks-fixed",
        "issue-4426349-bfb-deleted-while-installing", "issue-4426349-bfb-deleted-while-installing-fixed",
        "issue-4426349-bfb-comes-back", "issue-4241297-objects-before-controllers"), _MIDDLE),
    **dict.fromkeys((
        "issue-token-expiry", "issue-token-expiry-fixed", "fault-join-late", "wart-no-join-timeout",
        "wart-no-join-timeout-fixed", "wart-warm-reboot-starts-over", "fault-install-fails-stalls-rollout",
        "wart-two-sets-one-device", "wart-two-sets-one-device-starves", "wart-two-sets-one-device-starves-fixed",
        "wart-hold-set-again", "wart-hold-outside-kubernetes", "wart-warm-reboot-outside-kubernetes",
        "issue-4200717-flavor-too-big", "issue-4403130-host-removed-for-good", "issue-4424305-reset-outside-dpf",
        "issue-4427091-other-namespace", "issue-4445649-drain-without-kubernetes", "wart-taint-evicts-dms",
        "wart-pdb-never-allows", "wart-bfb-error-parks-dpus", "wart-bfb-not-on-server", "wart-bfb-replaced",
        "wart-bfb-unreadable-version-loop", "wart-unknown-part", "wart-first-cluster-only", "wart-dms-pod-lost",
        "fault-bridge-lost-later", "wart-dpunode-keeps-labels", "wart-dpunode-keeps-labels-fixed",
        "issue-4143309-shared-file-name-fixed", "wart-dpuset-blind-to-dpunodes"), _NEVER),
}
"""Scenario -> why not."""
