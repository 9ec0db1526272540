"""`dpf-twin live` as processes of their own, on a lab with two DPUs: what tests of its resilience share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab_parts import need_clusters

from api.lab import Plan, start
from scenarios.load import load_scenario
from twin.backends.base import ApiError
from twin.backends.kube import LiveKube, open_cluster
from twin.backends.lab.certificates import Pair, issue, kubeconfig
from twin.backends.lab.lab import Lab
from twin.model.core import Lease
from twin.model.meta import Key, parse_time
from twin.model.provisioning import Bfb, Dpu

ROOT = Path(__file__).parents[2]
SPACE = "dpf-operator-system"
LEASE = Key(SPACE, "dpf-twin-live")
DPUS = ("worker1-0000-2b-00", "worker2-0000-2b-00")
READY = dict.fromkeys(DPUS, "Ready")
LONG_S = 240.0
"""Everything comes about in much less, also when four test runs share two cores."""
FAST = """
import os
from dataclasses import replace
from pathlib import Path
import api.live_run
from api.cli import main
from twin.backends.base import Settings
from twin.runtime.lease import Rules
make = api.live_run.configure
def configure(request):
    made = make(request)
    lease_s, renew_s, retry_s = map(float, os.environ["LIVE_RULES"].split())
    return replace(made, settings=Settings(cloud_init_s=2.0), rules=Rules(lease_s, renew_s, retry_s),
                   kubeconfig=Path(os.environ.get("LIVE_KUBECONFIG") or made.kubeconfig))
api.live_run.configure = configure
main()
"""
"""`dpf-twin` with short waits: the lease's and cloud-init's. LIVE_KUBECONFIG makes it somebody else in the lab."""
BRIEF = (6.0, 4.0, 0.5)
"""Lease, renew and retry seconds of a process that is replaced soon."""
LASTING = (400.0, 300.0, 1.0)
"""Of one that outlives every outage here."""


@contextmanager
def lab_of_two(folder: Path, *, speed: float = 120.0) -> Iterator[Lab]:
    """A lab with a program of its own; whatever happens, nothing of it is left afterwards."""
    need_clusters()
    lab = Lab(folder)
    scenario = load_scenario(ROOT / "scenarios/library/first-install.yaml")
    start(lab, Plan(fleet=scenario.fleet, profile=scenario.profile, seed=1, speed=speed, netns=os.geteuid() == 0))
    try:
        yield lab
    finally:
        left = lab.down()
    assert left == []
    assert not lab.folder.exists()


class Process:
    """One `dpf-twin live --lab`, with a folder for temporary files that is its own."""

    def __init__(self, lab: Lab, *words: str, kubeconfig: str = "",
                 rules: tuple[float, float, float] = BRIEF) -> None:
        self.path = lab.folder.parent / f"live-{time.monotonic_ns()}.log"
        self.temporary = lab.folder.parent / "tmp"
        self.temporary.mkdir(exist_ok=True)
        with self.path.open("wb") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-c", FAST, "live", "--lab", "--dir", str(lab.folder), "--yes", *words], cwd=ROOT,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={
                    **os.environ, "TMPDIR": str(self.temporary), "LIVE_KUBECONFIG": kubeconfig,
                    "LIVE_RULES": " ".join(map(str, rules))})

    @property
    def log(self) -> str:
        return self.path.read_text()

    @property
    def leads(self) -> bool:
        return " leading " in self.log

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(90)


class Supervised:
    """`live` as its Deployment runs it: started again when it ends by itself, which only a lost lease may cause."""

    def __init__(self, lab: Lab, *words: str, rules: tuple[float, float, float] = BRIEF) -> None:
        self.lab, self.words, self.rules = lab, words, rules
        self.process = Process(lab, *words, rules=rules)
        self.lost = 0
        self.logs: list[Path] = [self.process.path]

    def look(self) -> None:
        code = self.process.child.poll()
        if code is None:
            return
        assert code == 3, self.process.log
        assert "the lease is lost" in self.process.log or "refused" in self.process.log, self.process.log
        self.lost += 1
        time.sleep(1.0)  # a kubelet waits longer before it starts a container again
        self._again()

    def kill(self) -> None:
        self.process.end(signal.SIGKILL)

    def again(self) -> None:
        """After `kill`."""
        self._again()

    def _again(self) -> None:
        self.process = Process(self.lab, *self.words, rules=self.rules)
        self.logs.append(self.process.path)

    def until(self, true: Callable[[], Any], within_s: float = LONG_S, says: Callable[[], str] = lambda: "") -> None:
        """Poll, and keep the process running meanwhile."""
        def looked() -> Any:
            self.look()
            return true()
        eventually(looked, within_s, lambda: f"{says()}; the log ends: {self.process.log[-2000:]}")

    def stop(self) -> None:
        """SIGTERM; it must end well and give its lease back."""
        code = self.process.end() if self.process.child.poll() is None else self.process.child.returncode
        assert code == 0, self.process.log
        assert "stopped" in self.process.log
        for path in self.logs:
            assert "Traceback" not in path.read_text(), path.read_text()

    def abandon(self) -> None:
        """Whatever happened: no process stays."""
        if self.process.child.poll() is None:
            self.process.end(signal.SIGKILL)


def eventually(true: Callable[[], Any], within_s: float = LONG_S, says: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"did not become true in {within_s:g} s: {says()}"
        time.sleep(0.05)


def apply(lab: Lab) -> None:
    """The basic manifests, as soon as somebody answers the webhooks."""
    status = lab.status()
    command = [status["binaries"]["kubectl"], "--kubeconfig", status["kubeconfig"], "apply", "-f",
               str(ROOT / "scenarios/manifests/basic")]
    eventually(lambda: subprocess.run(command, capture_output=True).returncode == 0)


class Look:
    """What the API server of the lab says now, past every cache. An API server that is down says what it last said."""

    def __init__(self, lab: Lab) -> None:
        self.kube = LiveKube(open_cluster(Path(lab.status()["kubeconfig"]), qps=0), cached=False)
        self._phases: dict[str, str] = {}
        self._lease = ("", 0)

    def phases(self) -> dict[str, str]:
        """DPU -> phase."""
        try:
            dpus = self.kube.list(Dpu, SPACE)
        except ApiError:
            return self._phases
        self._phases = {d.metadata.name: d.status.phase if d.status else "Initializing" for d in dpus}
        return self._phases

    def bfb(self) -> str:
        """The BFB's phase."""
        return next((b.status.phase if b.status else "" for b in self.kube.list(Bfb, SPACE)), "")

    def lease(self) -> tuple[str, int]:
        """(who leads, how often that changed)."""
        try:
            spec = self.kube.read_live(Lease, LEASE).spec
        except ApiError:
            return self._lease
        self._lease = (spec.holder_identity, spec.lease_transitions)
        return self._lease

    def close(self) -> None:
        self.kube.cluster.close()


