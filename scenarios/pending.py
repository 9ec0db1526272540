"""What has not reached what was asked, in words. Empty means converged (ESR: it reached what was asked, and stays)."""

from __future__ import annotations

from collections.abc import Iterator

from twin.model.meta import condition_status
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuSet, Phase
from twin.sim.world import World

SHOWN = 20


def pending(world: World) -> list[str]:
    """One line per object that is not as asked, at most 20 and then a count."""
    words = [*_bfbs(world), *_clusters(world), *_dpus(world), *_sets(world)]
    if len(words) > SHOWN:
        return [*words[:SHOWN], f"and {len(words) - SHOWN} more"]
    return words


def _bfbs(world: World) -> Iterator[str]:
    for bfb in world.objects(Bfb):
        phase = bfb.status.phase if bfb.status else ""
        if bfb.deleting:
            yield f"BFB {bfb.key} is still being deleted"
        elif phase != "Ready":
            yield f"BFB {bfb.key} is in {phase or 'no phase'}"


def _clusters(world: World) -> Iterator[str]:
    for cluster in world.objects(DpuCluster):
        phase = cluster.status.phase if cluster.status else ""
        if cluster.deleting:
            yield f"DPUCluster {cluster.key} is still being deleted"
        elif phase != "Ready":
            yield f"DPUCluster {cluster.key} is in {phase or 'no phase'}"


def _dpus(world: World) -> Iterator[str]:
    sets = {s.metadata.uid: s for s in world.objects(DpuSet)}
    for dpu in world.dpus():
        status = dpu.status
        phase = status.phase if status else ""
        conditions = status.conditions if status else ()
        if dpu.deleting:
            yield f"DPU {dpu.key} is still being deleted, in phase {phase}{_why(dpu)}"
        elif phase != Phase.READY or condition_status(conditions, "Ready") != "True":
            yield f"DPU {dpu.key} is in phase {phase or 'none'}{_why(dpu)}"
        else:
            owner = next((sets[r.uid] for r in dpu.metadata.owner_references if r.uid in sets), None)
            if owner is None:
                continue
            wanted = owner.spec.dpu_template.spec
            strategy = owner.spec.strategy
            if strategy is None or strategy.type != "RollingUpdate":
                continue
            if dpu.spec.bfb != wanted.bfb.name or dpu.spec.dpu_flavor != wanted.dpu_flavor:
                yield f"DPU {dpu.key} still has BFB {dpu.spec.bfb} and flavor {dpu.spec.dpu_flavor}"


def _sets(world: World) -> Iterator[str]:
    for dpuset in world.objects(DpuSet):
        if dpuset.deleting:
            yield f"DPUSet {dpuset.key} is still being deleted"


def _why(dpu: Dpu) -> str:
    """The last condition that says no."""
    for c in reversed(dpu.status.conditions if dpu.status else ()):
        if c.status != "True":
            return f": {c.reason}" + (f" ({c.message})" if c.message else "")
    return ""


