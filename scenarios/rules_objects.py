"""Pre-flight rules that manifests alone decide: references, names, settings that upstream ignores or refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from controllers.provisioning.flags import CONFIG
from controllers.provisioning.install_files import TEMPLATE_KEY
from controllers.provisioning.webhooks import WEBHOOKS
from scenarios.base import Manifest, Patch
from scenarios.rules import OPERATOR_NAMESPACE, Path, Picture, Place, Selection, mapping, part, rule
from twin.model import bfcfg, names
from twin.model.meta import Object
from twin.model.names import Annotation, Label
from twin.model.validation import fill_defaults, prune
from twin.runtime.webhook import Denied


@rule("webhook-refuses", "An admission webhook refuses the object", "provisioning.md 9.2")
def _webhook(p: Picture) -> Iterator[Place]:
    for m in p.of("BFB", "DPUSet", "DPUFlavor"):
        for hook in WEBHOOKS:
            if m.id.kind != hook.kind.KIND or "CREATE" not in hook.operations:
                continue
            obj, _ = prune(hook.kind, dict(m.data))
            fill_defaults(hook.kind, obj)
            try:
                hook.decide("CREATE", obj, None, _NobodyElse())
            except Denied as no:
                yield Place(m, ("spec",), f"refused with {no.code}: {no}")
                break


class _NobodyElse:
    """What a webhook may read when nothing is stored yet."""

    def list(self, kind: type[Object], namespace: str | None = None) -> Sequence[Any]:
        return ()


@rule("namespace", "DPUSets outside the operator's namespace select nothing", "4427091")
def _namespace(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUSet", "DPUDeployment"):
        if m.id.namespace != OPERATOR_NAMESPACE:
            yield Place(
                m, ("metadata", "namespace"),
                f"no DPU will be made: DPUNodes are in {OPERATOR_NAMESPACE} and a {m.id.kind} takes only those of "
                "its own namespace", m.id.namespace)


@rule("bfb-missing", "The BFB that a DPUSet names does not exist in its namespace", "provisioning.md 2.2 phase 2",
      needs_whole=True)
def _bfb_missing(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        if p.find("BFB", s.namespace, s.bfb) is None:
            yield Place(
                s.manifest, s.bfb_path,
                f"DPUs will wait in Pending (BFBNotFound): there is no such BFB in {s.namespace}", s.bfb)


@rule("flavor-missing", "The DPUFlavor that a DPUSet names does not exist in its namespace", "provisioning.md 2.2 "
                                                                                             "phase 4",
      needs_whole=True)
def _flavor_missing(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        if p.find("DPUFlavor", s.namespace, s.flavor) is None:
            yield Place(
                s.manifest, s.flavor_path,
                f"DPUs will wait in Initialize Interface: there is no such DPUFlavor in {s.namespace}", s.flavor)


@rule("bfb-file-shared", "Two BFBs use one file with different URLs", "4143309, provisioning.md 4.1")
def _bfb_file_shared(p: Picture) -> Iterator[Place]:
    first: dict[str, Manifest] = {}
    for m in p.distinct("BFB"):
        file = part(m.data, "spec", "fileName") or names.bfb_file(m.id.namespace, m.id.name)
        other = first.setdefault(str(file), m)
        if other is not m and part(other.data, "spec", "url") != part(m.data, "spec", "url"):
            yield Place(
                m, ("spec", "fileName"),
                f"{other.id} ({other.where}) has the same file and another URL: the second download is skipped, so "
                "one of them holds the wrong image", file)


@rule("bfb-without-spec", "A BFB without spec is accepted and never leaves Initializing", "provisioning.md 1.1, a7")
def _bfb_without_spec(p: Picture) -> Iterator[Place]:
    for m in p.of("BFB"):
        if part(m.data, "spec") is None:
            yield Place(m, (), "it stays Initializing: the controller's own write is refused for its empty url")


@rule("operator-config", "Not exactly one DPFOperatorConfig", "provisioning.md 2.2 phase 9, 9.1", needs_whole=True)
def _operator_config(p: Picture) -> Iterator[Place]:
    found = p.distinct("DPFOperatorConfig")
    if not found and p.selections:
        yield Place(
            p.selections[0].manifest, (),
            "there is no DPFOperatorConfig: OS installation and Host Network Configuration fail until there is "
            "exactly one")
    for m in found[1:]:
        yield Place(
            m, (),
            f"a second DPFOperatorConfig beside {found[0].id} ({found[0].where}): OS installation and Host Network "
            "Configuration fail until there is exactly one")


@rule("operator-config-name", "A DPFOperatorConfig of another name", "services.md 4.1")
def _operator_config_name(p: Picture) -> Iterator[Place]:
    for m in p.of("DPFOperatorConfig"):
        if m.id.name != CONFIG:
            yield Place(m, ("metadata", "name"), f"the DPF operator takes only {CONFIG}: nothing is set up", m.id.name)


@rule("component-disabled", "A component without which DPUs are not provisioned",
      "provisioning.md 9.1, services.md 4.3")
def _component_disabled(p: Picture) -> Iterator[Place]:
    for m in p.of("DPFOperatorConfig"):
        for component, wanted, result in _COMPONENTS:
            if part(m.data, "spec", component, "disable") is True and any(p.of(kind) for kind in wanted):
                yield Place(m, ("spec", component, "disable"), result, True)


_COMPONENTS = (
    ("provisioningController", ("DPUSet", "DPUDeployment"), "nobody provisions DPUs"),
    ("dpuServiceController", ("DPUDeployment",), "nobody makes DPUSets of a DPUDeployment"),
    ("dpuDetector", ("DPUSet", "DPUDeployment"),
     f"nobody sets the label {Label.OOB_BRIDGE}: DPUs wait in Initializing (DPUOOBBridgeNotConfigured)"),
)
"""(field of spec, kinds that need it, what becomes of them)."""


_BMC: Path = ("spec", "provisioningController", "installInterface", "installViaRedfish")


@rule("redfish", "Installation through the BMC is not rehearsed", "provisioning.md 2.6")
def _redfish(p: Picture) -> Iterator[Place]:
    for m in p.of("DPFOperatorConfig"):
        if part(m.data, *_BMC) is not None:
            yield Place(
                m, _BMC, "not modelled: DPUs stop in Initialize Interface (RedfishNotModelled) at the latest, "
                "which a real installation does not")


@rule("client-secret", "The Secret that the controllers show to a DMS is not among the manifests",
      "provisioning.md 3.2, 9.1", "warning", needs_whole=True)
def _client_secret(p: Picture) -> Iterator[Place]:
    path: Path = ("spec", "provisioningController", "customCASecretName")
    for m in p.of("DPFOperatorConfig"):
        name = part(m.data, *path)
        if name and p.find("Secret", m.id.namespace, str(name)) is None:
            yield Place(m, path, "DPUs wait in Initialize Interface (FailedToGetDPUCapacity) until there is one", name)


@rule("operator-config-networking", "DPFOperatorConfig without networking", "provisioning.md 9.1")
def _networking(p: Picture) -> Iterator[Place]:
    for m in p.of("DPFOperatorConfig"):
        spec = mapping(m.data, "spec")
        if "networking" in spec and spec["networking"] is None:
            yield Place(
                m, ("spec", "networking"),
                "Host Network Configuration needs it (DPFOperatorConfigNetworkingSectionMissing)")


@rule("dms-timeout", "dmsTimeout has no effect", "provisioning.md 3.1", "note")
def _dms_timeout(p: Picture) -> Iterator[Place]:
    for m in p.of("DPFOperatorConfig"):
        value = part(m.data, "spec", "provisioningController", "dmsTimeout")
        if value not in (None, 900):
            yield Place(
                m, ("spec", "provisioningController", "dmsTimeout"),
                "DMS is started with 900 s whatever stands here", value)


@rule("bfcfg-template", "The bf.cfg template is missing, too large, or none that is filled in", "provisioning.md 4.2",
      needs_whole=True)
def _bfcfg_template(p: Picture) -> Iterator[Place]:
    path: Path = ("spec", "provisioningController", "bfCFGTemplateConfigMap")
    for m in p.of("DPFOperatorConfig"):
        name = part(m.data, *path)
        if not name:
            continue
        found = p.find("ConfigMap", m.id.namespace, str(name))
        text = part(found.data, "data", TEMPLATE_KEY) if found else None
        if found is None or text is None:
            yield Place(
                m, path, f"every OS installation fails: no ConfigMap of this name has the key {TEMPLATE_KEY}", name)
            continue
        key: Path = ("data", TEMPLATE_KEY)
        size = len(str(text).encode())
        if size > bfcfg.MAX_BYTES:
            yield Place(
                found, key, "every OS installation fails: bf.cfg may have 128 KiB at most", f"{size} bytes")
        for flaw in bfcfg.flaws(str(text)):
            yield Place(found, key, f"every OS installation fails: {flaw.words}", flaw.got)


@rule("dpu-mode", "A dpuMode that the gNOI path refuses", "provisioning.md 2.2 phase 5")
def _dpu_mode(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUFlavor") if not _through_the_bmc(p) else ():
        mode = part(m.data, "spec", "dpuMode")
        if mode not in (None, "", "dpu"):
            yield Place(m, ("spec", "dpuMode"), "DPUs go to Error (RequestedDPUModeUnsupported)", mode)


def _through_the_bmc(p: Picture) -> bool:
    return any(part(m.data, *_BMC) is not None for m in p.of("DPFOperatorConfig"))


@rule("flavor-vfs", "A flavor whose NUM_OF_VFS leaves a host without VF 0, or is no number",
      "provisioning.md 8.3, 2.2 phase 9")
def _flavor_vfs(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUFlavor") if not _through_the_bmc(p) else ():  # Redfish has no phase 9
        listed = part(m.data, "spec", "nvconfig", 0, "parameters")
        at = [i for i, text in enumerate(listed if isinstance(listed, list) else ())
              if str(text).startswith(bfcfg.NUM_OF_VFS)]
        if not at:
            continue
        path: Path = ("spec", "nvconfig", 0, "parameters", at[0])
        given = str(part(m.data, *path))
        count = given.removeprefix(bfcfg.NUM_OF_VFS)
        if not count.isdecimal():
            yield Place(m, path, "DPUs wait in Host Network Configuration (GetDPUFlavorError): it is no number", given)
        elif int(count) == 0:
            yield Place(
                m, path,
                "DPUs go to Error (HostNetworkSetupFailed): a DPU reaches its control plane through VF 0 in br-dpu, "
                "and without VFs there is none; give 1 or more", given)


@rule("host-power-cycle-ignored", "nvconfig's hostPowerCycleRequired is ignored", "4583693, provisioning.md 1.5",
      "warning")
def _power_cycle_ignored(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUFlavor"):
        listed = part(m.data, "spec", "nvconfig")
        for i, element in enumerate(listed if isinstance(listed, list) else ()):
            if part(element, "hostPowerCycleRequired"):
                yield Place(
                    m, ("spec", "nvconfig", i, "hostPowerCycleRequired"),
                    f"nothing reads it: use the annotation {Annotation.HOST_POWER_CYCLE_REQUIRED} on the DPUSet's "
                    "template", True)


@rule("name-suffix", "Two dpuSets of a DPUDeployment have one nameSuffix", "4413138")
def _name_suffix(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUDeployment"):
        sets = part(m.data, "spec", "dpus", "dpuSets")
        seen: set[Any] = set()
        for i, entry in enumerate(sets if isinstance(sets, list) else ()):
            suffix = str(part(entry, "nameSuffix"))
            if suffix in seen:
                yield Place(
                    m, ("spec", "dpus", "dpuSets", i, "nameSuffix"),
                    "another entry has it too: both write one DPUSet, and DPUs are re-provisioned without end", suffix)
            seen.add(suffix)


@rule("custom-action-configmap", "The ConfigMap of a customAction is missing or holds no pod", "provisioning.md 6",
      needs_whole=True)
def _custom_action(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        name = s.effect.get("customAction")
        if not name:
            continue
        found = p.find("ConfigMap", s.namespace, str(name))
        if found is None:
            yield Place(
                s.manifest, (*s.effect_path, "customAction"),
                f"DPUs wait in Node Effect (FailedToCreateJob): there is no such ConfigMap in {s.namespace}", name)
        elif not any("yaml" in key for key in mapping(found.data, "data")):
            yield Place(found, ("data",), "DPUs wait in Node Effect (FailedToCreateJob): no key contains \"yaml\"")


@rule("taint-evicts-dms", "A NoExecute node effect evicts the DMS pod", "provisioning.md 3.1")
def _taint(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        if part(s.effect, "taint", "effect") == "NoExecute":
            yield Place(
                s.manifest, (*s.effect_path, "taint", "effect"),
                "the DMS pod does not tolerate it: it is evicted, and nobody makes a new one while the DPUNode lives",
                "NoExecute")


@rule("taint-taken", "A taint of the user's own with the node effect's key", "provisioning.md 6, c1", "warning")
def _taint_taken(p: Picture) -> Iterator[Place]:
    keys = {part(s.effect, "taint", "key") for s in p.selections if part(s.effect, "taint", "key")}
    for m in p.of("Node"):
        taints = part(m.data, "spec", "taints")
        for i, taint in enumerate(taints if isinstance(taints, list) else ()):
            if part(taint, "key") in keys:
                yield Place(
                    m, ("spec", "taints", i, "key"),
                    "it is kept as it is while the DPU is provisioned, and removed when the DPU is Ready",
                    part(taint, "key"))


@rule("effect-false", "A node effect that is present but false", "provisioning.md 1.8", "warning")
def _effect_false(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        for name in ("drain", "hold"):
            if s.effect.get(name) is False:
                yield Place(
                    s.manifest, (*s.effect_path, name),
                    "presence counts, not truth: it is no effect at all, but lifting it still needs the host's Node",
                    False)


@rule("cluster-missing", "There is no DPUCluster", "provisioning.md 5.5", needs_whole=True)
def _cluster_missing(p: Picture) -> Iterator[Place]:
    if p.selections and not p.of("DPUCluster"):
        yield Place(
            p.selections[0].manifest, (),
            "there is no DPUCluster: DPUs wait in Initializing (DPUClusterNotAllocated)")


@rule("cluster-unmanaged", "A DPUCluster that no cluster manager makes Ready", "provisioning.md 7.3, k1")
def _cluster_unmanaged(p: Picture) -> Iterator[Place]:
    disabled = {kind for m in p.of("DPFOperatorConfig") for kind, key in
                (("kamaji", "kamajiClusterManager"), ("static", "staticClusterManager"))
                if part(m.data, "spec", key, "disable") is True
                or (kind == "static" and part(m.data, "spec", key) is None)}
    for m in p.of("DPUCluster"):
        kind = str(part(m.data, "spec", "type") or "")
        if kind in disabled:
            yield Place(
                m, ("spec", "type"), f"the {kind} cluster manager is off ({kind}ClusterManager): it stays Creating",
                kind)
        elif kind not in ("kamaji", "static"):
            yield Place(
                m, ("spec", "type"),
                "no cluster manager of DPF has this type: it stays Creating unless yours takes it", kind, "warning")


@rule("static-kubeconfig", "A static DPUCluster without a usable kubeconfig", "provisioning.md 7.2, e7",
      needs_whole=True)
def _static_kubeconfig(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUCluster"):
        if part(m.data, "spec", "type") != "static":
            continue
        name = part(m.data, "spec", "kubeconfig")
        if not name:
            yield Place(m, ("spec",), "Created stays False (EmptyKubeconfig): a static cluster needs spec.kubeconfig")
            continue
        secret = p.find("Secret", m.id.namespace, str(name))
        if secret is None:
            yield Place(
                m, ("spec", "kubeconfig"),
                f"it never turns Ready: there is no such Secret in {m.id.namespace}", name)
        elif names.KUBECONFIG_KEY not in {**mapping(secret.data, "data"), **mapping(secret.data, "stringData")}:
            yield Place(secret, ("data",), f"{m.id} never turns Ready: this Secret has no key {names.KUBECONFIG_KEY}")


@rule("keepalived-clash", "Two DPUClusters share a virtual address or router id", "provisioning.md 1.3")
def _keepalived(p: Picture) -> Iterator[Place]:
    for a, b in combinations(p.distinct("DPUCluster"), 2):
        one, two = (mapping(m.data, "spec", "clusterEndpoint", "keepalived") for m in (a, b))
        for key in ("vip", "virtualRouterID"):
            if key in one and one.get(key) == two.get(key):
                yield Place(
                    b, ("spec", "clusterEndpoint", "keepalived", key),
                    f"{a.id} ({a.where}) has it too: their keepalived instances fight for it", one[key])


@rule("reboot-script", "The ConfigMap of a reboot script is missing or holds no pod template", "provisioning.md 3.4",
      needs_whole=True)
def _reboot_script(p: Picture) -> Iterator[Place]:
    for m in p.of("DPUNode"):
        name = part(m.data, "spec", "nodeRebootMethod", "script", "name")
        if name:
            yield from _script(p, m, ("spec", "nodeRebootMethod", "script", "name"), m.id.namespace, str(name))
    for host in p.fleet.hosts if p.fleet else ():
        if host.reboot == "script":
            yield from _script(p, None, ("hosts", host.name, "reboot_script"), OPERATOR_NAMESPACE, host.reboot_script)


def _script(p: Picture, at: Manifest | None, path: Path, namespace: str, name: str) -> Iterator[Place]:
    found = p.find("ConfigMap", namespace, name)
    if found is None:
        yield Place(at, path, f"DPUs wait in Rebooting: there is no such ConfigMap in {namespace}", name)
    elif "pod-template" not in mapping(found.data, "data"):
        yield Place(found, ("data",), "DPUs wait in Rebooting: the key pod-template is missing")


@rule("on-delete", "OnDelete changes nothing until DPUs are deleted by hand", "provisioning.md 5.3", "note")
def _on_delete(p: Picture) -> Iterator[Place]:
    changed = {(a.kind, a.namespace, a.name) for step in p.timeline if isinstance(a := step.action, Patch)}
    for s in p.selections:
        if s.strategy == "OnDelete" and ("DPUSet", s.namespace, s.name) in changed:
            yield Place(
                s.manifest, ("spec", "strategy"),
                "the timeline changes this DPUSet, but with OnDelete its DPUs keep what they have until they are "
                "deleted, and node labels are never passed on", "OnDelete")


def selected_twice(p: Picture) -> Iterator[tuple[Selection, Selection, str]]:
    """Pairs of selections that take one DPU of the fleet, with the first such DPU."""
    taken = [(s, {c.name for c in p.cards(s)}) for s in p.selections]
    for (a, of_a), (b, of_b) in combinations(taken, 2):
        both = sorted(of_a & of_b)
        if both and a.namespace == b.namespace and a.name != b.name:
            yield a, b, both[0]
