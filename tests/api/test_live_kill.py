"""`live` as a process of its own, killed, stopped and continued in the middle of a rollout.

DPF_TWIN_KILLS says how many kills each half of the kill -9 proof makes (20), DPF_TWIN_SEED which instants.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_parts import (
    DPUS,
    LEASE,
    READY,
    Look,
    Process,
    Supervised,
    apply,
    audited,
    eventually,
    identity,
    installs,
    lab_of_two,
    writes_of,
)

from twin.backends.lab.lab import Lab
from twin.model.core import Lease
from twin.model.meta import parse_time
from twin.model.provisioning import PHASES, Bfb, Dpu, Phase

pytestmark = [pytest.mark.slow, pytest.mark.lab]
KILLS = int(os.environ.get("DPF_TWIN_KILLS", "20"))
SEED = int(os.environ.get("DPF_TWIN_SEED", "1"))
PER_ROLLOUT = 10
DOWNLOADING = "BFB Downloading"
INSTANTS = (DOWNLOADING, Phase.NODE_EFFECT, Phase.INITIALIZE_INTERFACE, Phase.CONFIG_FW_PARAMETERS, Phase.OS_INSTALLING,
            Phase.OS_INSTALLING, Phase.REBOOTING, Phase.HOST_NETWORK_CONFIGURATION, Phase.DPU_CLUSTER_CONFIG,
            Phase.READY)
"""In which phase of a rollout the kills of ten are meant to fall, in the order of a DPU's life."""
LATEST_S = 4.0
"""A kill falls so long at most after its phase was seen: most phases last a poll of 5 s."""


@dataclass(frozen=True)
class Kill:
    """Where everything stood when the process was dead: nobody writes then."""

    meant: str
    bfb: str
    phases: dict[str, str]

    def fell_in(self) -> set[str]:
        return {DOWNLOADING} if self.bfb == "Downloading" and not self.phases else set(self.phases.values())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_of_two(tmp_path / "lab") as lab:
        yield lab


