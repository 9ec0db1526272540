"""Pod life on a host: start, containers, crashes, reboots, termination; and the DMS pod's effects."""

from __future__ import annotations

import pytest
from neighbours import SPACE, Card, Town, ready_of

from twin.actors.dmsinit import DmsPod, is_dms
from twin.actors.kubelet import NodeLifecycle, NodeRegistration
from twin.actors.pods import PodLife
from twin.model.core import Pod, PodSpec, Secret
from twin.model.meta import Key, ObjectMeta, condition_status
from twin.model.provisioning import DpuDevice, DpuNode

INIT = ("rshim-preflight", "dms-init", "configure-vf")
DMS = "h1-dms"


def town(*hosts: str, collapse: bool = True, lag_s: float = 0.0, **seconds: float) -> Town:
    t = Town(*hosts, collapse=collapse, lag_s=lag_s, **seconds)
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
    t.add(lambda k: NodeLifecycle(k, t.clock, t.durations, t.machines, t.verbs(k)))

    def pod_life(k):  # type: ignore[no-untyped-def]
        program = DmsPod(k, t.machines, t.durations)
        return PodLife(k, t.clock, t.durations, t.machines, t.verbs(k), lambda p: program if is_dms(p) else None)

    t.add(pod_life)
    t.run(1)
    return t


def dms_pod(t: Town, *arguments: str, volumes: tuple[dict[str, object], ...] = ()) -> None:
    t.create(Pod(
        metadata=ObjectMeta(namespace=SPACE, name=DMS, labels={"provisioning.dpu.nvidia.com/component": "dms"}),
        spec=PodSpec(
            node_name="h1", host_network=True, restart_policy="Always", volumes=volumes,
            init_containers=tuple({"name": n, "args": list(arguments)} for n in INIT), containers=({"name": "dms"},),
            tolerations=({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},))))


def states(pod: Pod) -> list[str]:
    """Each container's state in one word and its restart count."""
    found = []
    for c in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        word = next(iter(c.state))
        reason = c.state[word].get("reason", "")
        found.append(f"{c.name}: {reason or word}" + (f" x{c.restart_count}" if c.restart_count else ""))
    return found


def test_a_plain_pod_is_written_once_when_it_runs() -> None:
    t = town("h1")
    t.pod("p", "h1")

    t.run(13)

    pod = t.get(Pod, "p")
    assert (pod.status.phase, ready_of(pod), pod.status.host_ip) == ("Running", "True", "10.0.0.21")
    assert t.writes("Pod") == [(13.0, "status", "Pod/p")]


def test_a_dms_pod_registers_its_host_and_starts_dmsd_in_order() -> None:
    t = town("h1")
    dms_pod(t)

    t.run(0.1)
    assert states(t.get(Pod, DMS)) == [
        "rshim-preflight: ContainerCreating", "dms-init: ContainerCreating", "configure-vf: ContainerCreating",
        "dms: PodInitializing"]
    t.run(12)
    assert states(t.get(Pod, DMS)) == [
        "rshim-preflight: Completed", "dms-init: running", "configure-vf: PodInitializing", "dms: PodInitializing"]
    assert t.find(DpuNode, "h1") is None
    t.run(10)

    pod = t.get(Pod, DMS)
    assert (pod.status.phase, ready_of(pod)) == ("Running", "True")
    assert states(pod)[-1] == "dms: running"
    assert t.machines.all["h1"].log == ["configure-vf", "start dmsd"]
    node = t.get(DpuNode, "h1")
    assert node.spec.node_dms_address is not None
    assert (node.spec.node_dms_address.ip, node.spec.node_dms_address.port) == ("10.0.0.21", 9339)
    assert [d.name for d in node.spec.dpus] == ["h1-0000-2b-00"]
    assert node.spec.node_reboot_method is not None
    assert node.spec.node_reboot_method.gnoi == {}
    owner = node.metadata.owner_references[0]
    assert (owner.kind, owner.name, owner.controller) == ("Node", "h1", True)
    device = t.get(DpuDevice, "h1-0000-2b-00")
    assert (device.spec.pci_address, device.spec.pf0_name, device.spec.number_of_pfs) == (
        "0000-2b-00", "ens1f0np0", 1)


def test_what_does_not_change_in_a_status_stays_the_very_same() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(12.1)
    running = t.get(Pod, DMS).status

    t.run(10)

    ready = t.get(Pod, DMS).status
    assert ready.init_container_statuses[0] is running.init_container_statuses[0]
    assert ready.init_container_statuses[1] is not running.init_container_statuses[1]
    kept = [c.type for c, was in zip(ready.conditions, running.conditions, strict=True) if c is was]
    assert kept == ["PodReadyToStartContainers", "PodScheduled"]
    started = ready.container_statuses[0].state["running"]["startedAt"]
    t.machines.changed("h1")
    t.run(10)
    assert t.get(Pod, DMS).status is ready
    assert ready.container_statuses[0].state["running"]["startedAt"] == started


