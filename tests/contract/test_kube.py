"""KubeApi: the same operations on the simulated API server and on a real kube-apiserver with our CRDs.

Random sequences (Hypothesis) and the few stories that chance does not find. Answers, stored objects and watch events
must be equal up to uid, time and the numbers of resourceVersions (their order counts).
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twin.backends.base import AlreadyExists, ApiError, Invalid, KubeApi
from twin.backends.kube import Cluster, LiveKube, install_crds, open_cluster
from twin.backends.kube_merge import full_manifest
from twin.backends.lab.control_plane import ControlPlane, ControlPlanes
from twin.model.core import ConfigMap, Event, Namespace
from twin.model.meta import Key, Object, ObjectMeta, replace
from twin.model.provisioning import Bfb, BfbSpec, Dpu, DpuDevice, DpuDeviceSpec, DpuSpec, DpuStatus
from twin.model.schema import crd
from twin.sim.client import Cache, SimKube
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.kube import ApiServer
from twin.sim.runner import Meter
from twin.sim.trace import Trace

pytestmark = pytest.mark.slow

KINDS: tuple[type[Object], ...] = (ConfigMap, DpuDevice, Dpu)
SEQUENCES = int(os.environ.get("DPF_TWIN_ORACLE_SEQUENCES", "300"))


# --- the two worlds


@dataclass
class World(ABC):
    """One API server behind `KubeApi`. `seen` are its watch events in this namespace."""

    kube: KubeApi
    space: str
    seen: list[tuple[str, Object]] = field(default_factory=list)

    @abstractmethod
    def settle(self) -> None:
        """Wait until every change so far was seen and owners' dependents were collected."""

    @abstractmethod
    def json_patch(self, kind: type[Object], key: Key, operations: list[dict[str, Any]]) -> Object: ...


class SimWorld(World):
    def __init__(self, space: str) -> None:
        self.env = TwinEnvironment()
        self.env.run(3600 * SECOND)
        self.server = ApiServer(self.env, Trace(), follow_managers=True)
        super().__init__(SimKube(Cache(self.server), Meter("dpf-twin")), space)
        self.kube.create(Namespace(metadata=ObjectMeta(name=space)))
        for kind in KINDS:
            self.server.observers.setdefault(kind, []).append(self._observe)

    def _observe(self, old: Object | None, new: Object | None, at_ns: int) -> None:
        obj = new or old
        assert obj is not None
        self.seen.append(("ADDED" if old is None else "DELETED" if new is None else "MODIFIED", obj))

    def settle(self) -> None:
        self.env.run(self.env.now + 60 * SECOND)

    def json_patch(self, kind: type[Object], key: Key, operations: list[dict[str, Any]]) -> Object:
        return self.server.json_patch(kind, key, operations, "dpf-twin", self.env.now)


