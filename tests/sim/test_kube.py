"""The API server's own rules: versions, preconditions, deletion, owners, names, dry runs, answers."""

from __future__ import annotations

import pytest

from tests.sim.api import SPACE, Api, config, key
from twin.backends.base import AlreadyExists, ApiError, Conflict, Invalid, NotFound
from twin.model.core import ConfigMap, Node, Pod, PodSpec
from twin.model.meta import Key, ObjectMeta, OwnerReference, replace
from twin.model.provisioning import Dpu, DpuDevice, DpuDeviceSpec
from twin.runtime.webhook import Webhook
from twin.sim.admission import Webhooks
from twin.sim.kube import ApiServer
from twin.sim.status import status_body

HOLD = ("example.com/hold",)


def device(name: str) -> DpuDevice:
    return DpuDevice(metadata=ObjectMeta(name=name, namespace=SPACE), spec=DpuDeviceSpec(pci_address="0000-2b-00"))


def owned(name: str, *owners: OwnerReference, **meta: object) -> ConfigMap:
    return config(name, owner_references=owners, **meta)  # type: ignore[arg-type]


# --- versions


def test_a_write_that_changes_nothing_is_no_write() -> None:
    api = Api()
    made = api.create(config("a", {"x": "1"}))
    before = api.server.resource_version
    assert api.update(replace(made)) is made
    assert api.update(replace(made, metadata=replace(made.metadata, labels={}))) is made
    assert api.server.patch(ConfigMap, key("a"), {"data": {"x": "1"}}, "me", 0) is made
    assert api.server.resource_version == before


def test_a_generation_counts_changes_of_what_is_asked_not_of_metadata_or_status() -> None:
    api = Api()
    made = api.create(device("d"))
    assert made.metadata.generation == 1
    labelled = api.update(replace(made, metadata=replace(made.metadata, labels={"a": "b"})))
    assert labelled.metadata.generation == 1
    changed = api.update(replace(labelled, spec=replace(labelled.spec, psid="MT_0000000001")))
    assert changed.metadata.generation == 2
    again = api.update(replace(changed, metadata=replace(changed.metadata, labels={}), spec=made.spec))
    assert again.metadata.generation == 3
    assert int(again.metadata.resource_version) == int(made.metadata.resource_version) + 3


def test_a_stale_write_is_refused_and_the_answer_is_a_real_servers() -> None:
    api = Api()
    made = api.create(device("d"))
    api.update(replace(made, spec=replace(made.spec, psid="MT_0000000001")))
    with pytest.raises(Conflict) as refused:
        api.update(replace(made, spec=replace(made.spec, psid="MT_0000000002")))
    assert status_body(refused.value) == {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict", "code": 409,
        "message": 'Operation cannot be fulfilled on dpudevices.provisioning.dpu.nvidia.com "d": the object has been '
                   "modified; please apply your changes to the latest version and try again",
        "details": {"name": "d", "group": "provisioning.dpu.nvidia.com", "kind": "dpudevices"}}


def test_a_write_to_an_object_that_was_made_anew_is_refused_by_its_uid() -> None:
    api = Api()
    old = api.create(config("a"))
    api.delete(old)
    new = api.create(config("a"))
    with pytest.raises(Conflict) as refused:
        api.update(replace(old, data={"x": "1"}))
    assert str(refused.value) == (
        'Operation cannot be fulfilled on configmaps "a": StorageError: invalid object, Code: 4, Key: '
        "/registry/configmaps/one/a, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: "
        f"{old.metadata.uid}, UID in object meta: {new.metadata.uid}")


def test_core_kinds_may_be_replaced_without_a_version_and_custom_resources_not() -> None:
    api = Api()
    api.create(config("a"))
    assert api.update(config("a", {"x": "1"})).data == {"x": "1"}
    api.create(device("d"))
    with pytest.raises(Invalid, match=r"metadata\.resourceVersion: Invalid value: 0: must be specified for an update"):
        api.update(replace(device("d"), spec=DpuDeviceSpec(pci_address="0000-2b-00", psid="x")))