@pytest.mark.parametrize(("arguments", "field"), [
    (("--reboot-method", "external"), "external"), (("--reboot-method", "script", "--script-name", "s"), "script"),
    (("--reboot-method", "gNOI"), "gnoi")])
def test_the_reboot_method_is_what_the_pod_was_made_with(arguments: tuple[str, ...], field: str) -> None:
    t = town("h1")
    dms_pod(t, *arguments)
    t.run(60)

    method = t.get(DpuNode, "h1").spec.node_reboot_method

    assert [f for f in ("gnoi", "external", "script") if getattr(method, f) is not None] == [field]


def test_a_host_without_dpus_crash_loops_in_dms_init_until_a_card_is_found() -> None:
    t = town("h1")
    t.machines.all["h1"].cards = (Card("0000-2b-00", device_id="1021"),)
    dms_pod(t)

    t.run(24)
    pod = t.get(Pod, DMS)
    assert pod.status.phase == "Pending"
    assert states(pod)[1] == "dms-init: CrashLoopBackOff"
    assert pod.status.init_container_statuses[1].last_state["terminated"]["message"] == "no DPU found on h1"
    t.run(30)
    assert t.find(DpuNode, "h1") is None

    t.machines.all["h1"].cards = (Card("0000-2b-00"),)
    t.run(60)

    assert t.find(DpuNode, "h1") is not None
    assert t.get(Pod, DMS).status.phase == "Running"
    assert t.get(Pod, DMS).status.init_container_statuses[1].restart_count >= 2


def test_rshim_that_the_host_owns_fails_the_preflight() -> None:
    t = town("h1")
    t.machines.all["h1"].rshim_taken = True
    dms_pod(t)

    t.run(14)

    assert states(t.get(Pod, DMS))[0] == "rshim-preflight: CrashLoopBackOff"
    assert t.find(DpuDevice, "h1-0000-2b-00") is None


def test_crash_back_off_doubles_from_10_s_to_5_min() -> None:
    t = town("h1", pod_start=0, dms_init=0)
    t.machines.all["h1"].cards = ()
    dms_pod(t)
    start = t.now_s

    t.run(1000)

    # Running and failing again take no time here, so all that shows is the growing restart count.
    at = [w[0] - start for w in t.writes("Pod")]
    assert at == [0, 10, 30, 70, 150, 310, 610, 910]


def test_what_dmsinit_finds_registered_is_left_untouched() -> None:
    t = town("h1")
    t.create(DpuDevice(metadata=ObjectMeta(namespace=SPACE, name="h1-0000-2b-00", labels={"mine": "yes"})))
    dms_pod(t)

    t.run(60)

    device = t.get(DpuDevice, "h1-0000-2b-00")
    assert dict(device.metadata.labels) == {"mine": "yes"}
    assert device.spec.pf0_name is None


def test_a_reboot_restarts_every_container_and_puts_the_vfs_back() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(60)

    t.reboot("h1", 300)
    t.run(0.1)
    pod = t.get(Pod, DMS)
    assert (pod.status.phase, ready_of(pod)) == ("Pending", "False")
    t.run(30)

    pod = t.get(Pod, DMS)
    assert (pod.status.phase, ready_of(pod)) == ("Running", "True")
    assert [c.restart_count for c in (*pod.status.init_container_statuses, *pod.status.container_statuses)] == [1] * 4
    assert t.machines.all["h1"].log == ["configure-vf", "start dmsd"] * 2


def test_a_plain_pod_comes_back_after_a_reboot_and_a_pod_that_never_restarts_fails() -> None:
    t = town("h1")
    t.pod("keeps", "h1")
    t.pod("once", "h1", restart_policy="Never")
    t.run(20)

    t.reboot("h1", 300)
    t.run(20)

    keeps, once = t.get(Pod, "keeps"), t.get(Pod, "once")
    assert (keeps.status.phase, ready_of(keeps), keeps.status.container_statuses[0].restart_count) == (
        "Running", "True", 1)
    assert once.status.phase == "Failed"


def test_a_pod_waits_for_the_secret_of_its_volume() -> None:
    t = town("h1")
    dms_pod(t, volumes=({"name": "server", "secret": {"secretName": "h1-server-secret"}},))

    t.run(100)
    pod = t.get(Pod, DMS)
    assert condition_status(pod.status.conditions, "PodReadyToStartContainers") == "False"
    t.create(Secret(metadata=ObjectMeta(namespace=SPACE, name="h1-server-secret")))
    t.run(11)

    assert t.get(Pod, DMS).status.phase == "Running"


