"""The DPU controller as a whole: the walk to Ready and back, and the engine's rules (provisioning.md 2.0)."""

from __future__ import annotations

import msgspec
import pytest
from dpu_bench import ALL_PHASES, NS, Bench

from twin.model.meta import Key, replace
from twin.model.names import Finalizer
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuClusterStatus, DpuNode, Phase


def phases_of(bench: Bench) -> list[str]:
    seen: list[str] = []
    bench.kube.observers.setdefault(Dpu, []).append(
        lambda old, new, at: seen.append(new.status.phase) if new and new.status and (
            not seen or seen[-1] != new.status.phase) else None)
    return seen


def test_a_dpu_walks_through_every_phase_to_ready() -> None:
    bench = Bench()
    seen = phases_of(bench)
    bench.dpu()
    bench.until(Phase.READY).run(1)
    assert seen == [Phase.INITIALIZING, *ALL_PHASES]
    assert bench.conditions() == [
        ("Initialized", "True", "Initialized"), ("BFBReady", "True", "BFBReady"),
        ("NodeEffectReady", "True", "NodeEffectReady"), ("InterfaceInitialized", "True", "DMSInitialized"),
        ("FWConfigured", "True", "ConfigureFWParameters"), ("OSInstalled", "True", "OSInstalled"),
        ("CheckedHostRebootNeed", "True", "CheckedHostRebootNeed"), ("Rebooted", "True", "Rebooted"),
        ("HostNetworkReady", "True", "HostNetworkReady"), ("DPUClusterReady", "True", "DPUClusterReady"),
        ("Ready", "True", "DPUReady"),
    ]
    assert [c.message for c in bench.status().conditions] == [""] * 9 + ["cluster configured", ""]


def test_a_dpu_whose_firmware_can_reset_by_itself_never_reboots_its_host() -> None:
    bench = Bench(card={"fw_reset": True})
    seen = phases_of(bench)
    bench.dpu()
    bench.until(Phase.READY)
    assert Phase.REBOOTING not in seen
    assert bench.card.host.boots == 0


def test_collapsed_polling_and_event_by_event_polling_write_the_same_trace() -> None:
    first, second = Bench(collapse=False), Bench(collapse=True)
    for bench in (first, second):
        bench.dpu()
        bench.until(Phase.READY).run(60)
    assert first.trace.digest == second.trace.digest
    assert first.trace.records == second.trace.records > 20


def test_the_finalizer_comes_first_and_alone() -> None:
    bench = Bench()
    bench.dpu()
    bench.run(0.005)
    dpu = bench.get(Dpu, bench.name)
    assert dpu.metadata.finalizers == (Finalizer.DPU,)
    assert dpu.status is None or dpu.status.conditions == ()


def test_an_unchanged_dpu_is_looked_at_again_after_five_seconds() -> None:
    bench = Bench(collapse=False)
    bench.at(Phase.PENDING, bfb="absent")
    bench.run(1)
    before = bench.passes
    bench.run(50)
    assert bench.passes - before == 10


def test_a_failure_that_keeps_its_text_is_swallowed() -> None:
    bench = Bench()
    bench.at(Phase.PENDING, bfb="absent")
    bench.run(60)
    assert bench.runner.stats.errors == 1  # the pass that wrote the condition
    assert bench.is_("BFBReady") == ("False", "BFBNotFound", 'BFB.provisioning.dpu.nvidia.com "absent" not found')


def test_a_dpu_in_error_is_not_polled() -> None:
    bench = Bench(collapse=False)
    bench.at(Phase.ERROR)
    bench.run(1)
    before = bench.passes
    bench.run(600)
    assert bench.passes == before
    assert bench.status().conditions == ()


def test_a_phase_of_another_release_backs_off_for_ever_and_changes_nothing() -> None:
    bench = Bench()
    bench.at(Phase.PREPARE_BFB)
    before = bench.get(Dpu, bench.name)
    bench.run(30)
    assert bench.get(Dpu, bench.name) is before
    assert 10 < bench.runner.stats.errors < 20