def rank(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else -1


def reached(look: Look, phase: str) -> bool:
    """Is some DPU (or the BFB) in this phase, or every DPU beyond it?"""
    if phase == DOWNLOADING:
        return look.bfb() in ("Downloading", "Ready")
    now = list(look.phases().values())
    return phase in now or (len(now) == len(DPUS) and all(rank(p) > rank(phase) for p in now))


def kill_at(live: Supervised, look: Look, meant: str, chance: random.Random) -> Kill:
    """Wait until the process leads and the phase is reached, and a while more; kill; start again."""
    live.until(lambda: live.process.leads)
    live.until(lambda: reached(look, meant), says=lambda: f"{meant}: {look.phases()}")
    time.sleep(LATEST_S * chance.random() ** 3)  # mostly soon: some phases last for less than a second
    live.kill()
    kill = Kill(meant, look.bfb(), dict(look.phases()))
    live.again()
    return kill


def rollout(lab: Lab, kills: int, chance: random.Random, *words: str) -> list[Kill]:
    """Install both DPUs, killing so often on the way; everything that must hold of any rollout is checked here."""
    live = Supervised(lab, *words)
    look = Look(lab)
    done: list[Kill] = []
    try:
        apply(lab)
        for meant in sorted((INSTANTS[i % len(INSTANTS)] for i in range(kills)), key=INSTANTS.index):
            done.append(kill_at(live, look, meant, chance))
        live.until(lambda: live.process.leads and look.phases() == READY, says=lambda: f"{done}: {look.phases()}")
        live.stop()
        nothing_is_left(lab, look)
    finally:
        live.abandon()
        look.close()
    return done


def nothing_is_left(lab: Lab, look: Look) -> None:
    """Of a process that ended after others were killed: no lease, no temporary file, no process of its own."""
    assert look.lease()[0] == ""
    volume = sorted(p.name for p in (lab.folder / "bfb").iterdir())
    image = next(b.status.file_name for b in look.kube.list(Bfb) if b.status)
    configs = {f"{d.metadata.name}-{d.metadata.uid}.cfg" for d in look.kube.list(Dpu)}
    assert set(volume) - {image} <= configs, volume
    assert list((lab.folder.parent / "tmp").iterdir()) == []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        assert not (b"live" in words and str(lab.folder).encode() in words), words


def in_rollouts(tmp_path: Path, seed: str, *words: str) -> Iterator[tuple[list[Kill], dict[str, int]]]:
    """KILLS kills, ten a rollout, each rollout in a lab of its own: (kills, installs by DPU)."""
    left = KILLS
    while left > 0:
        kills = min(PER_ROLLOUT, left)
        left -= kills
        with lab_of_two(tmp_path / f"lab-{left}") as lab:
            done = rollout(lab, kills, random.Random(f"{seed}/{left}"), *words)
            yield done, installs(lab)


def tell(kills: list[Kill], installs: int) -> None:
    """Which phases the kills fell in, for whoever reads the test's output."""
    count = Counter(phase for kill in kills for phase in kill.fell_in())
    where = ", ".join(f"{count[p]} in {p}" for p in (DOWNLOADING, *PHASES) if count[p])
    print(f"{len(kills)} kills, seed {SEED}, {installs} installs: {where}")


def several_phases(kills: list[Kill]) -> bool:
    """Did they hit most of what ten kills are meant to hit? (Two DPUs: one kill may fall in two phases.)"""
    hit = set().union(*(kill.fell_in() for kill in kills))
    return len(hit) >= min(len(kills), 6) and (len(kills) < 6 or Phase.OS_INSTALLING in hit)


def test_with_the_policy_no_kill_9_makes_a_second_install(tmp_path: Path) -> None:
    """Killed at random instants all over the rollout: everything is Ready in the end, each DPU was installed once."""
    kills: list[Kill] = []
    made = 0
    for done, found in in_rollouts(tmp_path, f"{SEED}/policy", "--policy", "no-duplicate-os-install"):
        kills += done
        assert found == dict.fromkeys(DPUS, 1), (SEED, done)
        made += sum(found.values())
    tell(kills, made)
    assert len(kills) == KILLS
    assert several_phases(kills), kills


def test_without_it_kill_9_costs_the_documented_second_install_and_no_other(tmp_path: Path) -> None:
    """Wart `tasks-lost-on-restart`: one more install at most for each kill that found the DPU in OS Installing."""
    kills: list[Kill] = []
    made = 0
    for done, found in in_rollouts(tmp_path, f"{SEED}/upstream"):
        kills += done
        for dpu in DPUS:
            caught = sum(kill.phases.get(dpu) == Phase.OS_INSTALLING for kill in done)
            assert 1 <= found[dpu] <= 1 + caught, (SEED, dpu, found, done)
        made += sum(found.values())
    tell(kills, made)
    assert len(kills) == KILLS
    assert several_phases(kills), kills


# --- two processes


class Candidate(Process):
    """A process that the API server knows by a name of its own."""

    made = 0

    def __init__(self, lab: Lab) -> None:
        Candidate.made += 1
        self.user = f"candidate-{Candidate.made}"
        super().__init__(lab, "--policy", "no-duplicate-os-install", kubeconfig=identity(lab, self.user))


def test_a_stopped_leader_that_goes_on_does_no_harm(lab: Lab) -> None:
    """SIGSTOP for longer than the lease, thrice during a rollout: the other process takes over; the first one, let go
    on, changes nothing any more, by the API server's own log, and ends. No DPU is installed twice."""
    log = audited(lab)
    look = Look(lab)
    leader, other = Candidate(lab), None
    try:
        eventually(lambda: leader.leads, says=lambda: leader.log)
        apply(lab)
        for phase in (Phase.NODE_EFFECT, Phase.OS_INSTALLING, Phase.REBOOTING):
            other = Candidate(lab)
            eventually(lambda other=other: "waiting for the lease" in other.log, says=lambda other=other: other.log)
            eventually(lambda phase=phase: reached(look, phase), says=lambda: str(look.phases()))
            before = look.kube.read_live(Lease, LEASE).spec
            os.kill(leader.child.pid, signal.SIGSTOP)
            eventually(lambda other=other: other.leads, says=lambda other=other: other.log)
            moved = look.kube.read_live(Lease, LEASE).spec
            assert moved.holder_identity != before.holder_identity
            assert moved.lease_transitions == before.lease_transitions + 1
            assert writes_of(log, leader.user, 0.0) != [], "the log tells of this process"
            os.kill(leader.child.pid, signal.SIGCONT)
            assert leader.child.wait(90) == 3, leader.log
            assert "the lease is lost" in leader.log
            assert writes_of(log, leader.user, parse_time(moved.acquire_time)) == []
            assert look.lease()[0] == moved.holder_identity
            leader, other = other, None
        eventually(lambda: look.phases() == READY, says=lambda: f"{look.phases()} {leader.log[-2000:]}")
        assert leader.end() == 0, leader.log
        assert installs(lab) == dict.fromkeys(DPUS, 1)
        nothing_is_left(lab, look)
    finally:
        for process in (leader, other):
            if process is not None and process.child.poll() is None:
                process.end(signal.SIGKILL)
        look.close()
