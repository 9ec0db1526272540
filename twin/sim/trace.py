"""One record per thing that happened, the digest over them, and the tables made of them.

The digest is the SHA-256 of the records as JSON lines, in the order they were emitted. It is computed whether or not
the records are kept, so what is recorded never changes what is hashed: `zstdcat trace.jsonl.zst | sha256sum` prints it.
Records carry virtual time only. Object versions (`object`) are recorded beside the trace and are not hashed.

Every method takes `t_ns`, integer nanoseconds since the start of the run; what is written says `t_s`, seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from twin.model.core import Secret
from twin.model.kinds import to_manifest
from twin.model.meta import Object, Unstructured, replace
from twin.model.provisioning import Phase

CHUNK: Final = 4096  # records encoded and hashed at once
NS: Final = 1_000_000_000

HOST_REBOOTS: Final = ("host-reboot", "host-power-cycle")
"""What `Trace.device` calls the two ways a host goes down and comes back; they count as `reboots.host`."""
DPU_REBOOTS: Final = ("dpu-reboot",)
"""A DPU's Arm restarting (after an install, a firmware reset, a power cycle of its host); counts as `reboots.dpu`."""
REDACTED: Final = "cmVkYWN0ZWQ="
"""What stands for a Secret's value in recorded objects: "redacted" in base64."""
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
BUDGET: Final = "unavailable-budget"
"""The counter that holds how many DPUs may be unavailable at once (the sum over DPUSets)."""
FOREIGN_TAINT: Final = "foreign-taint-removed"
"""The mark of a Node from which the DPU controller took a taint that it had not put there."""
WANTED: Final = "wanted-by-label"
"""The mark of a DPU that was missing when a label put on its DPUNode had a DPUSet select its device."""


class _Record(msgspec.Struct, frozen=True, gc=False, tag_field="what"):
    t_s: float


class Write(_Record, frozen=True, tag="write"):
    controller: str
    verb: str
    cluster: str
    kind: str
    namespace: str
    name: str
    resource_version: str
    outcome: str


class PhaseChange(_Record, frozen=True, tag="phase"):
    dpu: str
    phase: str
    attempt: int


class Asked(_Record, frozen=True, tag="asked"):
    why: str
    dpus: tuple[str, ...]


class DeviceChange(_Record, frozen=True, tag="device"):
    change: str
    host: str
    dpu: str
    detail: str


class Fault(_Record, frozen=True, tag="fault"):
    kind: str
    target: str
    began: bool


class KubeEvent(_Record, frozen=True, tag="kubernetes-event"):
    cluster: str
    about: str
    type: str
    reason: str
    message: str


class Outage(_Record, frozen=True, tag="outage"):
    dpu: str
    cause: str
    began: bool


class Wait(_Record, frozen=True, tag="wait"):
    dpu: str
    constraint: str
    began: bool


class Counter(_Record, frozen=True, tag="counter"):
    name: str
    value: float


Record = Write | PhaseChange | Asked | DeviceChange | Fault | KubeEvent | Outage | Wait | Counter


class Place(NamedTuple):
    """Where a DPU is: the join columns of every table."""

    rack: str = ""
    host: str = ""
    cluster: str = ""


class PhaseRow(NamedTuple):
    """A stay in a phase. `outcome`: passed, failed (to Error), deleting, back (to an earlier phase), gone, open."""

    dpu: str
    phase: str
    start_s: float
    end_s: float
    outcome: str
    attempt: int


class SpanRow(NamedTuple):
    """An outage (label: its cause) or a wait (label: its constraint) of a DPU."""

    dpu: str
    start_s: float
    end_s: float
    label: str


class Wish(NamedTuple):
    """From now on somebody wants this DPU made (anew), or (`wanted` false) no longer does."""

    t_s: float
    wanted: bool


class Version(NamedTuple):
    """One version of an object: `op` is ADDED, MODIFIED or DELETED."""

    t_s: float
    op: str
    cluster: str
    object: Object