def test_a_conflicting_status_write_is_tried_again() -> None:
    bench = Bench()
    bench.at(Phase.PENDING)
    bench.manager.start()
    bench.patch(Dpu, bench.name, {"metadata": {"labels": {"a": "b"}}})  # the informer does not know yet
    bench.run(1)
    assert bench.runner.stats.errors >= 1
    assert bench.is_("BFBReady")[0] == "True"


@pytest.mark.parametrize("phase", [p for p in [Phase.INITIALIZING, *ALL_PHASES, Phase.ERROR]
                                   if p not in (Phase.CONFIG_FW_PARAMETERS, Phase.OS_INSTALLING)])
def test_a_deletion_is_honoured_at_once_in(phase: str) -> None:
    bench = Bench()
    bench.at(phase)
    bench.delete(Dpu, bench.name)
    seen = phases_of(bench)
    bench.run(0.05)
    assert seen[0] == Phase.DELETING
    assert bench.status().conditions == () if not bench.gone(Dpu, bench.name) else True


def test_config_fw_parameters_does_not_look_at_a_deletion() -> None:
    bench = Bench()
    bench.at(Phase.CONFIG_FW_PARAMETERS, dpu_flavor="absent")
    bench.delete(Dpu, bench.name)
    bench.run(30)
    assert bench.phase() == Phase.CONFIG_FW_PARAMETERS


def test_a_dpucluster_that_turns_ready_wakes_the_dpus_without_cluster() -> None:
    bench = Bench()
    bench.stored("c1", DpuClusterStatus(phase="Creating"), DpuCluster)
    bench.dpu()
    bench.run(1.5)
    assert bench.is_("Initialized") == ("False", "DPUClusterNotAllocated", "cluster c1 is not ready, phase: Creating")
    bench.stored("c1", DpuClusterStatus(phase="Ready"), DpuCluster)
    bench.run(0.1)
    assert bench.is_("Initialized")[0] == "True"


def test_an_annotation_of_the_dpunode_wakes_its_dpus() -> None:
    bench = Bench(collapse=False)
    bench.at(Phase.PENDING, bfb="absent")
    bench.run(1)
    before = bench.passes
    bench.patch(DpuNode, bench.host, {"metadata": {"annotations": {"a": "b"}}})
    bench.run(0.1)
    assert bench.passes == before + 1
    bench.patch(DpuNode, bench.host, {"metadata": {"labels": {"a": "b"}}})
    bench.run(0.1)
    assert bench.passes == before + 1


def test_a_ready_dpu_costs_no_more_passes_while_nothing_happens() -> None:
    bench = Bench()
    bench.at(Phase.READY)
    bench.node()
    bench.run(30)
    before = bench.passes
    bench.run(3600)
    assert bench.passes == before
    assert bench.runner.stats.skipped > 700


def test_the_first_status_write_carries_the_empty_firmware_struct() -> None:
    bench = Bench()
    bench.dpu()
    bench.run(1)
    assert msgspec.to_builtins(bench.status())["firmware"] == {}


def test_a_dpu_that_is_gone_is_forgotten() -> None:
    bench = Bench()
    bench.run(0.1)
    runner = bench.runner
    runner.add(Key(NS, "ghost"))
    bench.run(1)
    assert (runner.stats.run, runner.stats.errors) == (1, 0)


def test_a_bfb_that_turns_ready_is_seen_at_the_next_poll() -> None:
    bench = Bench()
    bfb = bench.get(Bfb, "bundle")
    assert bfb.status is not None
    bench.stored("bundle", replace(bfb.status, phase="Downloading"), Bfb)
    bench.at(Phase.PENDING)
    bench.run(2)
    assert bench.is_("BFBReady") == ("False", "BFBIsNotReady", "BFB is not ready")
    bench.stored("bundle", bfb.status, Bfb)
    bench.run(2)
    assert bench.phase() == Phase.PENDING
    bench.run(2)
    assert bench.is_("BFBReady")[0] == "True"
    assert bench.status().bfb_file == f"/bfb/{NS}-bundle.bfb"

