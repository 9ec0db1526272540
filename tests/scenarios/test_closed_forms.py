"""With fixed times, no failures and no latency, durations are sums that one can write down. They hold exactly.

The times come from the profile `fixed`, sizes and bandwidths from the fleet; nothing here is copied from a run.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import pytest
from stories import ROOT, changed, written

from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.story import Story
from twin.model.fleet import DEFAULT_IMAGE_BYTES
from twin.model.timing import Timing
from twin.sim.trace import DeviceChange, Trace, Write
from twin.sim.world import Options

POLL_S = 5.0
CHANGE_S = 7200.0
NO_EFFECT = {"spec": {"dpuTemplate": {"spec": {"nodeEffect": {"drain": None, "noEffect": True}}}}}
pytestmark = pytest.mark.slow


def play(scenario: Scenario) -> tuple[Run, Story]:
    story = Story(scenario, 1, Trace(keep=True), Options())
    end_s = story.play()
    run = story.result(end_s, 0, 0.0)
    assert run.converged, run.pending
    return run, story


def times(scenario: Scenario) -> Any:
    """Seconds of an operation of the scenario's profile."""
    return Timing(scenario.profile, 1).sample


def spans(run: Run, phase: str, attempt: int = 1) -> list[tuple[float, float]]:
    return sorted((p.start_s, p.end_s) for p in run.phases() if p.phase == phase and p.attempt == attempt)


def device(run: Run, change: str) -> list[float]:
    return [r.t_s for r in run.trace.kept() if isinstance(r, DeviceChange) and r.change == change]


def file_bytes(story: Story) -> float:
    """What one host is sent: the image and a bf.cfg; those on the volume are all of one size."""
    size, = {f.size for path, f in story.world.volume.files.items() if path.endswith(".cfg")}
    return float(DEFAULT_IMAGE_BYTES + size)


def exactly(seconds: float) -> Any:
    """Nanoseconds are whole; sums of ten of them may be off by as many halves."""
    return pytest.approx(seconds, abs=1e-8)


def fleet(hosts: int, **more: Any) -> dict[str, Any]:
    return {"generate": {"racks": 1, "hosts_per_rack": hosts, "dpus_per_host": 1}, **more}


def update(max_unavailable: int) -> list[dict[str, Any]]:
    """A roll-out without node effect to a BFB that was fetched long before."""
    merge = {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": max_unavailable}},
             "dpuTemplate": {"spec": {"bfb": {"name": "bf-bundle-2"}, "nodeEffect": {"drain": None, "noEffect": True}}}}
    return [{"at": 5400.0, "apply": str(ROOT / "scenarios" / "manifests" / "next-bfb")},
            changed(CHANGE_S, "DPUSet", "fleet", {"spec": merge})]


def installing_s(t: Any, story: Story, stream_bytes_per_s: float) -> float:
    """Both files streamed one after the other, the checksum, the installation polled, cloud-init."""
    poll = t("reboot-status-poll")
    return float(file_bytes(story) / stream_bytes_per_s + t("os-verify")
                 + ceil(t("os-install") / poll) * poll + t("cloud-init"))


def test_a_bfb_is_ready_at_the_first_poll_after_its_download_and_the_look_into_it(tmp_path: Path) -> None:
    for slow in (125e6, 90e6):
        servers = [{"name": "bfb", "url": "http://bfb.example.com/", "bandwidth_bytes_per_s": slow}]
        scenario = written(tmp_path, fleet=fleet(1, image_servers=servers))
        run, _ = play(scenario)
        ready = [r.t_s for r in run.trace.kept() if isinstance(r, Write) and r.kind == "BFB" and r.verb == "status"][-1]

        download = DEFAULT_IMAGE_BYTES / slow
        assert ready == exactly(ceil(download / POLL_S) * POLL_S + times(scenario)("bfb-parse"))


def test_a_dpu_begins_when_its_host_is_detected_and_dms_runs(tmp_path: Path) -> None:
    scenario = written(tmp_path, fleet=fleet(3))
    t = times(scenario)

    begun = [start for start, _ in spans(play(scenario)[0], "Initializing")]

    assert begun == [exactly(t("nfd-period") + t("pod-start") + t("dms-init"))] * 3


