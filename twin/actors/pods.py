"""The kubelets' other half: pods from binding to their last container, across crashes and reboots of their host.

What a pod's containers do to the world is a `Program`; a pod without one runs until somebody deletes it. Where a pod
stands in its life is kubelet memory; its status is written when somebody could act on the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twin.actors.actor import Actor
from twin.actors.hosts import Durations, Hosts, Machine, PodVerbs
from twin.actors.podviews import finished, pod_ready
from twin.backends.base import Clock, KubeApi
from twin.model.core import ContainerStatus, Pod, PodStatus, Secret
from twin.model.meta import Condition, Conditions, Key, Object, condition, format_time, replace
from twin.runtime.reconcile import DONE, Context, Result, Watch

CRASH_FIRST_S: Final = 10.0
CRASH_MAX_S: Final = 300.0
"""Kubernetes' back-off between restarts of a crashing container: doubling from 10 s to 5 min."""

PROBE: Final = "dms-startup-probe"
PROBE_FAILURES: Final = 30
"""Of the DMS pod's startup probe (provisioning.md 3.1), so many periods of it until the container is restarted."""


class Program(Protocol):
    """What the containers of a kind of pods do."""

    def takes_s(self, pod: Pod, container: str, attempt: str) -> float | None:
        """How long this container runs; None: until it is stopped."""
        ...

    def finish(self, pod: Pod, container: str) -> str:
        """The container's time is over: do its work to the world. '' or why it failed (exit code 1)."""
        ...

    def busy(self, pod: Pod) -> bool:
        """Its work is done and went well, but it waits for what came of it; whoever knows wakes the pod."""
        ...

    def can_start(self, pod: Pod) -> bool:
        """Can the pod's volumes be mounted?"""
        ...

    def healthy(self, pod: Pod) -> bool:
        """The startup probe of its main container."""
        ...

    def started(self, pod: Pod) -> None:
        """The main container runs."""
        ...

    def stopped(self, node: str) -> None:
        """The pod's containers on this host were stopped."""
        ...


FindProgram = Callable[[Pod], Program | None]


def no_program(_: Pod) -> Program | None:
    return None


@dataclass(slots=True, eq=False)
class _Life:
    """Where one pod stands on one host. `step`: -1 sandbox, then its init containers, then its main containers."""

    uid: str
    node: str
    boot_id: str
    program: Program | None
    step: int = -1
    restarts: list[int] = field(default_factory=list)
    crashes: int = 0
    """Failed attempts in a row of the container at `step`."""
    error: str = ""
    """Why that container last failed, while it backs off."""
    worked: bool = False
    """The main container has done its work, and waits for what came of it."""
    running: bool = False
    """Did the main containers start in this boot?"""
    ready: bool = False
    unmounted: bool = False
    exit_code: int | None = None
    """Of the main container, once it ended for good."""

    def attempt(self) -> str:
        return f"{self.uid}/{self.boot_id}/{self.step}/{self.crashes}/{sum(self.restarts)}"


def _concerns(old: Any, new: Any) -> bool:
    """Bound, deleted, gone: a kubelet knows of a status that it wrote itself."""
    if old is None or new is None:
        return new is None or new.spec.node_name != ""
    return (old is new or old.spec.node_name != new.spec.node_name
            or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp)


def _waiting_for(kubelet: PodLife, secret: Object) -> Iterable[Key]:
    return list(kubelet.wanted.get(secret.key, ()))


