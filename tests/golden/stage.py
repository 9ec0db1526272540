"""Plays a recording's steps in our world, as v25.4 objects, each step in the situation in which it was recorded.

The stand-ins around upstream's controllers took seconds; `TIMES` gives our world theirs. A step was recorded in a
situation: these DPUs and BFBs in these phases, so many DPUs gone, and so many seconds since that came about. It is
played when our world has come into the same situation, and as many seconds later. (v25.4 has other phases in between,
so the clock alone would hit other situations.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from controllers import CONTROLLERS
from controllers.provisioning.webhooks import WEBHOOKS
from tests.golden.differences import NO_LIMIT, Limit
from tests.golden.recording import Change, Recording, Step
from tests.golden.translate import NAMESPACE, host_entry, manifest, merge_patch
from tests.golden.views import FIRST_PHASE
from twin.actors.slots import Limits
from twin.backends.base import ApiError, Settings
from twin.model import faults, fleet_file, timing_profile
from twin.model.fleet import Fleet
from twin.model.kinds import KINDS
from twin.model.meta import Key, Object, condition_status
from twin.model.names import Label
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuNode
from twin.model.timing import Fixed, Timing
from twin.runtime.reconcile import Context, Controller, Result
from twin.sim.admission import Webhooks
from twin.sim.clock import EPOCH, SECOND, ns
from twin.sim.faults import EFFECTS
from twin.sim.neighbours import bring_up
from twin.sim.trace import Trace
from twin.sim.world import Options, World

LIMIT_S: Final = 2000.0
"""No recording lasts longer; a play that does has not come into the situation of its next step."""

IMAGE_BYTES: Final = 12_000_000
"""So small that what a DMS takes per second does not matter (25 MB in the default profile)."""

IMAGES: Final = {
    "bf-bundle-2.9.1-40.bfb": {"bsp": "4.9.1.13495", "doca": "2.9.1", "uefi": "4.9.1-25-g0000000",
                               "atf": "v2.2(release):4.9.1-14-g0000000"},
    "bf-bundle-3.0.0-135.bfb": {"bsp": "4.11.0.13611", "doca": "2.11.0", "uefi": "4.11.0-25-g0000000",
                                "atf": "v2.2(release):4.11.0-14-g0000000"},
}
"""The stand-in images of the recordings. doca = bsp's major version less two (provisioning.md 4.1)."""


def times(recording: Recording) -> dict[str, float]:
    """Seconds per operation: the golden README's, and what the case sets otherwise. Latencies are a quick cluster's."""
    down = recording.seconds("host_down", 8.0)
    by_hand = recording.settings.get("join") == "False"  # the script of f8: 12 s NotReady, then seen at once
    return {
        "api-read": 0.001, "api-write": 0.004, "watch-lag": 0.004, "dpu-api-read": 0.002,
        "dpu-api-write": 0.004, "gc-delay": 0.03, "resync": 600.0, "requeue": 5.0,
        "dms-dial": 0.001, "dms-get": 0.005, "dms-set": 0.005, "dms-exec": 0.02, "dms-connect-timeout": 0.01,
        "os-verify": 0.03, "bfb-parse": 0.0,
        "os-install": recording.seconds("activate_delay", 2.0) + recording.seconds("reboot_active", 3.0),
        "reboot-status-poll": 3.0, "dpu-boot": 0.1, "arm-shutdown": 0.1, "fw-reset": 0.1,
        "host-drop": 1.0, "host-reboot": down, "host-power-cycle": down,
        "host-network-script": 3.0, "host-network-delete": 0.05, "dpu-join": recording.seconds("join_delay", 2.0),
        "join-retry": 0.5, "cni-ready": 12.0 if by_hand else 0.01, "node-lifecycle-grace": 0.01 if by_hand else 40.0,
        "pod-start": 0.1, "dms-init": 0.1, "dms-startup-probe": 0.1, "job-start": 0.3, "cert-issue": 0.4,
        "kamaji-control-plane": 3.5, "keepalived-start": 0.1, "maintenance-step": 0.6, "nfd-period": 60.0,
        "drain-timeout": 300.0, "drain-retry": 5.0,
    }


