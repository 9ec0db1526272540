"""What the chronicle marks: known issues of which nothing else in a run shows a trace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from tests.sim.api import SPACE, Api
from tests.sim.hardware import Rig
from twin.model.core import Node
from twin.model.meta import Key, ObjectMeta, replace
from twin.model.names import Label
from twin.model.provisioning import (
    BfbRef,
    Dpu,
    DpuDevice,
    DpuDeviceSpec,
    DpuNode,
    DpuNodeSpec,
    DpuRef,
    DpuSet,
    DpuSetSpec,
    DpuSetStrategy,
    DpuSpec,
    DpuStatus,
    DpuTemplate,
    DpuTemplateSpec,
    LabelSelector,
    Taint,
)
from twin.sim.chronicle import Chronicle
from twin.sim.clock import SECOND
from twin.sim.host import BOOTING, OFF, UP
from twin.sim.trace import FOREIGN_TAINT, WANTED, SpanRow, Wish

OURS = Taint(key="dpu", value="provisioning", effect="NoSchedule")
THEIRS = Taint(key="dpu", value="mine", effect="NoSchedule")
A, B = {"pool": "a"}, {"pool": "b"}


@pytest.fixture
def rig() -> Rig:
    return Rig(dpus=2)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture(autouse=True)
def chronicle(api: Api, rig: Rig) -> Chronicle:
    return Chronicle(rig.fleet, api.server, api.server.trace)


def a_set(bfb: str = "old", **selectors: Any) -> DpuSetSpec:
    return DpuSetSpec(strategy=DpuSetStrategy(type="RollingUpdate"), **selectors,
                      dpu_template=DpuTemplate(spec=DpuTemplateSpec(bfb=BfbRef(name=bfb))))


def with_device(api: Api, name: str = "d1", node: str = "n1", labels: Mapping[str, str] | None = None) -> DpuNode:
    api.create(DpuDevice(metadata=meta(name, {Label.DPUNODE_NAME: node}), spec=DpuDeviceSpec(pci_address="0000-2b-00")))
    made: DpuNode = api.create(DpuNode(metadata=meta(node, labels), spec=DpuNodeSpec(dpus=(DpuRef(name=name),))))
    return made


def dpu_of(dpuset: DpuSet, name: str = "d1", node: str = "n1") -> Dpu:
    owned = replace(meta(name), owner_references=(dpuset.owner_reference(),))
    return Dpu(metadata=owned, spec=DpuSpec(
        dpu_node_name=node, dpu_device_name=name, bfb=dpuset.spec.dpu_template.spec.bfb.name))


def meta(name: str, labels: Mapping[str, str] | None = None) -> ObjectMeta:
    return ObjectMeta(namespace=SPACE, name=name, labels=labels or {})


@pytest.mark.parametrize(("writes", "marked"), [
    ([("dpu", (OURS,)), ("dpu", ())], False),
    ([("me", (THEIRS,)), ("dpu", ())], True),
    ([("me", (OURS,)), ("dpu", ())], True),
    ([("me", (THEIRS,)), ("me", ())], False),
    ([("dpu", (OURS,)), ("me", ()), ("me", (OURS,)), ("dpu", ())], True),
    ([("me", (THEIRS,)), ("me", (THEIRS, OURS)), ("me", (OURS,))], False),
])
def test_a_taint_is_foreign_if_the_dpu_controller_takes_it_and_did_not_put_it(
        api: Api, writes: list[tuple[str, tuple[Taint, ...]]], marked: bool) -> None:
    node = api.create(Node(metadata=ObjectMeta(name="n1")))
    for by, taints in writes:
        node = api.server.update(replace(node, spec=replace(node.spec, taints=taints)), by, api.env.now)

    assert list(api.server.trace.marks) == [(FOREIGN_TAINT, "n1")] * marked


def test_a_node_that_is_made_anew_has_no_taint_of_the_dpu_controller(api: Api) -> None:
    for by in ("dpu", "me"):
        node = api.create(Node(metadata=ObjectMeta(name="n1")))
        node = api.server.update(replace(node, spec=replace(node.spec, taints=(OURS,))), by, api.env.now)
        api.delete(node)
    node = api.create(Node(metadata=ObjectMeta(name="n1")))
    node = api.update(replace(node, spec=replace(node.spec, taints=(OURS,))))
    api.server.update(replace(node, spec=replace(node.spec, taints=())), "dpu", api.env.now)

    assert list(api.server.trace.marks) == [(FOREIGN_TAINT, "n1")]


@pytest.mark.parametrize(("before", "after", "device", "made", "wanted"), [
    (B, A, {Label.DPUNODE_NAME: "n1", "size": "big"}, False, True),
    (A, {**A, "more": "x"}, {Label.DPUNODE_NAME: "n1", "size": "big"}, False, False),
    (A, B, {Label.DPUNODE_NAME: "n1", "size": "big"}, False, False),
    (B, A, {Label.DPUNODE_NAME: "n1"}, False, False),
    (B, A, {"size": "big"}, False, False),
    (B, A, {Label.DPUNODE_NAME: "n1", "size": "big"}, True, False),
], ids=["newly selected", "selected before", "not selected", "another device", "no device of it yet", "has its DPU"])
def test_a_dpu_is_wanted_from_the_label_on_that_has_a_dpuset_select_its_device(
        api: Api, before: Mapping[str, str], after: Mapping[str, str], device: Mapping[str, str], made: bool,
        wanted: bool) -> None:
    api.create(DpuSet(metadata=meta("set"), spec=DpuSetSpec(
        dpu_node_selector=LabelSelector(match_labels=A), dpu_selector={"size": "big"})))
    api.create(DpuDevice(metadata=meta("d1", device), spec=DpuDeviceSpec(pci_address="0000-2b-00")))
    node = api.create(DpuNode(metadata=meta("n1", before), spec=DpuNodeSpec(dpus=(DpuRef(name="d1"),))))
    if made:
        api.create(Dpu(metadata=meta("d1"), spec=DpuSpec(dpu_node_name="n1", dpu_device_name="d1", bfb="b")))
    api.run(5.0)
    api.update(replace(node, metadata=replace(node.metadata, labels=after)))

    assert api.server.trace.marks == ({(WANTED, "d1"): 5.0} if wanted else {})
    assert (Wish(5.0, wanted=True) in api.server.trace.wishes.get("d1", ())) == wanted


@pytest.mark.parametrize("back", [a_set("old"), replace(a_set("new"), strategy=DpuSetStrategy(type="OnDelete"))],
                         ids=["the old template", "no roll-out"])
def test_a_roll_out_that_is_taken_back_withdraws_what_it_asked_for(api: Api, back: DpuSetSpec) -> None:
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set()))
    with_device(api)
    api.create(dpu_of(dpuset))
    for spec in (a_set("new"), back):
        api.run(5.0)
        dpuset = api.update(replace(dpuset, spec=spec))

    assert api.server.trace.wishes == {
        "d1": [Wish(0.0, wanted=True), Wish(5.0, wanted=True), Wish(10.0, wanted=False)]}
    assert api.server.trace.waits(20.0) == [SpanRow("d1", 5.0, 10.0, "maxUnavailable DPUSet/one/set")]


def test_a_dpuset_that_is_deleted_withdraws_what_it_asked_for(api: Api) -> None:
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set()))
    with_device(api)
    api.create(dpu_of(dpuset))
    api.run(5.0)
    dpuset = api.update(replace(dpuset, spec=a_set("new")))
    api.run(5.0)
    api.delete(dpuset)

    assert api.server.trace.wishes["d1"][:3] == [
        Wish(0.0, wanted=True), Wish(5.0, wanted=True), Wish(10.0, wanted=False)]


@pytest.mark.parametrize(("labels", "device", "wanted"), [
    (A, True, True), (B, True, False), (A, False, False)], ids=["comes again", "not selected", "no device any more"])
def test_a_dpu_that_went_is_wanted_as_long_as_it_will_come_again(
        api: Api, labels: Mapping[str, str], device: bool, wanted: bool) -> None:
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set(dpu_node_selector=LabelSelector(match_labels=A))))
    with_device(api, labels=labels)
    dpu = api.create(dpu_of(dpuset))
    if not device:
        api.server.delete(DpuDevice, dpu.key, "me", api.env.now)
    api.run(5.0)
    api.delete(dpu)

    assert api.server.trace.wishes["d1"] == [Wish(0.0, wanted=True)] + [Wish(5.0, wanted=False)] * (not wanted)


def test_a_dpu_is_asked_for_by_the_dpuset_that_makes_it_and_by_no_other(api: Api) -> None:
    api.run(1.0)
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set()))
    api.run(5.0)
    api.create(DpuSet(metadata=meta("other"), spec=a_set()))
    api.run(5.0)
    api.create(dpu_of(dpuset))

    assert api.server.trace.wishes == {"d1": [Wish(1.0, wanted=True)]}


@pytest.mark.parametrize(("before", "after"), [
    ({"dpu_node_selector": LabelSelector(match_labels=B)}, {"dpu_node_selector": LabelSelector(match_labels=A)}),
    ({"dpu_node_selector": LabelSelector(match_labels=B)}, {}),
    ({"dpu_selector": {"size": "big"}}, {}),
], ids=["other nodes", "all nodes", "all devices"])
def test_a_selector_asks_for_what_it_selects_anew_and_no_longer_for_what_it_leaves(
        api: Api, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set(**before)))
    with_device(api, labels=A)
    with_device(api, "d2", "n2", labels=A)
    api.create(Dpu(metadata=meta("d2"), spec=DpuSpec(dpu_node_name="n2", dpu_device_name="d2", bfb="old")))
    for selectors in (after, before):
        api.run(5.0)
        dpuset = api.update(replace(dpuset, spec=a_set(**selectors)))

    assert api.server.trace.wishes == {"d1": [Wish(5.0, wanted=True), Wish(10.0, wanted=False)]}


def test_a_label_on_a_device_asks_for_its_dpu(api: Api) -> None:
    api.create(DpuSet(metadata=meta("set"), spec=a_set(dpu_selector={"size": "big"})))
    with_device(api)
    device = api.server.table(DpuDevice)[Key(SPACE, "d1")]
    api.run(5.0)
    device = api.update(replace(device, metadata=replace(
        device.metadata, labels={**device.metadata.labels, "size": "big"})))
    api.run(5.0)
    api.delete(device)

    assert api.server.trace.wishes == {"d1": [Wish(5.0, wanted=True), Wish(10.0, wanted=False)]}


def test_the_wait_for_a_turn_ends_with_the_deletion_and_not_with_the_phase(api: Api) -> None:
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set()))
    with_device(api)
    dpu = dpu_of(dpuset)
    dpu = api.create(replace(dpu, metadata=replace(dpu.metadata, finalizers=("dpu",))))
    api.run(5.0)
    api.update(replace(dpuset, spec=a_set("new")))
    api.run(5.0)
    api.delete(dpu)
    api.run(5.0)

    assert api.now(dpu).deleting
    assert api.server.trace.waits(20.0) == [SpanRow("d1", 5.0, 10.0, "maxUnavailable DPUSet/one/set")]


def test_a_fault_puts_only_dpus_that_are_there_out_of_service(api: Api, rig: Rig, chronicle: Chronicle) -> None:
    first, _ = (card.name for card in rig.host.record.cards)
    api.create(dpu_of(DpuSet(metadata=meta("set"), spec=a_set()), first))
    chronicle.fault_began(rig.host, 5 * SECOND)
    chronicle.fault_ended(rig.host, 9 * SECOND)

    assert api.server.trace.outages(20.0) == [SpanRow(first, 5.0, 9.0, "fault")]


def rebooting(api: Api, rig: Rig, chronicle: Chronicle, *phases: tuple[float, str]) -> list[SpanRow]:
    """The outages of two DPUs on a host that reboots from 10 s to 20 s; `phases` are those of the first."""
    dpuset = api.create(DpuSet(metadata=meta("set"), spec=a_set()))
    first, second = (api.create(dpu_of(dpuset, card.name)) for card in rig.host.record.cards)
    moves: dict[float, Any] = {at_s: partial(enter, api, first.key, phase) for at_s, phase in phases}
    for at_s in sorted({*moves, 10.0, 20.0}):
        api.run(at_s - api.env.now / SECOND)
        if at_s in (10.0, 20.0):
            rig.host.become(BOOTING if at_s == 10.0 else UP)
            (chronicle.host_down if at_s == 10.0 else chronicle.host_up)(rig.host, api.env.now)
        if at_s in moves:
            moves[at_s]()
    assert [o for o in api.server.trace.outages(100.0) if o.dpu == second.metadata.name] == [
        SpanRow(second.metadata.name, 10.0, 20.0, "reboot")]
    return [o for o in api.server.trace.outages(100.0) if o.dpu == first.metadata.name]


def enter(api: Api, key: Key, phase: str) -> None:
    dpu = api.server.table(Dpu)[key]
    assert isinstance(dpu, Dpu)
    api.update(replace(dpu, status=replace(dpu.status or DpuStatus(), phase=phase)), status=True)


@pytest.mark.parametrize(("phases", "outages"), [
    ([], [(10.0, 20.0, "reboot")]),
    ([(5.0, "Rebooting"), (25.0, "Ready")], [(5.0, 25.0, "reboot")]),
    ([(5.0, "Rebooting"), (15.0, "Ready")], [(5.0, 20.0, "reboot")]),
    ([(5.0, "OS Installing"), (25.0, "Ready")], [(5.0, 25.0, "install")]),
    ([(5.0, "OS Installing"), (15.0, "Ready")], [(5.0, 15.0, "install"), (15.0, 20.0, "reboot")]),
    ([(15.0, "OS Installing"), (25.0, "Ready")], [(10.0, 15.0, "reboot"), (15.0, 25.0, "install")]),
])
def test_every_dpu_of_a_host_that_reboots_is_out_of_service_once(
        api: Api, rig: Rig, chronicle: Chronicle, phases: list[tuple[float, str]],
        outages: list[tuple[float, float, str]]) -> None:
    assert [o[1:] for o in rebooting(api, rig, chronicle, *phases)] == outages


def test_a_host_without_power_does_not_reboot(api: Api, rig: Rig, chronicle: Chronicle) -> None:
    for card in rig.host.record.cards:
        api.create(dpu_of(DpuSet(metadata=meta("set"), spec=a_set()), card.name))
    rig.host.become(OFF)
    chronicle.host_down(rig.host, 5 * SECOND)

    assert api.server.trace.outages(20.0) == []
