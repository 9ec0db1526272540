"""`dpf-twin rehearse SCENARIO --world lab`: the scenario on real parts. The same report as in virtual time.

Scenario times (timeline, horizon) and emulated hardware run `speed` times as fast; controllers keep their own
intervals. Everything runs in this process, except API servers.
"""

from __future__ import annotations

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
from typing import Any, Final, cast

import msgspec

from api.lab import Plan, neighbour_crds, on_free_loopback
from api.lab_program import LabProgram
from api.live import Config, Live
from api.live_folder import run_of, write_timing
from api.live_log import Log
from api.live_record import NEIGHBOURS, WATCHED, Recorder
from api.output import Refused, note
from api.webhook_server import WebhookServer, configurations
from controllers.provisioning.webhooks import WEBHOOKS
from controllers.services.webhooks import WEBHOOKS as SERVICE_WEBHOOKS
from scenarios.apply import three_way
from scenarios.base import Apply, Cordon, Delete, Manifest, Patch, PersonTask, Scale, Scenario, Step
from scenarios.expect import judge
from scenarios.pending import pending
from scenarios.result import Run
from twin.backends.base import ApiError, NotFound, Settings
from twin.backends.kube import Cluster, LiveKube, open_cluster
from twin.backends.kube_http import JSON_PATCH, MERGE_PATCH
from twin.backends.lab.lab import Lab
from twin.model import faults as f
from twin.model.core import Event, Node, Pod
from twin.model.faults import fitting
from twin.model.kinds import KINDS, kind_of
from twin.model.meta import Key, Unstructured
from twin.model.mistakes import BadInput, Mistake
from twin.model.provisioning import Dpu, DpuCluster
from twin.model.schema import crd, has_crd
from twin.runtime.reconcile import Controller
from twin.sim.faults import EFFECTS
from twin.sim.host import card

QUIET_S: Final = 12.0
"""Nothing is pending and nothing has happened for this long: over. Two of the DPU controller's polls and more."""
IDLE_S: Final = 150.0
"""Nothing has happened for this long (a cloud-init wait is 90 s): over, converged or not."""
LOOK_S: Final = 0.25
PLAYABLE: Final = (f.HostPower, f.RackPower, f.HostRebooted, f.RebootFails, f.BridgeMissing, f.DmsUnreachable,
                   f.DmsSlow, f.DmsError, f.InstallFails, f.NetworkScriptFails, f.JoinFails, f.DpuReset, f.DpuLinkDown)
"""Faults of the hardware. Those of API servers and caches need no emulation: they are stopped for real in tests."""