class Watcher(Trace):
    """A trace that tells the stage of every version of the objects it waits for."""

    def __init__(self) -> None:
        super().__init__(objects=True)
        self.tell: Callable[[int, str, Object], None] = lambda t, op, o: None

    def object(self, t_ns: int, op: str, cluster: str, obj: Object) -> None:
        super().object(t_ns, op, cluster, obj)
        if isinstance(obj, Dpu | Bfb | DpuCluster | DpuNode):
            self.tell(t_ns, op, obj)


@dataclass(frozen=True, slots=True)
class Looked:
    """A reconcile pass of ours: when it began and what it answered. `error` is '' or what it returned or raised."""

    controller: str
    key: Key
    t_s: float
    requeue_s: float | None
    error: str


class Observed:
    """A reconciler whose passes are noted."""

    def __init__(self, controller: str, inner: Any, looked: list[Looked]) -> None:
        self._controller = controller
        self._inner = inner
        self._looked = looked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        try:
            result: Result = self._inner.reconcile(ctx, key)
        except ApiError as error:
            self._note(ctx, key, None, str(error))
            raise
        self._note(ctx, key, result.requeue_after_s, result.error)
        return result

    def _note(self, ctx: Context, key: Key, requeue_s: float | None, error: str) -> None:
        self._looked.append(Looked(self._controller, key, ctx.now - EPOCH, requeue_s, error))


def observed(looked: list[Looked]) -> tuple[Controller, ...]:
    """All controllers, their passes noted."""

    def make(controller: Controller) -> Callable[[Any], Any]:
        return lambda backends: Observed(controller.name, controller.make(backends), looked)

    return tuple(replace(c, make=make(c)) for c in CONTROLLERS)


# --- situations

Counted = tuple[tuple[str, int], ...]


class Situation(NamedTuple):
    """How many DPUs are in each phase, how many have gone and how often one became Ready so far; then BFBs and
    DPUClusters in each phase."""

    dpus: tuple[Counted, int, int]
    bfbs: Counted
    clusters: Counted

ANSWER_S: Final = 0.06
"""A step's time is that of its answer; what it changed was seen up to so much earlier."""

LAST_WRITES_S: Final = 0.3
"""What belongs to the last situation of a recording but was written after it came about."""

BURST_S: Final = 0.5
"""A step that follows another as soon as this waits for nothing but its time."""

COUNTED: Final = ("DPU", "BFB", "DPUCluster")

SAME_SITUATION: Final = {"Config FW Parameters": "OS Installing", "Checking Host Reboot Required": "OS Installing",
                         "Rebooting": "OS Installing"}
"""Phases that pass by themselves or did not exist then count as the one before or after."""


class Census:
    """Counts phases as changes come in. `same` says which phases count as which."""

    def __init__(self, same: Mapping[str, str]) -> None:
        self._phases: dict[str, dict[str, str]] = {kind: {} for kind in COUNTED}
        self._gone = 0
        self._became_ready = 0
        self._same = {**SAME_SITUATION, **same}

    def note(self, kind: str, name: str, op: str, phase: str) -> None:
        if op == "DELETED":
            self._phases[kind].pop(name, None)
            self._gone += kind == "DPU"
        else:
            phase = phase or FIRST_PHASE[kind]
            phase = self._same.get(phase, phase)
            self._became_ready += kind == "DPU" and phase == "Ready" and self._phases[kind].get(name) != "Ready"
            self._phases[kind][name] = phase

    def now(self) -> Situation:
        dpus, bfbs, clusters = (tuple(sorted(Counter(p.values()).items())) for p in self._phases.values())
        return Situation((dpus, self._gone, self._became_ready), bfbs, clusters)


def recorded_situations(changes: Iterable[Change], same: Mapping[str, str]) -> list[tuple[float, Situation]]:
    """Every situation of a recording and when it came about."""
    census = Census(same)
    found: list[tuple[float, Situation]] = [(0.0, census.now())]
    phases: dict[tuple[str, str], str] = {}
    for c in changes:
        if c.kind not in COUNTED:
            continue
        phase = phases[c.kind, c.name] = c.changed.get("status.phase", phases.get((c.kind, c.name), ""))
        census.note(c.kind, c.name, c.op, phase)
        if census.now() != found[-1][1]:
            found.append((c.t_s, census.now()))
    return found


# --- the play


