"""The person on call."""

from __future__ import annotations

from neighbours import SPACE, Town

from twin.actors.person import Reboots, Releases
from twin.backends.base import Operation
from twin.model.fleet import Person
from twin.model.meta import ObjectMeta, replace
from twin.model.names import Annotation
from twin.model.provisioning import Dpu, DpuNode, DpuSpec

REBOOT, HOLD = Annotation.EXTERNAL_REBOOT_REQUIRED, Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT


class Story:
    """A DPUNode h1 and a DPU d1; power cycles end when the test says so."""

    def __init__(self, habits: Person = Person()) -> None:
        self.t = t = Town()
        self.cycles: list[Operation] = []
        t.add(lambda k: Reboots(k, t.clock, t.durations, self.power_cycle, habits))
        t.add(lambda k: Releases(k, t.clock, t.durations, habits))
        t.create(DpuNode(metadata=ObjectMeta(namespace=SPACE, name="h1")))
        t.create(Dpu(metadata=ObjectMeta(namespace=SPACE, name="d1"),
                     spec=DpuSpec(dpu_node_name="h1", dpu_device_name="d1", bfb="b")))

    def power_cycle(self, host: str) -> Operation:
        assert host == "h1"
        self.cycles.append(Operation("cycle"))
        return self.cycles[-1]

    def ask(self, kind: type[Dpu] | type[DpuNode], annotation: str) -> None:
        obj = self.t.get(kind, "d1" if kind is Dpu else "h1")
        self.t.update(obj, metadata=replace(obj.metadata, annotations={annotation: "true"}))

    def annotation(self, kind: type[Dpu] | type[DpuNode], name: str) -> str | None:
        return self.t.get(kind, "d1" if kind is Dpu else "h1").metadata.annotations.get(name)


def test_a_reboot_request_is_removed_only_after_the_host_is_back() -> None:
    s = Story()
    s.ask(DpuNode, REBOOT)
    s.t.run(899)
    assert s.cycles == []
    s.t.run(1000)
    assert len(s.cycles) == 1
    assert s.annotation(DpuNode, REBOOT) == "true"

    s.cycles[0].succeed()
    s.t.run(1)

    assert s.annotation(DpuNode, REBOOT) is None


def test_each_request_is_answered_by_a_power_cycle_of_its_own() -> None:
    s = Story()
    for n in (1, 2):
        s.ask(DpuNode, REBOOT)
        s.t.run(1000)
        assert len(s.cycles) == n
        s.cycles[-1].succeed()
        s.t.run(1)

    draws = [d for d in s.t.draws if d[0] == "manual-reboot"]
    assert len(draws) == len(set(draws)) == 2


def test_a_request_that_is_withdrawn_in_time_is_not_answered() -> None:
    s = Story()
    s.ask(DpuNode, REBOOT)
    s.t.run(100)

    node = s.t.get(DpuNode, "h1")
    s.t.update(node, metadata=replace(node.metadata, annotations={}))
    s.t.run(5000)

    assert s.cycles == []


def test_a_hold_is_released_by_setting_it_to_false() -> None:
    s = Story()
    s.ask(Dpu, HOLD)
    s.t.run(599)
    assert s.annotation(Dpu, HOLD) == "true"
    s.t.run(2)

    assert s.annotation(Dpu, HOLD) == "false"


def test_whoever_follows_the_documents_removes_the_annotation_again_and_again() -> None:
    s = Story(Person(release="remove"))
    for _ in range(2):
        s.ask(Dpu, HOLD)
        s.t.run(601)
        assert s.annotation(Dpu, HOLD) is None


def test_nobody_reacts_where_nobody_is() -> None:
    s = Story(Person(reboots=False, releases=False))
    s.ask(DpuNode, REBOOT)
    s.ask(Dpu, HOLD)

    s.t.run(100_000)

    assert s.cycles == []
    assert s.annotation(Dpu, HOLD) == "true"


def test_a_fleet_may_say_how_long_its_people_take() -> None:
    s = Story(Person(after_s=30))
    s.ask(DpuNode, REBOOT)
    s.ask(Dpu, HOLD)

    s.t.run(31)

    assert len(s.cycles) == 1
    assert s.annotation(Dpu, HOLD) == "false"
