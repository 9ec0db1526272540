"""What a timeline does to a lab: the user's part, the machine room's part, and faults of real parts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from api.lab_program import LabProgram
from api.live import Live
from api.live_record import Recorder
from api.output import Refused
from api.webhook_server import WebhookServer
from scenarios.apply import three_way
from scenarios.base import Apply, Cordon, Delete, Manifest, Patch, PersonTask, Scale, Scenario, Step
from scenarios.components import SWITCHED
from scenarios.rules import part
from twin.actors.person import Annotator
from twin.backends.base import NotFound, Settings
from twin.backends.bfb import MOUNT
from twin.backends.kube import LiveKube
from twin.backends.kube_http import JSON_PATCH, MERGE_PATCH
from twin.backends.lab.image_server import ImageFileKey, image_bytes
from twin.backends.lab.lab import Lab
from twin.model import faults as f
from twin.model.core import DpfOperatorConfig, Node, Pod
from twin.model.faults import fitting
from twin.model.fleet import default_image
from twin.model.kinds import KINDS, kind_of
from twin.model.meta import Key, Object, Unstructured
from twin.model.provisioning import DpuCluster
from twin.sim.faults import EFFECTS, Lasting, all_of
from twin.sim.troubles import Heal, Troubles

HARDWARE: Final = (f.HostPower, f.RackPower, f.HostRebooted, f.RebootFails, f.BridgeMissing, f.DmsUnreachable,
                   f.DmsSlow, f.DmsError, f.InstallFails, f.NetworkScriptFails, f.JoinFails, f.DpuReset, f.DpuLinkDown,
                   f.PartUnknown)
"""Faults of emulated hardware: what they do in virtual time they do here."""
BEFORE: Final = (*HARDWARE, f.ImageServerDown, f.ImageServerSlow, f.ImageServerStatus, f.ImageServerWrongContent,
                 f.JobFails, f.CertificateLate)
"""Faults that are there from the start, when they begin at 0 s: before what is applied has been seen by anybody."""
UNPLAYABLE: Final[dict[Any, str]] = {
    f.NfsDown: "a mount that hangs needs a real NFS server",
    f.KubeconfigRotated: "credentials of a real API server end with its authority",
    f.ApiSlow: "a real API server is as fast as it is",
    f.ApiErrors: "a real API server answers what it did",
    f.WatchBroken: "watches of a real API server break when it is stopped (api-down)",
    f.WatchDuplicate: "a real API server tells each change once",
    f.PdbStuck: "the real disruption controller computes what a budget allows",
}
"""Faults that are not played, and why."""


class Story(Protocol):
    """The lab in which steps are done (`api.rehearse_lab.LabStory`)."""

    scenario: Scenario
    speed: float
    settings: Settings
    lab: Lab
    program: LabProgram | None
    recorder: Recorder | None
    hooks: WebhookServer | None
    troubles: Troubles

    @property
    def kube(self) -> LiveKube: ...

    def view(self) -> Any:
        """The world as faults of hardware ask for it."""

    def later(self, seconds: float, do: Callable[[], Any]) -> None: ...

    def serve_webhooks(self) -> None: ...

    def restart(self) -> None: ...

    def second(self) -> Live: ...

    def ended(self, live: Live) -> None: ...


class Unplayable(Refused):
    """The scenario asks for what real parts cannot play."""


def check(scenario: Scenario) -> None:
    """Raises: Unplayable, naming the first object or step that real parts cannot play."""
    for manifest in scenario.manifests:
        _all_on(manifest.where, manifest.id.kind, manifest.data)
    for step in scenario.timeline:
        action = step.action
        if isinstance(action, Apply):
            for manifest in action.manifests:
                _all_on(manifest.where, manifest.id.kind, manifest.data)
        elif isinstance(action, Patch):
            _all_on(step.where, action.kind, action.merge)
        if isinstance(action, (Patch, Delete)) and action.cluster:
            raise Unplayable(f"{step.where}: --world lab: changes in DPU clusters are not played")
        why = UNPLAYABLE.get(type(action))
        if why is not None:
            raise Unplayable(f"{step.where}: --world lab: fault {f.kind_name(type(action))} is not played: {why}")


def _all_on(where: str, kind: str, data: Any) -> None:
    if kind == DpfOperatorConfig.KIND:
        for component in SWITCHED:
            if part(data, "spec", component, "disable") is True:
                raise Unplayable(f"{where}: --world lab: {component}.disable is not played: every controller runs")


class Steps:
    """Does the steps of one story's timeline. `do` returns what ends a step that lasts."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._applied: dict[str, Any] = {}
        self._people = 0

    @property
    def troubles(self) -> Troubles:
        return self._story.troubles

    @property
    def _program(self) -> LabProgram:
        assert self._story.program is not None
        return self._story.program

    def do(self, step: Step) -> Heal | None:
        """Raises: ApiError."""
        action = step.action
        if isinstance(action, Apply):
            for manifest in action.manifests:
                self.apply(manifest)
        elif isinstance(action, Patch):
            self._patch(action)
        elif isinstance(action, Delete):
            self._delete(action)
        elif isinstance(action, Scale):
            self._scale(action.hosts)
        elif isinstance(action, Cordon):
            return CORDON(self, action)
        elif isinstance(action, PersonTask):
            return self._person(action)
        elif isinstance(action, str):
            self._story.restart()
        else:
            return self._fault(action)
        return None

    # --- the user

    def apply(self, manifest: Manifest) -> None:
        """kubectl apply. Raises: ApiError."""
        data = {k: v for k, v in manifest.data.items() if k != "status"}
        cluster = self._story.kube.cluster
        namespace = manifest.id.namespace
        kind = kind_of(str(data.get("apiVersion", "")), manifest.id.kind)
        if namespace and (kind is Unstructured or kind.NAMESPACED):
            data["metadata"] = {**data["metadata"], "namespace": namespace}
            self._program.ensure_namespace(namespace)
        if manifest.id.kind == "Secret" and manifest.id.name.endswith(ADMIN_SECRET):
            data = self._own_cluster(data, f"{namespace}-{manifest.id.name.removesuffix(ADMIN_SECRET)}")
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

    def _own_cluster(self, secret: dict[str, Any], name: str) -> dict[str, Any]:
        """The user's own cluster is a real API server, and its kubeconfig the real one."""
        text = self._program.own_cluster(name)
        data = {"admin.conf": base64.b64encode(text.encode()).decode()}
        return {**{k: v for k, v in secret.items() if k != "stringData"}, "data": data}

    def _path(self, of: Patch | Delete) -> str:
        version = of.apiVersion or (KINDS[of.kind].api_version() if of.kind in KINDS else "v1")
        return self._story.kube.cluster.manifest_path({"apiVersion": version, "kind": of.kind, "metadata": {
            "name": of.name, "namespace": of.namespace or "default"}})

    def _patch(self, patch: Patch) -> None:
        path = self._path(patch) + ("/status" if patch.status else "")
        content, kind = (patch.merge, MERGE_PATCH) if patch.merge is not None else (patch.json_patch, JSON_PATCH)
        self._story.kube.cluster.connection.request("PATCH", path, {"fieldManager": "kubectl-patch"},
                                                    msgspec.json.encode(content), kind)

    def _delete(self, delete: Delete) -> None:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": delete.propagation}
        self._story.kube.cluster.connection.request("DELETE", self._path(delete), body=msgspec.json.encode(body))

    def _nodes(self, cordon: Cordon) -> tuple[str, ...]:
        return fitting(cordon.node, [n.metadata.name for n in self._story.kube.list(Node)])

    def _cordoned(self, name: str, cordons: Sequence[bool]) -> None:
        self._story.kube.patch(Node, Key("", name), {"spec": {"unschedulable": bool(cordons) or None}})

    # --- people at the machines

    def _scale(self, hosts: int) -> None:
        """The first hosts of the fleet are in service, the others are not."""
        retired = self._program.hardware.retired
        for i, host in enumerate(self._story.scenario.fleet.hosts):
            if i < hosts and host.name in retired:
                self._program.hardware.return_to_service(host.name)
            elif i >= hosts and host.name not in retired:
                self._retire(host.name)

    def _retire(self, host: str) -> None:
        self._program.hardware.retire(host)
        try:
            self._story.kube.delete(Node, Key("", host))
        except NotFound:
            return

    def _person(self, task: PersonTask) -> Heal | None:
        program, story = self._program, self._story
        if task.reboot is not None:
            names = fitting(task.reboot, program.hardware.hosts.hosts)
            after_s = program.timing.sample("operator-response", *task.reboot) if task.after is None else task.after
            story.later(after_s, lambda: [program.power_cycle(name) for name in names])
            return None
        kind = KINDS[task.kind]

        def due(obj: Object) -> bool:
            value = obj.metadata.annotations.get(task.annotation)
            return (value is not None and value != task.value and value.lower() not in ("false", "0", "f")
                    and bool(fitting(task.name, [obj.metadata.name]))
                    and bool(fitting((task.namespace,), [obj.metadata.namespace])))

        self._people += 1
        after = None if task.after is None else task.after / story.speed
        person = program.add(f"person-{self._people}", lambda kube: Annotator(
            kube, program.backstage, program.durations, kind, task.annotation, task.value, due, after))
        return lambda: setattr(person, "present", False)

    # --- faults

    def _fault(self, fault: Any) -> Heal | None:
        recorder = self._story.recorder
        assert recorder is not None
        kind = f.kind_name(type(fault))
        target = f.target_text(fault)
        recorder.fault(kind, target, True)
        if isinstance(fault, HARDWARE):
            world, view = self._program.hardware.world, self._story.view()
            healed = world.call(lambda: EFFECTS[type(fault)](view, fault))
            heal: Heal | None = None if healed is None else partial(world.call, healed)
        else:
            heal = EFFECTS_HERE[type(fault)](self, fault)
        if heal is None:
            return None
        ends = heal

        def end() -> None:
            ends()
            recorder.fault(kind, target, False)

        return end

    def _host_lost(self, fault: f.HostLost) -> Heal:
        hosts = f.targets(fault, "host", self._story.scenario.fleet)
        for host in hosts:
            self._retire(host)
        return all_of([partial(self._program.hardware.return_to_service, host) for host in hosts])

    def _dms_pod_lost(self, fault: f.DmsPodLost) -> None:
        for host in f.targets(fault, "host", self._story.scenario.fleet):
            try:
                self._story.kube.delete(Pod, Key(self._story.settings.namespace, f"{host}-dms"))
            except NotFound:
                continue

    def _file(self, name: str) -> Path:
        return self._program.volume / name.removeprefix(f"{MOUNT}/")

    def _bfb_file_removed(self, fault: f.BfbFileRemoved) -> None:
        self._file(fault.file).unlink(missing_ok=True)

    def _bfb_file_replaced(self, fault: f.BfbFileReplaced) -> None:
        self._file(fault.file).write_bytes(image_bytes(ImageFileKey(default_image(fault.content, fault.content))))

    def _clusters(self, fault: f.DpuApiDown) -> list[str]:
        """Those there are when it begins."""
        keys = [c.key for c in self._story.kube.list(DpuCluster)]
        return [f"{k.namespace}-{k.name}" for k in keys if fitting(fault.cluster, [str(k)])]

    def _plane(self, name: str, down: bool) -> None:
        planes = self._story.lab.control_planes()
        if down:
            planes.stop(name)
        else:
            planes.restart(name)

    def _webhooks(self, _: str, down: bool) -> None:
        if not down:
            self._story.serve_webhooks()
        elif self._story.hooks is not None:
            self._story.hooks.close()

    def _controller_restart(self, fault: f.ControllerRestart) -> None:
        self._story.restart()

    def _two_leaders(self, fault: f.TwoLeaders) -> Heal:
        second = self._story.second()

        def end() -> None:
            second.stop()
            self._story.ended(second)

        return end


