"""Which DPUCluster a DPU gets (provisioning.md 5.5, 12: upstream's allocator tests)."""

from __future__ import annotations

from dpu_bench import NS, Bench

from controllers.provisioning.allocator import Allocator, Unallocated
from twin.model.meta import Key, ObjectMeta, replace
from twin.model.provisioning import Dpu, DpuCluster, DpuClusterRef, DpuClusterStatus, DpuSpec, DpuStatus, Phase
from twin.runtime.memory import Memory


def place(bench: Bench, name: str = "") -> str:
    return bench.get(Dpu, name or bench.name).spec.cluster.name


def text(bench: Bench, name: str = "") -> str:
    status, reason, message = bench.is_("Initialized", name)
    assert (status, reason) == ("False", "DPUClusterNotAllocated")
    return message


def full(*policies: str, clusters: tuple[str, ...] = ("c1",)) -> tuple[Bench, str]:
    """c1 has one place, which the first DPU holds; the second DPU wants one."""
    bench = Bench(hosts=2, clusters=clusters, policies=policies)
    bench.patch(DpuCluster, "c1", {"spec": {"maxNodes": 1}})
    bench.at(Phase.PENDING, bfb="absent")
    bench.dpu(bench.fleet.cards[1].name)
    bench.run(2)
    return bench, bench.fleet.cards[1].name


def test_the_first_cluster_by_name_is_taken() -> None:
    bench = Bench(clusters=("dc2", "dc1"))
    bench.dpu()
    bench.run(1)
    assert bench.get(Dpu, bench.name).spec.cluster == DpuClusterRef(name="dc1", namespace=NS)


def test_without_any_cluster_a_dpu_waits() -> None:
    bench = Bench(clusters=())
    bench.dpu()
    bench.run(30)
    assert text(bench) == "no cluster available"


def test_a_full_cluster_is_not_passed_over() -> None:
    bench, second = full(clusters=("c1", "zz"))
    assert text(bench, second) == f"cluster {NS}/c1 is full, max node: 1"


def test_a_cluster_that_is_not_ready_is_not_passed_over_either() -> None:
    bench = Bench(clusters=("c1", "zz"))
    bench.stored("c1", DpuClusterStatus(phase="NotReady"), DpuCluster)
    bench.dpu()
    bench.run(1)
    assert text(bench) == "cluster c1 is not ready, phase: NotReady"


def test_the_policy_spills_over_to_the_next_cluster_with_room() -> None:
    bench, second = full("allocator-spills-over", clusters=("c1", "zz"))
    assert place(bench, second) == "zz"


def test_under_the_policy_the_first_refusal_is_told_when_nobody_has_room() -> None:
    bench = Bench(clusters=("c1", "zz"), policies=["allocator-spills-over"])
    bench.stored("c1", DpuClusterStatus(phase="NotReady"), DpuCluster)
    bench.stored("zz", DpuClusterStatus(phase="Creating"), DpuCluster)
    bench.dpu()
    bench.run(1)
    assert text(bench) == "cluster c1 is not ready, phase: NotReady"


def test_raising_the_limit_frees_a_waiting_dpu_at_once() -> None:
    bench, second = full()
    bench.patch(DpuCluster, "c1", {"spec": {"maxNodes": 2}})
    bench.run(0.1)
    assert place(bench, second) == "c1"


def test_a_deleted_dpu_frees_its_place_for_the_next() -> None:
    bench, second = full()
    bench.delete(Dpu, bench.name)
    bench.run(6)
    assert place(bench, second) == "c1"


def test_a_restarted_controller_counts_again_what_is_there() -> None:
    bench, second = full()
    bench.restart()
    bench.run(10)
    assert text(bench, second) == f"cluster {NS}/c1 is full, max node: 1"


def test_a_dpu_placed_by_hand_counts_and_is_not_limited() -> None:
    bench = Bench(hosts=3)
    bench.patch(DpuCluster, "c1", {"spec": {"maxNodes": 1}})
    first, second, third = (c.name for c in bench.fleet.cards)
    for name in (first, second):
        bench.at(Phase.PENDING, name=name, bfb="absent")
    bench.dpu(third)
    bench.run(2)
    assert bench.manager.memory.get(Allocator).count(Key(NS, "c1")) == 2
    assert text(bench, third) == f"cluster {NS}/c1 is full, max node: 1"


def test_a_cluster_that_is_deleted_takes_its_count_with_it() -> None:
    bench, _ = full()
    memory = bench.manager.memory
    memory.get(Allocator).forget_cluster(Key(NS, "c1"), memory)
    assert memory.get(Allocator).count(Key(NS, "c1")) == 0


def test_a_cluster_without_a_limit_takes_a_thousand() -> None:
    bench = Bench()
    bench.run(0.1)
    allocator = bench.manager.memory.get(Allocator)
    for i in range(999):
        allocator.take(Key(NS, "c1"), Key(NS, f"d{i}"))
    bench.dpu()
    bench.run(1)
    assert place(bench) == "c1"
    allocator.take(Key(NS, "c1"), Key(NS, "one-more"))
    assert allocator.count(Key(NS, "c1")) == 1001


def test_a_dpu_is_counted_anew_when_its_cluster_was_forgotten_its_place_was_freed_or_it_names_another_one() -> None:
    allocator, memory, c1, c2 = Allocator(), Memory(), Key(NS, "c1"), Key(NS, "c2")
    dpu = Dpu(metadata=ObjectMeta(namespace=NS, name="d"), status=DpuStatus(phase=Phase.READY), spec=DpuSpec(
        dpu_node_name="n", dpu_device_name="d", bfb="b", dpu_flavor="f",
        cluster=DpuClusterRef(name="c1", namespace=NS)))

    def counts(seen: Dpu) -> list[int]:
        for _ in range(2):
            allocator.learn(seen.key, seen)
        return [allocator.count(c1), allocator.count(c2)]

    assert counts(dpu) == [1, 0]
    allocator.forget_cluster(c1, memory)
    assert counts(dpu) == [1, 0]
    allocator.release(dpu, memory)
    assert counts(replace(dpu, status=DpuStatus(phase=Phase.DELETING))) == [0, 0]
    assert counts(dpu) == [1, 0]
    assert counts(replace(dpu, spec=replace(dpu.spec, cluster=DpuClusterRef(name="c2", namespace=NS)))) == [1, 1]


def test_the_view_holds_the_dpus_without_a_cluster_oldest_first() -> None:
    view = Unallocated()
    first, second = (Dpu(metadata=ObjectMeta(namespace=NS, name=name), spec=DpuSpec(
        dpu_node_name="n", dpu_device_name=name, bfb="b", dpu_flavor="f")) for name in ("d2", "d1"))
    for dpu in (first, second):
        view.observe(None, dpu)
    view.observe(first, replace(first, status=DpuStatus(phase=Phase.PENDING)))
    assert view.dpus() == [first.key, second.key]
    placed = replace(first, spec=replace(first.spec, cluster=DpuClusterRef(name="c1", namespace=NS)))
    view.observe(first, placed)
    assert view.dpus() == [second.key]
    view.observe(second, None)
    view.observe(placed, None)
    assert view.dpus() == []