@pytest.mark.parametrize(("do", "body"), [
    (lambda api: api.server.get(ConfigMap, key("x")),
     ("NotFound", 404, 'configmaps "x" not found', {"name": "x", "kind": "configmaps"})),
    (lambda api: api.create(config("a")),
     ("AlreadyExists", 409, 'configmaps "a" already exists', {"name": "a", "kind": "configmaps"})),
    (lambda api: api.create(config("a", namespace="none")),
     ("NotFound", 404, 'namespaces "none" not found', {"name": "none", "kind": "namespaces"})),
    (lambda api: api.delete(config("a"), uid="x"),
     ("Conflict", 409, ('Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (x) does not '
                        "match the UID in record (UID). The object might have been deleted and then recreated"),
      {"name": "a", "kind": "ConfigMap"})),
    (lambda api: api.delete(config("a"), resource_version="1"),
     ("Conflict", 409, ('Operation cannot be fulfilled on ConfigMap "a": the ResourceVersion in the precondition (1) '
                        "does not match the ResourceVersion in record (3). The object might have been modified"),
      {"name": "a", "kind": "ConfigMap"})),
])
def test_refusals_are_worded_as_a_real_servers(do: object, body: tuple[object, ...]) -> None:
    api = Api()
    made = api.create(config("a"))
    with pytest.raises(ApiError) as refused:
        do(api)  # type: ignore[operator]
    status = status_body(refused.value)
    message = status["message"].replace(made.metadata.uid, "UID")
    assert (status["reason"], status["code"], message, status["details"]) == body