def changes(lab: Lab, change: str) -> dict[str, int]:
    """How often this happened to each DPU (or host), as its hardware tells it: installing, activate, host-down ..."""
    found: dict[str, int] = {}
    for line in lab.processes.log("hosts").read_text().splitlines():
        record = json.loads(line) if line.startswith("{") else {}
        if record.get("msg") == change:
            name = record.get("dpu") or record.get("host", "")
            found[name] = found.get(name, 0) + 1
    return found


def audited(lab: Lab) -> Path:
    """Restart the host cluster's API server so that it logs every request and whose it was; the log's path."""
    policy, log = lab.folder / "audit-policy.json", lab.folder / "audit.log"
    policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                                  "rules": [{"level": "Metadata"}]}))
    name = "host-apiserver"
    recipe = lab.folder / "run" / f"{name}.json"
    told = json.loads(recipe.read_text())
    lab.processes.stop(name)
    recipe.write_text(json.dumps({**told, "argv": [
        *told["argv"], f"--audit-policy-file={policy}", f"--audit-log-path={log}"]}))
    lab.control_planes().restart("host")
    return log


def identity(lab: Lab, user: str) -> str:
    """An administrator of the lab with a name of its own: the path of the kubeconfig."""
    folder = lab.folder / "clusters" / "host"
    ca = Pair((folder / "ca.crt").read_text(), (folder / "ca.key").read_text())
    plane = lab.control_planes().get("host")
    assert plane is not None
    path = folder / f"{user}.kubeconfig"
    path.write_text(kubeconfig("host", plane.server, ca.certificate, user,
                               issue(ca, user, organizations=("system:masters",))))
    return str(path)


def writes_of(log: Path, user: str, after: float) -> list[str]:
    """What this user changed after that time (seconds since the epoch), by the API server's own log."""
    found = []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        changed = entry["verb"] in ("create", "update", "patch", "delete", "deletecollection")
        if (entry["user"]["username"] == user and changed and parse_time(entry["requestReceivedTimestamp"]) > after
                and entry.get("responseStatus", {}).get("code", 0) < 400):
            found.append(f"{entry['requestReceivedTimestamp']} {entry['verb']} {entry['requestURI']}")
    return found


def installs(lab: Lab) -> dict[str, int]:
    """How often each DPU's installer ran."""
    return changes(lab, "installing")