_encoder: Final = msgspec.json.Encoder()
_ORDER: Final = {p: i for i, p in enumerate((
    Phase.INITIALIZING, Phase.PENDING, Phase.NODE_EFFECT, Phase.INITIALIZE_INTERFACE, Phase.CONFIG_FW_PARAMETERS,
    Phase.PREPARE_BFB, Phase.OS_INSTALLING, Phase.CHECKING_HOST_REBOOT_REQUIRED, Phase.REBOOTING,
    Phase.HOST_NETWORK_CONFIGURATION, Phase.DPU_CLUSTER_CONFIG, Phase.READY))}


def _outcome(phase: str, successor: str) -> str:
    if successor == "":
        return "gone"
    if successor == Phase.ERROR:
        return "failed"
    if successor == Phase.DELETING:
        return "deleting"
    return "back" if _ORDER.get(successor, 99) < _ORDER.get(phase, -1) else "passed"


class Trace:
    """Collects records. `keep` keeps the encoded records, `objects` keeps object versions.

    The world emits the same calls whatever is kept. Times must not go back for one DPU's phases; records themselves
    may be emitted ahead of time (a write is visible at its metered moment).
    """

    def __init__(self, *, keep: bool = False, objects: bool = False) -> None:
        self.keep = keep
        self.keep_objects = objects
        self.places: dict[str, Place] = {}
        self.counters: dict[str, list[tuple[float, float]]] = {}
        self.faults: list[Fault] = []
        self.asks: list[Asked] = []
        self.wishes: dict[str, list[Wish]] = {}
        self.versions: list[Version] = []
        self._flushed = 0
        self._last_s = 0.0
        self.device_changes: dict[str, int] = {}
        self.marks: dict[tuple[str, str], float] = {}
        self._phases: list[PhaseRow] = []
        self._outages: list[SpanRow] = []
        self._waits: list[SpanRow] = []
        self._in_phase: dict[str, tuple[str, float, int]] = {}
        self._attempts: dict[str, int] = {}
        self._open_outages: dict[tuple[str, str], float] = {}
        self._open_waits: dict[tuple[str, str], float] = {}
        self._chunks: list[bytes] = []
        self._buffer: list[_Record] = []
        self._hash = hashlib.sha256()
        self._digest = ""

    # --- what happened

    def write(self, t_ns: int, controller: str, verb: str, cluster: str, kind: str, namespace: str, name: str,
              resource_version: str, outcome: str) -> None:
        """A write reached an API server. `outcome` is '' or the Status reason of the refusal (Conflict, ...)."""
        self._emit(Write(t_ns / NS, controller, verb, cluster, kind, namespace, name, resource_version, outcome))

    def object(self, t_ns: int, op: str, cluster: str, obj: Object) -> None:
        """A version of an object; kept only when objects are recorded, never hashed. `op` as in watch events."""
        if self.keep_objects:
            self.versions.append(Version(t_ns / NS, op, cluster, obj))

    def place(self, dpu: str, rack: str, host: str, cluster: str = "") -> None:
        """Where this DPU is. Say it again when its DPUCluster is known; nothing is hashed."""
        self.places[dpu] = Place(rack, host, cluster)

    def mark(self, t_ns: int, what: str, about: str) -> None:
        """Something that tells of a known issue and that no record shows. The last time counts; nothing is hashed."""
        self.marks[what, about] = t_ns / NS

    def asked(self, t_ns: int, why: str, dpus: Iterable[str] = ()) -> None:
        """Somebody asked for (re)provisioning of these DPUs, or of all when none is named (a manifest was applied)."""
        record = Asked(t_ns / NS, why, tuple(dpus))
        self.asks.append(record)
        for dpu in record.dpus:
            self.wish(t_ns, dpu, wanted=True)
        self._emit(record)

    def wish(self, t_ns: int, dpu: str, *, wanted: bool) -> None:
        """This DPU is wanted, or the ask for it is withdrawn. `asked` says it for those it names; nothing is hashed."""
        self.wishes.setdefault(dpu, []).append(Wish(t_ns / NS, wanted))

    def phase(self, t_ns: int, dpu: str, phase: str) -> None:
        """A DPU's `status.phase` became this; '' when the object is gone. The same phase again is nothing new.

        `attempt` in the table counts the provisionings of this DPU, from 1: it grows at every Initializing.
        """
        before = self._in_phase.get(dpu)
        if before is not None and before[0] == phase:
            return
        t_s = t_ns / NS
        if before is not None:
            self._phases.append(PhaseRow(dpu, before[0], before[1], t_s, _outcome(before[0], phase), before[2]))
        attempt = self._attempts.get(dpu, 0)
        if phase == Phase.INITIALIZING or attempt == 0:
            self._attempts[dpu] = attempt = attempt + 1
        if phase:
            self._in_phase[dpu] = (phase, t_s, attempt)
        elif before is not None:
            del self._in_phase[dpu]
        self._emit(PhaseChange(t_s, dpu, phase, attempt))

    def device(self, t_ns: int, change: str, host: str, dpu: str = "", detail: str = "") -> None:
        """A host or a DPU did something (`host-reboot`, `dpu-reboot`, `install-failed`, `joined`, ...)."""
        self.device_changes[change] = self.device_changes.get(change, 0) + 1
        self._emit(DeviceChange(t_ns / NS, change, host, dpu, detail))

    def fault(self, t_ns: int, kind: str, target: str, began: bool) -> None:
        record = Fault(t_ns / NS, kind, target, began)
        self.faults.append(record)
        self._emit(record)

    def kube_event(self, t_ns: int, cluster: str, about: str, type_: str, reason: str, message: str) -> None:
        """A Kubernetes Event about `KIND/namespace/name`."""
        self._emit(KubeEvent(t_ns / NS, cluster, about, type_, reason, message))

    def outage_begin(self, t_ns: int, dpu: str, cause: str) -> None:
        """The DPU stops serving. Causes: drain, reboot, install, fault, service. Open already: nothing new."""
        if (dpu, cause) not in self._open_outages:
            t_s = self._open_outages[dpu, cause] = t_ns / NS
            self._emit(Outage(t_s, dpu, cause, True))

    def outage_end(self, t_ns: int, dpu: str, cause: str) -> None:
        start_s = self._open_outages.pop((dpu, cause), None)
        if start_s is not None:
            t_s = t_ns / NS
            if t_s > start_s:
                self._outages.append(SpanRow(dpu, start_s, t_s, cause))
            self._emit(Outage(t_s, dpu, cause, False))

    def wait_begin(self, t_ns: int, dpu: str, constraint: str) -> None:
        """The DPU waits for this constraint (`worker dpu`, `maintenance`, ...). Open already: nothing new."""
        if (dpu, constraint) not in self._open_waits:
            t_s = self._open_waits[dpu, constraint] = t_ns / NS
            self._emit(Wait(t_s, dpu, constraint, True))

    def wait_end(self, t_ns: int, dpu: str, constraint: str) -> None:
        start_s = self._open_waits.pop((dpu, constraint), None)
        if start_s is not None:
            t_s = t_ns / NS
            if t_s > start_s:
                self._waits.append(SpanRow(dpu, start_s, t_s, constraint))
            self._emit(Wait(t_s, dpu, constraint, False))

    def counter(self, t_ns: int, name: str, value: float) -> None:
        """A step series: `name` is `value` from now on."""
        t_s = t_ns / NS
        self.counters.setdefault(name, []).append((t_s, value))
        self._emit(Counter(t_s, name, value))

    # --- the digest

    def _emit(self, record: _Record) -> None:
        """Add this record to the trace as it is."""
        buffer = self._buffer
        buffer.append(record)
        if len(buffer) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            lines = _encoder.encode_lines(self._buffer)
            self._hash.update(lines)
            self._flushed += len(self._buffer)
            self._last_s = max(self._last_s, max(record.t_s for record in self._buffer))
            self._buffer.clear()
            if self.keep:
                self._chunks.append(lines)

    @property
    def records(self) -> int:
        """How many records there are so far."""
        return self._flushed + len(self._buffer)

    @property
    def last_s(self) -> float:
        """When the last thing happened, in seconds: the latest time of any record, 0 without one."""
        return max(self._last_s, max((record.t_s for record in self._buffer), default=0.0))

    @property
    def digest(self) -> str:
        """SHA-256 of all records so far, in hexadecimal."""
        if self._digest:
            return self._digest
        self._flush()
        return self._hash.hexdigest()

    def lines(self) -> Iterator[bytes]:
        """The kept records as chunks of JSON lines; nothing when they were not kept."""
        self._flush()
        yield from self._chunks

    def kept(self) -> Iterator[Record]:
        """The kept records, decoded."""
        decoder = msgspec.json.Decoder(Record)
        for chunk in self.lines():
            yield from decoder.decode_lines(chunk)

    def __getstate__(self) -> dict[str, Any]:
        """A trace travels between processes finished: nothing more can be emitted into the copy."""
        digest = self.digest
        return {**self.__dict__, "_hash": None, "_digest": digest}

    # --- tables (INTERFACE section 3; `replication`, and the place of each DPU, are joined by scenarios/result.py)

    def phases(self, end_s: float) -> list[PhaseRow]:
        """Every stay in a phase, by end; stays not over at `end_s` come last, as `open`."""
        return [*self._phases,
                *(PhaseRow(dpu, phase, start_s, max(start_s, end_s), "open", attempt)
                  for dpu, (phase, start_s, attempt) in self._in_phase.items())]

    def phase_now(self) -> dict[str, str]:
        """The phase of every DPU object that exists, in the order DPUs first got one."""
        return {dpu: phase for dpu, (phase, _, _) in self._in_phase.items()}

    def exists(self, dpu: str) -> bool:
        """Is there a DPU object of this name?"""
        return dpu in self._in_phase

    def outages(self, end_s: float) -> list[SpanRow]:
        return [*self._outages, *_open_spans(self._open_outages, end_s)]

    def waits(self, end_s: float) -> list[SpanRow]:
        return [*self._waits, *_open_spans(self._open_waits, end_s)]

    def writes(self) -> Iterator[Write]:
        """The kept writes; nothing when records were not kept."""
        return (r for r in self.kept() if isinstance(r, Write))

    def object_lines(self) -> Iterator[bytes]:
        """Object versions as JSON lines `{t_s, cluster, op, object}`, by time; Secrets without their values."""
        for t_s, op, cluster, obj in sorted(self.versions, key=lambda v: v.t_s):
            head = _encoder.encode({"t_s": t_s, "cluster": cluster, "op": op})
            yield head[:-1] + b',"object":' + _encode_object(obj) + b"}\n"


def _open_spans(spans: dict[tuple[str, str], float], end_s: float) -> Iterator[SpanRow]:
    return (SpanRow(dpu, start_s, end_s, label) for (dpu, label), start_s in spans.items() if end_s > start_s)


def _without_secrets(obj: Object) -> Object:
    """What a Secret holds never reaches a file: names stay, values go."""
    if not isinstance(obj, Secret):
        return obj
    meta = replace(obj.metadata, annotations={k: v for k, v in obj.metadata.annotations.items() if k != LAST_APPLIED})
    return replace(obj, metadata=meta, data=dict.fromkeys(obj.data, REDACTED),
                   string_data=dict.fromkeys(obj.string_data, REDACTED))


def _encode_object(obj: Object) -> bytes:
    """As `kubectl get -o json`, without the detour over a mapping (which costs three times as much)."""
    obj = _without_secrets(obj)
    if isinstance(obj, Unstructured):
        return _encoder.encode(to_manifest(obj))
    head = f'{{"apiVersion":"{obj.api_version()}","kind":"{obj.KIND}"'.encode()
    body = _encoder.encode(obj)
    return head + (b"," if len(body) > 2 else b"") + body[1:]