def test_a_name_is_generated_and_a_taken_one_is_not_the_clients_business(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    made = api.create(ConfigMap(metadata=ObjectMeta(namespace=SPACE, generate_name="x" * 70)))
    assert (len(made.metadata.name), made.metadata.name[:58]) == (63, "x" * 58)
    monkeypatch.setattr(ApiServer, "_suffix", lambda self, attempt: "same" if attempt < 5 else f"new{attempt}")
    names = [api.create(ConfigMap(metadata=ObjectMeta(namespace=SPACE, generate_name="n-"))).metadata.name
             for _ in range(4)]
    assert names == ["n-same", "n-new5", "n-new6", "n-new7"]
    with pytest.raises(AlreadyExists):
        api.create(ConfigMap(metadata=ObjectMeta(namespace=SPACE, generate_name="n-")))
    with pytest.raises(Invalid, match="name or generateName is required"):
        api.create(ConfigMap(metadata=ObjectMeta(namespace=SPACE)))


def test_a_dry_run_judges_and_stores_nothing() -> None:
    api = Api()
    api.create(config("a"))
    before = api.server.resource_version
    dry = api.server.dry_run()
    assert dry.create(config("b"), "me", 0).metadata.uid
    assert dry.patch(ConfigMap, key("a"), {"data": {"x": "1"}}, "me", 0).data == {"x": "1"}
    dry.delete(ConfigMap, key("a"), "me", 0)
    with pytest.raises(NotFound):
        dry.get(ConfigMap, key("a"))
    assert (list(api.server.table(ConfigMap)), api.server.resource_version) == ([key("a")], before)
    assert api.now(config("a")).data == {}


def test_unknown_fields_are_dropped_or_refused_as_field_validation_says() -> None:
    api = Api()
    manifest = {"apiVersion": DpuDevice.api_version(), "kind": "DPUDevice",
                "metadata": {"name": "d", "namespace": SPACE}, "spec": {"pciAddress": "0000-2b-00", "bogus": 1}}
    with pytest.raises(ApiError, match=r'strict decoding error: unknown field "spec\.bogus"') as refused:
        api.server.create_manifest(manifest, "me", 0, "Strict")
    assert refused.value.code == 400
    assert api.server.create_manifest(manifest, "me", 0, "Warn") == api.now(device("d"))


# --- deletion


def test_an_object_with_finalizers_stays_marked_until_the_last_is_gone() -> None:
    api = Api()
    held = api.create(config("a", finalizers=HOLD))
    api.delete(held)
    marked = api.now(held)
    assert (marked.deleting, marked.metadata.deletion_grace_period_seconds) == (True, 0)
    api.delete(held)
    assert api.now(held) is marked
    api.update(replace(marked, metadata=replace(marked.metadata, finalizers=())))
    assert api.now(held) is None


def test_a_pod_on_a_node_gets_its_grace_and_one_on_none_goes_at_once() -> None:
    api = Api()
    for node, there in (("h1", True), ("", False)):
        pod = api.create(Pod(metadata=ObjectMeta(name=f"p{node}", namespace=SPACE), spec=PodSpec(
            node_name=node, termination_grace_period_seconds=20)))
        api.delete(pod)
        assert (api.now(pod) is not None) is there
    assert api.server.get(Pod, key("ph1")).metadata.deletion_grace_period_seconds == 20


# --- owners


def test_dependents_go_in_the_background_after_their_owner() -> None:
    api = Api(gc_ns=10**9)
    owner = api.create(config("owner"))
    child = api.create(owned("child", owner.owner_reference()))
    grandchild = api.create(owned("grandchild", child.owner_reference()))
    api.delete(owner)
    assert (api.now(owner), api.now(child)) == (None, child)
    api.run(5)
    assert (api.now(child), api.now(grandchild)) == (None, None)


def test_an_owner_deleted_in_the_foreground_waits_for_what_blocks_it() -> None:
    api = Api()
    owner = api.create(config("owner"))
    blocking = api.create(owned("blocking", owner.owner_reference(), finalizers=HOLD))
    free = api.create(owned("free", owner.owner_reference(block=False)))
    api.delete(owner, propagation="Foreground")
    api.run()
    assert api.now(owner).metadata.finalizers == ("foregroundDeletion",)
    assert api.now(blocking).deleting
    assert api.now(free) == free
    left = api.now(blocking)
    api.update(replace(left, metadata=replace(left.metadata, finalizers=())))
    api.run()
    assert (api.now(owner), api.now(blocking), api.now(free)) == (None, None, None)


def test_an_orphaned_dependent_loses_its_reference_and_stays() -> None:
    api = Api()
    owner = api.create(config("owner"))
    child = api.create(owned("child", owner.owner_reference()))
    api.delete(owner, propagation="Orphan")
    assert api.now(owner).metadata.finalizers == ("orphan",)
    api.run()
    assert (api.now(owner), api.now(child).metadata.owner_references) == (None, ())


def test_the_last_word_on_propagation_counts() -> None:
    api = Api(gc_ns=10**9)
    owner = api.create(config("owner", finalizers=HOLD))
    api.delete(owner, propagation="Foreground")
    api.delete(owner, propagation="Orphan")
    assert api.now(owner).metadata.finalizers == (*HOLD, "orphan")
    api.delete(owner, propagation="Background")
    assert api.now(owner).metadata.finalizers == HOLD


def test_a_dependent_of_two_stays_with_the_one_that_is_left() -> None:
    api = Api()
    one, two = api.create(config("one")), api.create(config("two"))
    child = api.create(owned("child", one.owner_reference(controller=False), two.owner_reference(controller=False)))
    api.delete(one)
    api.run()
    assert [r.name for r in api.now(child).metadata.owner_references] == ["two"]
    api.delete(two, propagation="Foreground")
    api.run()
    assert api.now(child) is None


@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
def test_the_collector_tries_again_while_a_webhook_refuses(propagation: str) -> None:
    """The owner's finalizer, the dependent's reference or the dependent itself: each write of the collector's."""
    hook = Webhook("v", "/v", ConfigMap, ("UPDATE", "DELETE"), False, lambda operation, obj, old, reader: obj)
    api = Api(webhooks=Webhooks((hook,)))
    owner = api.create(config("owner"))
    child = api.create(owned("child", owner.owner_reference(), finalizers=() if propagation == "Orphan" else HOLD))
    api.delete(owner, propagation=propagation)
    api.server.webhooks.down = "connection refused"
    api.run(30)
    assert (api.now(owner) is None) == (propagation == "Background")
    assert (api.now(child).deleting, len(api.now(child).metadata.owner_references)) == (False, 1)
    api.server.webhooks.down = ""
    api.run(30)
    if propagation != "Orphan":
        assert api.now(child).deleting
        left = api.now(child)
        api.update(replace(left, metadata=replace(left.metadata, finalizers=())))
        api.run(30)
    assert api.now(owner) is None
    assert (api.now(child) is None) == (propagation != "Orphan")


def test_an_owner_goes_after_a_webhook_refused_its_last_finalizer() -> None:
    """What blocked it goes meanwhile, by a write that is not the collector's and must not fail for it."""
    hook = Webhook("v", "/v", ConfigMap, ("UPDATE",), False, lambda operation, obj, old, reader: obj)
    api = Api(webhooks=Webhooks((hook,)))
    owner = api.create(config("owner"))
    pod = api.create(Pod(metadata=ObjectMeta(name="p", namespace=SPACE, owner_references=(owner.owner_reference(),),
                                             finalizers=HOLD), spec=PodSpec()))
    api.delete(owner, propagation="Foreground")
    api.run(30)
    api.server.webhooks.down = "connection refused"
    left = api.now(pod)
    api.update(replace(left, metadata=replace(left.metadata, finalizers=())))
    assert api.now(pod) is None
    assert api.now(owner).metadata.finalizers == ("foregroundDeletion",)
    api.server.webhooks.down = ""
    api.run(30)
    assert api.now(owner) is None


@pytest.mark.parametrize("case", ["never there", "another uid", "another namespace"])
def test_an_object_made_for_an_owner_that_is_not_there_is_collected(case: str) -> None:
    api = Api()
    owner = config("owner", namespace="two" if case == "another namespace" else SPACE)
    ref = OwnerReference(api_version="v1", kind="ConfigMap", name="owner", uid="gone")
    if case != "never there":
        made = api.create(owner)
        ref = replace(ref, uid="other" if case == "another uid" else made.metadata.uid)
    child = api.create(owned("child", ref))
    api.run()
    assert api.now(child) is None


def test_a_cluster_wide_owner_holds_objects_of_any_namespace() -> None:
    api = Api()
    node = api.create(Node(metadata=ObjectMeta(name="n")))
    child = api.create(owned("child", node.owner_reference()))
    api.run()
    assert api.now(child) == child
    api.server.delete(Node, Key("", "n"), "me", api.env.now)
    api.run()
    assert api.now(child) is None


def test_an_owner_of_a_kind_without_a_class_counts() -> None:
    api = Api()
    made = api.server.create_manifest({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {
        "name": "t", "namespace": SPACE}}, "me", 0)
    child = api.create(owned("child", OwnerReference(
        api_version="example.com/v1", kind="Thing", name="t", uid=made.metadata.uid)))
    api.run()
    assert api.now(child) == child
    api.server.delete("Thing.example.com", key("t"), "me", api.env.now)
    api.run()
    assert api.now(child) is None


def test_a_bare_api_server_collects_nothing() -> None:
    api = Api(gc_ns=None)
    owner = api.create(config("owner"))
    child = api.create(owned("child", owner.owner_reference()))
    api.delete(owner)
    api.run(60)
    assert api.now(child) == child


def test_a_missing_object_is_named_by_resource_and_group() -> None:
    with pytest.raises(NotFound, match=r'dpus\.provisioning\.dpu\.nvidia\.com "d" not found'):
        Api().server.get(Dpu, key("d"))
