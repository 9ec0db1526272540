"""The quick check of typed writes against the long way through JSON: the same verdict in the same words."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from twin.backends.base import Invalid
from twin.model.kinds import to_manifest
from twin.model.meta import Condition, Object, ObjectMeta, replace
from twin.model.provisioning import (
    Bfb,
    BfbSpec,
    BfbStatus,
    BfbVersions,
    Dpu,
    DpuCluster,
    DpuClusterRef,
    DpuClusterSpec,
    DpuDevice,
    DpuDeviceSpec,
    DpuFlavor,
    DpuFlavorSpec,
    DpuNode,
    DpuNodeSpec,
    DpuRef,
    DpuSpec,
    DpuStatus,
    Grub,
    NodeEffect,
    NodeRebootMethod,
    ScriptReboot,
)
from twin.model.typed import as_sent, with_defaults
from twin.sim.admission import admit, admit_typed

META = ObjectMeta(name="a", namespace="n")
TIME = "2025-01-01T00:00:00Z"


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


CONDITIONS = st.lists(st.builds(
    Condition, type=some("Ready", "", "a/b"), status=some("True", "False", "Maybe"), reason=some("R", "", "not ok"),
    message=some("", "m"), last_transition_time=st.just(TIME)), max_size=2).map(tuple)
EFFECTS = st.none() | st.builds(
    NodeEffect, drain=some(None, True, False), hold=some(None, True), custom_label=some(None, {"a": "b"}))
DPUS = st.builds(Dpu, metadata=st.just(META), spec=st.builds(
    DpuSpec, dpu_node_name=some("n", "m"), dpu_device_name=some("d", "e", ""), bfb=some("b", ""),
    pci_address=some(None, "0000-2b-00", "2b:00"), node_effect=EFFECTS,
    cluster=st.builds(DpuClusterRef, name=some("", "c", "d"), node_labels=some({}, {"a": "b"})),
    bmc_ip=some("", "1.2.3.4")),
    status=st.builds(DpuStatus, phase=some("Initializing", "Ready", "Nope"), conditions=CONDITIONS,
                     dpu_install_interface=some("", "gNOI", "mock")))
BFBS = st.builds(Bfb, metadata=st.just(META), spec=st.none() | st.builds(
    BfbSpec, url=some("", "http://a/b.bfb", "https://a/c.bfb"), file_name=some(None, "a.bfb", "")),
    status=st.builds(BfbStatus, phase=some("Initializing", "Ready", "x"), versions=st.none() | st.builds(
        BfbVersions, bsp=some("", "1", "2"), atf=some("", "1"))))
CLUSTERS = st.builds(DpuCluster, metadata=st.just(META), spec=st.builds(
    DpuClusterSpec, type=some("static", "x", "x/y"), version=some("", "v1"), max_nodes=some(1, 0, 1000, 1001),
    kubeconfig=some("", "a", "b")))
DEVICES = st.builds(DpuDevice, metadata=st.just(META), spec=st.builds(
    DpuDeviceSpec, psid=some(None, "MT_0000000001", "x"), bmc_ip=some(None, "1.2.3.4", "1.2.3"),
    number_of_pfs=some(1, 2, 0)))
FLAVORS = st.builds(DpuFlavor, metadata=st.just(META), spec=st.builds(
    DpuFlavorSpec, grub=some(None, Grub(kernel_parameters=("a",))), dpu_mode=some("", "dpu", "x"),
    dpu_resources=some(None, {"cpu": 4}, {"cpu": "much"})))
NODES = st.builds(DpuNode, metadata=st.just(META), spec=st.builds(
    DpuNodeSpec, dpus=some((), (DpuRef(name="a"),), (DpuRef(name="a"), DpuRef(name=""))),
    node_reboot_method=some(NodeRebootMethod(gnoi={}), NodeRebootMethod(gnoi={}, external={}), NodeRebootMethod(),
                            NodeRebootMethod(script=ScriptReboot(name="")))))
STORED_BFBS = BFBS.filter(lambda bfb: bfb.spec is None or bfb.spec.url != "")  # an empty url is never stored
PAIRS = st.one_of(st.tuples(BFBS, STORED_BFBS),
                  *(st.tuples(kind, kind) for kind in (DPUS, CLUSTERS, DEVICES, FLAVORS, NODES)))


def _quick(new: Object, old: Object | None, subresource: str) -> list[tuple[str, str]]:
    try:
        admit_typed(type(new), new, old, subresource)
    except Invalid as error:
        return _causes(error)
    return []


def _long(new: Object, old: Object | None, subresource: str) -> list[tuple[str, str]]:
    kind = type(new)
    before = None if old is None else as_sent(kind, to_manifest(old), stored=True)
    try:
        admit(kind, as_sent(kind, to_manifest(new)), before, operation="UPDATE" if old else "CREATE",
              subresource=subresource)
    except Invalid as error:
        return _causes(error)
    return []


def _causes(error: Invalid) -> list[tuple[str, str]]:
    """Field and message of every error, without their order, which Go does not fix either."""
    return sorted((cause["field"], cause["message"]) for cause in error.details["causes"])


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_a_create_is_judged_alike_typed_and_as_json(pair: tuple[Object, Object]) -> None:
    new: Any = pair[0]
    if hasattr(new, "status"):
        new = replace(new, status=None)
    new = with_defaults(new)
    assert _quick(new, None, "") == _long(new, None, "")


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_an_update_is_judged_alike_typed_and_as_json(pair: tuple[Object, Object]) -> None:
    new, old = (with_defaults(obj) for obj in pair)
    assert _quick(new, old, "") == _long(new, old, "")


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.tuples(DPUS, DPUS), st.tuples(BFBS, BFBS)))
def test_a_status_write_is_judged_alike_typed_and_as_json(pair: tuple[Object, Object]) -> None:
    new, old = (with_defaults(obj) for obj in pair)
    assert _quick(new, old, "status") == _long(new, old, "status")


def test_defaults_of_a_typed_object_are_those_of_its_json() -> None:
    device = with_defaults(DpuDevice(metadata=META))
    assert device.spec.number_of_pfs == 1
    node = with_defaults(DpuNode(metadata=META))
    assert node.spec.node_reboot_method == NodeRebootMethod(gnoi={})
    cluster = with_defaults(DpuCluster(metadata=META, spec=DpuClusterSpec(type="static")))
    assert (cluster.spec.max_nodes, cluster.status.phase) == (1000, "Pending")


def test_what_is_empty_is_sent_where_go_sends_it() -> None:
    assert as_sent(Bfb, to_manifest(Bfb(metadata=META)))["spec"] == {"url": ""}
    dpu = Dpu(metadata=META, status=DpuStatus(conditions=(Condition(type="Ready", status="True"),)))
    assert as_sent(Dpu, to_manifest(dpu))["status"] == {
        "phase": "Initializing", "conditions": [{"type": "Ready", "status": "True", "message": "", "reason": ""}]}
