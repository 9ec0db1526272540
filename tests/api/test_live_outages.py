"""What `live` needs is stopped and started again in the middle of a rollout: it goes on, and installs nothing twice.

API servers and etcd are real programs of the lab, ended by SIGKILL and started again on the same data, or stopped by
SIGSTOP and continued; DPF_TWIN_SEED says at which instants. DMS is ended on its host: open calls break, new ones are
refused, what it had received is lost.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_parts import DPUS, LASTING, READY, ROOT, SPACE, Look, Supervised, apply, eventually, installs, lab_of_two

from api.live_log import Log
from api.rehearse_lab import LabStory
from reports.diff_runs import history
from reports.folder import RunFolder, read
from reports.look import Query, get
from scenarios.load import load_scenario
from scenarios.result import Run
from twin.backends.base import Settings
from twin.backends.lab.lab import Lab
from twin.model.provisioning import PHASES, Phase
from twin.sim.host import SimDpu

pytestmark = [pytest.mark.slow, pytest.mark.lab]
SEED = int(os.environ.get("DPF_TWIN_SEED", "1"))
HOST_API, ETCD, HARDWARE = "host-apiserver", "etcd", "hosts"
DPU_API = f"{SPACE}-dpu-cluster-apiserver"
INSTANTS = (Phase.NODE_EFFECT, Phase.OS_INSTALLING, Phase.REBOOTING, Phase.DPU_CLUSTER_CONFIG)
"""One outage in each, at a random moment of it."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_of_two(tmp_path / "lab") as lab:
        yield lab


def beyond(phases: dict[str, str], phase: str) -> bool:
    """Is some DPU in this phase, or beyond it?"""
    order = [PHASES.index(p) for p in phases.values() if p in PHASES]
    return bool(order) and max(order) >= PHASES.index(phase)


def killed(lab: Lab, name: str, seconds: float) -> None:
    """SIGKILL, and after a while the same program on the same data."""
    if lab.processes.pid(name) is None:
        return  # a DPU cluster that is not there yet
    lab.processes.stop(name, with_signal=signal.SIGKILL)
    time.sleep(seconds)
    lab.processes.again(name)


def stopped(lab: Lab, name: str, seconds: float) -> None:
    """SIGSTOP: nobody answers, and connections stay open."""
    pid = lab.processes.pid(name)
    if pid is None:
        return
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(("how", "name"), [
    (killed, HOST_API), (killed, ETCD), (killed, DPU_API), (stopped, HOST_API), (stopped, ETCD), (stopped, HARDWARE),
], ids=lambda value: getattr(value, "__name__", value))
def test_a_rollout_goes_on_after_outages_of(lab: Lab, how: Callable[[Lab, str, float], None], name: str,
                                            tmp_path: Path) -> None:
    """Four outages of some seconds: the same process goes on and installs each DPU once.

    An attempt whose writes fail after OS.Activate is made again, as upstream makes it, unless the policy has it wait
    for the API server. The run folder tells the whole story, whatever was not heard meanwhile.
    """
    words = ("--policy", "no-duplicate-os-install") if name in (HOST_API, ETCD) else ()
    chance = random.Random(f"{SEED}/{how.__name__}/{name}")
    live, look = Supervised(lab, *words, "--out", str(tmp_path / "run"), "--no-report", rules=LASTING), Look(lab)
    try:
        apply(lab)
        for phase in INSTANTS:
            live.until(lambda phase=phase: beyond(look.phases(), phase), says=lambda: str(look.phases()))
            time.sleep(chance.uniform(0.0, 3.0))
            how(lab, name, chance.uniform(1.0, 6.0))
        live.until(lambda: look.phases() == READY, says=lambda: str(look.phases()))
        assert live.lost == 0, "its lease outlives every outage"
        assert installs(lab) == dict.fromkeys(DPUS, 1)
        live.stop()
        assert "bug" not in live.process.log
        told_whole(read(tmp_path / "run"))
    finally:
        live.abandon()
        look.close()


def told_whole(run: RunFolder) -> None:
    for dpu in DPUS:
        phases = history(run).phases[dpu]
        assert phases[-1] == Phase.READY
        assert phases == sorted(phases, key=PHASES.index), "none came twice"
        assert {Phase.NODE_EFFECT, Phase.OS_INSTALLING, Phase.REBOOTING} <= set(phases)
    nodes = get(run, Query(kind="node", cluster=f"{SPACE}/dpu-cluster", output="name"))
    assert nodes.out == "".join(f"node/{dpu}\n" for dpu in DPUS)


