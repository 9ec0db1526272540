"""The table of pre-flight rules, and the picture of manifests, fleet and timeline that rules look at.

A rule is a function from a `Picture` to places, in `rules_objects`, `rules_fleet` and `rules_timeline`, which fill
`RULES` when they are imported; `scenarios.check` imports them all and turns places into findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import msgspec

from controllers.provisioning.selector import matches
from scenarios.base import Apply, Manifest, Step
from twin.model.fleet import Card, Fleet, Host
from twin.model.names import Label
from twin.model.provisioning import LabelSelector
from twin.model.timing import Profile

Severity = Literal["error", "warning", "note"]
"""error: it will not work. warning: it works, or may, but not as one would think. note: worth knowing."""

OPERATOR_NAMESPACE: Final = "dpf-operator-system"
Path = tuple[str | int, ...]


class Place(NamedTuple):
    """What a rule yields: where, what, the value found. `at`: a manifest and a path in it, a step, None: the fleet."""

    at: Manifest | Step | None
    path: Path
    words: str
    got: Any = None
    severity: Severity | None = None


Look = Callable[["Picture"], Iterator[Place]]


@dataclass(frozen=True, slots=True)
class Rule:
    """`reference`: upstream's issue numbers, or the section of provisioning.md that describes it."""

    id: str
    title: str
    severity: Severity
    reference: str
    look: Look
    needs_fleet: bool = False
    needs_whole: bool = False  # sense only if the manifests are all there is, not one file of many


RULES: Final[dict[str, Rule]] = {}
"""Filled by the modules of rules; who wants all of them imports `scenarios.check`."""


def rule(id_: str, title: str, reference: str, severity: Severity = "error", *, needs_fleet: bool = False,
         needs_whole: bool = False) -> Callable[[Look], Look]:
    """Put a rule in the table."""

    def add(look: Look) -> Look:
        RULES[id_] = Rule(id_, title, severity, reference, look, needs_fleet, needs_whole)
        return look

    return add


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A DPUSet to be: written as one, or made by a DPUDeployment. Paths lead to the fields in its manifest."""

    manifest: Manifest
    name: str
    namespace: str
    nodes: LabelSelector | None
    devices: dict[str, str]
    bfb: str
    bfb_path: Path
    flavor: str
    flavor_path: Path
    effect: dict[str, Any]
    effect_path: Path
    strategy: str


@dataclass(frozen=True)
class Picture:
    """What rules look at. `whole` False: the manifests are a part of something, so nothing is said to be missing."""

    manifests: Sequence[Manifest]
    fleet: Fleet | None = None
    fleet_file: str = "fleet"
    timeline: Sequence[Step] = ()
    profile: Profile | None = None
    policies: frozenset[str] = frozenset()
    whole: bool = True

    @cached_property
    def all(self) -> list[Manifest]:
        """Manifests of the start and those that the timeline applies."""
        return [*self.manifests, *(m for s in self.timeline if isinstance(s.action, Apply) for m in s.action.manifests)]

    def of(self, *kinds: str) -> list[Manifest]:
        return [m for m in self.all if m.id.kind in kinds]

    def distinct(self, kind: str) -> list[Manifest]:
        """One manifest for each object of the kind: an object that the timeline applies again is still one."""
        return list({m.id: m for m in self.of(kind)}.values())

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        wanted = (kind, namespace, name)
        return next((m for m in self.all if m.id[1:] == wanted), None)

    @cached_property
    def selections(self) -> list[Selection]:
        return [*(s for m in self.of("DPUSet") for s in _of_dpuset(m)),
                *(s for m in self.of("DPUDeployment") for s in _of_deployment(m))]

    def hosts(self, chosen: Selection) -> list[Host]:
        """The hosts of the fleet that a selection's node selector takes."""
        return [] if self.fleet is None else [h for h in self.fleet.hosts if matches(chosen.nodes, node_labels(h))]

    def cards(self, chosen: Selection) -> list[Card]:
        """The DPUs of the fleet that a selection takes."""
        return [c for h in self.hosts(chosen) for c in h.cards
                if all(device_labels(c).get(k) == v for k, v in chosen.devices.items())]


def node_labels(host: Host) -> dict[str, str]:
    """Labels of a host's DPUNode: the fleet's, and what discovery adds."""
    found = {"kubernetes.io/hostname": host.name, "kubernetes.io/os": "linux", Label.DPU_ENABLED: "true"}
    if host.oob_bridge:
        found[Label.OOB_BRIDGE] = ""
    for i, card in enumerate(host.cards):
        found[f"feature.node.kubernetes.io/dpu-{i}-pci-address"] = card.pci
        found[f"feature.node.kubernetes.io/dpu-{i}-pf0-name"] = card.pf0
    return {**found, **host.labels}


def device_labels(card: Card) -> dict[str, str]:
    """Labels of a card's DPUDevice."""
    return {Label.DPUNODE_NAME: card.host, Label.DEVICE_PCI_ADDRESS: card.pci, Label.DEVICE_PF0_NAME: card.pf0,
            Label.DEVICE_NUM_OF_PFS: str(card.pfs)}


# --- reading manifests


def part(data: Any, *path: str | int) -> Any:
    """The value at a path, None if there is none."""
    for step in path:
        if isinstance(data, dict):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def mapping(data: Any, *path: str | int) -> dict[str, Any]:
    """The mapping at a path; empty if there is none."""
    found = part(data, *path)
    return found if isinstance(found, dict) else {}


def _selector(data: Any) -> LabelSelector | None:
    if not isinstance(data, dict):
        return None
    try:
        return msgspec.convert(data, LabelSelector)
    except msgspec.ValidationError:
        return None


def _of_dpuset(m: Manifest) -> Iterator[Selection]:
    template = mapping(m.data, "spec", "dpuTemplate", "spec")
    at: Path = ("spec", "dpuTemplate", "spec")
    # the CRD's default applies where the template's spec exists, the webhook's where it does not (1.8)
    default = {"drain": True} if part(m.data, "spec", "dpuTemplate", "spec") is not None else {"noEffect": True}
    yield Selection(
        m, m.id.name, m.id.namespace, _selector(part(m.data, "spec", "dpuNodeSelector")),
        mapping(m.data, "spec", "dpuSelector"), str(part(template, "bfb", "name") or ""), (*at, "bfb", "name"),
        str(template.get("dpuFlavor") or ""), (*at, "dpuFlavor"), template.get("nodeEffect") or default,
        (*at, "nodeEffect"), str(part(m.data, "spec", "strategy", "type") or "OnDelete"))


def _of_deployment(m: Manifest) -> Iterator[Selection]:
    dpus = mapping(m.data, "spec", "dpus")
    sets = dpus.get("dpuSets")
    for i, entry in enumerate(sets if isinstance(sets, list) else []):
        yield Selection(
            m, f"{m.id.name}-{part(entry, 'nameSuffix')}", m.id.namespace, _selector(part(entry, "nodeSelector")),
            mapping(entry, "dpuSelector"), str(dpus.get("bfb") or ""), ("spec", "dpus", "bfb"),
            str(dpus.get("flavor") or ""), ("spec", "dpus", "flavor"), dpus.get("nodeEffect") or {"drain": True},
            ("spec", "dpus", "nodeEffect") if dpus.get("nodeEffect") else ("spec", "dpus", "dpuSets", i),
            "RollingUpdate")
