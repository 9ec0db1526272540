"""Pre-flight rules that need the fleet: does what is asked fit the hosts and DPUs there are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from controllers.provisioning.reboot_command import COMMANDS
from scenarios.base import Manifest
from scenarios.rules import Picture, Place, Selection, part, rule
from scenarios.rules_objects import selected_twice
from twin.model import names
from twin.model.fleet import GI, Budget, Card
from twin.model.fleet_file import MODELS
from twin.model.names import Annotation
from twin.model.parts import Capacity, fits
from twin.model.units import duration, size_bytes

HUGEPAGE_RESERVE_BYTES: Final = 3 * GI
"""What the DPU's own system needs beside huge pages: upstream's stock flavor leaves more, 14 of 16 GB bricks a card."""

LOOKS_PER_WORKER: Final = 5.0
"""Seconds between two looks at a DPU: the controller's requeue."""


@rule("flavor-memory", "Huge pages leave the DPU too little memory", "4200717", needs_fleet=True)
def _hugepages(p: Picture) -> Iterator[Place]:
    for m, cards in _flavors(p):
        asked = hugepage_bytes(m)
        small = [c for c in cards if asked + HUGEPAGE_RESERVE_BYTES > c.memory_bytes]
        if asked and small:
            yield Place(
                m, ("spec", "grub", "kernelParameters"),
                f"{small[0].name} has {small[0].memory_bytes / GI:.0f} Gi and keeps less than "
                f"{HUGEPAGE_RESERVE_BYTES // GI} Gi for its own system: it will not come up ({len(small)} DPUs)",
                f"{asked / GI:.3g}Gi of huge pages")


def hugepage_bytes(flavor: Manifest) -> int:
    """Memory that the kernel parameters take for huge pages; the size is 2 MiB unless one is given."""
    size, total = 2 * 2**20, 0
    for text in part(flavor.data, "spec", "grub", "kernelParameters") or ():
        name, _, value = str(text).partition("=")
        if name in ("hugepagesz", "default_hugepagesz"):
            try:
                size = size_bytes(re.sub(r"(?i)([kmg])B?$", lambda m: m[1] + "i", value))
            except ValueError:
                continue
        elif name == "hugepages" and value.isdecimal():
            total += int(value) * size
    return total


def _flavors(p: Picture) -> Iterator[tuple[Manifest, list[Card]]]:
    """Each flavor with the DPUs that will get it."""
    cards: dict[tuple[str, str], dict[str, Card]] = defaultdict(dict)
    for s in p.selections:
        cards[s.namespace, s.flavor].update({c.name: c for c in p.cards(s)})
    for (namespace, name), of in cards.items():
        found = p.find("DPUFlavor", namespace, name)
        if found is not None:
            yield found, list(of.values())