class Stuck(AssertionError):
    """Our world never came into the situation of a step."""


class Play:
    """One recording, played. `steps` are those to play; `world.trace.versions` is what came of it."""

    def __init__(self, recording: Recording, limit: Limit = NO_LIMIT, *, seed: int = 0, collapse: bool = False) -> None:
        self.recording = recording
        self.limit = limit
        steps = [s for s in recording.steps if not any(fnmatchcase(s.what, w) for w in limit.skip)]
        cut = next((i for i, s in enumerate(steps) if limit.until and s.what.startswith(limit.until)), len(steps))
        self.steps = steps[:cut]
        self.end_s = recording.end_s if cut == len(steps) else steps[cut].t_s - ANSWER_S
        self._situations = recorded_situations(recording.changes, limit.same)
        self.trace = Watcher()
        profile = timing_profile.named("fixed")
        mine = times(recording)
        operations = {n: replace(o, takes=Fixed(mine[n]) if n in mine else o.takes, fails=0.0)
                      for n, o in profile.operations.items()}
        self.looked: list[Looked] = []
        self.world = World(
            self._fleet(), Timing(replace(profile, operations=operations), 1), self.trace, observed(self.looked),
            webhooks=Webhooks(WEBHOOKS), policies=limit.policies, options=Options(collapse=collapse),
            settings=Settings(seed=seed, cloud_init_s=2.0))
        self.answers: list[tuple[Step, int, str]] = []
        """What the API server said to each step that asked it something: HTTP status and message."""
        self.played_s: list[float] = []
        self._census = Census(limit.same)
        self._seen: dict[Situation, int] = {}
        self._ready_nodes: set[str] = set()
        self._waiting: Callable[[], None] | None = None
        self._heal: dict[str, Callable[[], None]] = {}
        self._config_gone = False
        self.over = False

    def run(self) -> Play:
        """Raises Stuck."""
        world = self.world
        self.trace.tell = self._told
        world.machines.retired.update(dict.fromkeys(world.hosts.hosts))  # a step creates the Node
        world.start(bring_up)
        self._faults()
        if self.limit.config_until:
            self._config()
        self._seen[self._census.now()] = 0
        self._await(0)
        world.env.run(until=ns(LIMIT_S))
        if not self.over:
            step = self.steps[len(self.played_s)].what if len(self.played_s) < len(self.steps) else "the end"
            raise Stuck(f"{self.recording.name}: never came into the situation of {step!r}: "
                        f"{self._wanted(len(self.played_s))[1]}; it is {self._census.now()}")
        return self

    # --- when

    def _told(self, t_ns: int, op: str, o: Object) -> None:
        """A DPU, BFB or DPUNode changes; the change is visible at `t_ns`, perhaps a little later than now."""
        delay = t_ns - self.world.env.now
        self.world.env.call_at(max(delay, 0), self._changed, op, o)

    def _changed(self, op: str, o: Object) -> None:
        if isinstance(o, DpuNode):
            if o.status is not None and condition_status(o.status.conditions, "Ready") == "True":
                self._ready_nodes.add(o.metadata.name)
        else:
            status = getattr(o, "status", None)
            phase = status.phase if status is not None else ""
            if phase == self.limit.config_until and phase:
                self._config(delete=True)
            self._census.note(o.KIND, o.metadata.name, op, phase)
            self._seen.setdefault(self._census.now(), self.world.env.now)
        if self._waiting is not None:
            self._waiting()

    def _wanted(self, i: int) -> tuple[float, Situation, float]:
        """When step `i` was recorded, in which situation, and since when that situation or the step before was."""
        t_s = self.steps[i].t_s if i < len(self.steps) else self.end_s
        answer_s = ANSWER_S if i < len(self.steps) else 0.0
        since, situation = next((t, s) for t, s in reversed(self._situations) if t <= t_s - answer_s or t == 0.0)
        before = self.steps[i - 1].t_s if i else 0.0
        return t_s, situation, max(since, before)

    def _await(self, i: int) -> None:
        """Play step `i` once its situation has been there since the step before, and the hosts that it needs."""
        t_s, situation, since = self._wanted(i)
        needs_hosts = i < len(self.steps) and self.steps[i].kind in ("DPUSet", "DPU")

        burst = i > 0 and i < len(self.steps) and t_s - self.steps[i - 1].t_s < BURST_S

        def look() -> None:
            if needs_hosts and not self._hosts_registered():
                return
            if burst:
                due = self.world.env.now + ns(t_s - self.steps[i - 1].t_s)
            else:
                since_when = [self._came(part, wanted) for part, wanted in situation._asdict().items()]
                if None in since_when:
                    return
                due = max(max(n for n in since_when if n is not None) + ns(t_s - since), self.world.env.now)
            self._waiting = None
            self.world.env.call_at(due - self.world.env.now, self._do, i)

        self._waiting = look
        look()

    def _came(self, part: str, wanted: object) -> int | None:
        """Since when this part of the situation has been so, since the last step; None: it has not been."""
        if part == "dpus" and self.limit.kinds and "DPU" not in self.limit.kinds:
            return 0
        return min((t for s, t in self._seen.items() if getattr(s, part) == wanted), default=None)

    def _hosts_registered(self) -> bool:
        hosts = [h for h in self.world.fleet.hosts if h.name not in self.world.machines.retired and h.cards]
        return all(h.name in self._ready_nodes for h in hosts)

    def _do(self, i: int) -> None:
        now = self.world.env.now
        self.played_s.append(now / SECOND)
        # the present situation counts from here on; what was seen before does not
        self._seen = {self._census.now(): now}
        if i == len(self.steps):
            self.world.env.call_at(ns(LAST_WRITES_S), self._end)
            return
        self._act(self.steps[i])
        self._await(i + 1)

    def _end(self) -> None:
        self.over = True
        self.world.env.stop()

    # --- what

    def _fleet(self) -> Fleet:
        nodes = [s.document for s in self.recording.steps if s.kind == "Node" and s.target != ("Node", "cp1")]
        taken = {s.document["spec"]["nodeName"] for s in self.recording.steps if s.kind == "DPU"}
        entries = [host_entry(n) for n in nodes] or [host_entry({"metadata": {"name": "worker1"}})]
        missing = taken - {e["name"] for e in entries}
        entries += [host_entry({"metadata": {"name": name}}) for name in sorted(missing)]
        return fleet_file.from_data({
            "hosts": entries, "control_plane": 1,
            "network": {"host_bytes_per_s": IMAGE_BYTES / self.recording.seconds("install_delay", 1.0),
                        "controller_bytes_per_s": "10GB"},
            "volume": {"bandwidth_bytes_per_s": "10GB"},
            "image_servers": [{
                "name": "images", "url": "http://127.0.0.1:8000/", "bandwidth_bytes_per_s": IMAGE_BYTES / 2.0,
                "files": {n: {"size_bytes": IMAGE_BYTES, "versions": v} for n, v in IMAGES.items()}}]})

    def _faults(self) -> None:
        settings = self.recording.settings
        if settings.get("bfbdl") == "hang":
            self._begin(faults.ImageServerSlow(kind="image-server-slow", server=("*",), factor=1e6))
        if "activate_fail" in settings:
            self._begin(faults.InstallFails(kind="install-fails", dpu=("*",), message="fault of the scenario"))
        if "slr_fail" in settings:
            self._begin(faults.RebootFails(kind="reboot-fails", host=("*",)))
        if settings.get("join") == "False":
            self._begin(faults.JoinFails(kind="join-fails", dpu=("*",)))
        if settings.get("maint") == "pending":
            self.world.actors["maintenance-operator"][0].slots.limits = Limits(max_parallel=0)

    def _config(self, *, delete: bool = False) -> None:
        """The DPFOperatorConfig that v25.4 needs earlier than the recording has one."""
        kube, key = self.world.host_cluster, Key(NAMESPACE, "dpfoperatorconfig")
        if not delete:
            step = next(s for s in self.steps if s.kind == "DPFOperatorConfig")
            kube.create_manifest(manifest(step.document), "kubectl", self.world.env.now)
        elif kube.find(KINDS["DPFOperatorConfig"], key) is not None and not self._config_gone:
            self._config_gone = True
            # with orphans: it owns the DMS pods (provisioning.md 3.1), which are to stay
            kube.delete(KINDS["DPFOperatorConfig"], key, "kubectl", self.world.env.now, propagation="Orphan")

    def _begin(self, fault: Any) -> None:
        heal = EFFECTS[type(fault)](self.world, fault)
        if heal is not None:
            self._heal[faults.kind_name(type(fault))] = heal

    def heal(self, kind: str) -> None:
        self._heal.pop(kind)()

    def _act(self, step: Step) -> None:
        if step.verb == "neighbour":
            self._neighbour(step)
            return
        try:
            if step.kind != "Action":
                self._create(step)
            elif step.verb.startswith("patch"):
                self._patch(step)
            elif step.verb.startswith("delete"):
                self._delete(step)
            else:
                raise LookupError(f"nothing here plays the recorded step {step.what!r}")
        except ApiError as error:
            self.answers.append((step, error.code, str(error)))
        else:
            self.answers.append((step, 201 if step.kind != "Action" else 200, ""))

    def _create(self, step: Step) -> None:
        kind, name = step.target
        world = self.world
        if kind == "Node":
            if world.machines.retired.pop(name, "") is None:
                world.machines.changed(name)
            return
        if kind == "Secret":
            self._secret(step)
            return
        if kind == "Namespace":
            world.ensure_namespace(name)
            return
        if kind == "Pod":
            return
        world.host_cluster.create_manifest(manifest(step.document), "kubectl", world.env.now)

    def _secret(self, step: Step) -> None:
        """A DPU cluster's kubeconfig: its API server comes up with it. The DMS client's is part of the world."""
        data = step.document.get("stringData") or {}
        name = step.document["metadata"]["name"]
        namespace = step.document["metadata"].get("namespace", NAMESPACE)
        if "tls.crt" in data and namespace == NAMESPACE:
            return
        content = dict(data)
        if "admin.conf" in data:
            cluster = next((s.document["metadata"]["name"] for s in self.recording.steps if s.kind == "DPUCluster"
                            and s.document["spec"].get("kubeconfig") == name), name)
            key = Key(namespace, cluster)
            content["admin.conf"] = self.world.create_dpu_cluster(key)
            if "unreachable" in cluster:
                self.world.dpu_clusters[key].down = True
        self.world.host_cluster.create_manifest(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
             "stringData": content}, "kubectl", self.world.env.now)

    def _patch(self, step: Step) -> None:
        kind, name = step.target
        world = self.world
        patch = merge_patch(kind, step.document["mergePatch"])
        if "DPU cluster" in step.verb:
            server = next(iter(world.dpu_clusters.values()))
            server.patch_resource(KINDS["Node"], Key("", name), patch, "kubectl", world.env.now)
            return
        cls = KINDS[kind]
        key = Key(NAMESPACE if cls.NAMESPACED else "", name)
        world.host_cluster.patch_resource(cls, key, patch, "kubectl", world.env.now)
        labels = (patch.get("metadata") or {}).get("labels")
        if kind == "Node" and Label.OOB_BRIDGE in (labels or {}):
            world.hosts.set_bridge(world.hosts.hosts[name], br_dpu=True, default_route=True)  # what the label means
        if kind == "Node" and labels and None in labels.values():
            # What is selected in v25.4 is the DPUNode, and a label never leaves it by itself (provisioning.md 8.1).
            world.host_cluster.patch_resource(
                DpuNode, Key(NAMESPACE, name), {"metadata": {"labels": labels}}, "kubectl", world.env.now)

    def _delete(self, step: Step) -> None:
        kind, name = step.target
        world = self.world
        propagation = (step.document.get("options") or {}).get("propagationPolicy", "Background")
        if "install-fails" in self._heal:
            self.heal("install-fails")
        if "DPU cluster" in step.verb:
            next(iter(world.dpu_clusters.values())).delete(KINDS["Node"], Key("", name), "kubectl", world.env.now)
            return
        cls = KINDS[kind]
        key = Key(NAMESPACE if cls.NAMESPACED else "", name)
        world.host_cluster.delete(cls, key, "kubectl", world.env.now, propagation=propagation)

    def _neighbour(self, step: Step) -> None:
        from tests.golden.neighbours import NOTES

        for words, act in NOTES.items():
            if words in step.what:
                act(self)
                return
        raise LookupError(f"no neighbour plays the recorded step {step.what!r}")
