"""A live run as a run folder, with the timing profile it measured: `timing.yaml`, which `--timing` reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenarios.result import ReconcileRow, Run, summarise
from twin.model.provisioning import PHASES, Dpu, Phase

if TYPE_CHECKING:
    from api.live import Live

OPERATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "api-read": ("get", "list"), "api-write": ("create", "update", "status", "patch", "delete", "apply"),
    "dpu-api-read": ("dpu-cluster get", "dpu-cluster list"),
    "dpu-api-write": ("dpu-cluster create", "dpu-cluster update", "dpu-cluster status", "dpu-cluster patch",
                      "dpu-cluster delete"),
    "dms-dial": ("dial",), "dms-set": ("set_mode",), "dms-get": ("get_command",), "os-verify": ("execute",),
    "os-install": ("reboot_ended",), "host-network-script": ("command",), "bfb-parse": ("versions",)}
"""Operation of a timing profile -> the verbs whose measured seconds it is made of."""
PHASE_OPERATIONS: Final[Mapping[str, str]] = {"dpu-join": Phase.DPU_CLUSTER_CONFIG}
"""Operations that no verb shows: how long DPUs stayed in a phase."""
EMULATED: Final = frozenset({"dms-set", "dms-get", "os-verify", "os-install", "host-network-script", "dpu-join"})
"""What hardware takes: in a lab its emulation ran `speed` times as fast."""
MOST: Final = 200


def run_of(process: Live, name: str = "live", *, seed: int = 0, pending: Sequence[str] | None = None,
           inputs: Mapping[str, bytes] | None = None, command: str = "") -> Run:
    """What happened, as a simulation would give it back."""
    recorder = process.recorder
    assert recorder is not None, "the process never led"
    with recorder.locked():
        at_s = recorder.now_s
        dpus = process.cluster.cache.list(Dpu, None, None)
        words = list(pending) if pending is not None else [
            f"DPU {d.key} is in phase {d.status.phase if d.status else 'none'}" for d in dpus
            if d.status is None or d.status.phase != Phase.READY]
        runners = [r for m in process.managers.values() for r in m.runners]
        from api.live_record import WATCHED
        objects: dict[str, list[Any]] = {"": [o for kind in (*WATCHED, *process.config.extra_kinds)
                        for o in process.cluster.cache.list(kind, None, None)],
                   **(recorder.dpu_clusters.nodes() if recorder.dpu_clusters is not None else {})}
        return Run(
            scenario=name, seed=seed, trace=recorder.trace, policies=tuple(sorted(process.config.policies)),
            command=command or "dpf-twin live", epoch_s=recorder.epoch_s, virtual_s=at_s, wall_s=at_s,
            converged=not words, pending=words, reconciles=list(_reconciles(process)), objects=objects,
            reasons=recorder.chronicle.reasons if recorder.chronicle is not None else {}, inputs=inputs or {},
            phase_basis=dict.fromkeys(PHASES, "measured"),
            figures={"reconciles_run": sum(r.run for r in runners),
                     "reconciles_skipped": sum(r.skipped for r in runners)})


def _reconciles(process: Live) -> Iterator[ReconcileRow]:
    for manager in process.managers.values():
        for runner in manager.runners:
            waits = sorted(runner.waits_s)
            yield ReconcileRow(
                controller=runner.name, count=runner.run + runner.skipped, busy_s=runner.busy_s,
                queue_wait_s_p50=waits[len(waits) // 2] if waits else 0.0,
                queue_wait_s_p95=waits[int(len(waits) * 0.95)] if waits else 0.0, errors=runner.errors)


def write(process: Live, folder: Path, *, speed: float = 1.0, report: bool = True) -> Path:
    """Write the folder. Raises: reports.folder.FolderError."""
    from reports.folder import write as write_folder

    run = run_of(process)
    made = write_folder([run], summarise([run]), folder, report=report)
    write_timing(process, run, made / "timing.yaml", speed=speed)
    return made


def write_timing(process: Live, run: Run, path: Path, *, speed: float = 1.0) -> None:
    """What this run measured, as a timing profile. `speed`: how much faster than real the emulated hardware was."""
    import yaml

    recorder = process.recorder
    assert recorder is not None
    with recorder.locked():
        seconds = {name: [s for verb in verbs for s in recorder.latencies.get(verb, ())]
                   for name, verbs in OPERATIONS.items()}
    for name, phase in PHASE_OPERATIONS.items():
        seconds[name] = [r.end_s - r.start_s for r in run.phases() if r.phase == phase and r.outcome == "passed"]
    operations: dict[str, Any] = {}
    for name, values in seconds.items():
        if not values:
            continue
        scaled = [v * (speed if name in EMULATED else 1.0) for v in values]
        operations[name] = {"empirical_s": [float(f"{v:.6g}") for v in _thinned(scaled)], "basis": "measured",
                            "source": f"{len(values)} measured in run {run.scenario}"
                            + (f", emulated hardware at {speed:g} times its speed" if speed != 1 else "")}
    path.write_text(yaml.safe_dump({"apiVersion": "dpf-twin/v1", "name": "measured", "base": "default",
                                    "operations": operations}, sort_keys=False, default_flow_style=None, width=110))


def _thinned(values: Sequence[float]) -> list[float]:
    """At most MOST values with the same quantiles, in order."""
    ordered = sorted(values)
    if len(ordered) <= MOST:
        return ordered
    return [ordered[min(len(ordered) - 1, math.floor((i + 0.5) * len(ordered) / MOST))] for i in range(MOST)]