class Unplayable(Refused):
    """The scenario asks for what real parts cannot play."""


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
        self._applied: dict[str, Any] = {}
        self._timers: list[threading.Timer] = []
        fleet = on_free_loopback(scenario.fleet, self.lab.folder)
        self._plan = Plan(fleet=fleet, profile=scenario.profile, seed=self.seed, speed=speed, netns=netns)
        self.recorder: Recorder | None = None
        self._watching: Cluster | None = None
        self.program: LabProgram | None = None
        self.live: Live | None = None
        self._thread: threading.Thread | None = None
        self._webhooks: WebhookServer | None = None

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
        self.recorder.begin(self._watching, (*WATCHED, *NEIGHBOURS))
        self.live = self._process()
        self._serve_webhooks(self.live)
        self._run(self.live)

    def close(self) -> None:
        """Harmless when repeated."""
        for timer in self._timers:
            timer.cancel()
        if self.live is not None:
            self.live.stop()
            if self._thread is not None:
                self._thread.join(40.0)
            self.live.close()
        if self._webhooks is not None:
            self._webhooks.close()
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

    def _run(self, live: Live) -> None:
        self._thread = threading.Thread(target=live.run, name="live", daemon=True)
        self._thread.start()

    def _serve_webhooks(self, live: Live) -> None:
        import base64

        hooks = (*WEBHOOKS, *SERVICE_WEBHOOKS)
        self._webhooks = WebhookServer(hooks, cast(Any, _Lister(self)), ("127.0.0.1", 0))
        client = {"url": self._webhooks.url, "caBundle": base64.b64encode(self._webhooks.ca.encode()).decode()}
        for manifest in configurations(hooks, client):
            LiveKube(live.lease_cluster).apply(manifest, "dpf-twin", force=True)

    # --- playing

    @property
    def kube(self) -> LiveKube:
        assert self.live is not None
        return LiveKube(self.live.lease_cluster, "kubectl", cached=False)

    def play(self, progress: Callable[[LabStory], None] = lambda story: None, *,
             patient: Callable[[Step], bool] = lambda step: False) -> Run:
        """Apply, follow the timeline, wait until it is over. Raises: BadInput, Refused.

        `patient` says which steps wait until what was asked before them has come about: controllers' own intervals do
        not shrink with the timeline.
        """
        assert self.live is not None
        self._first()
        started = time.monotonic()
        due = sorted(self.scenario.timeline, key=lambda s: s.at_s)
        quiet_since, seen = time.monotonic(), -1
        horizon = started + self.scenario.horizon_s / self.speed
        while (now := time.monotonic()) < horizon:
            while due and now >= started + due[0].at_s / self.speed and (
                    not patient(due[0]) or (now - quiet_since > QUIET_S and not self.pending())):
                step = due.pop(0)
                self._step(step)
                if due and due[0].at_s == step.at_s:  # one change in several steps
                    self._step(due.pop(0))
                quiet_since = time.monotonic()
            for failed in (self.live.failure, self.program.failure if self.program else None):
                if failed is not None:
                    raise RuntimeError(f"the lab run failed: {failed}") from failed
            records = self.live.recorder.trace.records if self.live.recorder else 0
            if records != seen:
                seen, quiet_since = records, now
            progress(self)
            if not due and (now - quiet_since > IDLE_S or (now - quiet_since > QUIET_S and not self.pending())):
                break
            time.sleep(LOOK_S)
        return self.result()

    def pending(self) -> list[str]:
        return pending(cast(Any, self._view()))

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
        """The Nodes of each DPU cluster, by DPUCluster."""
        assert self.program is not None
        planes = {f"{c.metadata.namespace}-{c.metadata.name}": str(c.key) for c in self.kube.list(DpuCluster)}
        return {planes[name]: list(LiveKube(cluster, cached=False).list(Node))
                for name, cluster in self.program.clusters().items() if name in planes}

    def _view(self) -> Any:
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
            hosts=hardware.hosts, dms=hardware.dms, volume=hardware.volume, fleet=self._plan.fleet,
            env=_Clock(live.recorder), timing=program.timing, chronicle=live.recorder.chronicle, settings=self.settings)

    # --- the timeline

    def _first(self) -> None:
        mistakes = []
        for manifest in self.scenario.manifests:
            try:
                self.apply(manifest)
            except ApiError as error:
                line, column = manifest.doc.mark(manifest.path)
                mistakes.append(Mistake(manifest.doc.file, f"{manifest.id}: {error}", line=line, column=column))
        if mistakes:
            raise BadInput(mistakes)

    def _step(self, step: Step) -> None:
        assert self.live is not None
        try:
            self._act(step)
        except ApiError as error:
            self.warnings.append(f"{step.where}: at {step.at_s:g} s the API server refused {step.what}: {error}")

    def _act(self, step: Step) -> None:
        action = step.action
        if isinstance(action, Apply):
            for manifest in action.manifests:
                self.apply(manifest)
        elif isinstance(action, Patch):
            self._patch(action)
        elif isinstance(action, Delete):
            self._delete(action)
        elif isinstance(action, Cordon):
            self._cordon(action, step.for_s)
        elif isinstance(action, str):
            self._restart()
        else:
            self._fault(action, step.for_s)

    def apply(self, manifest: Manifest) -> None:
        """kubectl apply. Raises: ApiError."""
        data = {k: v for k, v in manifest.data.items() if k != "status"}
        cluster = self.kube.cluster
        namespace = manifest.id.namespace
        kind = kind_of(str(data.get("apiVersion", "")), manifest.id.kind)
        if namespace and (kind is Unstructured or kind.NAMESPACED):
            data["metadata"] = {**data["metadata"], "namespace": namespace}
            assert self.program is not None
            self.program._namespace(namespace)
        path = cluster.manifest_path(data)
        try:
            cluster.connection.request("GET", path)
        except NotFound:
            cluster.connection.request("POST", cluster.manifest_path(data, named=False),
                                       {"fieldManager": "kubectl-client-side-apply"}, msgspec.json.encode(data))
        else:
            merge = three_way(self._applied.get(path, {}), data)
            cluster.connection.request("PATCH", path, {"fieldManager": "kubectl-client-side-apply"},
                                       msgspec.json.encode(merge), MERGE_PATCH)
        self._applied[path] = data

    def _path(self, of: Patch | Delete) -> str:
        version = of.apiVersion or (KINDS[of.kind].api_version() if of.kind in KINDS else "v1")
        return self.kube.cluster.manifest_path({"apiVersion": version, "kind": of.kind, "metadata": {
            "name": of.name, "namespace": of.namespace or "default"}})

    def _patch(self, patch: Patch) -> None:
        path = self._path(patch) + ("/status" if patch.status else "")
        content, kind = (patch.merge, MERGE_PATCH) if patch.merge is not None else (patch.json_patch, JSON_PATCH)
        self.kube.cluster.connection.request("PATCH", path, {"fieldManager": "kubectl-patch"},
                                             msgspec.json.encode(content), kind)

    def _delete(self, delete: Delete) -> None:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": delete.propagation}
        try:
            self.kube.cluster.connection.request("DELETE", self._path(delete), body=msgspec.json.encode(body))
        except NotFound:
            return

    def _cordon(self, cordon: Cordon, for_s: float | None) -> None:
        names = fitting(cordon.node, [n.metadata.name for n in self.kube.list(Node)])

        def put(unschedulable: bool) -> None:
            for name in names:
                self.kube.patch(Node, Key("", name), {"spec": {"unschedulable": unschedulable or None}})

        put(True)
        if for_s is not None:
            self._later(for_s, lambda: put(False))

    def _restart(self) -> None:
        """The controllers' process ends and another one starts: memory and caches are gone, the record goes on."""
        old = self.live
        assert old is not None
        assert self._thread is not None
        old.stop()
        self._thread.join(40.0)
        self.live = self._process()
        old.close()
        self._run(self.live)

    def _fault(self, fault: Any, for_s: float | None) -> None:
        assert self.program is not None
        assert self.live is not None
        recorder = self.live.recorder
        assert recorder is not None
        world, view, kind = self.program.hardware.world, self._view(), f.kind_name(type(fault))
        target = ",".join(str(v) for k, v in fault.model_dump().items() if k != "kind" and v is not None)
        recorder.fault(kind, target, True)
        heal = world.call(lambda: EFFECTS[type(fault)](view, fault))
        if heal is not None and for_s is not None:
            def end() -> None:
                world.call(heal)
                recorder.fault(kind, target, False)
            self._later(for_s, end)

    def _later(self, seconds: float, do: Callable[[], Any]) -> None:
        timer = threading.Timer(seconds / self.speed, do)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


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


def check(scenario: Scenario) -> None:
    """Raises: Unplayable, naming the first step that real parts cannot play."""
    for step in scenario.timeline:
        action = step.action
        if isinstance(action, (Apply, Patch, Delete, Cordon, str)):
            if isinstance(action, (Patch, Delete)) and action.cluster:
                raise Unplayable(f"{step.where}: --world lab: changes in DPU clusters are not played")
            continue
        if isinstance(action, (Scale, PersonTask)):
            raise Unplayable(f"{step.where}: --world lab: {step.what} is not played")
        if not isinstance(action, PLAYABLE):
            raise Unplayable(f"{step.where}: --world lab: fault {f.kind_name(type(action))} is not played")
    if any(not h.kubernetes for h in scenario.fleet.hosts):
        raise Unplayable(f"{scenario.name}: --world lab: hosts outside Kubernetes are not played")


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
    sys.stdout.write(document(summary.model_dump(mode="json"), request.output) if request.output in ("json", "yaml")
                     else text(summary, wide=request.output == "wide"))
    if not request.quiet:
        for warning in summary.warnings:
            note(f"warning: {warning}")
        note(f"run folder: {folder}")
    return 0 if summary.converged and all(e.holds for e in summary.expectations) else 1



