"""Runs made up for the reports: an install, a rolling update within a budget, a rack that loses power, two sad DPUs.

No simulator is involved: reports must stand on the records alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

import pytest

from scenarios.result import Expectation, ReconcileRow, Run
from twin.model.core import Event, ObjectReference
from twin.model.meta import Condition, ObjectMeta, format_time
from twin.model.provisioning import Dpu, DpuClusterRef, DpuSpec, DpuStatus, Phase
from twin.sim.trace import BUDGET, NS, Trace

EPOCH = 1_735_689_600.0
NAMESPACE = "dpf-operator-system"
HOUR = 3600.0
SET = f"{NAMESPACE}/dpuset-1"
STEPS: tuple[tuple[str, float, float, str], ...] = (  # phase, median seconds, spread, outage it causes
    (Phase.INITIALIZING, 4, 0.5, ""), (Phase.PENDING, 6, 0.5, ""), (Phase.NODE_EFFECT, 120, 0.4, "drain"),
    (Phase.INITIALIZE_INTERFACE, 9, 0.3, ""), (Phase.CONFIG_FW_PARAMETERS, 5, 0.3, ""),
    (Phase.OS_INSTALLING, 780, 0.25, "install"), (Phase.CHECKING_HOST_REBOOT_REQUIRED, 6, 0.3, ""),
    (Phase.REBOOTING, 330, 0.2, "reboot"), (Phase.HOST_NETWORK_CONFIGURATION, 25, 0.4, ""),
    (Phase.DPU_CLUSTER_CONFIG, 70, 0.5, ""))


class _Writer:
    def __init__(self, trace: Trace, rng: Random) -> None:
        self.trace, self.rng, self.calls = trace, rng, []

    def at(self, t_s: float, call: Callable[..., None], *args: object) -> None:
        heapq.heappush(self.calls, (round(t_s * NS), len(self.calls), call, args))

    def play(self) -> None:
        while self.calls:
            t_ns, _, call, args = heapq.heappop(self.calls)
            call(t_ns, *args)


def _dpu(name: str, host: str, phase: str, since: float, done: list[str], version: int) -> Dpu:
    conditions = tuple(Condition(type=t, status="True", reason=t, last_transition_time=format_time(EPOCH + since))
                       for t in done)
    return Dpu(metadata=ObjectMeta(name=name, namespace=NAMESPACE, uid=f"uid-{name}", resource_version=str(version),
                                   creation_timestamp=format_time(EPOCH), labels={"rack": host[:2]}),
               spec=DpuSpec(dpu_node_name=host, dpu_device_name=name, bfb="bf-bundle", pci_address="0000-03-00",
                            cluster=DpuClusterRef(name="dpu-cluster-1", namespace=NAMESPACE)),
               status=DpuStatus(phase=phase, conditions=conditions))


def _provision(w: _Writer, dpu: str, host: str, start_s: float, sad: str = "") -> float:
    """One provisioning from start_s on; returns when it is Ready (or stuck)."""
    t, done = start_s, []
    for phase, p50, spread, outage in STEPS:
        w.at(t, w.trace.phase, dpu, phase)
        w.at(t, w.trace.object, "MODIFIED", "", _dpu(dpu, host, phase, t, list(done), round(t)))
        w.at(t + 0.02, w.trace.write, "dpu", "update_status", "", "DPU", NAMESPACE, dpu, str(round(t * 10)), "")
        if outage:
            w.at(t, w.trace.outage_begin, dpu, outage)
        if phase == Phase.OS_INSTALLING:
            queue = w.rng.uniform(0, 0.4) * p50
            w.at(t, w.trace.wait_begin, dpu, "image-server bfb-1")
            w.at(t + queue, w.trace.wait_end, dpu, "image-server bfb-1")
            t += queue
        if phase == Phase.PENDING and w.rng.random() < 0.7:
            w.at(t, w.trace.wait_begin, dpu, "worker dpu")
            t += w.rng.uniform(5, 60)
            w.at(t, w.trace.wait_end, dpu, "worker dpu")
        if sad == phase:
            return t
        t += p50 * w.rng.lognormvariate(0, spread)
        if outage:
            w.at(t, w.trace.outage_end, dpu, outage)
        if outage == "reboot":
            w.at(t, w.trace.device, "host-reboot", host, "", "warm")
        done.append(phase.replace(" ", ""))
    w.at(t, w.trace.phase, dpu, Phase.READY)
    w.at(t, w.trace.object, "MODIFIED", "", _dpu(dpu, host, Phase.READY, t, [*done, "Ready"], round(t)))
    event = Event(metadata=ObjectMeta(name=f"{dpu}.{round(t)}", namespace=NAMESPACE), type="Normal", reason="DPUReady",
                  message="the DPU is ready", count=1, last_timestamp=format_time(EPOCH + t),
                  first_timestamp=format_time(EPOCH + t), reporting_component="dpu",
                  involved_object=ObjectReference(kind="DPU", namespace=NAMESPACE, name=dpu))
    w.at(t, w.trace.object, "ADDED", "", event)
    return t


def made_up_run(dpus: int, *, seed: int = 1, replication: int = 0, update: bool = True, keep: bool = True,
                objects: bool = True, sad: bool = True, budget: float = 0.1) -> Run:
    """A run over `dpus` DPUs, one a host, 16 hosts a rack (2 in a fleet of 4)."""
    rng = Random(f"{seed}/{replication}")
    trace = Trace(keep=keep, objects=objects)
    w = _Writer(trace, rng)
    per_rack = 2 if dpus <= 4 else 16 if dpus <= 64 else 64
    names = []
    for i in range(dpus):
        host = f"r{i // per_rack + 1}-h{i % per_rack + 1:02d}"
        names.append((f"{host}-0000-03-00", host))
        trace.place(names[-1][0], f"r{i // per_rack + 1}", host, "dpu-cluster-1")
    w.at(0, trace.asked, "manifests applied")
    ready = []
    for i, (dpu, host) in enumerate(names):
        stuck = Phase.DPU_CLUSTER_CONFIG if sad and i == 2 and dpus > 4 else ""
        ready.append(_provision(w, dpu, host, 0.5 + 0.02 * i, stuck))
    if update:
        _update(w, names, rng, max(1, int(budget * dpus)), sad)
    w.at(5 * HOUR, trace.fault, "rack-power", "r1", True)
    w.at(5 * HOUR + 600, trace.fault, "rack-power", "r1", False)
    w.play()
    basis = {p: "published" if p == Phase.OS_INSTALLING else "expert" for p, *_ in STEPS}
    return Run(scenario="rolling-bfb-update", seed=seed, trace=trace, replication=replication, epoch_s=EPOCH,
               policies=("throttle-initial-create",) if seed == 2 else (),
               command=f"dpf-twin rehearse scenarios/library/rolling-bfb-update.yaml --seed {seed + replication}",
               virtual_s=48 * HOUR if sad and dpus > 4 else 12 * HOUR, wall_s=0.4, events=60 * dpus,
               converged=not (sad and dpus > 4),
               pending=[f"DPU {NAMESPACE}/{names[2][0]} is in DPU Cluster Config: node not found"]
               if sad and dpus > 4 else [],
               reconciles=[ReconcileRow("dpu", 900 * dpus, 41.5, 0.02, 0.31, 12),
                           ReconcileRow("dpuset", 12 * dpus, 3.25, 0.0, 0.01, 0)],
               expectations=[Expectation(expr="unavailable.max_per_rack <= 1", holds=False, value=3)],
               warnings=["DPUService is stored, but no controller handles it yet (4 objects)"],
               known_issues=["4426349: a BFB that vanishes wedges the DPU in OS Installing"],
               phase_basis=basis, inputs={"scenario.yaml": b"name: rolling-bfb-update\n"})


def _update(w: _Writer, names: list[tuple[str, str]], rng: Random, budget: int, sad: bool) -> None:
    """At 4 h the BFB changes; `budget` DPUs at a time are deleted and provisioned anew."""
    begin = 4 * HOUR
    w.at(begin, w.trace.asked, "DPUSet template changed: bfb", [dpu for dpu, _ in names])
    w.at(begin, w.trace.counter, BUDGET, float(budget))
    slots = [begin + 1] * budget
    for i, (dpu, host) in enumerate(names):
        if sad and i == 2 and len(names) > 4:
            continue
        t = heapq.heappop(slots)
        w.at(begin, w.trace.wait_begin, dpu, f"maxUnavailable DPUSet/{SET}")
        w.at(t, w.trace.wait_end, dpu, f"maxUnavailable DPUSet/{SET}")
        w.at(t, w.trace.phase, dpu, Phase.DELETING)
        w.at(t + 3, w.trace.phase, dpu, "")
        if rng.random() < 0.1:
            w.at(t + 4, w.trace.wait_begin, dpu, "maintenance")
            w.at(t + 244, w.trace.wait_end, dpu, "maintenance")
        if sad and i == 5 and len(names) > 4:
            w.at(t + 4, w.trace.phase, dpu, Phase.INITIALIZING)
            w.at(t + 9, w.trace.phase, dpu, Phase.ERROR)
            heapq.heappush(slots, t + 9)
            continue
        heapq.heappush(slots, _provision(w, dpu, host, t + 4))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    return made_up_run


@pytest.fixture(scope="session")
def four() -> Run:
    return made_up_run(4)


@pytest.fixture(scope="session")
def many() -> Run:
    return made_up_run(64)