def _images(trouble: str, value: Callable[[Any], Any]) -> Lasting:
    """The proxy's trouble of this name."""
    def put(steps: Steps, server: str, ruling: Any) -> None:
        troubles = getattr(steps._program.proxy, trouble)
        if ruling is None:
            troubles.pop(server, None)
        else:
            troubles[server] = ruling
    return Lasting(lambda steps, fault: f.targets(fault, "server", steps._program.plan.fleet), put, value, None)


def _one(name: str) -> Callable[[Steps, Any], tuple[str]]:
    return lambda steps, fault: (name,)


ADMIN_SECRET: Final = "-admin-kubeconfig"
EFFECTS_HERE: Final[dict[type, Callable[[Steps, Any], Heal | None]]] = {
    f.HostLost: Steps._host_lost, f.DmsPodLost: Steps._dms_pod_lost,
    f.ImageServerDown: _images("down", lambda x: True), f.ImageServerSlow: _images("slow", lambda x: x.factor),
    f.ImageServerStatus: _images("status", lambda x: x.status),
    f.ImageServerWrongContent: _images("instead", lambda x: x.content),
    f.BfbFileRemoved: Steps._bfb_file_removed, f.BfbFileReplaced: Steps._bfb_file_replaced,
    f.DpuApiDown: Lasting(Steps._clusters, Steps._plane), f.ApiDown: Lasting(_one("host"), Steps._plane),
    f.WebhookDown: Lasting(_one(""), Steps._webhooks),
    f.JobFails: Lasting(_one(""), lambda s, _, all_: setattr(s._program, "failing_jobs", all_), lambda x: x.name,
                        every=True),
    f.CertificateLate: Lasting(_one("cert-manager"), lambda s, name, held: s._program.hold(name, held)),
    f.ControllerRestart: Steps._controller_restart, f.TwoLeaders: Steps._two_leaders,
}
"""Faults of real parts."""
CORDON: Final = Lasting(Steps._nodes, Steps._cordoned, every=True)
