"""The timeline: decoded with Perfetto's own protobufs; loaded by its trace_processor where that binary is at hand."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb2

from reports.perfetto import timeline
from scenarios.result import Run
from twin.sim.trace import NS, Trace

BEGIN, END, COUNTER = 1, 2, 4


class Decoded:
    """Tracks, slices and counters of a serialised trace; asserts on the way what every reader relies on."""

    def __init__(self, data: bytes) -> None:
        trace = pb2.Trace()
        trace.ParseFromString(data)
        self.names: dict[int, str] = {}
        self.parents: dict[int, int] = {}
        self.slices: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        self.counters: dict[str, list[tuple[int, float]]] = defaultdict(list)
        interned: dict[int, str] = {}
        stacks: dict[int, list[tuple[int, str]]] = defaultdict(list)
        last = 0
        for i, packet in enumerate(trace.packet):
            assert packet.trusted_packet_sequence_id == 1
            assert packet.sequence_flags & (1 if i == 0 else 2), "state is cleared first, needed after"
            interned |= {n.iid: n.name for n in packet.interned_data.event_names}
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                assert track.uuid not in self.names
                assert not track.parent_uuid or track.parent_uuid in self.names, "a parent is described first"
                self.names[track.uuid], self.parents[track.uuid] = track.name, track.parent_uuid
            if packet.HasField("track_event"):
                assert packet.timestamp >= last
                last = packet.timestamp
                self._event(packet.timestamp, packet.track_event, interned, stacks)
        assert not any(stacks.values()), "every slice ends"

    def _event(self, t_ns: int, event: Any, interned: dict[int, str], stacks: dict[int, list[tuple[int, str]]]) -> None:
        track = event.track_uuid
        if event.type == BEGIN:
            stacks[track].append((t_ns, interned[event.name_iid]))
        elif event.type == END:
            start, name = stacks[track].pop()
            self.slices[track].append((start, t_ns, name))
        else:
            assert event.type == COUNTER
            self.counters[self.names[track]].append((t_ns, event.double_counter_value))

    def path(self, track: int) -> str:
        parent = self.parents[track]
        return (self.path(parent) + " > " if parent else "") + self.names[track]

    def by_path(self) -> dict[str, list[tuple[int, int, str]]]:
        return {self.path(track): slices for track, slices in self.slices.items()}


def test_a_dpu_stands_below_its_host_and_rack_with_its_phases(four: Run) -> None:
    slices = Decoded(timeline(four)).by_path()
    mine = slices["DPU fleet > rack r1 > host r1-h01 > DPU r1-h01-0000-03-00"]

    expected = [(round(r.start_s * NS), round(r.end_s * NS)) for r in four.phases() if r.dpu == "r1-h01-0000-03-00"]
    assert [(start, end) for start, end, _ in mine] == expected
    assert [name for _, _, name in mine][:3] == ["Initializing", "Pending", "Node Effect"]
    assert "Ready (deleting)" in {name for _, _, name in mine}


def test_slices_of_one_track_never_overlap(many: Run) -> None:
    for path, slices in Decoded(timeline(many)).by_path().items():
        ordered = sorted(slices)
        assert all(a[1] <= b[0] for a, b in pairwise(ordered)), path


def test_waits_and_outages_have_tracks_below_their_dpu(four: Run) -> None:
    paths = set(Decoded(timeline(four)).by_path())

    for below in ("wait: image-server bfb-1", "outage: reboot"):
        assert f"DPU fleet > rack r1 > host r1-h02 > DPU r1-h02-0000-03-00 > {below}" in paths


def test_faults_are_slices_and_an_open_one_lasts_to_the_end() -> None:
    trace = Trace()
    trace.fault(5 * NS, "rack-power", "r1", True)
    trace.fault(7 * NS, "rack-power", "r1", False)
    trace.fault(8 * NS, "nfs-down", "", True)
    slices = Decoded(timeline(Run(scenario="s", seed=1, trace=trace, virtual_s=20.0))).by_path()

    assert slices == {"DPU fleet > fault: rack-power r1": [(5 * NS, 7 * NS, "rack-power r1")],
                      "DPU fleet > fault: nfs-down": [(8 * NS, 20 * NS, "nfs-down")]}


def test_counters_follow_ready_and_unavailable_dpus(four: Run) -> None:
    counters = Decoded(timeline(four)).counters

    assert counters["DPUs Ready"][-1][1] == 4
    assert max(v for _, v in counters["DPUs unavailable"]) == four.unavailability().max
    assert counters["unavailable-budget"] == [(4 * 3600 * NS, 1.0)]


def test_a_phase_of_no_length_is_a_slice_too() -> None:
    trace = Trace()
    trace.phase(3 * NS, "d1", "Initializing")
    trace.phase(3 * NS, "d1", "Pending")
    slices = Decoded(timeline(Run(scenario="s", seed=1, trace=trace, virtual_s=9.0))).by_path()

    assert slices["DPU fleet > DPU d1"] == [(3 * NS, 3 * NS, "Initializing"), (3 * NS, 9 * NS, "Pending")]


def test_the_bytes_are_the_same_every_time(make_run: Callable[..., Run]) -> None:
    assert timeline(make_run(8)) == timeline(make_run(8))


def test_names_are_stored_once(many: Run) -> None:
    data = timeline(many)

    assert data.count(b"Checking Host Reboot Required") == 1
    assert data.count(b"r1-h01-0000-03-00") == 1


@pytest.mark.slow
def test_a_thousand_dpus_fit_in_a_few_megabytes(make_run: Callable[..., Run]) -> None:
    data = timeline(make_run(1000, keep=False, objects=False))

    assert len(data) < 4_000_000
    assert Counter(len(path.split(" > ")) for path in Decoded(data).by_path())[4] == 1000


# The perfetto package downloads this program on first use, and no registry has it: a test for those who have it.
SHELL = shutil.which("trace_processor_shell")

if SHELL:

    @pytest.mark.slow
    def test_trace_processor_reads_the_timeline(four: Run, tmp_path: Path) -> None:
        from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

        path = tmp_path / "timeline.pftrace"
        path.write_bytes(timeline(four))
        with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=SHELL)) as processor:
            rows = list(processor.query("select count(*) as n from slice where name = 'OS Installing'"))
            errors = list(processor.query("select sum(value) as n from stats where severity = 'error'"))

        assert rows[0].n == 8
        assert not errors[0].n
