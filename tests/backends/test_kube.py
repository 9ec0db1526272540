"""The live Kubernetes backend against a real kube-apiserver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from twin.backends.base import AlreadyExists, ApiError, Conflict, Invalid, NotFound, Unavailable
from twin.backends.kube import Cluster, LiveClusters, LiveKube, open_cluster, resource_path
from twin.backends.kube_http import TokenBucket, from_kubeconfig
from twin.backends.kube_informer import Informer
from twin.backends.lab.certificates import Pair, authority, issue, kubeconfig
from twin.backends.lab.control_plane import ControlPlane, ControlPlanes
from twin.model.core import ConfigMap, Event, Lease, Pod, Secret
from twin.model.kinds import to_manifest
from twin.model.meta import Key, Object, ObjectMeta, Unstructured, replace, set_condition
from twin.model.provisioning import BfbRef, Dpu, DpuSet, DpuSetSpec, DpuSpec, DpuStatus, DpuTemplate, DpuTemplateSpec
from twin.runtime.lease import Elector
from twin.runtime.live import NotLeading

pytestmark = pytest.mark.slow


def a_dpu(space: str, name: str = "dpu-1", **labels: str) -> Dpu:
    return Dpu(metadata=ObjectMeta(name=name, namespace=space, labels=labels),
               spec=DpuSpec(dpu_node_name="host-1", dpu_device_name="dev-1", bfb="bfb"))


def eventually(true: Callable[[], bool], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.01)


# --- verbs


def test_a_created_object_is_read_back_with_what_the_server_added(kube: LiveKube, space: str) -> None:
    created = kube.create(a_dpu(space))
    assert created.metadata.uid
    assert created.metadata.generation == 1
    assert kube.read_live(Dpu, created.key).spec.bfb == "bfb"


def test_creating_twice_and_reading_what_is_not_there_say_what_kubernetes_says(kube: LiveKube, space: str) -> None:
    kube.create(a_dpu(space))
    with pytest.raises(AlreadyExists) as twice:
        kube.create(a_dpu(space))
    assert str(twice.value) == 'dpus.provisioning.dpu.nvidia.com "dpu-1" already exists'
    with pytest.raises(NotFound) as absent:
        kube.read_live(Dpu, Key(space, "none"))
    assert str(absent.value) == 'dpus.provisioning.dpu.nvidia.com "none" not found'
    assert kube.get(Dpu, Key(space, "none")) is None


def test_an_update_from_a_stale_version_is_a_conflict(kube: LiveKube, space: str) -> None:
    first = kube.create(a_dpu(space))
    kube.update(replace(first, metadata=replace(first.metadata, labels={"a": "1"})))
    with pytest.raises(Conflict) as stale:
        kube.update(replace(first, metadata=replace(first.metadata, labels={"a": "2"})))
    assert "the object has been modified; please apply your changes to the latest version" in str(stale.value)


def test_status_and_spec_are_written_apart(kube: LiveKube, space: str) -> None:
    dpu = kube.create(a_dpu(space))
    both = replace(dpu, status=DpuStatus(phase="Ready"), spec=replace(dpu.spec, bfb="other"))
    after = kube.update_status(both)
    assert (after.status.phase if after.status else "", after.spec.bfb) == ("Ready", "bfb")
    after = kube.update(replace(after, spec=replace(after.spec, bfb="other"), status=DpuStatus(phase="Error")))
    assert (after.status.phase if after.status else "", after.spec.bfb) == ("Ready", "other")
    assert after.metadata.generation == 2


def test_fields_we_do_not_model_survive_an_update(kube: LiveKube, space: str) -> None:
    manifest = to_manifest(a_dpu(space)) | {"status": {}}
    manifest["spec"] |= {"fromTheFuture": {"kept": True}, "cluster": {"name": "c", "zone": "z"}}
    kube.apply(manifest, "test")
    kube.patch(Dpu, Key(space, "dpu-1"), {"status": {"phase": "Pending", "novel": 1, "conditions": [
        {"type": "A", "status": "True", "extra": "a"}, {"type": "B", "status": "False", "extra": "b"}]}}, status=True)
    dpu = kube.read_live(Dpu, Key(space, "dpu-1"))
    status = dpu.status or DpuStatus()
    dpu = kube.update_status(replace(dpu, status=replace(
        status, conditions=set_condition(status.conditions, "B", "True", "Because", "", 1e9))))
    kube.update(replace(dpu, spec=replace(dpu.spec, cluster=replace(dpu.spec.cluster, name="d"))))
    raw = msgspec.json.decode(kube.cluster.connection.request("GET", resource_path(Dpu, space, "dpu-1")))
    assert raw["spec"]["fromTheFuture"] == {"kept": True}
    assert raw["spec"]["cluster"] == {"name": "d", "zone": "z"}
    assert raw["status"]["novel"] == 1
    a, b = raw["status"]["conditions"]
    assert (a["extra"], b["extra"], b["status"], b["reason"]) == ("a", "b", "True", "Because")


def test_patches_of_every_kind_change_what_they_name(kube: LiveKube, space: str) -> None:
    made = kube.create(a_dpu(space, keep="1", go="1"))
    merged = kube.patch(Dpu, made.key, {"metadata": {"labels": {"go": None, "new": "1"}}})
    assert merged.metadata.labels == {"keep": "1", "new": "1"}
    with pytest.raises(Conflict):
        kube.patch(Dpu, made.key, {"spec": {"bfb": "x"}}, resource_version=made.metadata.resource_version)
    patched = kube.json_patch(Dpu, made.key, [{"op": "replace", "path": "/spec/bfb", "value": "y"}])
    assert patched.spec.bfb == "y"
    with pytest.raises(Invalid):
        kube.json_patch(Dpu, made.key, [{"op": "test", "path": "/spec/bfb", "value": "no"}])


def test_server_side_apply_knows_its_managers(kube: LiveKube, space: str) -> None:
    base: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": space}}
    kube.apply({**base, "data": {"a": "1"}}, "one")
    with pytest.raises(Conflict) as owned:
        kube.apply({**base, "data": {"a": "2"}}, "two")
    assert 'conflict with "one"' in str(owned.value)
    forced = kube.apply({**base, "data": {"a": "2"}}, "two", force=True)
    assert isinstance(forced, ConfigMap)
    assert forced.data == {"a": "2"}


def test_a_kind_without_a_class_is_applied_by_discovery(kube: LiveKube, space: str) -> None:
    made = kube.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                       "metadata": {"name": "r", "namespace": space}, "rules": []}, "test")
    assert isinstance(made, Unstructured)
    with pytest.raises(NotFound, match=r'no matches for kind "Nonsense" in version "nobody\.example/v1"'):
        kube.apply({"apiVersion": "nobody.example/v1", "kind": "Nonsense", "metadata": {"name": "x"}}, "test")


def test_deletion_waits_for_finalizers_and_propagates_to_owned_objects(kube: LiveKube, space: str) -> None:
    owner = kube.create(DpuSet(metadata=ObjectMeta(name="set", namespace=space),
                               spec=DpuSetSpec(dpu_template=DpuTemplate(spec=DpuTemplateSpec(bfb=BfbRef(name="b"))))))
    dpu = a_dpu(space)
    child = kube.create(replace(dpu, metadata=replace(
        dpu.metadata, finalizers=("test/hold",), owner_references=(owner.owner_reference(),))))
    kube.delete(DpuSet, owner.key)
    eventually(lambda: kube.read_live(Dpu, child.key).deleting)
    held = kube.read_live(Dpu, child.key)
    kube.update(replace(held, metadata=replace(held.metadata, finalizers=())))
    with pytest.raises(NotFound):
        kube.read_live(Dpu, child.key)
    again = kube.create(a_dpu(space))
    with pytest.raises(Conflict):
        kube.delete(Dpu, again.key, uid=child.metadata.uid)


def test_lists_are_paged_and_filtered_by_label(kube: LiveKube, space: str) -> None:
    for n in range(7):
        kube.create(ConfigMap(metadata=ObjectMeta(name=f"c{n}", namespace=space, labels={"odd": str(n % 2)})))
    odd = kube.list_live(ConfigMap, space, {"odd": "1"})
    assert [c.metadata.name for c in odd] == ["c1", "c3", "c5"]


# --- informers


class Phases:
    """A view: how many DPUs are in a phase."""

    kinds = (Dpu,)

    def __init__(self) -> None:
        self.count: dict[str, int] = {}

    def of(self, phase: str) -> int:
        return self.count.get(phase, 0)

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        for obj, by in ((old, -1), (new, 1)):
            if isinstance(obj, Dpu) and obj.status:
                self.count[obj.status.phase] = self.count.get(obj.status.phase, 0) + by
        return ("phases",)


def test_the_cache_follows_changes_and_tells_views_and_callbacks(kube: LiveKube, space: str) -> None:
    seen: list[tuple[str, str]] = []

    def callback(old: Object | None, new: Object | None) -> None:
        obj = new or old
        if obj and obj.metadata.namespace == space:
            seen.append(("add" if old is None else "delete" if new is None else "update", obj.metadata.name))

    touched: list[Hashable] = []
    kube.cluster.cache.touched = touched.append
    kube.cluster.watch(Dpu, callback)
    before = kube.view(Phases, "phases").of("Moon")
    one = kube.create(a_dpu(space, "one", rack="r1"))
    kube.create(a_dpu(space, "two", rack="r2"))
    eventually(lambda: len(kube.list(Dpu, space)) == 2)
    assert [d.metadata.name for d in kube.list(Dpu, space, {"rack": "r1"})] == ["one"]
    kube.update_status(replace(one, status=DpuStatus(phase="Moon")))
    eventually(lambda: kube.view(Phases, "phases").of("Moon") == before + 1)
    kube.patch(Dpu, one.key, {"metadata": {"labels": {"rack": "r2"}}})
    eventually(lambda: len(kube.list(Dpu, space, {"rack": "r2"})) == 2)
    assert kube.list(Dpu, space, {"rack": "r1"}) == []
    kube.delete(Dpu, one.key)
    eventually(lambda: kube.get(Dpu, one.key) is None)
    assert seen[0] == ("add", "one")
    assert seen[-1] == ("delete", "one")
    assert {"phases", (Dpu, one.key), (Dpu, None), (Dpu, "rack", "r2")} <= set(touched)


def test_one_informer_serves_a_kind_however_many_ask(kube: LiveKube, space: str) -> None:
    other = LiveKube(kube.cluster, "other")
    threads = [threading.Thread(target=k.list, args=(Dpu, space)) for k in (kube, other) * 3]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [i.kind for i in kube.cluster.informers()] == [Dpu]
    assert kube.cluster.informer(Dpu).lists == 1


def watch_from_version_1(informer: Informer) -> None:
    """Break the watch and have the next one ask for a version long gone."""
    real = informer._connection.stream
    asked: list[str] = []

    def stream(path: str, query: Mapping[str, str], silence_s: float) -> Any:
        asked.append(query["resourceVersion"])
        return real(path, {**query, "resourceVersion": "1"} if len(asked) == 1 else query, silence_s)

    informer._connection.stream = stream  # type: ignore[method-assign]
    eventually(lambda: informer._response is not None)
    informer._response.shutdown()  # type: ignore[union-attr]
    eventually(lambda: len(asked) >= 2)


def test_informers_go_on_after_the_api_server_was_away(planes: ControlPlanes, programs: dict[str, Path]) -> None:
    plane = planes.start("restarted", controllers=())
    cluster = open_cluster(Path(plane.kubeconfig), qps=0)
    try:
        kube = LiveKube(cluster)
        kube.create(ConfigMap(metadata=ObjectMeta(name="before", namespace="default")))
        assert kube.get(ConfigMap, Key("default", "before")) is not None
        planes.stop("restarted")
        with pytest.raises(Unavailable) as down:
            kube.read_live(ConfigMap, Key("default", "before"))
        assert str(down.value) == (f'Get "{plane.server}/api/v1/namespaces/default/configmaps/before": dial tcp '
                                   f'{plane.server.removeprefix("https://")}: connect: connection refused')
        assert kube.get(ConfigMap, Key("default", "before")) is not None, "the cache answers meanwhile"
        planes.restart("restarted")
        kube.create(ConfigMap(metadata=ObjectMeta(name="after", namespace="default")))
        eventually(lambda: kube.get(ConfigMap, Key("default", "after")) is not None, 40)
        lists = cluster.informer(ConfigMap).lists
        watch_from_version_1(cluster.informer(ConfigMap))  # a restarted server has not kept the changes since then
        kube.delete(ConfigMap, Key("default", "after"))
        eventually(lambda: kube.get(ConfigMap, Key("default", "after")) is None)
        assert cluster.informer(ConfigMap).lists == lists + 1, "410: listed again"
    finally:
        cluster.close()
        planes.remove("restarted")


def test_resync_calls_back_with_the_same_object_twice(kube: LiveKube, space: str) -> None:
    made = kube.create(a_dpu(space))
    same: list[bool] = []
    kube.cluster.watch(Dpu, lambda old, new: same.append(old is new and new is not None and new.key == made.key))
    eventually(lambda: kube.get(Dpu, made.key) is not None)
    kube.cluster.cache.resync()
    assert any(same)


# --- credentials, clusters, limits, events


def test_a_second_api_server_on_the_same_etcd_is_another_cluster(kube: LiveKube, dpu_plane: ControlPlane) -> None:
    clusters = LiveClusters()
    other = clusters.connect(dpu_plane.kubeconfig_text)
    assert clusters.connect(dpu_plane.kubeconfig_text) is other
    other.create(Secret(metadata=ObjectMeta(name="only-there", namespace="default"), string_data={"a": "b"}))
    assert other.get(Secret, Key("default", "only-there")) is not None
    assert kube.get(Secret, Key("default", "only-there")) is None
    assert other.version()["major"] == "1"
    clusters.close()


@pytest.mark.parametrize(("text", "says"), [
    ("", "no configuration has been provided"),
    ("{", "error loading config file: yaml"),
    ("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'https://x'}}]\ncurrent-context: none",
     "invalid configuration"),
])
def test_a_kubeconfig_that_cannot_be_used_says_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LiveClusters().connect(text)


def client(plane: ControlPlane, pair: Pair) -> LiveKube:
    text = kubeconfig("x", plane.server, Path(plane.ca_file).read_text(), "u", pair)
    return LiveClusters().connect(text)


def authority_of(plane: ControlPlane) -> Pair:
    folder = Path(plane.ca_file).parent
    return Pair((folder / "ca.crt").read_text(), (folder / "ca.key").read_text())


def test_a_user_without_permission_reads_which_verb_on_which_resource_is_missing(host: ControlPlane) -> None:
    nobody = client(host, issue(authority_of(host), "nobody"))
    with pytest.raises(ApiError) as refused:
        nobody.list_live(Dpu)
    assert refused.value.code == 403
    assert str(refused.value) == (
        'dpus.provisioning.dpu.nvidia.com is forbidden: User "nobody" cannot list resource "dpus" in API group '
        '"provisioning.dpu.nvidia.com" at the cluster scope')


def test_an_expired_or_foreign_certificate_is_named_as_such(host: ControlPlane) -> None:
    expired = client(host, issue(authority_of(host), "u", organizations=("system:masters",), expired=True))
    with pytest.raises(ApiError) as refused:
        expired.version()
    assert refused.value.code == 401
    stranger = kubeconfig("x", host.server, authority("other").certificate, "u", issue(authority_of(host), "u"))
    with pytest.raises(Unavailable, match="x509: certificate signed by unknown authority"):
        LiveClusters().connect(stranger).version()


def test_a_rotated_kubeconfig_file_is_read_again(host: ControlPlane, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(kubeconfig("x", host.server, Path(host.ca_file).read_text(), "u",
                               issue(authority_of(host), "u", organizations=("system:masters",), expired=True)))
    cluster = open_cluster(path)
    path.write_text(host.kubeconfig_text)
    assert LiveKube(cluster).version()["major"] == "1"


def test_an_exec_plugin_gives_the_token(host: ControlPlane, kube: LiveKube, tmp_path: Path) -> None:
    made = kube.cluster.connection.request(
        "POST", "/api/v1/namespaces/default/serviceaccounts",
        body=msgspec.json.encode({"metadata": {"name": "robot"}}))
    assert made
    token = msgspec.json.decode(kube.cluster.connection.request(
        "POST", "/api/v1/namespaces/default/serviceaccounts/robot/token", body=msgspec.json.encode({"spec": {}})))
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
              "status": {"token": token["status"]["token"]}}
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\ncat <<'END'\n{msgspec.json.encode(answer).decode()}\nEND\n")
    plugin.chmod(0o755)
    config = yaml.safe_load(host.kubeconfig_text)
    config["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin),
                                           "interactiveMode": "Never"}}
    robot = LiveClusters().connect(yaml.safe_dump(config))
    with pytest.raises(ApiError, match='User "system:serviceaccount:default:robot" cannot list'):
        robot.list_live(Pod)


def test_requests_are_held_to_the_rate_limit(host: ControlPlane) -> None:
    cluster = open_cluster(Path(host.kubeconfig), qps=50, burst=5)
    started = time.monotonic()
    for _ in range(15):
        cluster.version()
    assert time.monotonic() - started >= 9.5 / 50
    cluster.close()


def test_a_write_that_waited_while_the_lease_went_is_not_sent(host: ControlPlane, kube: LiveKube, space: str) -> None:
    """Nor is an Event that waited in the background."""
    leading = [True]

    def before(method: str) -> None:
        if method != "GET" and not leading[0]:
            raise NotLeading

    class Turn(TokenBucket):
        def wait(self) -> None:
            leading[0] = False

    about = kube.create(ConfigMap(metadata=ObjectMeta(namespace=space, name="about")))
    cluster = open_cluster(Path(host.kubeconfig), qps=0)
    cluster.connection.before = before
    mine = LiveKube(cluster, "leader", cached=False)
    mine.create(ConfigMap(metadata=ObjectMeta(namespace=space, name="in-time")))
    cluster.connection._limit = Turn(1.0, 1)
    with pytest.raises(NotLeading):
        mine.create(ConfigMap(metadata=ObjectMeta(namespace=space, name="late")))
    mine.event(about, "Normal", "Late", "too late")
    mine.close()
    assert mine.read_live(ConfigMap, about.key) == about, "reading goes on"
    cluster.close()
    assert [c.metadata.name for c in kube.list_live(ConfigMap, space) if "." not in c.metadata.name] == [
        "about", "in-time"]
    assert kube.list_live(Event, space) == []


def test_a_repeated_event_is_counted_not_repeated(kube: LiveKube, space: str) -> None:
    dpu = kube.create(a_dpu(space))
    for _ in range(3):
        kube.event(dpu, "Warning", "Broken", "it is broken")
    kube.event(dpu, "Normal", "Fine", "it is fine")
    kube.close()
    events = {e.reason: e for e in kube.list_live(Event, space)}
    assert {reason: e.count for reason, e in events.items()} == {"Broken": 3, "Fine": 1}
    assert events["Broken"].involved_object.uid == dpu.metadata.uid
    assert events["Broken"].source == {"component": "test"}


def test_two_candidates_share_a_real_lease(kube: LiveKube, space: str) -> None:
    a, b = Elector(Key(space, "leader"), "a"), Elector(Key(space, "leader"), "b")
    assert a.turn(kube, 0.0, 1.7e9)
    assert not b.turn(kube, 1.0, 1.7e9 + 1)
    assert a.turn(kube, 2.0, 1.7e9 + 2)
    a.release(kube, 1.7e9 + 3)
    assert b.turn(kube, 3.0, 1.7e9 + 3.25)
    lease = kube.read_live(Lease, Key(space, "leader")).spec
    assert (lease.holder_identity, lease.lease_transitions, lease.renew_time) == (
        "b", 1, "2023-11-14T22:13:23.250000Z")


def test_an_object_of_another_version_is_named_with_its_field(kube: LiveKube, space: str, cluster: Cluster) -> None:
    manifest = to_manifest(a_dpu(space))
    manifest["spec"]["bfb"] = {"now": "an object"}
    with pytest.raises(ApiError, match=rf"DPU {space}/dpu-1: Expected `str`, got `object` - at `\$.spec.bfb`"):
        kube.apply(manifest, "test")
    with pytest.raises(ApiError, match="are the CRDs of another version"):
        kube.get(Dpu, Key(space, "dpu-1"))
    kube.delete(Dpu, Key(space, "dpu-1"))


def test_no_key_of_a_kubeconfig_is_left_on_the_disk(host: ControlPlane, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    from_kubeconfig(host.kubeconfig_text)
    assert list(tmp_path.iterdir()) == []
