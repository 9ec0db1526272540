"""Figures: every one drawn at 4, 64 and 1,000 DPUs, deterministic, and saying what the run says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from typing import Any

import matplotlib
import pytest
from matplotlib.patches import Rectangle

from reports import palette
from reports.axes import clock, natural, thin, time_ticks
from reports.figures import completion, figures, last_change_s, render, unavailable
from reports.strip import STRIP_ROWS, phases_by_rack
from reports.waits import waits
from scenarios.result import Run, summarise
from twin.model.provisioning import PHASES
from twin.sim.trace import NS, Trace


def texts(figure: Any) -> str:
    """All text of a figure, from its SVG (text stays text there)."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", render(figure, "svg").decode()))


@pytest.mark.slow
@pytest.mark.parametrize("dpus", [1, 4, 64, 1000])
def test_figures_are_drawn_at_every_size_and_stay_small(make_run: Callable[..., Run], dpus: int) -> None:
    run = make_run(dpus)
    drawn = figures([run], summarise([run]))

    for figure in drawn.values():
        assert len(render(figure, "svg")) < 400_000
        assert render(figure, "png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_replications_are_drawn_together(make_run: Callable[..., Run]) -> None:
    runs = [make_run(8, replication=i) for i in range(5)]
    lines = figures(runs, summarise(runs))["completion"].axes[0].get_lines()

    assert len([line for line in lines if line.get_color() == palette.READY_LINE]) == 5


@pytest.mark.slow
def test_figures_are_the_same_bytes_every_time(make_run: Callable[..., Run]) -> None:
    first, second = (figures([run], summarise([run])) for run in (make_run(8), make_run(8)))

    for name, figure in first.items():
        assert render(figure, "svg") == render(second[name], "svg"), name
        assert render(figure, "png") == render(second[name], "png"), name


@pytest.mark.slow
def test_figures_carry_no_date_and_no_name_of_the_machine(four: Run) -> None:
    for figure in figures([four], summarise([four])).values():
        svg = render(figure, "svg").decode()
        assert "dc:date" not in svg
        assert b"Software" not in render(figure, "png")


@pytest.mark.slow
def test_figures_say_how_many_dpus_are_ready_and_what_they_waited_for(many: Run) -> None:
    drawn = figures([many], summarise([many]))

    assert "62 of 64 at the end" in texts(drawn["completion"])
    assert "rack-power r1" in texts(drawn["completion"])
    assert "maxUnavailable DPUSet/dpf-operator-system/dpuset-1" in texts(drawn["waits"])
    assert "2 not Ready" in texts(drawn["waits"])
    assert "OS Installing [P] n=126" in texts(drawn["phase-durations"])
    assert "budget (maxUnavailable)" in texts(drawn["unavailable"])


FAULTS = {  # kind, target, seconds from, to
    "none": (),
    "two near": (("host-power", "worker1", 600, 1200), ("watch-duplicate", "dpu,dpuset", 660, 1260)),
    "at the axis, and as the curve ends": (("dms-slow", "*,5.0", 120, 130), ("api-slow", "20.0", 20_000, 90_000)),
    "twelve": tuple(("restart", f"dpf-provisioning-controller-manager-{i}", 200 * i, 200 * i + 4000)
                    for i in range(12)),
    "a long one": (("api-slow", "$x" * 100, 3600, 3700),),
}


def _with_faults(run: Run, faults: Sequence[tuple[str, str, float, float]]) -> Run:
    run.trace.faults.clear()
    for t_s, kind, target, began in sorted([(start, k, t, True) for k, t, start, _ in faults]
                                           + [(end, k, t, False) for k, t, _, end in faults]):
        run.trace.fault(round(t_s * NS), kind, target, began)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["completion", "unavailable"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_names_of_faults_meet_neither_plot_nor_title_legend_or_each_other(
        four: Run, name: str, faults: Sequence[tuple[str, str, float, float]]) -> None:
    run = _with_faults(replace(four, trace=deepcopy(four.trace)), faults)
    with matplotlib.rc_context(palette.RC):
        figure = completion([run], summarise([run])) if name == "completion" else unavailable([run])
    figure.canvas.draw()
    plot, lanes = figure.axes
    names = [t for t in lanes.texts if t.get_text()]
    others = [plot.bbox, lanes._left_title, *filter(None, [lanes.get_legend()])]
    boxes = [getattr(o, "get_window_extent", lambda o=o: o)() for o in [*names, *others]]

    assert {"manifests applied", "DPUSet template changed: bfb"} <= {t.get_text() for t in names}
    assert len(names) + sum(int(t.get_text().split()[0]) - 1 for t in names if t.get_text().endswith(" more")) \
        == 2 + len(faults)
    for a, b in combinations(boxes, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1), (a, b)
    for box in boxes[:len(names)]:
        assert plot.bbox.x0 - 0.5 < box.x0 < box.x1 < plot.bbox.x1 + 0.5


@pytest.mark.slow
def test_what_has_no_room_above_a_plot_is_counted(four: Run) -> None:
    run = _with_faults(replace(four, trace=deepcopy(four.trace)), FAULTS["twelve"])

    assert "+8 more" in texts(unavailable([run]))


def test_waits_say_what_they_measure_in_the_same_words_as_bars_and_ranked(four: Run, many: Run) -> None:
    bars, ranked = waits(four).axes[0].get_xlabel(), waits(many).axes[0].get_ylabel()

    assert bars == ranked.replace("\n", " ") == "time from asked to Ready without Error, all provisionings of the DPU"


def test_waits_leave_out_every_stay_in_error() -> None:
    trace = Trace()
    trace.asked(0, "install")
    for t_s, phase in ((0, "Initializing"), (20, "Error"), (500, "Deleting"), (510, ""), (510, "Initializing"),
                       (540, "Ready")):
        trace.phase(t_s * NS, "d1", phase)
    bars = waits(Run(scenario="s", seed=1, trace=trace, virtual_s=1000.0)).axes[0].patches

    assert [p.get_width() for p in bars if isinstance(p, Rectangle)] == [60.0]


def test_each_dpu_of_a_small_fleet_is_named_in_the_strip(four: Run) -> None:
    names = [label.get_text() for label in phases_by_rack(four).axes[0].get_yticklabels()]

    assert names == [f"r{rack}-h0{host}-0000-03-00" for rack in (1, 2) for host in (1, 2)]


@pytest.mark.slow
def test_a_huge_fleet_is_sampled_and_the_strip_says_so(make_run: Callable[..., Run]) -> None:
    run = make_run(2 * STRIP_ROWS, keep=False, objects=False, update=False)

    assert f"{STRIP_ROWS} of {2 * STRIP_ROWS} DPUs" in phases_by_rack(run).axes[0].get_title(loc="left") \
        or f"{STRIP_ROWS} of {2 * STRIP_ROWS} DPUs" in texts(phases_by_rack(run))


@pytest.mark.slow
def test_a_run_in_which_nothing_happened_still_has_figures() -> None:
    run = Run(scenario="empty", seed=1, trace=Trace(), virtual_s=60.0)

    for figure in figures([run], summarise([run])).values():
        assert render(figure, "png")


def test_the_time_axis_ends_soon_after_the_last_change(many: Run) -> None:
    assert many.virtual_s == 48 * 3600
    last = max(r.start_s for r in many.phases())

    assert last < last_change_s([many]) < 1.1 * last


@pytest.mark.parametrize(("t_s", "text"), [
    (0, "0"), (30, "30s"), (60, "1m"), (90, "1m30"), (3600, "1h"), (5400, "1h30"), (86400, "1d"), (108000, "1d6h")])
def test_times_on_an_axis_are_short(t_s: float, text: str) -> None:
    assert clock(t_s) == text


@pytest.mark.parametrize("end_s", [1, 7, 59, 600, 3600, 86_400, 5e5, 1e7, 3e8])
def test_an_axis_never_has_more_than_eleven_ticks(end_s: float) -> None:
    class Axis:
        def set_ticks(self, ticks: list[float], labels: list[str]) -> None:
            self.ticks = ticks

    axis = Axis()
    time_ticks(axis, end_s)

    assert 2 <= len(axis.ticks) <= 11
    assert axis.ticks[-1] <= end_s


def test_racks_are_sorted_as_people_count() -> None:
    assert sorted(["r10", "r2", "a", "r1"], key=natural) == ["a", "r1", "r2", "r10"]


def test_a_thinned_series_keeps_its_peaks() -> None:
    times = [i / 100 for i in range(100_000)]
    values = [float(i % 7) for i in range(100_000)]
    values[50_123] = 99.0
    few_times, few = thin(times, values, 1000.0)

    assert len(few) <= 4000
    assert max(few) == 99.0
    assert few_times == sorted(few_times)
    assert (few[0], few[-1]) == (values[0], values[-1])


VISION = {  # linear RGB as seen with a colour vision deficiency (Machado, Oliveira, Fernandes 2009, severity 1)
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}


def _lab(colour: str, vision: str) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of an sRGB colour as that vision sees it."""
    srgb = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in srgb]
    r, g, b = (min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in VISION[vision])
    xyz = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047, 0.2126 * r + 0.7152 * g + 0.0722 * b, \
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("vision", VISION)
def test_phases_stay_apart_with_any_colour_vision(vision: str) -> None:
    assert set(palette.PHASE_COLOURS) == set(PHASES)
    for a, b in combinations(PHASES, 2):
        distance = math.dist(_lab(palette.PHASE_COLOURS[a], vision), _lab(palette.PHASE_COLOURS[b], vision))
        assert distance > 10, (a, b, distance)


@pytest.mark.parametrize("phase", palette.PHASE_COLOURS)
def test_the_median_shows_on_the_colour_of_every_phase(phase: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colour = palette.phase_colour(phase)
    low, high = sorted((luminance(colour), luminance(palette.ink_on(colour))))

    assert (high + 0.05) / (low + 0.05) >= 3.0
