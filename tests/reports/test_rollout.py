"""The Markdown report: says what the run says, in order, and nothing that changes from machine to machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.summary import text as summary_text
from reports.rollout import CAPTIONS, report
from scenarios.result import Run, summarise
from twin.sim.trace import NS, Trace


@pytest.fixture(scope="module")
def text(many: Run) -> str:
    return report([many], summarise([many]), list(CAPTIONS))


def test_the_report_opens_with_the_answer_and_how_to_reproduce_it(text: str) -> None:
    head = text.split("## ")[0]

    assert head.startswith("# rolling-bfb-update\n\n62 of 64 DPUs are Ready after 2d of virtual time, 1 in Error.\n"
                           "It did not converge.\n")
    assert "dpf-twin 0.1.0, DPF v25.4, seed 1." in head
    assert "```\ndpf-twin rehearse scenarios/library/rolling-bfb-update.yaml --seed 1\n```" in head


def test_a_run_that_converged_is_told_by_its_last_change_not_by_the_end_of_observation() -> None:
    run = _run_ready_at_1542_s()

    assert "1 of 1 DPUs are Ready after 25m 42s of virtual time." in report([run], summarise([run]), [])
    assert summary_text(summarise([run])).startswith("s: converged after 25m 42s; 1 of 1 DPUs Ready\n")
    run.converged = False
    assert "1 of 1 DPUs are Ready after 37m of virtual time." in report([run], summarise([run]), [])
    assert summary_text(summarise([run])).startswith("s: DID NOT CONVERGE after 37m; 1 of 1 DPUs Ready\n")


def _run_ready_at_1542_s() -> Run:
    trace = Trace()
    trace.phase(0, "d1", "Initializing")
    trace.phase(1542 * NS, "d1", "Ready")
    return Run(scenario="s", seed=1, trace=trace, virtual_s=2220.0)


def test_sections_stand_in_the_order_of_an_operators_questions(text: str) -> None:
    found = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]

    assert found == ["Completion", "Expectations", "Figures", "What binds", "Phases", "Unavailability", "Slowest DPUs",
                     "Not done", "Known issues met", "Warnings", "Controllers"]


def test_one_run_shows_quantiles_without_intervals(text: str) -> None:
    assert "One run, 64 DPUs: no interval." in text
    assert "95 % interval" not in text
    assert "| all DPUs | not within the run |" in text


def test_replications_show_intervals_and_say_how_many_there_are(make_run: Callable[..., Run]) -> None:
    runs = [make_run(4, replication=i) for i in range(8)]
    text = report(runs, summarise(runs), [])

    assert "8 replications, seeds 1 and on." in text
    assert "| Ready | after | 95 % interval |" in text
    assert "| all DPUs, in 19 of 20 runs |" in text
    assert "## Figures" not in text


def test_durations_carry_their_basis(text: str) -> None:
    assert "| OS Installing [P] | 126 |" in text
    assert "| Rebooting [E] | 126 |" in text
    assert "It rests on durations with basis expert, published." in text


def test_every_figure_is_linked_and_described(text: str) -> None:
    for name, caption in CAPTIONS.items():
        assert f"![{caption}]({name}.svg)" in text


def test_an_expectation_that_fails_is_loud(text: str) -> None:
    assert "| **does not hold** | `unavailable.max_per_rack <= 1` | 3 |" in text


def test_policies_are_named_or_their_absence_is(make_run: Callable[..., Run], text: str) -> None:
    run = make_run(4, seed=2)

    assert "Policies: throttle-initial-create." in report([run], summarise([run]), [])
    assert "No policies: upstream's behaviour as it is." in text


def test_wall_time_changes_nothing(make_run: Callable[..., Run]) -> None:
    slow, fast = make_run(4), make_run(4)
    slow.wall_s = 99.0

    assert report([slow], summarise([slow]), []) == report([fast], summarise([fast]), [])


def test_a_bar_in_a_name_does_not_break_a_table(make_run: Callable[..., Run]) -> None:
    run = make_run(4)
    run.trace.wait_begin(0, "r1-h01-0000-03-00", "pdb ns/a|b")

    assert "pdb ns/a\\|b" in report([run], summarise([run]), [])


def test_long_lists_are_cut_and_say_so() -> None:
    run = Run(scenario="s", seed=1, trace=Trace(), virtual_s=9.0, warnings=[f"w{i}" for i in range(60)])
    text = report([run], summarise([run]), [])

    assert "- w49\n- and 10 more, in `summary.json`" in text
    assert "Nothing was asked of any DPU." in text
