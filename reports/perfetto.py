"""The timeline for ui.perfetto.dev: TrackEvent protobufs. Tracks are rack > host > DPU; slices are phases.

Below a DPU stand its waits and outages, one track a constraint and a cause (slices of one track must not overlap).
Counters: DPUs Ready, DPUs unavailable, and every counter of the trace. Names are interned, so 1,000 DPUs stay small.
Same run, same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from scenarios.result import Run
from twin.model.provisioning import Phase

NS: Final = 1_000_000_000
_SEQUENCE: Final = 1
_CLEARED, _NEEDS = 1, 2  # TracePacket.SequenceFlags
_BEGIN, _END, _COUNTER = 1, 2, 4  # TrackEvent.Type
_ROOT: Final = 1


def timeline(run: Run) -> bytes:
    """The serialised trace of one run. Virtual second 0 is timestamp 0."""
    writer = _Writer()
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
    """Collects events and puts them out in order of time: what ends, then what begins, then counters.

    One packet object is filled again and again and written as bytes: a million packets at once would be half a GiB.
    """

    def __init__(self) -> None:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket

        self._packet = TracePacket()
        self._tracks: dict[tuple[int, str], tuple[int, bool]] = {}
        self._names: dict[str, int] = {}
        self._events: list[tuple[int, int, int, int, Any, int]] = []
        self._out = bytearray()
        self._describe(0, "DPU fleet")

    def _describe(self, parent: int, name: str, *, counts: bool = False) -> int:
        uuid = len(self._tracks) + _ROOT
        self._tracks[parent, name] = uuid, counts
        return uuid

    def track(self, name: str, parent: int) -> int:
        found = self._tracks.get((parent, name))
        return found[0] if found is not None else self._describe(parent, name)

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
        self._events.append((start_ns, 1, number, track, iid, _BEGIN))
        self._events.append((end_ns, 0 if end_ns > start_ns else 1, number + 1, track, None, _END))

    def counter(self, name: str, steps: Sequence[tuple[float, float]]) -> None:
        track = self._describe(_ROOT, name, counts=True)
        for t_s, value in steps:
            self._events.append((round(t_s * NS), 2, len(self._events), track, float(value), _COUNTER))

    def finish(self) -> bytes:
        first = self._start(0, _CLEARED | _NEEDS)
        for name, iid in self._names.items():
            first.interned_data.event_names.add(iid=iid, name=name)
        self._put()
        for (parent, name), (uuid, counts) in self._tracks.items():
            track = self._start(0, _NEEDS).track_descriptor
            track.uuid, track.name = uuid, name
            if parent:
                track.parent_uuid = parent
            if counts:
                track.counter.unit_name = "DPUs"
            self._put()
        for t_ns, _, _, uuid, what, type_ in sorted(self._events):
            event = self._start(t_ns, _NEEDS).track_event
            event.type = type_
            event.track_uuid = uuid
            if type_ == _BEGIN:
                event.name_iid = what
            elif type_ == _COUNTER:
                event.double_counter_value = what
            self._put()
        return bytes(self._out)

    def _start(self, t_ns: int, flags: int) -> Any:
        packet = self._packet
        packet.Clear()
        packet.timestamp = t_ns
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.sequence_flags = flags
        return packet

    def _put(self) -> None:
        """Append the packet as one element of `Trace.packet` (field 1, length-delimited)."""
        data = self._packet.SerializeToString(deterministic=True)
        self._out.append(0x0A)
        size = len(data)
        while size > 0x7F:
            self._out.append(size & 0x7F | 0x80)
            size >>= 7
        self._out.append(size)
        self._out += data