class LiveWorld(World):
    """Events are taken from a raw watch: an informer tells its callbacks less than the server said."""

    def __init__(self, cluster: Cluster, space: str) -> None:
        self.live = LiveKube(cluster, "dpf-twin")
        super().__init__(self.live, space)
        self.cluster = cluster

    def json_patch(self, kind: type[Object], key: Key, operations: list[dict[str, Any]]) -> Object:
        return self.live.json_patch(kind, key, operations)

    def settle(self) -> None:
        """The last object of each kind that is created now is the last that is seen."""
        markers = {}
        for kind, obj in ((ConfigMap, config_map("zz-end")), (DpuDevice, device("zz-end")), (Dpu, dpu("zz-end"))):
            markers[kind] = self.kube.create(placed(obj, self.space)).key
        deadline = time.monotonic() + 90
        while any(self.kube.get(kind, key) is None for kind, key in markers.items()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for kind, key in markers.items():
            self.kube.delete(kind, key)


class Watching:
    """One watch per kind for all live worlds, sorted by namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self.worlds: dict[str, LiveWorld] = {}
        for kind in KINDS:
            cluster.watch(kind, self._tell)

    def _tell(self, old: Object | None, new: Object | None) -> None:
        obj = new or old
        assert obj is not None
        world = self.worlds.get(obj.metadata.namespace)
        if world is not None:
            world.seen.append(("ADDED" if old is None else "DELETED" if new is None else "MODIFIED", obj))


@pytest.fixture(scope="module")
def typed_cluster(planes: ControlPlanes) -> Iterator[Cluster]:
    """A control plane of its own, with the CRDs that `dpf-twin crd` prints."""
    plane: ControlPlane = planes.start("contract")
    cluster = open_cluster(Path(plane.kubeconfig), qps=0)
    install_crds(LiveKube(cluster), [crd(k) for k in (Bfb, DpuDevice, Dpu)])
    yield cluster
    cluster.close()
    planes.remove("contract")


@pytest.fixture(scope="module")
def watching(typed_cluster: Cluster) -> Watching:
    return Watching(typed_cluster)


def both(cluster: Cluster, watching: Watching) -> tuple[SimWorld, LiveWorld]:
    made = LiveKube(cluster).create(Namespace(metadata=ObjectMeta(generate_name="c-")))
    live = LiveWorld(cluster, made.metadata.name)
    watching.worlds[live.space] = live
    return SimWorld(live.space), live


# --- objects


def config_map(name: str, **meta: Any) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, **meta), data={"k": "v"})


def device(name: str, pci: str | None = "0000-2b-00", **meta: Any) -> DpuDevice:
    return DpuDevice(metadata=ObjectMeta(name=name, **meta), spec=DpuDeviceSpec(pci_address=pci))


def dpu(name: str, bfb: str = "bfb-1", **meta: Any) -> Dpu:
    return Dpu(metadata=ObjectMeta(name=name, **meta), spec=DpuSpec(
        dpu_node_name="node-1", dpu_device_name="device-1", bfb=bfb))


def placed(obj: Object, space: str) -> Object:
    return replace(obj, metadata=replace(obj.metadata, namespace=space))


# --- what is compared


class Lens:
    """Objects of one world without what may differ: resourceVersions become their rank, uids their order of birth."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.uids: dict[str, int] = {}

    def uid(self, uid: str) -> str:
        return f"uid-{self.uids.setdefault(uid, len(self.uids))}" if uid else ""

    def text(self, text: str) -> str:
        text = text.replace(self.world.space, "SPACE").replace("Key: /contract/", "Key: /registry/")  # --etcd-prefix
        for uid, n in self.uids.items():
            text = text.replace(uid, f"uid-{n}")
        return text

    def show(self, obj: Object) -> dict[str, Any]:
        manifest = full_manifest(obj)
        meta = dict(manifest["metadata"])
        meta["uid"] = self.uid(meta.get("uid", ""))
        for gone in ("managedFields", "creationTimestamp", "resourceVersion", "namespace"):
            meta.pop(gone, None)
        if "deletionTimestamp" in meta:
            meta["deletionTimestamp"] = "SET"
        if "ownerReferences" in meta:
            meta["ownerReferences"] = [{**r, "uid": self.uid(r["uid"])} for r in meta["ownerReferences"]]
        if "finalizers" in meta:
            meta["finalizers"] = list(meta["finalizers"])
        shown: dict[str, Any] = filled({**manifest, "metadata": meta})
        return shown


def filled(value: Any) -> Any:
    """Without empty parts: our types do not tell them from absent ones."""
    if isinstance(value, dict):
        parts = {k: filled(v) for k, v in value.items()}
        return {k: v for k, v in parts.items() if v not in ("", {}, [], None)}
    return [filled(v) for v in value] if isinstance(value, (list, tuple)) else value


# --- operations

NAMES = st.sampled_from(["a", "b", "c"])
LABELS = st.dictionaries(st.sampled_from(["rack", "role"]), st.sampled_from(["r1", "r2"]), max_size=2)
FINALIZERS = st.lists(st.sampled_from(["example.com/a", "example.com/b"]), unique=True, max_size=2).map(tuple)
WHICH = st.sampled_from(KINDS)


@dataclass(frozen=True)
class Op:
    """One operation; Hypothesis prints its text."""

    text: str
    run: Callable[[Session], Any] = field(repr=False)


@dataclass
class Session:
    """One world during one sequence: what was read, and when it is used again."""

    world: World
    lens: Lens
    read: dict[tuple[type[Object], str], list[Object]] = field(default_factory=dict)

    def kept(self, kind: type[Object], name: str, age: int) -> Object | None:
        """A version read before: 0 the latest, 1 an older one."""
        versions = self.read.get((kind, name), [])
        return versions[-1 - age] if len(versions) > age else None

    def keep(self, obj: Object) -> Object:
        self.read.setdefault((type(obj), obj.metadata.name), []).append(obj)
        return obj

    def do(self, operation: Callable[[Session], Any]) -> Any:
        """The outcome in comparable form."""
        try:
            answer = operation(self)
        except ApiError as error:
            return ("error", error.code, error.reason, self.lens.text(str(error)))
        if isinstance(answer, Object):
            return self.lens.show(self.keep(answer))
        if isinstance(answer, list):
            return [self.lens.show(o) for o in answer]
        return answer


def make(kind: type[Object], name: str, labels: dict[str, str], finalizers: tuple[str, ...], variant: int) -> Object:
    if kind is ConfigMap:
        return config_map(name, labels=labels, finalizers=finalizers)
    if kind is DpuDevice:
        return device(name, ("0000-2b-00", None, "0000-0g-00")[variant], labels=labels, finalizers=finalizers)
    return dpu(name, ("bfb-1", "bfb-2", "")[variant], labels=labels, finalizers=finalizers)


@st.composite
def creates(draw: st.DrawFn) -> Op:
    kind, name = draw(WHICH), draw(st.one_of(NAMES, st.sampled_from(["Bad_Name", ""])))
    obj = make(kind, name, draw(st.one_of(LABELS, st.just({"rack": "not a value"}))), draw(FINALIZERS),
               draw(st.integers(0, 2)))
    return Op(f"create {obj}", lambda s: s.world.kube.create(placed(obj, s.world.space)))


def listed(world: World, kind: type[Object], labels: dict[str, str] | None = None) -> list[Object]:
    """By name: a cache lists in no order that anybody may lean on."""
    return sorted(world.kube.list_live(kind, world.space, labels), key=lambda o: o.key)


@st.composite
def reads(draw: st.DrawFn) -> Op:
    kind, name, labels = draw(WHICH), draw(NAMES), draw(LABELS)
    if draw(st.booleans()):
        return Op(f"read {kind.KIND} {name}", lambda s: s.world.kube.read_live(kind, Key(s.world.space, name)))
    return Op(f"list {kind.KIND} {labels}", lambda s: listed(s.world, kind, labels))


def changed(obj: Object, labels: dict[str, str], finalizers: tuple[str, ...], variant: int) -> Object:
    obj = replace(obj, metadata=replace(obj.metadata, labels=labels, finalizers=finalizers))
    if isinstance(obj, ConfigMap):
        return replace(obj, data={"k": "v"} if variant == 0 else {"k": f"v{variant}", "l": ""})
    if isinstance(obj, DpuDevice):
        return replace(obj, spec=replace(obj.spec, psid=(None, "MT_1", "MT_2")[variant]))
    assert isinstance(obj, Dpu)
    return replace(obj, spec=replace(obj.spec, cluster=replace(
        obj.spec.cluster, node_labels={"n": str(variant)} if variant else {})))


@st.composite
def updates(draw: st.DrawFn) -> Op:
    kind, name, age = draw(WHICH), draw(NAMES), draw(st.sampled_from([0, 0, 0, 1]))
    labels, finalizers, variant = draw(LABELS), draw(FINALIZERS), draw(st.integers(0, 2))

    def update(s: Session) -> Any:
        old = s.kept(kind, name, age)
        return "nothing read yet" if old is None else s.world.kube.update(changed(old, labels, finalizers, variant))

    return Op(f"update {kind.KIND} {name} read {age} ago: {labels} {finalizers} {variant}", update)


@st.composite
def statuses(draw: st.DrawFn) -> Op:
    name, age, phase = draw(NAMES), draw(st.sampled_from([0, 0, 1])), draw(st.sampled_from(["Pending", "Ready", "No"]))

    def update(s: Session) -> Any:
        old = s.kept(Dpu, name, age)
        if not isinstance(old, Dpu):
            return "nothing read yet"
        return s.world.kube.update_status(replace(old, status=DpuStatus(phase=phase)))

    return Op(f"status {name} read {age} ago: {phase}", update)


@st.composite
def patches(draw: st.DrawFn) -> Op:
    kind, name = draw(WHICH), draw(NAMES)
    merge = draw(st.sampled_from([
        {"metadata": {"labels": {"rack": "r3"}}}, {"metadata": {"labels": {"rack": None}}},
        {"metadata": {"labels": None}}, {"metadata": {"annotations": {"x": "y"}}}, {},
        {"metadata": {"finalizers": []}}, {"metadata": {"finalizers": ["example.com/a"]}},
        {"status": {"phase": "Ready"}}, {"status": {"phase": "No"}}, {"status": None},
    ]))
    # With other metadata a real server writes a status for the sake of its managedFields: see the fidelity page.
    version, status = draw(st.booleans()), "status" in merge and draw(st.booleans())

    def patch(s: Session) -> Any:
        old = s.kept(kind, name, 0) if version else None
        rv = old.metadata.resource_version if old is not None else ""
        return s.world.kube.patch(kind, Key(s.world.space, name), merge, resource_version=rv, status=status)

    return Op(f"patch {'status of ' if status else ''}{kind.KIND} {name} {merge} "
              f"{'of this version' if version else ''}", patch)


@st.composite
def json_patches(draw: st.DrawFn) -> Op:
    kind, name = draw(WHICH), draw(NAMES)
    operations = draw(st.lists(st.sampled_from([
        {"op": "add", "path": "/metadata/labels", "value": {"rack": "r1"}},
        {"op": "add", "path": "/metadata/labels/role", "value": "r2"},
        {"op": "replace", "path": "/metadata/labels/rack", "value": "r2"},
        {"op": "remove", "path": "/metadata/labels/rack"},
        {"op": "test", "path": "/metadata/labels/rack", "value": "r2"},
        {"op": "add", "path": "/metadata/finalizers", "value": ["example.com/a"]},
        {"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/b"},
        {"op": "remove", "path": "/metadata/finalizers/0"},
        {"op": "copy", "from": "/metadata/labels/rack", "path": "/metadata/labels/role"},
        {"op": "move", "from": "/metadata/labels/role", "path": "/metadata/labels/rack"},
    ]), min_size=1, max_size=3))
    return Op(f"JSON patch {kind.KIND} {name} {operations}",
              lambda s: s.world.json_patch(kind, Key(s.world.space, name), operations))


@st.composite
def deletes(draw: st.DrawFn) -> Op:
    kind, name, age = draw(WHICH), draw(NAMES), draw(st.sampled_from([None, 0]))

    def delete(s: Session) -> Any:
        old = s.kept(kind, name, age) if age is not None else None
        s.world.kube.delete(kind, Key(s.world.space, name), uid=old.metadata.uid if old is not None else "")
        return "deleted"

    return Op(f"delete {kind.KIND} {name} {'of this uid' if age is not None else ''}", delete)


@st.composite
def deletes_with_dependents(draw: st.DrawFn) -> Op:
    """No random object has dependents, so what the garbage collector does with it is over in a moment: wait for it."""
    kind, name, propagation = draw(WHICH), draw(NAMES), draw(st.sampled_from(["Foreground", "Orphan"]))

    def delete(s: Session) -> Any:
        key = Key(s.world.space, name)
        s.world.kube.delete(kind, key, propagation=propagation)
        eventually(s.world, lambda: not any(
            o.key == key and set(o.metadata.finalizers) & {"foregroundDeletion", "orphan"}
            for o in s.world.kube.list_live(kind, s.world.space)))
        return "deleted"

    return Op(f"delete {kind.KIND} {name} {propagation}", delete)


# Always with `cluster`: see the fidelity page on structs that Go sends empty.
NAMED = {"dpuNodeName": "node-1", "dpuDeviceName": "device-1", "bfb": "bfb-1", "cluster": {}}
CONFIGURATIONS: dict[type[Object], tuple[dict[str, Any], ...]] = {
    # None without any field: see the fidelity page.
    ConfigMap: ({"data": {"k": "v"}}, {"data": {"k": "w"}}, {"data": {"l": "x"}}, {"data": {"k": "v", "l": "y"}},
                {"binaryData": {"b": "eA=="}}),
    DpuDevice: ({"spec": {"pciAddress": "0000-2b-00"}}, {"spec": {"psid": "MT_0000000001"}},
                {"spec": {"psid": "MT_0000000002"}}, {"spec": {}}, {"spec": {"nonsense": 1}}),
    Dpu: tuple({"spec": spec} for spec in (
        NAMED, {**NAMED, "cluster": {"nodeLabels": {"n": "1"}}}, {**NAMED, "bfb": "bfb-2"},
        {**NAMED, "cluster": {"nodeLabels": {"n": "2", "m": "1"}}}, {"cluster": {"nodeLabels": {"n": "3"}}})),
}


@st.composite
def applies(draw: st.DrawFn) -> Op:
    kind, name, which = draw(WHICH), draw(NAMES), draw(st.integers(0, 4))
    manager, force, labels = draw(st.sampled_from(["one", "two"])), draw(st.booleans()), draw(LABELS)

    def apply(s: Session) -> Any:
        meta = {"name": name, "namespace": s.world.space, **({"labels": labels} if labels else {})}
        return s.world.kube.apply({"apiVersion": kind.api_version(), "kind": kind.KIND, "metadata": meta,
                                   **CONFIGURATIONS[kind][which]}, manager, force=force)

    return Op(f"{manager} applies {kind.KIND} {name} {labels} {CONFIGURATIONS[kind][which]} "
              f"{'by force' if force else ''}", apply)


OPERATIONS = st.lists(st.one_of(
    creates(), creates(), reads(), updates(), updates(), statuses(), patches(), json_patches(), deletes(),
    deletes_with_dependents(), applies(), applies()), min_size=1, max_size=15)


@settings(max_examples=SEQUENCES, deadline=None, derandomize=SEQUENCES == 300,
          suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
def test_random_operations_have_the_same_answers_and_events(
        typed_cluster: Cluster, watching: Watching, operations: list[Op]) -> None:
    sim, live = both(typed_cluster, watching)
    sessions = [Session(world, Lens(world)) for world in (live, sim)]
    for number, operation in enumerate(operations):
        real, ours = (session.do(operation.run) for session in sessions)
        assert ours == real, f"operation {number}: {operation.text}"
    compare(sessions)


def compare(sessions: list[Session]) -> None:
    """Final objects and watch events."""
    finals, events = [], []
    for session in sessions:
        session.world.settle()
        finals.append([session.lens.show(o) for kind in KINDS
                       for o in listed(session.world, kind)])
        # Kinds have watches of their own: between them there is no order.
        events.append({kind.KIND: [(what, session.lens.show(o)) for what, o in session.world.seen
                                   if isinstance(o, kind) and o.metadata.name != "zz-end"] for kind in KINDS})
    assert finals[1] == finals[0]
    for kind in KINDS:
        assert [(w, o["metadata"]["name"]) for w, o in events[1][kind.KIND]] == [
            (w, o["metadata"]["name"]) for w, o in events[0][kind.KIND]]
        assert [o for w, o in events[1][kind.KIND] if w != "DELETED"] == [
            o for w, o in events[0][kind.KIND] if w != "DELETED"]


# --- stories


def test_an_apply_that_empties_a_struct_leaves_a_null_that_the_schema_refuses(
        typed_cluster: Cluster, watching: Watching) -> None:
    results = []
    for world in both(typed_cluster, watching):
        manifest = {"apiVersion": Dpu.api_version(), "kind": Dpu.KIND,
                    "metadata": {"name": "emptied", "namespace": world.space}}
        world.kube.apply({**manifest, "spec": {**NAMED, "cluster": {"nodeLabels": {"n": "1"}}}}, "one")
        with pytest.raises(Invalid) as refused:
            world.kube.apply({**manifest, "spec": NAMED}, "one")
        results.append((str(refused.value), refused.value.details))
    assert results[0] == results[1]


@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
@pytest.mark.parametrize("held", [False, True], ids=["", "held by a finalizer"])
def test_owners_take_their_dependents_along_as_the_propagation_says(
        typed_cluster: Cluster, watching: Watching, propagation: str, held: bool) -> None:
    results = []
    for world in both(typed_cluster, watching):
        kube, space = world.kube, world.space
        owner = kube.create(placed(dpu("owner"), space))
        child = config_map("child", owner_references=(owner.owner_reference(),),
                           finalizers=("example.com/hold",) if held else ())
        kube.create(placed(child, space))
        kube.delete(Dpu, owner.key, propagation=propagation)
        eventually(world, lambda world=world: settled(world, propagation, held))
        lens = Lens(world)
        results.append([lens.show(o) for kind in (Dpu, ConfigMap) for o in listed(world, kind)])
    assert results[0] == results[1]


def settled(world: World, propagation: str, held: bool) -> bool:
    """Has the garbage collector done what it will do?"""
    owners = world.kube.list_live(Dpu, world.space)
    children = world.kube.list_live(ConfigMap, world.space)
    if propagation == "Orphan":
        return not owners and all(not c.metadata.owner_references for c in children)
    if held:
        return all(c.deleting for c in children) and bool(owners) is (propagation == "Foreground")
    return not owners and not children


def eventually(world: World, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        if isinstance(world, SimWorld):
            world.env.run(world.env.now + SECOND)
        else:
            time.sleep(0.02)


def test_a_name_is_generated_after_its_prefix(typed_cluster: Cluster, watching: Watching) -> None:
    for world in both(typed_cluster, watching):
        made = world.kube.create(placed(ConfigMap(metadata=ObjectMeta(generate_name="x-")), world.space))
        assert len(made.metadata.name) == len("x-") + 5
        assert made.metadata.generate_name == "x-"


def test_server_side_apply_has_the_same_owners_and_conflicts(typed_cluster: Cluster, watching: Watching) -> None:
    results = []
    for world in both(typed_cluster, watching):
        session = Session(world, Lens(world))
        base = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": world.space}}
        results.append([session.do(lambda s, o={**base, "data": data}, m=manager, f=force: s.world.kube.apply(
            o, m, force=f)) for data, manager, force in (
                ({"a": "1", "b": "1"}, "one", False), ({"a": "1"}, "two", False), ({"a": "2"}, "two", False),
                ({"a": "2"}, "two", True), ({"b": "2"}, "one", False), ({}, "two", False))])
    assert results[0] == results[1]


def test_bfbs_go_through_the_same_rules(typed_cluster: Cluster, watching: Watching) -> None:
    results = []
    for world in both(typed_cluster, watching):
        session = Session(world, Lens(world))
        outcomes = []
        for url in ("http://example.com/a.bfb", "ftp://example.com/a.bfb", "http://example.com/a.iso", ""):
            bfb = Bfb(metadata=ObjectMeta(name="b", namespace=world.space), spec=BfbSpec(url=url))
            outcomes.append(session.do(lambda s, b=bfb: s.world.kube.create(b)))
        results.append(outcomes)
    assert results[0] == results[1]


@pytest.mark.parametrize("write", ["update", "status", "patch", "apply"])
def test_the_first_write_stores_a_default_status_even_if_it_changes_nothing(
        typed_cluster: Cluster, watching: Watching, write: str) -> None:
    def again(kube: KubeApi, obj: Dpu) -> Object:
        if write == "update":
            return kube.update(obj)
        if write == "status":
            return kube.update_status(obj)
        if write == "patch":
            return kube.patch(Dpu, obj.key, {})
        return kube.apply({"apiVersion": Dpu.api_version(), "kind": Dpu.KIND, "metadata": {
            "name": obj.metadata.name, "namespace": obj.metadata.namespace}}, "dpf-twin")

    for world in both(typed_cluster, watching):
        first = world.kube.create(placed(dpu("a"), world.space))
        again(world.kube, first)
        second = world.kube.read_live(Dpu, first.key)
        again(world.kube, second)
        third = world.kube.read_live(Dpu, first.key)
        assert replace(second, metadata=first.metadata) == first
        assert second.metadata.resource_version != first.metadata.resource_version
        assert third.metadata.resource_version == second.metadata.resource_version


def test_a_name_that_is_being_deleted_is_taken_and_says_so(typed_cluster: Cluster, watching: Watching) -> None:
    for world in both(typed_cluster, watching):
        made = world.kube.create(placed(config_map("a", finalizers=("example.com/hold",)), world.space))
        world.kube.delete(ConfigMap, made.key)
        with pytest.raises(AlreadyExists) as taken:
            world.kube.create(placed(config_map("a"), world.space))
        assert str(taken.value) == 'object is being deleted: configmaps "a" already exists'


def test_events_are_counted_combined_and_cut_off_alike(typed_cluster: Cluster, watching: Watching) -> None:
    """Thirty texts of one reason, one of them often: nine Events of their own, one for the rest, five never sent."""
    results = []
    for world in both(typed_cluster, watching):
        about = world.kube.create(placed(dpu("a"), world.space))
        other = world.kube.create(placed(dpu("b"), world.space))
        for n in range(30):
            world.kube.event(about, "Warning", "Broken", f"reason {n if n % 3 else 0}")
        world.kube.event(other, "Normal", "Fine", "the last word")
        eventually(world, lambda world=world: any(e.reason == "Fine" for e in world.kube.list_live(Event, world.space)))
        lens = Lens(world)
        results.append(sorted(
            (e.type, e.reason, e.message, e.count, e.involved_object.kind, e.involved_object.name,
             lens.uid(e.involved_object.uid), sorted(e.source), e.first_timestamp <= e.last_timestamp)
            for e in world.kube.list_live(Event, world.space)))
        if isinstance(world.kube, LiveKube):
            world.kube.close()
    assert results[1] == results[0]
    assert [(r[2], r[3]) for r in results[0] if r[3] > 1] == [
        ("(combined from similar events): reason 23", 8), ("reason 0", 9)]


class Racks:
    """A view: the names of DPUs in a rack of a namespace, by their label."""

    kinds = (Dpu,)

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], set[str]] = {}

    def of(self, space: str, rack: str) -> list[str]:
        return sorted(self.names.get((space, rack), ()))

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        touched = []
        for obj, there in ((old, False), (new, True)):
            if obj is not None:
                place = (obj.metadata.namespace, obj.metadata.labels.get("rack", ""))
                names = self.names.setdefault(place, set())
                names.add(obj.metadata.name) if there else names.discard(obj.metadata.name)
                touched.append(place)
        return touched


def test_caches_and_views_come_to_show_what_the_server_has(typed_cluster: Cluster, watching: Watching) -> None:
    for world in both(typed_cluster, watching):
        kube, space = world.kube, world.space

        def shown(rack: str, world: World = world) -> tuple[list[str], list[str]]:
            listed = sorted(d.metadata.name for d in world.kube.list(Dpu, world.space, {"rack": rack}))
            return world.kube.view(Racks, (world.space, rack)).of(world.space, rack), listed

        def become(rack: str, *names: str, world: World = world) -> None:
            eventually(world, lambda: shown(rack, world) == (list(names), list(names)))

        assert shown("r1") == ([], [])
        made = [kube.create(placed(dpu(name, labels={"rack": "r1", "role": name}), space)) for name in "abc"]
        become("r1", "a", "b", "c")
        eventually(world, lambda world=world: [
            d.metadata.name for d in world.kube.list(Dpu, world.space, {"rack": "r1", "role": "b"})] == ["b"])
        kube.patch(Dpu, made[1].key, {"metadata": {"labels": {"rack": "r2"}}})
        become("r1", "a", "c")
        become("r2", "b")
        kube.delete(Dpu, made[0].key)
        become("r1", "c")
        assert kube.get(Dpu, made[0].key) is None
        cached = kube.get(Dpu, made[2].key)
        assert cached is not None
        assert cached.metadata.uid == made[2].metadata.uid
        assert {d.metadata.name for d in kube.list(Dpu, space)} == {"b", "c"}