class PodLife(Actor):
    """Runs the pods bound to the fleet's hosts. Starting takes `pod-start`, ending a pod `drain-evict-pod` beside the
    grace its spec asks for."""

    name = "kubelet"
    watches = (
        Watch(Pod, when=_concerns),
        Watch(Secret, to=_waiting_for, when=lambda old, new: old is None),
    )

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, hosts: Hosts, pods: PodVerbs,
                 programs: FindProgram = no_program) -> None:
        super().__init__(kube, clock, durations)
        self._hosts = hosts
        self._pods = pods
        self._programs = programs
        self._lives: dict[Key, _Life] = {}
        self._on: dict[str, dict[Key, None]] = {}
        self.wanted: dict[Key, dict[Key, None]] = {}
        """Secrets that pods wait for, and which pods."""
        hosts.subscribe(self._host_changed)

    def _host_changed(self, name: str) -> None:
        machine = self._hosts.machine(name)
        if machine is None or not machine.up:
            return  # nothing happens to a pod on a host that is down
        for key in list(self._on.get(name, ())):
            self.wake(key)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        pod, life = self.kube.get(Pod, key), self._lives.get(key)
        if pod is None or (life is not None and life.uid != pod.metadata.uid):
            self._end(key, life)
            if pod is None:
                return DONE
            life = None
        node = pod.spec.node_name
        machine = self._hosts.machine(node) if node else None
        if machine is None:
            return DONE
        self._on.setdefault(node, {})[key] = None
        if not machine.up:
            return DONE
        if pod.deleting:
            self._terminate(ctx, key, pod, life)
            return DONE
        if finished(pod):
            return DONE
        if life is None:
            life = self._lives[key] = self._meet(pod, machine)
        if life.boot_id != machine.boot_id:
            self._rebooted(pod, life, machine)
        self._advance(key, pod, life)
        status = pod_status(pod, life, machine, ctx.now)
        if status is not pod.status:
            self.kube.update_status(replace(pod, status=status))
        return DONE

    # --- begin and end

    def _meet(self, pod: Pod, machine: Machine) -> _Life:
        """A pod we do not know: a new one, or one that ran before this kubelet started."""
        inits = len(pod.spec.init_containers)
        life = _Life(uid=pod.metadata.uid, node=machine.name, boot_id=machine.boot_id, program=self._programs(pod),
                     restarts=[0] * (inits + 1))
        for i, status in enumerate((*pod.status.init_container_statuses, *pod.status.container_statuses[:1])):
            life.restarts[i] = status.restart_count
        if pod.status.phase == "Running":
            life.step = inits
        return life

    def _rebooted(self, pod: Pod, life: _Life, machine: Machine) -> None:
        """Everything that ran before the boot is gone; restartPolicy says what comes back."""
        had_run, life.boot_id = life.step >= 0, machine.boot_id
        life.running = life.ready = False
        life.crashes, life.error = 0, ""
        if pod.spec.restart_policy == "Never" and had_run:
            life.exit_code = 137
            return
        if had_run:
            for i in range(min(life.step, len(life.restarts) - 1) + 1):
                life.restarts[i] += 1
        life.step = -1

    def _terminate(self, ctx: Context, key: Key, pod: Pod, life: _Life | None) -> None:
        """SIGTERM, the grace its spec asks for, then the object goes. What does not run goes at once."""
        if (life is not None and life.step >= 0 and not finished(pod)
                and life.boot_id == pod_boot(self._hosts, pod)):
            grace = float(pod.spec.termination_grace_period_seconds or 0)
            uid = pod.metadata.uid
            if not self.waited(key, "terminate", (uid,),
                               lambda: grace + self.durations("drain-evict-pod", key.namespace, key.name, uid)):
                return
        self._pods.kill(pod)

    def _end(self, key: Key, life: _Life | None) -> None:
        if life is not None:
            del self._lives[key]
            self._on.get(life.node, {}).pop(key, None)
            if life.program is not None and life.running:
                life.program.stopped(life.node)
            for what in ("terminate", "container", "crash", "probe", "startup", "pod-start", "job-start"):
                self.forget(key, what)

    # --- step by step

    def _advance(self, key: Key, pod: Pod, life: _Life) -> None:
        if life.exit_code is not None:
            return
        if life.step < 0:
            if not self.over(key, _start_operation(pod), key.namespace, key.name, life.uid, life.boot_id):
                return
            life.unmounted = not self._mount(key, pod) or (
                life.program is not None and not life.program.can_start(pod))
            if life.unmounted:
                return
            life.step = 0
        inits = pod.spec.init_containers
        while life.step < len(inits):
            if not self._run(key, pod, life, str(inits[life.step]["name"])):
                return
            life.step += 1
            life.crashes = 0
        self._main(key, pod, life)

    def _mount(self, key: Key, pod: Pod) -> bool:
        """Are the Secrets of the pod's volumes there? If not, their creation wakes the pod."""
        there = True
        for volume in pod.spec.volumes:
            source = volume.get("secret")
            name = source.get("secretName") if source else None
            if not name:
                continue
            secret = Key(key.namespace, str(name))
            if self.kube.get(Secret, secret) is None:
                self.wanted.setdefault(secret, {})[key] = None
                there = False
            elif secret in self.wanted:
                self.wanted[secret].pop(key, None)
        return there

    def _run(self, key: Key, pod: Pod, life: _Life, container: str) -> bool:
        """Has the container at `step` ended well?"""
        if life.error:
            back_off = min(CRASH_FIRST_S * 2.0 ** (life.crashes - 1), CRASH_MAX_S)
            if not self.waited(key, "crash", (life.attempt(),), lambda: back_off):
                return False
            life.error = ""
            life.restarts[life.step] += 1
        attempt, program = life.attempt(), life.program
        if program is not None and not self.waited(
                key, "container", (attempt,), lambda: program.takes_s(pod, container, attempt) or 0.0):
            return False
        life.error = program.finish(pod, container) if program is not None else ""
        if life.error:
            life.crashes += 1
            self._run(key, pod, life, container)  # starts the back-off
            return False
        return True

    def _main(self, key: Key, pod: Pod, life: _Life) -> None:
        program = life.program
        if not life.running:
            life.running = True
            if program is not None:
                program.started(pod)
        if not life.ready:
            self._probe(key, pod, life)
        if program is None:
            return
        container = str(pod.spec.containers[0]["name"]) if pod.spec.containers else ""
        attempt = life.attempt()
        takes = program.takes_s(pod, container, attempt)
        if takes is None or not self.waited(key, "container", (attempt,), lambda: takes):
            return
        if life.error == "":
            if not life.worked:
                life.error = program.finish(pod, container)
                life.worked = not life.error
            if life.worked and program.busy(pod):
                return
            if not life.error or pod.spec.restart_policy == "Never":
                life.exit_code = 1 if life.error else 0
                return
            life.crashes += 1
        back_off = min(CRASH_FIRST_S * 2.0 ** (life.crashes - 1), CRASH_MAX_S)
        if self.waited(key, "crash", (str(life.crashes),), lambda: back_off):
            life.error, life.running = "", False
            life.restarts[-1] += 1
            self._main(key, pod, life)

    def _probe(self, key: Key, pod: Pod, life: _Life) -> None:
        """Ready with the first startup probe that passes; restarted when the allowed number failed."""
        attempt = life.attempt()
        if life.program is None or life.program.healthy(pod):
            # A failing probe is followed by the next one a period later.
            if not self._probing(key, attempt) or self.waited(key, "probe", (attempt,), lambda: self.durations(PROBE)):
                life.ready = True
                self.forget(key, "startup")
                self.forget(key, "probe")
            return
        self.forget(key, "probe")
        if self.waited(key, "startup", (attempt,), lambda: PROBE_FAILURES * self.durations(PROBE)):
            life.restarts[-1] += 1
            if life.program is not None:
                life.program.stopped(life.node)
                life.program.started(pod)
            self._probe(key, pod, life)

    def _probing(self, key: Key, attempt: str) -> bool:
        found = self._waits.get((key, "startup"))
        return found is not None and found[0] == (attempt,)


