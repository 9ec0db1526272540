"""The timeline for ui.perfetto.dev: TrackEvent protobufs. Tracks are rack > host > DPU; slices are phases.

Below a DPU stand its waits and outages, one track a constraint and a cause (slices of one track must not overlap).
Counters: DPUs Ready, DPUs unavailable, and every counter of the trace. Names are interned, so 1,000 DPUs stay small.
Same run, same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from scenarios.result import Run
from twin.model.provisioning import Phase

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

NS: Final = 1_000_000_000
_SEQUENCE: Final = 1
_CLEARED, _NEEDS = 1, 2  # TracePacket.SequenceFlags
_ROOT: Final = 1


def timeline(run: Run) -> bytes:
    """The serialised trace of one run. Virtual second 0 is timestamp 0."""
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    writer = _Writer(TraceProtoBuilder())
    dpus = writer.places(run)
    for row in run.phases():
        failed = "" if row.outcome in ("passed", "open") else f" ({row.outcome})"
        writer.slice(dpus[row.dpu], row.phase + failed, row.start_s, row.end_s)
    for kind, rows in (("wait", run.waits()), ("outage", run.outages())):
        for span in rows:
            track = writer.track(f"{kind}: {span.label}", dpus.get(span.dpu, _ROOT))
            writer.slice(track, span.label, span.start_s, span.end_s)
    _faults(writer, run)
    _counters(writer, run)
    return writer.finish()


def _faults(writer: _Writer, run: Run) -> None:
    began: dict[tuple[str, str], float] = {}
    for fault in run.trace.faults:
        key = fault.kind, fault.target
        if fault.began:
            began[key] = fault.t_s
        elif key in began:
            _fault(writer, key, began.pop(key), fault.t_s)
    for key, start_s in began.items():
        _fault(writer, key, start_s, run.virtual_s)


def _fault(writer: _Writer, key: tuple[str, str], start_s: float, end_s: float) -> None:
    name = " ".join(part for part in key if part)
    writer.slice(writer.track(f"fault: {name}", _ROOT), name, start_s, end_s)


def _counters(writer: _Writer, run: Run) -> None:
    ready: dict[float, int] = defaultdict(int)
    for row in run.phases():
        if row.phase == Phase.READY:
            ready[row.start_s] += 1
            if row.outcome != "open":
                ready[row.end_s] -= 1
    level = 0
    steps: list[tuple[float, float]] = [(0.0, 0)]
    for t_s in sorted(ready):
        level += ready[t_s]
        steps.append((t_s, level))
    writer.counter("DPUs Ready", steps)
    writer.counter("DPUs unavailable", run.unavailability().steps)
    for name, series in run.trace.counters.items():
        writer.counter(name, series)


class _Writer:
    """Collects packets and puts them out in order of time, ends before begins, inner slices inside outer ones."""

    def __init__(self, builder: TraceProtoBuilder) -> None:
        self._builder = builder
        self._tracks: dict[tuple[int, str], int] = {}
        self._names: dict[str, int] = {}
        self._events: list[tuple[int, int, int, int, Any, int]] = []
        first = self._packet(0)
        first.sequence_flags = _CLEARED | _NEEDS
        self._interned = first.interned_data.event_names
        self._next_track = _ROOT
        self._describe(0, "DPU fleet")

    def _packet(self, t_ns: int) -> Any:
        packet = self._builder.add_packet()
        packet.timestamp = t_ns
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _describe(self, parent: int, name: str) -> Any:
        uuid = self._next_track
        self._next_track += 1
        packet = self._packet(0)
        packet.sequence_flags = _NEEDS
        packet.track_descriptor.uuid = uuid
        packet.track_descriptor.name = name
        if parent:
            packet.track_descriptor.parent_uuid = parent
        self._tracks[parent, name] = uuid
        return packet.track_descriptor

    def track(self, name: str, parent: int) -> int:
        found = self._tracks.get((parent, name))
        return found if found is not None else int(self._describe(parent, name).uuid)

    def places(self, run: Run) -> dict[str, int]:
        """The track of each DPU under its host and rack, in the order of racks, hosts, DPUs."""
        from reports.axes import natural

        dpus = dict.fromkeys(row.dpu for row in run.phases()) | dict.fromkeys(run.trace.places)
        ordered = sorted(dpus, key=lambda d: (natural(run.place(d).rack), natural(run.place(d).host), natural(d)))
        out = {}
        for dpu in ordered:
            rack, host, _ = run.place(dpu)
            parent = self.track(f"rack {rack}", _ROOT) if rack else _ROOT
            parent = self.track(f"host {host}", parent) if host else parent
            out[dpu] = self.track(f"DPU {dpu}", parent)
        return out

    def slice(self, track: int, name: str, start_s: float, end_s: float) -> None:
        iid = self._names.setdefault(name, len(self._names) + 1)
        start_ns, end_ns = round(start_s * NS), round(end_s * NS)
        end_ns = max(end_ns, start_ns)
        number = len(self._events)
        # at one instant: what ends comes first, then begins; a slice of no length ends after it began
        self._events.append((start_ns, 1, number, track, iid, 1))
        self._events.append((end_ns, 0 if end_ns > start_ns else 1, number + 1, track, None, 2))

    def counter(self, name: str, steps: Sequence[tuple[float, float]]) -> None:
        descriptor = self._describe(_ROOT, name)
        descriptor.counter.unit_name = "DPUs"
        track = int(descriptor.uuid)
        for t_s, value in steps:
            self._events.append((round(t_s * NS), 2, len(self._events), track, float(value), 4))

    def finish(self) -> bytes:
        for name, iid in self._names.items():
            self._interned.add(iid=iid, name=name)
        for t_ns, _, _, track, what, type_ in sorted(self._events, key=lambda e: e[:3]):
            packet = self._packet(t_ns)
            packet.sequence_flags = _NEEDS
            event = packet.track_event
            event.type = type_
            event.track_uuid = track
            if type_ == 1:
                event.name_iid = what
            elif type_ == 4:
                event.double_counter_value = what
        return bytes(self._builder.serialize())
