"""The DPU controller as a whole: the walk to Ready, and the engine's rules (provisioning.md 2.0)."""

from __future__ import annotations

from dpu_bench import ALL_PHASES, Bench

from twin.model.provisioning import Dpu, Phase


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