def pod_boot(hosts: Hosts, pod: Pod) -> str:
    machine = hosts.machine(pod.spec.node_name)
    return machine.boot_id if machine is not None else ""


def _start_operation(pod: Pod) -> str:
    for owner in pod.metadata.owner_references:
        if owner.kind == "Job":
            return "job-start"
    return "pod-start"


# --- status

_WAITING: Final[dict[str, Any]] = {"waiting": {"reason": "PodInitializing"}}
_CREATING: Final[dict[str, Any]] = {"waiting": {"reason": "ContainerCreating"}}
_COMPLETED: Final[dict[str, Any]] = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def pod_status(pod: Pod, life: _Life, machine: Machine, now: float) -> PodStatus:
    """The status a kubelet would show for this life; the same object when there is nothing new."""
    old, inits = pod.status, pod.spec.init_containers
    if life.step < 0 and not inits and not life.unmounted and (old.phase in ("", "Pending") or not pod_ready(pod)):
        return old  # the few seconds in which a plain pod is created interest nobody
    phase = _phase(life, len(inits))
    status = PodStatus(
        phase=phase, reason=old.reason, message=old.message, pod_ip=machine.address if pod.spec.host_network else
        old.pod_ip, host_ip=machine.address,
        conditions=_conditions(old.conditions, life.step >= 0, life.step >= len(inits),
                               life.ready and phase == "Running", now),
        init_container_statuses=tuple([
            _init_status(str(c["name"]), i, life, was, now)
            for i, (c, was) in enumerate(_shown(inits, old.init_container_statuses))]),
        container_statuses=tuple([
            _main_status(str(c["name"]), life, len(inits), was, now)
            for c, was in _shown(pod.spec.containers, old.container_statuses)]))
    return old if status == old else status