def test_a_pod_cannot_start_while_the_volume_is_gone_and_starts_when_it_is_back() -> None:
    t = town("h1")
    t.machines.all["h1"].volume_mounted = False
    dms_pod(t)

    t.run(500)
    pod = t.get(Pod, DMS)
    assert pod.status.phase == "Pending"
    assert condition_status(pod.status.conditions, "PodReadyToStartContainers") == "False"
    t.switch("h1", volume_mounted=True)
    t.run(11)

    assert t.get(Pod, DMS).status.phase == "Running"


def test_a_volume_lost_during_init_fails_the_startup_probe_30_times_then_restarts_dmsd() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(15)
    t.switch("h1", volume_mounted=False)
    t.run(8)
    pod = t.get(Pod, DMS)
    assert (pod.status.phase, ready_of(pod)) == ("Running", "False")

    t.run(300)
    assert t.get(Pod, DMS).status.container_statuses[0].restart_count == 1
    assert t.machines.all["h1"].log == ["configure-vf", "start dmsd", "stop dmsd", "start dmsd"]
    t.switch("h1", volume_mounted=True)
    t.run(9)
    assert ready_of(t.get(Pod, DMS)) == "False"
    t.run(2)

    assert ready_of(t.get(Pod, DMS)) == "True"


def test_the_startup_probe_has_the_profiles_period() -> None:
    t = town("h1", dms_startup_probe=2)
    dms_pod(t)
    t.run(15)
    t.switch("h1", volume_mounted=False)
    t.run(7.5 + 60)

    assert t.get(Pod, DMS).status.container_statuses[0].restart_count == 1


def test_a_volume_that_goes_away_under_a_running_pod_changes_nothing() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(60)
    before = len(t.writes())

    t.switch("h1", volume_mounted=False)
    t.run(1000)

    assert len(t.writes()) == before


def test_a_deleted_pod_takes_its_own_grace_and_dmsd_ends_with_it() -> None:
    t = town("h1")
    dms_pod(t)
    t.pod("slow", "h1", termination_grace_period_seconds=30)
    t.run(60)

    t.delete(Pod, DMS)
    t.delete(Pod, "slow")
    t.run(1.9)
    assert len(t.all(Pod)) == 2
    t.run(0.2)
    assert [p.metadata.name for p in t.all(Pod)] == ["slow"]
    assert t.machines.all["h1"].log[-1] == "stop dmsd"
    t.run(30)

    assert t.all(Pod) == []


def test_a_pod_deleted_while_its_host_is_down_goes_with_the_boot() -> None:
    t = town("h1")
    t.pod("p", "h1", termination_grace_period_seconds=30)
    t.run(60)

    t.switch("h1", up=False)
    t.delete(Pod, "p")
    t.run(300)
    assert t.get(Pod, "p").deleting
    t.switch("h1", up=True, boot=1)
    t.run(0.1)

    assert t.all(Pod) == []


def test_a_pod_that_does_not_run_is_deleted_without_grace() -> None:
    t = town("h1")
    t.pod("starting", "h1", termination_grace_period_seconds=30)
    t.pod("once", "h1", restart_policy="Never", termination_grace_period_seconds=30)
    t.run(5)
    t.delete(Pod, "starting")
    t.run(20)
    assert [p.metadata.name for p in t.all(Pod)] == ["once"]
    t.reboot("h1", 100)
    t.run(5)
    assert t.get(Pod, "once").status.phase == "Failed"

    t.delete(Pod, "once")
    t.run(0.1)

    assert t.all(Pod) == []


def test_a_new_pod_of_the_same_name_is_another_pod() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(60)

    t.server.kill(Key(SPACE, DMS), "test")
    dms_pod(t)
    t.run(5)
    assert t.get(Pod, DMS).status.phase == "Pending"
    t.run(30)

    assert t.get(Pod, DMS).status.phase == "Running"
    assert t.machines.all["h1"].log == ["configure-vf", "start dmsd", "stop dmsd", "configure-vf", "start dmsd"]


def test_every_start_draws_its_own_duration_once() -> None:
    t = town("h1")
    dms_pod(t)
    t.run(60)
    t.reboot("h1", 100)
    t.run(60)

    starts = [d for d in t.draws if d[0] in ("pod-start", "dms-init")]

    assert len(starts) == len(set(starts)) == 4


@pytest.mark.parametrize("lag_s", [0.0, 0.02])
def test_collapsed_and_exact_polling_write_the_same(lag_s: float) -> None:
    def story(collapse: bool) -> str:
        t = town("h1", "h2", collapse=collapse, lag_s=lag_s)
        dms_pod(t)
        t.pod("p", "h2")
        t.run(100)
        t.reboot("h1", 300)
        t.reboot("h2", 20)
        t.run(1000)
        return t.trace.digest

    assert story(True) == story(False)