@pytest.mark.parametrize(("install_s", "stream"), [(780.0, 25e6), (781.0, 25e6), (600.5, 40e6)])
def test_os_installing_is_streams_checksum_polled_installation_and_cloud_init(
        tmp_path: Path, install_s: float, stream: float) -> None:
    timing = {"apiVersion": "dpf-twin/v1", "name": "x", "base": "fixed",
              "operations": {"os-install": {"fixed_s": install_s, "basis": "expert"}},
              "limits": {"os_stream_bytes_per_s": {"value": stream, "basis": "expert"}}}
    scenario = written(tmp_path, timing=timing)
    run, story = play(scenario)

    (start, end), = spans(run, "OS Installing")

    assert end - start == exactly(installing_s(times(scenario), story, stream))


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_share_the_volume_so_streams_take_as_long_as_all_bytes_through_it(tmp_path: Path, hosts: int) -> None:
    volume = 40e6  # less than two streams of 25 MB/s
    scenario = written(tmp_path, fleet=fleet(hosts, volume={"bandwidth_bytes_per_s": volume}),
                       timeline=[changed(1.0, "DPUSet", "fleet", NO_EFFECT)])
    run, story = play(scenario)

    found = spans(run, "OS Installing")

    each = installing_s(times(scenario), story, volume / hosts)
    assert [end - start for start, end in found] == [exactly(each)] * hosts


def test_a_reboot_is_the_arms_shutdown_the_drop_and_the_boot(tmp_path: Path) -> None:
    scenario = written(tmp_path)
    t = times(scenario)
    run, _ = play(scenario)

    (start, _), = spans(run, "Rebooting")
    up, = device(run, "host-up")

    assert up - start == exactly(t("arm-shutdown") + t("host-drop") + t("host-reboot"))


def test_a_dpu_joins_at_the_first_attempt_after_its_network_is_there(tmp_path: Path) -> None:
    scenario = written(tmp_path, timeline=update(1))
    t = times(scenario)
    run, _ = play(scenario)

    booted = device(run, "installed")[-1]
    (network, _), = spans(run, "Host Network Configuration", attempt=2)
    bridged = network + t("host-network-script")

    attempts = ceil((bridged - booted) / t("join-retry"))
    assert device(run, "joined")[-1] == exactly(booted + attempts * t("join-retry") + t("dpu-join"))


def first_poll(phase_s: float, at: float) -> float:
    """The first poll of a DPU at or after `at`; its polls stand at `phase_s` and every 5 s from there."""
    return phase_s + ceil(round((at - phase_s) / POLL_S, 9)) * POLL_S


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_rollout_one_by_one_is_the_sum_of_its_waves(tmp_path: Path, hosts: int) -> None:
    """Each wave: the VF is taken off, the installation, join attempts, the CNI, and the poll that sees the Node Ready.

    A DPU is Ready at one of its polls. They go on from those of its life before, later by one first back-off (5 ms) for
    each new answer that says no: here that the Node is not found, and that it is not ready.
    """
    scenario = written(tmp_path, fleet=fleet(hosts), timeline=update(1))
    t = times(scenario)
    run, story = play(scenario)
    backoff_s = 0.005
    polls = {p.dpu: p.start_s for p in run.phases() if p.phase == "Ready" and p.attempt == 1}
    turns = sorted((p.start_s, p.dpu) for p in run.phases() if p.phase == "Ready" and p.attempt == 2)
    install = installing_s(t, story, 25e6)

    ready, waves = CHANGE_S, []
    for _, dpu in turns:
        begun = ready + t("host-network-delete")
        booted = begun + install - t("cloud-init")
        bridged = begun + install + t("host-network-script")
        joined = booted + ceil((bridged - booted) / t("join-retry")) * t("join-retry") + t("dpu-join")
        ready = first_poll(polls[dpu] + 2 * backoff_s, joined + t("cni-ready"))
        waves.append(ready)

    assert [at for at, _ in turns] == [exactly(at) for at in waves]


@pytest.mark.parametrize("hosts", [2, 7])
def test_a_call_that_holds_the_only_worker_holds_up_every_other_dpu(tmp_path: Path, hosts: int) -> None:
    """All DPUs reach Config FW Parameters together; one worker sets their modes one after the other."""
    takes = 2.0
    timing = {"apiVersion": "dpf-twin/v1", "name": "x", "base": "fixed",
              "operations": {"dms-set": {"fixed_s": takes, "basis": "expert"}}}
    scenario = written(tmp_path, fleet=fleet(hosts), timing=timing,
                       timeline=[changed(1.0, "DPUSet", "fleet", NO_EFFECT)])
    t = times(scenario)
    run, _ = play(scenario)

    begun = t("nfd-period") + t("pod-start") + t("dms-init")
    assert [end for _, end in spans(run, "Config FW Parameters")] == [
        exactly(begun + (i + 1) * takes) for i in range(hosts)]


def test_a_wave_of_several_dpus_takes_its_deletions_one_after_the_other(tmp_path: Path) -> None:
    """Deleting holds the only worker for each DPU's hostnetwork --delete; then all install at once."""
    scenario = written(tmp_path, fleet=fleet(6), timeline=update(6))
    run, _ = play(scenario)

    begun = [start for start, _ in spans(run, "OS Installing", attempt=2)]

    assert begun == [exactly(CHANGE_S + 6 * times(scenario)("host-network-delete"))] * 6