def _phase(life: _Life, inits: int) -> str:
    if life.exit_code is not None:
        return "Failed" if life.exit_code else "Succeeded"
    return "Running" if life.step >= inits else "Pending"


_CONDITIONS: Final = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def _conditions(old: Conditions, sandbox: bool, initialized: bool, ready: bool, now: float) -> Conditions:
    """In the order a kubelet writes them; a condition that keeps its status is kept."""
    so = (sandbox, initialized, ready, ready, True)
    known = old if len(old) == len(so) else (None,) * len(so)
    found: list[Condition] = []
    since = format_time(now)
    for type_, is_so, was in zip(_CONDITIONS, so, known, strict=True):
        status = "True" if is_so else "False"
        if was is None or was.type != type_:
            was = condition(old, type_)
        if was is None or was.status != status:
            was = Condition(type=type_, status=status, last_transition_time=since)
        found.append(was)
    return tuple(found)


def _shown(containers: tuple[Mapping[str, Any], ...], old: tuple[ContainerStatus, ...],
           ) -> Iterable[tuple[Mapping[str, Any], ContainerStatus | None]]:
    """Each container with its status so far: they stand in the same order."""
    return zip(containers, old if len(old) == len(containers) else (None,) * len(containers), strict=True)


def _container(was: ContainerStatus | None, name: str, restarts: int, state: Mapping[str, Any],
               ready: bool = False) -> ContainerStatus:
    """The status of a container that did not fail; the same object when there is nothing new."""
    if (was is not None and was.state is state and was.ready is ready and was.restart_count == restarts
            and not was.last_state):
        return was
    return ContainerStatus(name=name, ready=ready, restart_count=restarts, state=state)


def _init_status(name: str, i: int, life: _Life, was: ContainerStatus | None, now: float) -> ContainerStatus:
    restarts = life.restarts[i]
    if i < life.step:
        return _container(was, name, restarts, _COMPLETED, ready=True)
    if i > life.step:
        return _container(was, name, restarts, _CREATING if life.step < 0 else _WAITING)
    if life.error:
        failed = {"terminated": {"exitCode": 1, "reason": "Error", "message": life.error}}
        return ContainerStatus(name=name, restart_count=restarts, last_state=failed, state={
            "waiting": {"reason": "CrashLoopBackOff"}})
    return _container(was, name, restarts, _running(was, restarts, now))


def _main_status(name: str, life: _Life, inits: int, was: ContainerStatus | None, now: float) -> ContainerStatus:
    restarts = life.restarts[-1]
    if life.exit_code is not None:
        state = {"terminated": {"exitCode": life.exit_code, "reason": "Error", "message": life.error}}
        return ContainerStatus(name=name, restart_count=restarts, state=state if life.exit_code else _COMPLETED)
    if life.step < inits or not life.running:
        return _container(was, name, restarts, _WAITING if inits else _CREATING)
    if life.error:
        return ContainerStatus(name=name, restart_count=restarts, state={"waiting": {"reason": "CrashLoopBackOff"}})
    return _container(was, name, restarts, _running(was, restarts, now), ready=life.ready)


def _running(was: ContainerStatus | None, restarts: int, now: float) -> Mapping[str, Any]:
    """The state of a running container; its start is when it was first seen running."""
    if was is not None and was.restart_count == restarts and "running" in was.state:
        return was.state
    return {"running": {"startedAt": format_time(now)}}