def test_an_api_server_away_for_longer_than_the_lease_ends_the_process_and_the_next_one_goes_on(lab: Lab) -> None:
    """During the OS install: who cannot renew gives up; the process that is started after it waits for the install."""
    live, look = Supervised(lab, "--policy", "no-duplicate-os-install"), Look(lab)
    try:
        apply(lab)
        live.until(lambda: set(installs(lab)) == set(DPUS), says=lambda: str(look.phases()))
        lab.processes.stop(HOST_API, with_signal=signal.SIGKILL)
        live.until(lambda: live.lost > 0)
        assert "the lease is lost" in live.logs[0].read_text()
        lab.processes.again(HOST_API)
        live.until(lambda: live.process.leads and look.phases() == READY, says=lambda: str(look.phases()))
        assert installs(lab) == dict.fromkeys(DPUS, 1)
        live.stop()
    finally:
        live.abandon()
        look.close()


# --- DMS


class Played:
    """A rollout on a lab whose hardware is in this process, so that its DMS can be ended and started."""

    def __init__(self) -> None:
        self.story = LabStory(load_scenario(ROOT / "scenarios/library/first-install.yaml"), speed=60.0,
                              settings=Settings(cloud_init_s=2.0), log=Log(quiet=True))
        self.runs: list[Run] = []
        self.failures: list[BaseException] = []
        self.story.start()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        try:
            self.runs.append(self.story.play())
        except BaseException as error:  # for the test's own thread
            self.failures.append(error)

    def card(self, dpu: str) -> SimDpu:
        assert self.story.program is not None
        return self.story.program.hardware.hosts.dpus[dpu]

    def installs(self) -> dict[str, int]:
        return {dpu: self.card(dpu).counts.get("os-install", 0) for dpu in DPUS}

    def dms(self, host: str, on: bool) -> None:
        assert self.story.program is not None
        hardware = self.story.program.hardware
        hardware.world.call(lambda: hardware.dms.start(host) if on else hardware.dms.stop(host))

    def serving(self, host: str) -> bool:
        """Does the socket listen?"""
        assert self.story.program is not None
        return self.story.program.hardware.switches.servers[f"dms/{host}"].serving

    def finish(self) -> Run:
        eventually(lambda: bool(self.runs or self.failures))
        if self.failures:
            raise self.failures[0]
        return self.runs[0]


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    try:
        yield played
    finally:
        played.story.close()


def outage(played: Played, *hosts: str, seconds: float = 3.0) -> None:
    """dmsd ends and comes again, as when the kubelet starts its container anew."""
    assert hosts
    for on in (False, True):
        for host in hosts:
            played.dms(host, on=on)
        eventually(lambda on=on: all(played.serving(host) is on for host in hosts))
        time.sleep(0.0 if on else seconds)


def test_a_rollout_goes_on_when_dms_ends_while_it_receives_the_image(played: Played) -> None:
    """The attempt fails, the next one sends everything again: nothing was installed yet, so there is one install."""
    look = Look(played.story.lab)
    try:
        eventually(lambda: look.phases().get(DPUS[0]) == Phase.OS_INSTALLING, says=lambda: str(look.phases()))
        assert played.installs()[DPUS[0]] == 0
        outage(played, "worker1")
        assert played.finish().pending == []
        assert look.phases() == READY
        assert played.installs() == dict.fromkeys(DPUS, 1)
    finally:
        look.close()


def test_a_rollout_goes_on_when_dms_ends_under_an_install(played: Played) -> None:
    """dmsd pushes the image itself, so this install is lost; the next attempt makes the only one that ends."""
    look = Look(played.story.lab)
    try:
        eventually(lambda: played.card(DPUS[0]).device.doing == "os-install", says=lambda: str(look.phases()))
        outage(played, "worker1")
        assert played.finish().pending == []
        assert look.phases() == READY
        assert played.installs() == {DPUS[0]: 2, DPUS[1]: 1}
        assert played.card(DPUS[0]).device.image is not None
    finally:
        look.close()


def test_a_dpu_waits_in_initialize_interface_for_a_dms_that_is_away(played: Played) -> None:
    look = Look(played.story.lab)
    try:
        eventually(lambda: set(look.phases().values()) == {Phase.NODE_EFFECT}, says=lambda: str(look.phases()))
        for host in ("worker1", "worker2"):
            played.dms(host, on=False)
        eventually(lambda: set(look.phases().values()) == {Phase.INITIALIZE_INTERFACE},
                   says=lambda: str(look.phases()))
        for host in ("worker1", "worker2"):
            played.dms(host, on=True)
        assert played.finish().pending == []
        assert look.phases() == READY
        assert played.installs() == dict.fromkeys(DPUS, 1)
    finally:
        look.close()


@pytest.mark.parametrize("phase", [Phase.REBOOTING, Phase.HOST_NETWORK_CONFIGURATION])
def test_a_rollout_goes_on_when_dms_ends_in(played: Played, phase: str) -> None:
    look = Look(played.story.lab)
    try:
        eventually(lambda: phase in look.phases().values(), says=lambda: str(look.phases()))
        outage(played, *(dpu.partition("-")[0] for dpu, now in look.phases().items() if now == phase))
        assert played.finish().pending == []
        assert look.phases() == READY
        assert played.installs() == dict.fromkeys(DPUS, 1)
    finally:
        look.close()
