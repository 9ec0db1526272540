"""dpu-detector and Node Feature Discovery: what a host's cards and bridge look like as Node labels.

Both work in rounds of 60 s, the first one a round after they started (provisioning.md 8.1). A round that would change
nothing is not run: the actor sleeps until a card or the bridge changes, and then until the host's next round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from twin.actors.actor import Actor, wake_if_up
from twin.actors.hosts import DPU_DEVICE_IDS, Durations, Hosts, Machine
from twin.backends.base import Clock, KubeApi, Operation
from twin.model.core import DpfOperatorConfig, Node
from twin.model.meta import Key, Object, replace
from twin.model.names import NFD, Label
from twin.runtime.reconcile import DONE, Context, Result, Watch

_OWN: Final = NFD + "dpu-"


def features(machine: Machine, *, detector: bool = True) -> dict[str, str]:
    """The labels a round would set on this host's Node (provisioning.md 1.10, 8.1), with or without a dpu-detector."""
    found: dict[str, str] = {}
    cards = [c for c in machine.cards if c.device_id in DPU_DEVICE_IDS]
    if cards:
        found[Label.DPU_ENABLED] = "true"  # by a NodeFeatureRule on the PCI vendor and device
    if not detector:
        return found
    for n, card in enumerate(cards):
        found[f"{_OWN}{n}-pci-address"] = card.pci_address
        found[f"{_OWN}{n}-pf0-name"] = card.pf0_name
        if card.psid:
            found[f"{_OWN}{n}-ps-id"] = card.psid
        found[f"{_OWN}{n}-number-of-pfs"] = str(card.number_of_pfs)
    if machine.oob_bridge:
        found[Label.OOB_BRIDGE] = ""
    return found


def own(labels: Mapping[str, str]) -> dict[str, str]:
    """Those of a Node's labels that the detector manages."""
    return {k: v for k, v in labels.items() if k.startswith(_OWN)}


def _labels_changed(old: Object | None, new: Object | None) -> bool:
    if old is None or new is None:
        return new is not None
    labels = new.metadata.labels
    return labels is not old.metadata.labels and labels != old.metadata.labels


class NodeFeatures(Actor):
    """Keeps the Nodes of the fleet's hosts labelled. Keys are Node names; rounds take `nfd-period`."""

    name = "node-feature-discovery"
    watches = (Watch(Node, when=_labels_changed), Watch(DpfOperatorConfig, lambda actor, _: actor.every_node()))

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, hosts: Hosts) -> None:
        super().__init__(kube, clock, durations)
        self._hosts = hosts
        self._since: dict[str, tuple[str, float]] = {}
        self._rounds: dict[str, Operation] = {}
        hosts.subscribe(lambda name: wake_if_up(self, hosts, name))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        name = key.name
        machine, node = self._hosts.machine(name), self.kube.get(Node, key)
        if machine is None or node is None or not machine.up:
            return DONE
        since = self._since.get(name)
        if since is None or since[0] != machine.boot_id:
            self._since[name] = since = (machine.boot_id, ctx.now)
            self._rounds.pop(name, None)
        wanted, labels = features(machine, detector=self._detector()), node.metadata.labels
        if own(labels) == wanted:
            return DONE
        if not self._round(key, ctx.now - since[1]):
            return DONE
        kept = {k: v for k, v in labels.items() if not k.startswith(_OWN)}
        self.kube.update(replace(node, metadata=replace(node.metadata, labels={**kept, **wanted})))
        del self._rounds[name]
        return DONE

    def every_node(self) -> list[Key]:
        return [Key("", name) for name in self._hosts.names()]

    def _detector(self) -> bool:
        """Does a dpu-detector run? The first DPFOperatorConfig says so; without one it does."""
        config = next(iter(self.kube.list(DpfOperatorConfig)), None)
        part = config.spec.dpu_detector if config is not None else None
        return part is None or not part.disable

    def _round(self, key: Key, running_s: float) -> bool:
        """Is it this host's next round? `running_s`: how long its detector has been running."""
        found = self._rounds.get(key.name)
        if found is None:
            period = self.durations("nfd-period", key.name)
            found = self._rounds[key.name] = self.clock.sleep(period - running_s % period)
            found.callbacks.append(lambda _: self.wake(key))
        return found.finished
