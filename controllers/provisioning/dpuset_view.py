"""What a DPUSet pass would find by listing its nodes, devices and DPUs, kept up to date change by change.

A pass over 10,000 DPUs must cost what changed, not 10,000 (HOUSE A2). The view holds per DPUSet: the selected devices,
those without a DPU, DPUs whose device is not selected, counts per phase, unavailable DPUs, and outdated DPUs apart by
availability. It tells the cache which DPUSets would now be answered differently.

Upstream walks Go maps, in an order that is random each time. Here the order is a fixed shuffle of the devices, drawn
from the seed of the run, so that a run can be repeated.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from typing import ClassVar, NamedTuple

from controllers.provisioning.selector import matches
from twin.model.meta import Key, Object, condition, new_key
from twin.model.names import Label
from twin.model.provisioning import Dpu, DpuDevice, DpuNode, DpuSet, DpuSetSpec, Phase

Ranked = list[tuple[bytes, str]]
"""Device names in the seeded order."""

new_facts = tuple.__new__
"""As `twin.model.meta.new_key`: `new_facts(Facts, (...))` without a call in between."""


class Facts(NamedTuple):
    """What a DPUSet pass wants to know of one of its DPUs."""

    phase: str
    unavailable: bool
    outdated: bool
    unlabelled: bool


class Look(NamedTuple):
    """What a pass over one DPUSet finds, as it is at this moment. The tuples are in the seeded order."""

    missing: tuple[DpuDevice, ...]
    """Selected devices without a DPU."""
    unselected: tuple[Dpu, ...]
    """DPUs whose device is not selected any more."""
    swept: tuple[Dpu, ...]
    """Outdated DPUs that are unavailable."""
    unlabelled: tuple[Dpu, ...]
    """DPUs that lack a node label of the template."""
    outdated: int
    """How many outdated DPUs are available."""
    phases: dict[str, int]
    """In no order."""
    total: int
    """How many devices are selected."""
    owned: int
    unavailable: int
    """How many of the owned DPUs are unavailable."""


def is_unavailable(dpu: Dpu) -> bool:
    """No Ready condition, or Ready False, or being deleted. Ready Unknown counts as available (provisioning.md 5.2)."""
    if dpu.deleting or dpu.status is None:
        return True
    ready = condition(dpu.status.conditions, "Ready")
    return ready is None or ready.status == "False"


def phase_of(dpu: Dpu) -> str:
    """The phase that counts: a DPU without a status is Initializing."""
    return (dpu.status.phase if dpu.status is not None else "") or Phase.INITIALIZING


class SetDigest:
    """One DPUSet's running answer, the view's own.

    `selected` and `owned` are keyed by device name. Of two DPUs of one device `owned` holds the one with the later key.
    """

    __slots__ = ("_facts", "_hidden", "_name", "_ranks", "missing", "nodes", "outdated_available",
                 "outdated_unavailable", "owned", "phases", "selected", "spec", "unavailable", "unlabelled",
                 "unselected")

    def __init__(self, key: Key, seed: int, spec: DpuSetSpec) -> None:
        self._name = f"{seed}/{key}/"
        self.spec = spec
        self.nodes: dict[str, None] = {}
        self.selected: dict[str, DpuDevice] = {}
        self.owned: dict[str, Dpu] = {}
        self.phases: dict[str, int] = {}
        self.unavailable = 0
        """How many of `owned` are unavailable."""
        self.missing: Ranked = []
        self.unselected: Ranked = []
        self.outdated_unavailable: Ranked = []
        self.outdated_available: Ranked = []
        self.unlabelled: Ranked = []
        self._facts: dict[str, Facts] = {}
        self._hidden: dict[str, dict[Key, Dpu]] = {}
        self._ranks: dict[str, tuple[bytes, str]] = {}

    # --- what the view tells it; each says whether an answer changed

    def select(self, device: DpuDevice) -> bool:
        name = device.metadata.name
        known = name in self.selected
        self.selected[name] = device
        if known:
            return name not in self.owned
        if name in self.owned:
            self._drop(self.unselected, name)
        else:
            insort(self.missing, self._rank(name))
        return True

    def deselect(self, name: str) -> bool:
        if self.selected.pop(name, None) is None:
            return False
        if name in self.owned:
            insort(self.unselected, self._rank(name))
        else:
            self._drop(self.missing, name)
        return True

    def put(self, dpu: Dpu) -> bool:
        name = dpu.spec.dpu_device_name
        held = self.owned.get(name)
        if held is None:
            self.owned[name] = dpu
            if name in self.selected:
                self._drop(self.missing, name)
            else:
                insort(self.unselected, self._rank(name))
            self._add(name, self._look(dpu))
            return True
        was, now = held.metadata, dpu.metadata
        if was.name != now.name or was.namespace != now.namespace:
            return self._put_second(name, held, dpu)
        self.owned[name] = dpu
        if held.spec is not dpu.spec:
            return self._revise(name, self._look(dpu))
        if held.status is dpu.status and was.deletion_timestamp == now.deletion_timestamp:
            return False
        before = self._facts[name]
        return self._revise(name, new_facts(Facts, (
            phase_of(dpu), is_unavailable(dpu), before.outdated, before.unlabelled)))

    def members(self) -> Iterator[Dpu]:
        """All DPUs that name the DPUSet, those that share a device with another one too."""
        yield from self.owned.values()
        for others in self._hidden.values():
            yield from others.values()

    def remove(self, dpu: Dpu) -> bool:
        name = dpu.spec.dpu_device_name
        held = self.owned.get(name)
        if held is None or held.key != dpu.key:
            self._hidden.get(name, {}).pop(dpu.key, None)
            return False
        del self.owned[name]
        self._subtract(name)
        others = self._hidden.get(name)
        if name in self.selected:
            insort(self.missing, self._rank(name))
        else:
            self._drop(self.unselected, name)
        if others:
            last = max(others)
            self.put(others.pop(last))
        return True

    def respec(self, spec: DpuSetSpec) -> None:
        """A new template: look at every DPU again."""
        self.spec = spec
        for name, dpu in self.owned.items():
            self._revise(name, self._look(dpu))

    # --- inside

    def _put_second(self, name: str, held: Dpu, dpu: Dpu) -> bool:
        """Two DPUs claim one device: a map by device name keeps the last."""
        first, last = sorted((held, dpu), key=lambda d: d.key)
        if last is dpu:
            self.remove(held)
            self.put(dpu)
        self._hidden.setdefault(name, {})[first.key] = first
        return last is dpu

    def _look(self, dpu: Dpu) -> Facts:
        spec, template = dpu.spec, self.spec.dpu_template.spec
        wanted = template.cluster.node_labels if template.cluster is not None else None
        have = spec.cluster.node_labels
        return Facts(
            phase_of(dpu), is_unavailable(dpu),
            spec.bfb != template.bfb.name or spec.dpu_flavor != template.dpu_flavor,
            any(have.get(k) != v for k, v in wanted.items()) if wanted else False,
        )

    def _revise(self, name: str, now: Facts) -> bool:
        """An owned DPU looks like this now: does that change an answer?"""
        was = self._facts[name]
        if was == now:
            return False
        if was[1:] == now[1:]:  # the usual change: on to another phase
            self._facts[name] = now
            phases, left, reached = self.phases, was[0], now[0]
            phases[reached] = phases.get(reached, 0) + 1
            if phases[left] > 1:
                phases[left] -= 1
            else:
                del phases[left]
        else:
            self._subtract(name)
            self._add(name, now)
        return True

    def _add(self, name: str, facts: Facts) -> None:
        self._facts[name] = facts
        self._tally(facts.phase, 1)
        self.unavailable += facts.unavailable
        for ranked in self._lists(facts):
            insort(ranked, self._rank(name))

    def _subtract(self, name: str) -> None:
        facts = self._facts.pop(name)
        self._tally(facts.phase, -1)
        self.unavailable -= facts.unavailable
        for ranked in self._lists(facts):
            self._drop(ranked, name)

    def _tally(self, phase: str, by: int) -> None:
        count = self.phases.get(phase, 0) + by
        if count:
            self.phases[phase] = count
        else:
            del self.phases[phase]

    def _lists(self, facts: Facts) -> Iterable[Ranked]:
        if facts.outdated:
            yield self.outdated_unavailable if facts.unavailable else self.outdated_available
        if facts.unlabelled:
            yield self.unlabelled

    def _rank(self, name: str) -> tuple[bytes, str]:
        rank = self._ranks.get(name)
        if rank is None:
            rank = (hashlib.blake2b((self._name + name).encode(), digest_size=8).digest(), name)
            self._ranks[name] = rank
        return rank

    def _drop(self, ranked: Ranked, name: str) -> None:
        rank = self._rank(name)
        at = bisect_left(ranked, rank)
        if at < len(ranked) and ranked[at] == rank:
            del ranked[at]


class DpuSetView:
    """A `View` (twin.backends.base); its tokens are DPUSet keys. Get the class for a seed from `seeded`."""

    kinds: tuple[type[Object], ...] = (DpuSet, DpuNode, DpuDevice, Dpu)
    seed: ClassVar[int] = 0

    def __init__(self) -> None:
        self._sets: dict[Key, SetDigest] = {}
        self._nodes: dict[str, dict[str, DpuNode]] = {}
        self._devices: dict[Key, dict[str, DpuDevice]] = {}
        """By DPUNode: the devices labelled with its name."""
        self._strays: dict[Key, dict[Key, Dpu]] = {}
        """DPUs whose labels name a DPUSet that is not known here, by that DPUSet."""

    def look(self, key: Key) -> Look | None:
        """What there is to do for a DPUSet; None when the DPUSet is not known here."""
        d = self._sets.get(key)
        if d is None:
            return None
        owned = d.owned
        return Look(
            tuple([d.selected[name] for _, name in d.missing]) if d.missing else (),
            tuple([owned[name] for _, name in d.unselected]) if d.unselected else (),
            tuple([owned[name] for _, name in d.outdated_unavailable]) if d.outdated_unavailable else (),
            tuple([owned[name] for _, name in d.unlabelled]) if d.unlabelled else (),
            len(d.outdated_available), d.phases.copy(), len(d.selected), len(owned), d.unavailable)

    def next_outdated(self, key: Key, count: int) -> tuple[Dpu, ...]:
        """The first `count` outdated DPUs that are available."""
        d = self._sets.get(key)
        return () if d is None else tuple(d.owned[name] for _, name in d.outdated_available[:max(count, 0)])

    def digest(self, key: Key) -> SetDigest | None:
        """The running answer itself. For tests: it changes while one looks."""
        return self._sets.get(key)

    def objects(self, token: Key) -> int:
        """How many objects upstream lists for a pass over this DPUSet: its nodes, their devices, its DPUs."""
        found = self._sets.get(token)
        return 0 if found is None else len(found.nodes) + len(found.selected) + len(found.owned)

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        kind = type(old if new is None else new)
        if kind is Dpu:
            return self._dpu(old, new)  # type: ignore[arg-type]
        if kind is DpuNode:
            return self._node(old, new)  # type: ignore[arg-type]
        if kind is DpuSet:
            return self._set(old, new)  # type: ignore[arg-type]
        return self._device(old, new)  # type: ignore[arg-type]

    # --- inside: one method per kind

    def _dpu(self, old: Dpu | None, new: Dpu | None) -> Iterable[Key]:
        if (old is not None and new is not None and old.metadata.labels is new.metadata.labels
                and old.spec.dpu_device_name == new.spec.dpu_device_name):
            return self._put(new)
        changed: list[Key] = []
        if old is not None and (was := _set_of(old)) is not None:
            found = self._sets.get(was)
            if found is None:
                strays = self._strays.get(was, {})
                strays.pop(old.key, None)
                if not strays:
                    self._strays.pop(was, None)
            elif (new is None or was != _set_of(new) or old.spec.dpu_device_name != new.spec.dpu_device_name) and (
                    found.remove(old)):
                changed.append(was)
        if new is not None:
            changed += self._put(new)
        return changed

    def _put(self, dpu: Dpu) -> tuple[Key, ...]:
        key = _set_of(dpu)
        if key is None:
            return ()
        found = self._sets.get(key)
        if found is None:
            self._strays.setdefault(key, {})[dpu.key] = dpu
            return ()
        return (key,) if found.put(dpu) else ()

    def _device(self, old: DpuDevice | None, new: DpuDevice | None) -> list[Key]:
        obj = new if new is not None else old
        assert obj is not None
        name, space = obj.metadata.name, obj.metadata.namespace
        was = old.metadata.labels.get(Label.DPUNODE_NAME) if old is not None else None
        now = new.metadata.labels.get(Label.DPUNODE_NAME) if new is not None else None
        if was is not None:
            self._devices.get(Key(space, was), {}).pop(name, None)
        if now is not None and new is not None:
            self._devices.setdefault(Key(space, now), {})[name] = new
        changed = []
        for key, found in self._sets.items():
            if key.namespace != space:
                continue
            if new is not None and now in found.nodes and _wanted(found.spec, new):
                if found.select(new):
                    changed.append(key)
            elif found.deselect(name):
                changed.append(key)
        return changed

    def _node(self, old: DpuNode | None, new: DpuNode | None) -> list[Key]:
        if old is not None and new is not None and (
                old.metadata.labels is new.metadata.labels or old.metadata.labels == new.metadata.labels):
            return []
        obj = new if new is not None else old
        assert obj is not None
        name, space = obj.metadata.name, obj.metadata.namespace
        if new is not None:
            self._nodes.setdefault(space, {})[name] = new
        else:
            self._nodes.get(space, {}).pop(name, None)
        changed = []
        for key, found in self._sets.items():
            if key.namespace != space:
                continue
            matched = new is not None and matches(found.spec.dpu_node_selector, new.metadata.labels)
            if matched == (name in found.nodes):
                continue
            self._match(found, Key(space, name), matched)
            changed.append(key)
        return changed

    def _set(self, old: DpuSet | None, new: DpuSet | None) -> Iterable[Key]:
        if old is not None and new is not None and old.spec is new.spec:
            return ()
        obj = new if new is not None else old
        assert obj is not None
        key = obj.key
        found = self._sets.get(key)
        if new is None:
            if found is None:
                return ()
            del self._sets[key]
            strays = {dpu.key: dpu for dpu in found.members()}
            if strays:
                self._strays[key] = strays
            return (key,)
        if found is not None:
            if found.spec == new.spec:
                return ()
            if (found.spec.dpu_node_selector == new.spec.dpu_node_selector
                    and found.spec.dpu_selector == new.spec.dpu_selector):
                found.respec(new.spec)
                return (key,)
        members = self._strays.pop(key, {}).values() if found is None else found.members()
        made = self._sets[key] = SetDigest(key, self.seed, new.spec)
        for name, node in self._nodes.get(key.namespace, {}).items():
            if matches(new.spec.dpu_node_selector, node.metadata.labels):
                self._match(made, Key(key.namespace, name), True)
        for dpu in members:
            made.put(dpu)
        return (key,)

    def _match(self, found: SetDigest, node: Key, matched: bool) -> None:
        """This node is now selected, or no longer, and its devices with it."""
        if matched:
            found.nodes[node.name] = None
        else:
            del found.nodes[node.name]
        for name, device in self._devices.get(node, {}).items():
            if matched and _wanted(found.spec, device):
                found.select(device)
            else:
                found.deselect(name)


@lru_cache(maxsize=64)
def seeded(seed: int) -> type[DpuSetView]:
    """The view whose order is drawn from this seed. The same class for the same seed: caches keep one view a class."""
    return type("DpuSetView", (DpuSetView,), {"seed": seed})


def _set_of(dpu: Dpu) -> Key | None:
    labels = dpu.metadata.labels
    name = labels.get(Label.DPUSET_NAME)
    return None if name is None else new_key(Key, (labels.get(Label.DPUSET_NAMESPACE, ""), name))


def _wanted(spec: DpuSetSpec, device: DpuDevice) -> bool:
    labels = device.metadata.labels
    return all(labels.get(k) == v for k, v in spec.dpu_selector.items())
