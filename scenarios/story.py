"""One run of a scenario from its first manifest to its end: the timeline, when it is over, what has not come about."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from controllers import CONTROLLERS
from controllers.provisioning.webhooks import WEBHOOKS
from scenarios.apply import USER, Kubectl, Refused
from scenarios.base import Apply, Cordon, Delete, Patch, PersonTask, Scale, Scenario, Step
from scenarios.components import follow
from scenarios.expect import judge
from scenarios.known_issues import met
from scenarios.pending import pending
from scenarios.result import ReconcileRow, Run
from twin.actors.person import Annotator
from twin.backends.base import Settings
from twin.model.core import Node
from twin.model.faults import fitting
from twin.model.kinds import KINDS
from twin.model.meta import Key, Object, replace
from twin.model.mistakes import BadInput, Mistake
from twin.model.provisioning import Phase
from twin.model.timing import Basis, Timing
from twin.model.units import duration
from twin.sim.admission import Webhooks
from twin.sim.clock import EPOCH, SECOND, ns
from twin.sim.faults import Lasting, begin, misses
from twin.sim.host import card
from twin.sim.neighbours import bring_up, power_cycle
from twin.sim.trace import Trace
from twin.sim.waits import quantiles_s
from twin.sim.world import Options, World

SLICE_S = 60.0
"""Virtual time between two looks at whether the run is over."""

SETTLED_S = 660.0
"""Everything is as asked and nothing has happened for this long, a full cache resync included: the run is over."""

IDLE_S = 6 * 3600.0
"""Nothing has happened for this long and nothing is to come: the run is over, converged or not."""


WEAKEST_FIRST: tuple[Basis, ...] = ("expert", "published", "measured")
PHASE_OPERATIONS: dict[str, tuple[str, ...]] = {
    Phase.INITIALIZING: ("requeue",), Phase.PENDING: ("requeue",),
    Phase.NODE_EFFECT: ("maintenance-step", "drain-evict-pod"),
    Phase.INITIALIZE_INTERFACE: ("dms-get",), Phase.CONFIG_FW_PARAMETERS: ("dms-set",),
    Phase.OS_INSTALLING: ("os-install", "cloud-init"), Phase.CHECKING_HOST_REBOOT_REQUIRED: ("dms-get",),
    Phase.REBOOTING: ("arm-shutdown", "host-reboot"), Phase.HOST_NETWORK_CONFIGURATION: ("host-network-script",),
    Phase.DPU_CLUSTER_CONFIG: ("dpu-join", "cni-ready"), Phase.DELETING: ("host-network-delete", "requeue"),
}
"""The operations of the timing profile that make up a phase: the weakest of their bases is the phase's."""


def _cordoned(world: World, name: str, cordons: Sequence[bool]) -> None:
    node = world.host_cluster.find(Node, Key("", name))
    if node is not None:
        spec = replace(node.spec, unschedulable=bool(cordons))
        world.host_cluster.update(replace(node, spec=spec), USER, world.env.now)


CORDON = Lasting(lambda world, cordon: fitting(cordon.node, [k.name for k in world.host_cluster.table(Node)]),
                 _cordoned, every=True)
"""Each asks anew; a Node that several keep cordoned is uncordoned when the last ends."""


def settings(timing: Timing, seed: int) -> Settings:
    """Upstream's managers with the constants that the timing profile gives them."""
    return Settings(
        seed=seed, drain_timeout_s=round(timing.sample("drain-timeout")), requeue_s=timing.sample("requeue"),
        task_retries=int(timing.limit("task_retries")),
        activate_budget_s=timing.limit("reboot_budget_s"), reboot_status_poll_s=timing.sample("reboot-status-poll"),
        cloud_init_s=timing.sample("cloud-init"), bootstrap_token_s=timing.limit("bootstrap_token_s"))


