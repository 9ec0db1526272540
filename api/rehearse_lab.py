"""`dpf-twin rehearse SCENARIO --world lab`: the scenario on real parts. The same report as in virtual time.

Scenario times (timeline, horizon) and emulated hardware run `speed` times as fast; controllers keep their own
intervals. Everything runs in this process, except API servers.
"""

from __future__ import annotations

import functools
import heapq
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol, cast

from api.lab import Plan, neighbour_crds, on_free_loopback
from api.lab_program import LabProgram
from api.lab_steps import BEFORE, Steps, check
from api.live import Config, Live
from api.live_folder import run_of, write_timing
from api.live_log import Log
from api.live_record import NEIGHBOURS, WATCHED, Recorder
from api.output import answer, note
from api.webhook_server import WebhookServer, configurations
from controllers.provisioning.webhooks import WEBHOOKS
from controllers.services.webhooks import WEBHOOKS as SERVICE_WEBHOOKS
from scenarios.base import Scenario, Step
from scenarios.expect import judge
from scenarios.pending import pending
from scenarios.result import Run
from twin.backends.base import ApiError, Settings, Unavailable
from twin.backends.kube import Cluster, LiveKube, open_cluster
from twin.backends.lab.lab import Lab
from twin.model.core import Event, Node, Pod
from twin.model.kinds import KINDS
from twin.model.meta import Key
from twin.model.mistakes import BadInput, Mistake
from twin.model.provisioning import Dpu, DpuCluster
from twin.model.schema import crd, has_crd
from twin.model.services import DpuDeployment
from twin.runtime.reconcile import Controller
from twin.sim.host import card
from twin.sim.troubles import Troubles

QUIET_S: Final = 12.0
"""Nothing is pending and nothing has happened for this long: over. Two of the DPU controller's polls and more."""
IDLE_S: Final = 150.0
"""Nothing has happened for this long (a cloud-init wait is 90 s): over, converged or not."""
REST_S: Final = 6.0
"""A pace says that all is at rest, and nothing has happened for this long (a poll and more): go on."""
LOOK_S: Final = 0.25