@rule("flavor-resources", "dpuResources ask for more than the DPU has", "provisioning.md 2.2 phase 4", needs_fleet=True)
def _resources(p: Picture) -> Iterator[Place]:
    for m, cards in _flavors(p):
        asked = part(m.data, "spec", "dpuResources")
        if not isinstance(asked, dict):
            continue
        try:
            small = [c for c in cards if not fits(asked, Capacity(c.cores, c.memory_bytes // GI))]
        except ValueError as error:
            yield Place(m, ("spec", "dpuResources"), f"not a quantity: {error}", asked)
            continue
        if small:
            yield Place(
                m, ("spec", "dpuResources"),
                f"{small[0].name} has {small[0].cores} cores and {small[0].memory_bytes / GI:.0f} GB: {len(small)} "
                "DPUs go to Error (InsufficientResources)", asked)


@rule("part-unknown", "A part number without known capacity", "provisioning.md 2.2 phase 4", "note", needs_fleet=True)
def _part(p: Picture) -> Iterator[Place]:
    for card in p.fleet.cards if p.fleet else ():
        if card.model not in MODELS:
            yield Place(
                None, ("hosts", card.host, "dpus", card.index, "model"),
                "the capacity check passes with a warning (UnableToCheckCapacity) if flint's description does not "
                "say cores and memory", card.model)


@rule("selects-nothing", "A DPUSet selects no DPU of the fleet", "provisioning.md 5.1", "warning", needs_fleet=True)
def _selects_nothing(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        if not p.cards(s):
            what = "no host has these labels" if not p.hosts(s) else "no DPU of the hosts it takes has these labels"
            yield Place(s.manifest, (), f"{s.name} makes no DPU: {what}")


@rule("overlap", "Two DPUSets select one DPU", "provisioning.md 10.1 (7)", needs_fleet=True)
def _overlap(p: Picture) -> Iterator[Place]:
    for a, b, dpu in selected_twice(p):
        yield Place(
            b.manifest, (),
            f"{b.name} takes {dpu}, and so does {a.name} ({a.manifest.where}): the second gets AlreadyExists for "
            "ever, and its later DPUs may starve")


@rule("oob-bridge", "A host without br-dpu or its default route", "provisioning.md 2.2 phase 1", needs_fleet=True)
def _oob_bridge(p: Picture) -> Iterator[Place]:
    for host in p.fleet.hosts if p.fleet else ():
        if not host.oob_bridge:
            yield Place(
                None, ("hosts", host.name, "oob_bridge"),
                "its DPUs wait in Initializing (DPUOOBBridgeNotConfigured)", False)


@rule("effect-needs-node", "A node effect that needs a Kubernetes node on a host that is none", "4445649, "
                                                                                                "provisioning.md 6",
      needs_fleet=True)
def _effect_needs_node(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        bare = [h for h in p.hosts(s) if not h.kubernetes]
        if not bare:
            continue
        effect = next(iter(s.effect), "")
        where = f"{bare[0].name} is no Kubernetes node"
        if effect in ("drain", "taint", "customLabel"):
            yield Place(
                s.manifest, s.effect_path,
                f"{where}: its DPUs wait in Node Effect (InvalidNodeEffect); give hold, noEffect or customAction",
                s.effect)
        elif effect in ("hold", "customAction"):
            yield Place(
                s.manifest, s.effect_path,
                f"{where}: lifting the effect looks for its Node, so its DPUs go to Error (NodeEffectError) when "
                "they are Ready", s.effect, "warning")


@rule("reboot-method", "A warm reboot by gNOI on a host that is no Kubernetes node does nothing", "provisioning.md "
                                                                                                  "3.4 (b)",
      needs_fleet=True)
def _reboot_method(p: Picture) -> Iterator[Place]:
    for host in p.fleet.hosts if p.fleet else ():
        if not host.kubernetes and host.reboot == "gNOI":
            yield Place(
                None, ("hosts", host.name, "reboot"),
                "its DPUs stay in Rebooting: use external or script", "gNOI")


@rule("reboot-command", "A reboot annotation that is not legal", "provisioning.md 3.4", needs_fleet=True)
def _reboot_command(p: Picture) -> Iterator[Place]:
    for host in p.fleet.hosts if p.fleet else ():
        for key in (Annotation.POWERCYCLE_COMMAND, Annotation.REBOOT_COMMAND):
            value = host.annotations.get(key)
            if value is not None and value not in COMMANDS:
                yield Place(
                    None, ("hosts", host.name, "annotations", key),
                    f"must be one of {', '.join(COMMANDS)}: OS installation fails 11 times, then Error", value)
            elif value == "skip":
                yield Place(
                    None, ("hosts", host.name, "annotations", key),
                    "the host is not rebooted: a DPU can be Ready with its old firmware and nvconfig",
                    value, "warning")


@rule("slow-reboot", "The join token expires before the host is rebooted by hand", "2 h, provisioning.md 2.6, 4.5",
      "warning",
      needs_fleet=True)
def _slow_reboot(p: Picture) -> Iterator[Place]:
    if p.fleet is None or p.profile is None:
        return
    person, life_s = p.fleet.person, p.profile.limits["bootstrap_token_s"].value
    after_s = person.after_s if person.after_s is not None else p.profile.operations["manual-reboot"].takes.at(1.645)
    hosts = [h for h in p.fleet.hosts if h.reboot == "external"]
    if hosts and not person.reboots:
        yield Place(None, ("operator", "reboots"), f"nobody reboots {hosts[0].name}: its DPUs stay in Rebooting", False)
    elif hosts and after_s > life_s:
        yield Place(
            None, ("operator", "after_s"),
            f"the token that {hosts[0].name}'s DPUs join with lives {duration(life_s)}: after a later reboot they "
            "stay in DPU Cluster Config", duration(after_s))


@rule("hold-release", "Nobody releases a hold, or not as the code wants it", "provisioning.md 6", needs_fleet=True)
def _hold(p: Picture) -> Iterator[Place]:
    for s in p.selections:
        if not s.effect.get("hold") or p.fleet is None:
            continue
        looked_after = any(step.what == "operator" and getattr(step.action, "annotation", "") for step in p.timeline)
        if not p.fleet.person.releases and not looked_after:
            yield Place(s.manifest, s.effect_path, "nobody releases it: DPUs wait in Node Effect", s.effect)
        elif p.fleet.person.releases and p.fleet.person.release == "remove":
            yield Place(
                None, ("operator", "release"),
                f"{s.name} holds, and a removed annotation is set again: it must be set to false", "remove")


@rule("several-dpus", "More than one DPU on a host", "until 25.10 one DPU per host is supported; provisioning.md 6",
      "warning",
      needs_fleet=True)
def _several(p: Picture) -> Iterator[Place]:
    hosts = {h.name: len(found) for s in p.selections for h in p.hosts(s)
             if len(found := [c for c in p.cards(s) if c.host == h.name]) > 1}
    if hosts:
        name, count = next(iter(hosts.items()))
        yield Place(
            None, ("hosts", name, "dpus"),
            "v25.4 supports one: node effects are not counted, so the first DPU that is Ready lifts the drain of "
            f"the others; reboots of one interrupt the other ({len(hosts)} hosts)", count)


@rule("cluster-capacity", "More DPUs than the first DPUCluster takes", "provisioning.md 5.5, 10.1 (8)",
      needs_fleet=True)
def _capacity(p: Picture) -> Iterator[Place]:
    clusters = sorted(p.distinct("DPUCluster"), key=lambda m: (m.id.namespace, m.id.name))
    wanted = len({c.name for s in p.selections for c in p.cards(s)})
    if not clusters or not wanted:
        return
    sizes = [int(part(m.data, "spec", "maxNodes") or 1000) for m in clusters]
    spills = "allocator-spills-over" in p.policies
    room = sum(sizes) if spills else sizes[0]
    if wanted > room:
        unused = "" if spills or len(clusters) == 1 else f"; {clusters[1].id} is not used"
        yield Place(
            clusters[0], ("spec", "maxNodes"),
            f"{wanted} DPUs are selected: {wanted - room} of them wait in Initializing "
            f"(DPUClusterNotAllocated){unused}", room)
    elif len(clusters) > 1 and not spills:
        yield Place(
            clusters[1], (),
            f"it gets no DPU: only {clusters[0].id}, the first by name, is ever used", None, "note")


@rule("drain-stuck", "A drain that a PodDisruptionBudget never allows", "provisioning.md 10.1 (6)", needs_fleet=True)
def _drain(p: Picture) -> Iterator[Place]:
    drained = {h.name for s in p.selections if s.effect.get("drain") for h in p.hosts(s)}
    for budget in p.fleet.budgets if p.fleet else ():
        pods = [pod for h in (p.fleet.hosts if p.fleet else ()) for pod in h.pods
                if pod.namespace == budget.namespace and budget.selector.items() <= pod.labels.items()]
        here = [h.name for h in (p.fleet.hosts if p.fleet else ()) if h.name in drained and
                any(pod in pods and pod.controller != "DaemonSet" for pod in h.pods)]
        if here and allowed(budget, len(pods)) < 1:
            bound = budget.max_unavailable if budget.max_unavailable is not None else budget.min_available
            yield Place(
                None, ("budgets", budget.name),
                f"none of its {len(pods)} pods may be evicted: DPUs of {here[0]} wait in Node Effect; the drain "
                f"gives up after 300 s, the DPU does not ({len(here)} hosts)", bound)


def allowed(budget: Budget, pods: int) -> int:
    """Evictions that a budget allows while all its pods are healthy (percentages are rounded up)."""
    bound = budget.max_unavailable if budget.max_unavailable is not None else budget.min_available
    count = bound if isinstance(bound, int) else -(-pods * int(str(bound).rstrip("%")) // 100)
    return count if budget.max_unavailable is not None else max(0, pods - count)


@rule("image-unreachable", "No image server has the BFB", "provisioning.md 10.1 (1)", needs_fleet=True)
def _image(p: Picture) -> Iterator[Place]:
    for m in p.of("BFB"):
        url = part(m.data, "spec", "url")
        if not isinstance(url, str) or p.fleet is None:
            continue
        server = p.fleet.image_server(url)
        if server is None:
            why = "no image server of the fleet has this address"
        elif server.file(url) is None:
            why = f"image server {server.name} answers 404"
        else:
            continue
        yield Place(m, ("spec", "url"), f"the BFB goes to Error, and its DPUs wait in Pending: {why}", url)


@rule("volume-full", "The BFB volume is too small", "10 Gi, provisioning.md 11", needs_fleet=True)
def _volume(p: Picture) -> Iterator[Place]:
    if p.fleet is None:
        return
    total, last = 0, None
    files: set[str] = set()
    for m in p.of("BFB"):
        url = part(m.data, "spec", "url")
        file = str(part(m.data, "spec", "fileName") or names.bfb_file(m.id.namespace, m.id.name))
        server = p.fleet.image_server(url) if isinstance(url, str) else None
        image = server.file(url) if server is not None else None
        if image is not None and file not in files:
            files.add(file)
            total, last = total + image.size_bytes, m
    if last is not None and total > p.fleet.volume.size_bytes:
        yield Place(
            last, (),
            f"with it the images have {total / GI:.1f} Gi, the volume {p.fleet.volume.size_bytes / GI:.1f} Gi: a "
            "download fails")


@rule("old-firmware", "NIC firmware that later releases cannot reboot", "4634335 (25.10)", "note", needs_fleet=True)
def _firmware(p: Picture) -> Iterator[Place]:
    for card in p.fleet.cards if p.fleet else ():
        version = re.findall(r"\d+", card.firmware)
        if len(version) >= 3 and tuple(map(int, version[:3])) < (32, 41, 1000):
            yield Place(
                None, ("hosts", card.host, "dpus", card.index, "firmware"),
                "older than 32.41.1000: v25.10 fails at the reboot; upgrade it with this roll-out", card.firmware)


@rule("one-worker", "One worker looks at all DPUs", "provisioning.md 10.1 (5)", "note", needs_fleet=True)
def _one_worker(p: Picture) -> Iterator[Place]:
    if p.profile is None or p.fleet is None:
        return
    cost_s = ready_pass_s(p)
    dpus: dict[str, Selection] = {c.name: s for s in p.selections for c in p.cards(s)}
    round_s = len(dpus) * cost_s / max(1.0, p.profile.limits["workers_dpu"].value)
    if round_s > LOOKS_PER_WORKER:
        yield Place(
            next(iter(dpus.values())).manifest, (),
            f"{len(dpus)} Ready DPUs keep the one DPU worker busy: each is looked at every {duration(round_s)}, not "
            "every 5s, and other DPUs wait that long for each step")


def ready_pass_s(p: Picture) -> float:
    """What one look at a Ready DPU costs: its pass, three reads of the DPU cluster with a new client each."""
    if p.profile is None:
        return 0.0
    at = {name: p.profile.operations[name].takes.at(0.0) for name in ("api-cache-pass", "dpu-api-read", "api-read")}
    return at["api-cache-pass"] + 3 * at["dpu-api-read"] + at["api-read"]