class Story:
    """A world with a scenario playing in it."""

    def __init__(self, scenario: Scenario, seed: int, trace: Trace, options: Options) -> None:
        self.scenario = scenario
        self.seed = seed
        self.warnings: list[str] = list(scenario.warnings)
        timing = Timing(scenario.profile, seed)
        self.world = World(
            scenario.fleet, timing, trace, CONTROLLERS, webhooks=Webhooks(WEBHOOKS), policies=scenario.policies,
            settings=settings(timing, seed), options=options)
        self.kubectl = Kubectl(self.world)
        follow(self.world, self.warnings.append)
        self.cut = False
        """Set from outside: the observation ends at the next look at whether the run is over."""
        self._people = 0
        self.last_step_s = max((s.at_s + (s.for_s or 0.0) for s in scenario.timeline), default=0.0)

    def play(self, progress: Callable[[Story, float], None] | None = None) -> float:
        """Run to the end; returns the virtual seconds observed."""
        world, scenario = self.world, self.scenario
        world.start(bring_up)
        self._first()
        for step in scenario.timeline:
            world.env.call_at(ns(step.at_s), self._step, step)
        env, trace = world.env, world.trace
        horizon, seen, quiet_since = ns(scenario.horizon_s), -1, 0
        began = time.perf_counter()
        while env.now < horizon:
            env.run(until=min(env.now + ns(SLICE_S), horizon))
            if progress is not None:
                progress(self, time.perf_counter() - began)
            if self.cut:
                break
            if trace.records != seen:
                seen, quiet_since = trace.records, env.now
            quiet_s = env.now_s - max(quiet_since / SECOND, self.last_step_s)
            if quiet_s < SETTLED_S:
                continue
            if quiet_s >= IDLE_S or not self.pending():
                break
        return env.now_s

    def pending(self) -> list[str]:
        return pending(self.world)

    # --- the timeline

    def _first(self) -> None:
        """What is applied at 0 s. A refusal is the user's mistake: nothing is run."""
        mistakes = []
        for manifest in self.scenario.manifests:
            try:
                self.kubectl.apply(manifest)
            except Refused as refused:
                line, column = manifest.doc.mark(manifest.path)
                mistakes.append(Mistake(manifest.doc.file, str(refused), line=line, column=column))
        if mistakes:
            raise BadInput(mistakes)

    def _step(self, step: Step) -> None:
        missed = self._misses(step.action)
        if missed:
            self.warnings.append(f"{step.where}: at {step.at_s:g} s this {step.what} strikes nothing: {missed}")
        try:
            self._act(step)
        except Refused as refused:
            self.warnings.append(f"{step.where}: at {step.at_s:g} s the API server refused {step.what}: {refused}")

    def _misses(self, action: Any) -> str:
        if isinstance(action, str):
            return "" if any(m.running for m in self.world.processes(action)) else "no such process runs"
        return misses(self.world, action)

    def _act(self, step: Step) -> None:
        action = step.action
        if isinstance(action, Apply):
            for manifest in action.manifests:
                self.kubectl.apply(manifest)
        elif isinstance(action, Patch):
            self.kubectl.patch(action)
        elif isinstance(action, Delete):
            self.kubectl.delete(action)
        elif isinstance(action, Scale):
            self._scale(action.hosts)
        elif isinstance(action, Cordon):
            end = CORDON(self.world, action)
            if step.for_s is not None:
                self.world.env.call_at(ns(step.for_s), end)
        elif isinstance(action, PersonTask):
            self._person(action, step.for_s)
        elif isinstance(action, str):
            self.world.restart(action)
        else:
            begin(self.world, action, step.for_s)

    def _scale(self, hosts: int) -> None:
        """The first hosts of the fleet are in service, the others are not."""
        world = self.world
        back = [h for i, h in enumerate(world.fleet.hosts) if i < hosts and h.name in world.machines.retired]
        if back:
            world.trace.asked(world.env.now, f"{hosts} hosts in service", [c.name for h in back for c in h.cards])
        for i, host in enumerate(world.fleet.hosts):
            if host in back:
                world.return_to_service(host.name)
            elif i >= hosts and host.name not in world.machines.retired:
                world.retire(host.name)

    def _person(self, task: PersonTask, for_s: float | None) -> None:
        """Somebody comes by, for a while or for good."""
        world = self.world
        if task.reboot is not None:
            after = world.timing.sample("operator-response", *task.reboot) if task.after is None else task.after
            for host in fitting(task.reboot, world.hosts.hosts):
                world.env.call_at(ns(after), power_cycle, world, host)
            return

        def due(obj: Object) -> bool:
            value = obj.metadata.annotations.get(task.annotation)
            return (value is not None and value != task.value and value.lower() not in ("false", "0", "f")
                    and bool(fitting(task.name, [obj.metadata.name]))
                    and bool(fitting((task.namespace,), [obj.metadata.namespace])))

        self._people += 1
        person = world.add_actor(f"person-{self._people}", lambda kube: Annotator(
            kube, world.clock, world.timing.sample, KINDS[task.kind], task.annotation, task.value, due, task.after))
        if for_s is not None:
            world.env.call_at(ns(for_s), setattr, person, "present", False)

    # --- the result

    def result(self, end_s: float, replication: int, wall_s: float) -> Run:
        world = self.world
        words = self.pending()
        if self.cut:
            words = [f"the run was interrupted after {duration(end_s)} of virtual time", *words]
        clusters = {"": world.host_cluster, **{str(k): s for k, s in world.dpu_clusters.items()}}
        run = Run(
            scenario=self.scenario.name, seed=self.seed, replication=replication, trace=world.trace,
            policies=self.scenario.policies, epoch_s=EPOCH, virtual_s=end_s, wall_s=wall_s, events=world.env.executed,
            converged=not words, cut=self.cut, pending=words, warnings=self.warnings,
            reconciles=list(self._reconciles()),
            objects={name: [o for r in server.resources() for o in server.table(r).values()]
                     for name, server in clusters.items()},
            cards=[card(d) for d in world.hosts.dpus.values()], reasons=world.chronicle.reasons,
            inputs=self.scenario.inputs, figures=self._figures(),
            phase_basis={phase: self._basis(operations) for phase, operations in PHASE_OPERATIONS.items()})
        run.known_issues = met(run)
        run.expectations = judge(self.scenario.expect, run)
        return run

    def _basis(self, operations: Sequence[str]) -> Basis:
        return min((self.world.timing.basis(o) for o in operations), key=WEAKEST_FIRST.index)

    def _figures(self) -> dict[str, float]:
        world = self.world
        runners = [r for m in world.managers.values() for c in m.controllers for r in m.all_runners(c.name)]
        servers = [world.host_cluster, *world.dpu_clusters.values()]
        return {"reconciles_run": sum(r.stats.run for r in runners),
                "reconciles_skipped": sum(r.stats.skipped for r in runners),
                "writes": sum(s.resource_version for s in servers), "deliveries": sum(s.deliveries for s in servers)}

    def _reconciles(self) -> Iterator[ReconcileRow]:
        for manager in self.world.managers.values():
            for controller in manager.controllers:
                runners = list(manager.all_runners(controller.name))
                for runner in runners:
                    runner.settle()
                p50_s, p95_s = quantiles_s([r.stats.waits for r in runners], (0.5, 0.95))
                yield ReconcileRow(
                    controller=controller.name, count=sum(r.stats.run + r.stats.skipped for r in runners),
                    busy_s=sum(r.stats.busy_ns for r in runners) / SECOND,
                    queue_wait_s_p50=p50_s, queue_wait_s_p95=p95_s, errors=sum(r.stats.errors for r in runners))