class LabStory:
    """One lab with a scenario playing in it. `close` leaves nothing."""

    def __init__(self, scenario: Scenario, *, speed: float, folder: Path | None = None, seed: int | None = None,
                 controllers: Sequence[Controller] | None = None, settings: Settings | None = None, netns: bool = False,
                 log: Log | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        check(scenario)
        self.scenario = scenario
        self.speed = speed
        self.seed = scenario.seed if seed is None else seed
        self.log = log or Log(quiet=True)
        self.warnings: list[str] = list(scenario.warnings)
        self._own_folder = folder is None
        self.lab = Lab(folder or Path(tempfile.mkdtemp(prefix="dpf-twin-lab-")) / "lab", say=say)
        self.settings = settings or Settings(seed=self.seed)
        self._controllers = controllers
        self.troubles = Troubles()
        self._steps = Steps(self)
        self._agenda = _Agenda()
        self._others: dict[Live, threading.Thread] = {}
        fleet = on_free_loopback(scenario.fleet, self.lab.folder)
        self._plan = Plan(fleet=fleet, profile=scenario.profile, seed=self.seed, speed=speed, netns=netns)
        self.recorder: Recorder | None = None
        self._watching: Cluster | None = None
        self.program: LabProgram | None = None
        self.live: Live | None = None
        self._thread: threading.Thread | None = None
        self.hooks: WebhookServer | None = None

    # --- life

    def start(self) -> None:
        """Lab, neighbours, controllers, webhooks. Raises: LabError, MissingPart, ApiError."""
        crds = [crd(kind) for kind in KINDS.values() if has_crd(kind)] + neighbour_crds()
        self.lab.up(self._plan.fleet, crds, speed=self.speed, netns=self._plan.netns)
        os.environ["no_proxy"] = "127.0.0.0/8,127.0.0.1,localhost"
        self.recorder = Recorder(self._plan.fleet)
        self.program = LabProgram(self.lab, self._plan, self.log, self.recorder.device)
        self.program.start()
        os.environ["http_proxy"] = self.program.proxy.url
        self._watching = open_cluster(Path(self.lab.status()["kubeconfig"]), qps=0)
        self.recorder.begin(self._watching, (*WATCHED, *NEIGHBOURS, DpuDeployment))
        self.live = self._process()
        self.serve_webhooks()
        self._thread = self._run(self.live)

    def close(self) -> None:
        """Harmless when repeated."""
        for other in list(self._others):
            other.stop()
            self.ended(other)
        if self.live is not None:
            self.live.stop()
            if self._thread is not None:
                self._thread.join(40.0)
            self.live.close()
        if self.hooks is not None:
            self.hooks.close()
        if self._watching is not None:
            self._watching.close()
        if self.program is not None:
            self.program.close()
        os.environ.pop("http_proxy", None)
        self.lab.down()
        if self._own_folder:
            shutil.rmtree(self.lab.folder.parent, ignore_errors=True)

    def _process(self) -> Live:
        from controllers import CONTROLLERS

        live = Live(Config(
            kubeconfig=Path(self.lab.status()["kubeconfig"]), controllers=self._controllers or CONTROLLERS,
            policies=frozenset(self.scenario.policies), settings=self.settings, volume=self.lab.folder / "bfb",
            identity=str(uuid.uuid4()), lead=False, fleet=self._plan.fleet), self.log)
        live.prepare()
        live.recorder = self.recorder  # a restarted process goes on with the same record
        return live

    def _run(self, live: Live) -> threading.Thread:
        thread = threading.Thread(target=live.run, name="live", daemon=True)
        thread.start()
        return thread

    def serve_webhooks(self) -> None:
        """Answer from now on, and tell the API server where."""
        import base64

        hooks = (*WEBHOOKS, *SERVICE_WEBHOOKS)
        self.hooks = WebhookServer(hooks, cast(Any, _Lister(self)), ("127.0.0.1", 0))
        client = {"url": self.hooks.url, "caBundle": base64.b64encode(self.hooks.ca.encode()).decode()}
        assert self._watching is not None
        for manifest in configurations(hooks, client):
            LiveKube(self._watching).apply(manifest, "dpf-twin", force=True)

    # --- playing

    @property
    def kube(self) -> LiveKube:
        assert self.live is not None
        return LiveKube(self.live.lease_cluster, "kubectl", cached=False)

    def play(self, progress: Callable[[LabStory], None] = lambda story: None, *, pace: Pace | None = None) -> Run:
        """Apply, follow the timeline, wait until it is over. Raises: BadInput, Refused.

        With a `pace`, each step also waits until the lab is as far as it says, and the rest of the timeline moves with
        it; the run ends when the pace's end is reached, or when nothing more happens.
        """
        if pace is not None:
            assert self._watching is not None
            pace.watch(self._watching)
        steps = sorted(self.scenario.timeline, key=lambda s: s.at_s)
        before = [s for s in steps if s.at_s == 0 and isinstance(s.action, BEFORE)]
        for step in before:
            self._step(step)
        self._first()
        for step in steps:
            if step not in before:
                self._agenda.add(step.at_s, functools.partial(self._step, step))
        started, late_s = time.monotonic(), 0.0
        quiet_since, seen = started, -1
        while True:
            now = time.monotonic()
            at_s, quiet_s = (now - started) * self.speed - late_s, now - quiet_since
            if self._agenda and self._agenda.next_s <= at_s and self._may(pace, quiet_s):
                if pace is not None:
                    late_s += at_s - self._agenda.next_s
                self._agenda.do_next()
                quiet_since = time.monotonic()
                continue
            self._check_alive()
            records = self.recorder.trace.records if self.recorder else 0
            if records != seen:
                seen, quiet_since = records, now
            progress(self)
            if self._over(pace, at_s, quiet_s):
                return self.result()
            time.sleep(LOOK_S)

    def _may(self, pace: Pace | None, quiet_s: float) -> bool:
        """May the next step be done, now that it is time?"""
        if pace is None or quiet_s > IDLE_S:
            return True
        at_s = self._agenda.next_s
        if not pace.reached(at_s):
            return False
        # What is pending at rest waits for a fault to end.
        return not pace.at_rest(at_s) or quiet_s > 2 * REST_S or (quiet_s > REST_S and not self.pending())

    def _over(self, pace: Pace | None, at_s: float, quiet_s: float) -> bool:
        if pace is None and at_s >= self.scenario.horizon_s:
            return True
        if self._agenda:
            return False
        if quiet_s > IDLE_S:
            return True
        if pace is not None:
            return quiet_s > REST_S and pace.reached(math.inf) and self.pending() == pace.pending
        return quiet_s > QUIET_S and not self.pending()

    def _check_alive(self) -> None:
        assert self.live is not None
        for failed in (self.live.failure, self.program.failure if self.program else None):
            if failed is not None:
                raise RuntimeError(f"the lab run failed: {failed}") from failed

    def pending(self) -> list[str]:
        return pending(cast(Any, self.view()))

    def result(self) -> Run:
        assert self.live is not None
        run = run_of(self.live, self.scenario.name, seed=self.seed, pending=self.pending(),
                     inputs=self.scenario.inputs)
        run.warnings = self.warnings
        assert self.program is not None
        run.cards = [card(dpu) for dpu in self.program.hardware.hosts.dpus.values()]
        run.objects = {**run.objects, "": [*run.objects[""], *self.kube.list(Pod), *self.kube.list(Event)],
                       **self._dpu_clusters()}
        run.expectations = judge(self.scenario.expect, run)
        return run

    def _dpu_clusters(self) -> dict[str, list[Any]]:
        """The Nodes of each DPU cluster that answers, by DPUCluster."""
        assert self.program is not None
        planes = {f"{c.metadata.namespace}-{c.metadata.name}": str(c.key) for c in self.kube.list(DpuCluster)}
        found: dict[str, list[Any]] = {}
        for name, cluster in self.program.clusters().items():
            if name not in planes:
                continue
            try:
                found[planes[name]] = list(LiveKube(cluster, cached=False).list(Node))
            except Unavailable as error:
                self.warnings.append(f"DPUCluster {planes[name]}: its Nodes are as last heard, nobody answers at the "
                                     f"end of the run: {error}")
        return found

    def view(self) -> Any:
        """The world as `pending` and faults ask for it."""
        live, program = self.live, self.program
        assert live is not None
        assert program is not None
        assert live.recorder is not None
        cluster, hardware = live.cluster, program.hardware

        def objects(kind: type[Any]) -> list[Any]:
            cluster.informer(kind)
            return cluster.cache.list(kind, None, None)

        def find(kind: type[Any], key: Key) -> Any:
            cluster.informer(kind)
            return cluster.cache.get(kind, key)

        return SimpleNamespace(
            objects=objects, dpus=lambda: objects(Dpu), errors={}, host_cluster=SimpleNamespace(find=find),
            hosts=hardware.hosts, dms=hardware.dms, volume=hardware.volume, machines=hardware.machines,
            fleet=self._plan.fleet, troubles=self.troubles,
            env=_Clock(live.recorder), timing=program.timing, chronicle=live.recorder.chronicle, settings=self.settings)

    # --- the timeline

    def _first(self) -> None:
        mistakes = []
        for manifest in self.scenario.manifests:
            try:
                self._steps.apply(manifest)
            except ApiError as error:
                line, column = manifest.doc.mark(manifest.path)
                mistakes.append(Mistake(manifest.doc.file, f"{manifest.id}: {error}", line=line, column=column))
        if mistakes:
            raise BadInput(mistakes)

    def _step(self, step: Step) -> None:
        try:
            heal = self._steps.do(step)
        except ApiError as error:
            self.warnings.append(f"{step.where}: at {step.at_s:g} s the API server refused {step.what}: {error}")
            return
        if heal is not None and step.for_s is not None:
            self._agenda.add(step.at_s + step.for_s, heal)

    def later(self, seconds: float, do: Callable[[], Any]) -> None:
        """Do this so many seconds of the scenario after the step that is being done."""
        self._agenda.add(self._agenda.at_s + seconds, do)

    def restart(self) -> None:
        """The controllers' process ends and another one starts: memory and caches are gone, the record goes on."""
        old = self.live
        assert old is not None
        assert self._thread is not None
        old.stop()
        self._thread.join(40.0)
        self.live = self._process()
        old.close()
        self._thread = self._run(self.live)

    def second(self) -> Live:
        """Another process that believes it leads."""
        live = self._process()
        self._others[live] = self._run(live)
        return live

    def ended(self, live: Live) -> None:
        """Wait until this other process, which was told to stop, is gone."""
        thread = self._others.pop(live, None)
        if thread is not None:
            thread.join(40.0)
            live.close()


class _Clock:
    """Faults tell the chronicle when they began, in the record's time."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @property
    def now(self) -> int:
        return self._recorder.now_ns


class _Lister:
    """The webhooks' reader follows the process through restarts."""

    def __init__(self, story: LabStory) -> None:
        self._story = story

    def list(self, kind: type[Any], namespace: str | None = None) -> Sequence[Any]:
        assert self._story.live is not None
        return LiveKube(self._story.live.cluster).list(kind, namespace)


class Pace(Protocol):
    """What a step waits for besides its time: controllers' own intervals do not shrink with the timeline."""

    pending: list[str]
    """What has not come about when it is over."""

    def watch(self, cluster: Cluster) -> None: ...

    def reached(self, at_s: float) -> bool:
        """Has the lab come as far as is right for this time of the scenario?"""

    def at_rest(self, at_s: float) -> bool:
        """Is nothing more expected to happen by itself at this time?"""


class _Agenda:
    """What is to be done at which time of the scenario, in order."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self._entries: list[tuple[float, int, Callable[[], Any]]] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._entries)

    @property
    def next_s(self) -> float:
        return self._entries[0][0]

    def add(self, at_s: float, do: Callable[[], Any]) -> None:
        self._count += 1
        heapq.heappush(self._entries, (at_s, self._count, do))

    def do_next(self) -> None:
        """Everything of the next moment."""
        self.at_s = self.next_s
        while self._entries and self.next_s == self.at_s:
            heapq.heappop(self._entries)[2]()


def rehearse(request: Any, speed: float) -> int:
    """The verb. Raises: Refused, BadInput, FolderError, LabError, MissingPart."""
    from api.output import document
    from api.rehearse import load
    from api.summary import text
    from reports.folder import check_writable, default_dir, write
    from scenarios.result import summarise

    scenario = load(request)
    out = Path(request.out) if request.out else default_dir(f"{scenario.name}-lab", scenario.seed)
    check_writable(out)
    story = LabStory(scenario, speed=speed, netns=os.geteuid() == 0, log=Log(sys.stderr, quiet=not request.verbose),
                     say=note if not request.quiet else lambda line: None)
    try:
        story.start()
        run = story.play()
        assert story.live is not None
        run.command = f"dpf-twin rehearse {' '.join(request.scenario)} --world lab --speed {speed:g}"
        summary = summarise([run])
        folder = write([run], summary, out, report=request.report)
        write_timing(story.live, run, folder / "timing.yaml", speed=speed)
    finally:
        story.close()
    answer(document(summary.model_dump(mode="json"), request.output) if request.output in ("json", "yaml")
           else text(summary, wide=request.output == "wide"))
    if not request.quiet:
        for warning in summary.warnings:
            note(f"warning: {warning}")
        note(f"run folder: {folder}")
    return 0 if summary.converged and all(e.holds for e in summary.expectations) else 1



