"""Steps of a timeline on a lab's parts, with the parts played by lists."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from api.lab_steps import EFFECTS_HERE, Steps
from scenarios.base import Delete, Step
from twin.backends.base import NotFound
from twin.model import faults as f
from twin.model import fleet_file
from twin.sim.troubles import Troubles


class Lab:
    """A story whose API servers and image proxy note what is done to them."""

    def __init__(self) -> None:
        fleet = fleet_file.from_data({"generate": {"racks": 1, "hosts_per_rack": 1}})
        self.log: list[str] = []
        self.proxy = SimpleNamespace(down={}, slow={}, status={}, instead={})
        planes = SimpleNamespace(stop=lambda name: self.log.append(f"{name} stops"),
                                 restart=lambda name: self.log.append(f"{name} is back"))
        self.story: Any = SimpleNamespace(
            troubles=Troubles(), lab=SimpleNamespace(control_planes=lambda: planes),
            recorder=SimpleNamespace(fault=lambda *_: None),
            program=SimpleNamespace(proxy=self.proxy, plan=SimpleNamespace(fleet=fleet), failing_jobs=()))
        self.steps = Steps(self.story)

    def begin(self, **fields: Any) -> Any:
        return self.steps._fault(TypeAdapter(f.Fault).validate_python(fields))


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_the_api_server_stops_once_and_is_back_when_the_last_outage_ends(lab: Lab) -> None:
    long, short = lab.begin(kind="api-down"), lab.begin(kind="api-down")
    short()
    assert lab.log == ["host stops"]
    long()
    assert lab.log == ["host stops", "host is back"]


@pytest.mark.parametrize(("kind", "trouble", "fields", "values"), [
    ("image-server-down", "down", [{}, {}], [True, True]),
    ("image-server-slow", "slow", [{"factor": 2}, {"factor": 3}], [2, 3]),
    ("image-server-status", "status", [{"status": 404}, {"status": 503}], [404, 503]),
    ("image-server-wrong-content", "instead", [{}, {"content": "x.bfb"}], ["garbage", "x.bfb"]),
])
def test_of_two_troubles_of_an_image_server_the_latest_that_lasts_rules(
        lab: Lab, kind: str, trouble: str, fields: list[dict[str, Any]], values: list[Any]) -> None:
    at_once = getattr(lab.proxy, trouble)
    long = lab.begin(kind=kind, server="any", **fields[0])
    short = lab.begin(kind=kind, server="*", **fields[1])
    assert at_once == {"any": values[1]}
    short()
    assert at_once == {"any": values[0]}
    long()
    assert at_once == {}


def test_jobs_fail_as_long_as_any_fault_says_so(lab: Lab) -> None:
    long, short = lab.begin(kind="job-fails", name="a"), lab.begin(kind="job-fails", name="a")
    short()
    assert lab.story.program.failing_jobs == (("a",),)
    long()
    assert lab.story.program.failing_jobs == ()


def test_a_deletion_of_what_is_not_there_is_refused_as_in_virtual_time(lab: Lab) -> None:
    def request(verb: str, path: str, body: bytes) -> None:
        raise NotFound(f"{verb} {path}: not found")

    lab.story.kube = SimpleNamespace(cluster=SimpleNamespace(
        manifest_path=lambda manifest: "path", connection=SimpleNamespace(request=request)))
    with pytest.raises(NotFound):
        lab.steps.do(Step(1.0, "delete", Delete(kind="DPU", name="x"), None, ""))


def test_every_fault_has_an_effect_here_on_hardware_or_a_reason_why_not() -> None:
    from api.lab_steps import HARDWARE, UNPLAYABLE

    assert {*HARDWARE, *UNPLAYABLE, *EFFECTS_HERE} == set(f.FAULTS)
