"""Chaos, then quiet: random faults strike an install and a roll-out; when all have healed it must come to an end.

Converged, or `pending` names for every object what holds it: upstream has states that nobody leaves without a person
(phase Error, a lost DMS pod). Each plan leaves some kinds of faults out and has others often, so that pairs meet that
an even mixture would hide. A plan is data; a bad seed is a line in SAVED.

`SWARM_SEEDS=1000:1200 pytest tests/swarm` runs many.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from stories import ROOT, changed, written

from scenarios.base import Scenario
from scenarios.run import run
from twin.sim.world import Options

SAVED = dict.fromkeys((150, 156), "a kubelet on a DPU whose report met a dead API server never reported again")
"""Seeds that once found something, and what; all of them converge."""
SEEDS = range(*map(int, os.environ.get("SWARM_SEEDS", "0:6").split(":")))
HOSTS, RACKS = [f"worker{n}" for n in range(1, 5)], ["r1", "r2"]
DPUS = [f"{h}-0000-2b-00" for h in HOSTS]
CHAOS_S = 4 * 3600.0
"""Faults begin within this time; the roll-out begins in the middle of it."""


def host(r: random.Random) -> dict[str, Any]:
    return {"host": r.choice(HOSTS)}


def dpu(r: random.Random) -> dict[str, Any]:
    return {"dpu": r.choice(DPUS)}


def attempts(r: random.Random) -> dict[str, Any]:
    return {"attempts": sorted(r.sample(range(1, 6), r.randint(1, 3)))}


KINDS: dict[str, Any] = {
    "host-power": host, "rack-power": lambda r: {"rack": r.choice(RACKS)}, "host-lost": host, "host-rebooted": host,
    "reboot-fails": lambda r: host(r) | attempts(r), "bridge-missing": host,
    "dms-unreachable": lambda r: host(r) | {"how": r.choice(["black-hole", "refused"])},
    "dms-slow": lambda r: host(r) | {"factor": r.choice([2, 10])},
    "dms-error": lambda r: host(r) | {"code": r.choice(["UNAVAILABLE", "INTERNAL"])}, "dms-pod-lost": host,
    "install-fails": lambda r: dpu(r) | attempts(r), "network-script-fails": lambda r: dpu(r) | attempts(r),
    "join-fails": dpu, "dpu-reset": dpu, "dpu-link-down": dpu, "part-unknown": dpu,
    "image-server-down": lambda r: {"server": "*"}, "image-server-slow": lambda r: {"server": "*", "factor": 5},
    "image-server-status": lambda r: {"server": "*", "status": r.choice([404, 503])}, "nfs-down": lambda r: {},
    "dpu-api-down": lambda r: {}, "kubeconfig-rotated": lambda r: {}, "api-down": lambda r: {},
    "api-slow": lambda r: {"factor": 5}, "api-errors": lambda r: {"probability": 0.1, "landed": r.random() < 0.5},
    "webhook-down": lambda r: {}, "watch-broken": lambda r: {}, "watch-duplicate": lambda r: {},
    "controller-restart": lambda r: {}, "two-leaders": lambda r: {}, "job-fails": lambda r: {},
    "certificate-late": lambda r: {},
}
MOMENTS = ("host-rebooted", "dms-pod-lost", "dpu-reset", "kubeconfig-rotated", "controller-restart")
ALONE = ("certificate-late", "watch-broken", "two-leaders", "api-errors", "image-server-status")
"""One of them at a time: their end puts back what was there before."""


def plan(seed: int) -> list[dict[str, Any]]:
    """The timeline of this seed."""
    r = random.Random(f"{seed}/swarm")
    kinds = r.sample(list(KINDS), r.randint(3, 10))
    weights = [r.choice([1, 1, 3, 10]) for _ in kinds]
    steps: list[dict[str, Any]] = [
        {"at": CHAOS_S / 2, "apply": str(ROOT / "scenarios" / "manifests" / "next-bfb")},
        changed(CHAOS_S / 2, "DPUSet", "fleet", {"spec": {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": r.choice([1, 2, "50%"])}},
            "dpuTemplate": {"spec": {"bfb": {"name": "bf-bundle-2"}}}}})]
    used: set[str] = set()
    for kind in r.choices(kinds, weights, k=r.randint(1, 8)):
        if kind in ALONE and kind in used:
            continue
        used.add(kind)
        step: dict[str, Any] = {"at": round(r.uniform(0, CHAOS_S), 3), "fault": {"kind": kind, **KINDS[kind](r)}}
        if kind not in MOMENTS:
            step["for"] = round(r.choice([r.uniform(1, 60), r.uniform(60, 3600)]), 3)
        steps.append(step)
    return steps


def scenario(seed: int, folder: Path) -> Scenario:
    return written(folder, fleet=str(ROOT / "scenarios" / "fleets" / "two-racks.yaml"), timeline=plan(seed),
                   timing="default", horizon="48h", seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SAVED)
def test_what_a_seed_once_found_stays_mended(seed: int, tmp_path: Path) -> None:
    found = run(scenario(seed, tmp_path))

    assert found.converged, (SAVED[seed], found.pending)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_after_all_faults_have_healed_it_converges_or_says_what_holds_it(seed: int, tmp_path: Path) -> None:
    story = scenario(seed, tmp_path)
    found = run(story)

    assert found.converged == (not found.pending)
    silent = [line for line in found.pending if ": " not in line and " still " not in line and " no DPU " not in line]
    assert silent == [], plan(seed)
    assert run(story, options=Options(collapse=False)).trace.digest == found.trace.digest, plan(seed)


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan(3) == plan(3)
    assert plan(3) != plan(4)
    assert {s["fault"]["kind"] for seed in range(300) for s in plan(seed)[2:]} == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21) if "SWARM_SEEDS" in os.environ else (1, 7, 20))
def test_a_rollout_without_faults_converges_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    steps = [s for s in plan(0) if "fault" not in s]

    found = run(written(tmp_path, fleet=str(ROOT / "scenarios" / "fleets" / "two-racks.yaml"), timeline=steps,
                        timing="default", seed=seed))

    assert found.converged, found.pending
