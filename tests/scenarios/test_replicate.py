"""Replications: the same for any number of processes, and Ctrl-C keeps what was finished."""

from __future__ import annotations

import json
import os
import signal
import weakref
from pathlib import Path

import pytest

import scenarios.replicate
import scenarios.run
from api.cli import call
from scenarios.base import Manifest, ObjectId, Scenario, Step
from scenarios.load import load_scenario
from scenarios.replicate import Interrupted, replicate
from scenarios.result import Run, summarise
from scenarios.run import run
from scenarios.story import Story
from twin.model.mistakes import BadInput
from twin.sim.world import World

LIBRARY = Path(__file__).parents[2] / "scenarios" / "library"
INSTALL = LIBRARY / "first-install.yaml"
UPDATE = LIBRARY / "rolling-bfb-update.yaml"


def install() -> Scenario:
    return load_scenario(INSTALL)


def told(runs: list[Run]) -> list[object]:
    """What a run says, without what it cost on this machine."""
    return [(r.replication, r.seed, r.trace.digest, r.virtual_s, r.converged, r.reconciles, r.phases(), r.objects,
             r.expectations) for r in runs]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing() -> None:
    alone, two, many = (replicate(install(), 4, jobs=jobs) for jobs in (1, 2, 9))

    assert told(alone) == told(two) == told(many)


@pytest.mark.slow
def test_replications_differ_and_each_replays_alone() -> None:
    runs = replicate(install().with_(replications=3))

    assert len({r.trace.digest for r in runs}) == 3
    assert [r.trace.digest for r in runs] == [run(install(), r.seed).trace.digest for r in runs]


def test_the_first_replication_has_the_scenarios_own_seed() -> None:
    assert replicate(install())[0].trace.digest == run(install()).trace.digest


def test_worlds_of_earlier_runs_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios.run, "WORTHWHILE", 100)
    worlds: list[weakref.ref[World]] = []

    def look(story: Story, _: float) -> None:
        if not any(world() is story.world for world in worlds):
            worlds.append(weakref.ref(story.world))

    for _ in range(3):
        run(install(), progress=look)

    assert len(worlds) == 3
    assert [world() for world in worlds[:2]] == [None, None]


def test_only_the_first_replication_keeps_its_records() -> None:
    runs = replicate(install(), 2, record=("trace", "objects"))

    assert [(r.trace.keep, r.trace.keep_objects) for r in runs] == [(True, True), (False, False)]
    assert b"".join(runs[0].trace.lines())


def test_ctrl_c_keeps_the_finished_replications() -> None:
    def pressed(done: Run) -> None:
        if done.replication == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        replicate(install(), 50, finished=pressed)

    assert [r.replication for r in stopped.value.runs] == [0, 1]


@pytest.mark.slow
def test_ctrl_c_with_several_processes_keeps_the_finished_replications() -> None:
    ended: list[Run] = []

    def pressed(done: Run) -> None:
        ended.append(done)
        if len(ended) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        replicate(install(), 500, jobs=2, finished=pressed)

    kept = stopped.value.runs
    assert 3 <= len(kept) < 500
    assert kept == sorted(ended, key=lambda r: r.replication)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_refusal_at_0_s_is_told_from_any_process(jobs: int) -> None:
    scenario = install()
    data = {"kind": "BFB", "metadata": {"name": "x", "namespace": "default"}, "spec": {"url": 7}}
    some = scenario.manifests[0]
    bad = Manifest({"apiVersion": "provisioning.dpu.nvidia.com/v1alpha1", **data},
                   ObjectId("provisioning.dpu.nvidia.com", "BFB", "default", "x"), some.doc)

    with pytest.raises(BadInput, match=r"BFB/default/x: .*spec\.url"):
        replicate(scenario.with_(manifests=(*scenario.manifests, bad)), 2, jobs=jobs)


@pytest.mark.slow
def test_a_summary_of_replications_has_medians_and_ranges() -> None:
    runs = replicate(install(), 5)
    last = sorted(max(p.completion_s for p in r.completions().values()) for r in runs)

    found = summarise(runs).completion_s["last"]

    assert (found.min, found.value, found.max, found.n) == (last[0], last[2], last[4], 5)
    assert "min" not in summarise(runs[:1]).completion_s["last"].model_dump()


@pytest.mark.slow
def test_the_command_prints_ranges_and_the_same_answer_for_any_jobs(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answers = []
    for jobs in ("1", "2"):
        code = call(["rehearse", str(INSTALL), "--replications", "3", "--jobs", jobs, "--seed", "7", "--no-report",
                     "--out", str(tmp_path / jobs), "-q"])
        head, wall, *rest = capsys.readouterr().out.splitlines()
        answers.append((code, head, wall.rpartition(" in ")[0], rest))

    assert answers[0] == answers[1]
    assert answers[0][0] == 0
    assert "3 replications from seed 7" in answers[0][2]
    assert any(line.startswith("READY AFTER") and "RANGE" in line for line in answers[0][3])


@pytest.mark.slow
def test_an_interrupted_command_writes_what_was_finished(
        capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = scenarios.replicate.run

    def interrupted(*args: object, replication: int, **kwargs: object) -> Run:
        if replication == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, replication=replication, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(scenarios.replicate, "run", interrupted)
    code = call(["rehearse", str(INSTALL), "--replications", "5", "--no-report", "--out", str(tmp_path / "run")])

    assert code == 130
    assert "2 of 5 replications were finished and kept" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").exists()


def pressed_at_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    original, pressed = Story._step, iter([True])

    def step_(story: Story, step: Step) -> None:
        if next(pressed, False):
            os.kill(os.getpid(), signal.SIGINT)
        original(story, step)

    monkeypatch.setattr(Story, "_step", step_)


@pytest.mark.slow
@pytest.mark.parametrize("replications", ["1", "3"])
def test_ctrl_c_in_the_middle_of_the_first_run_keeps_what_happened_until_then(
        replications: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed_at_the_first_step(monkeypatch)
    code = call(["rehearse", str(UPDATE), "--replications", replications, "--no-report",
                 "--out", str(tmp_path / "run")])

    told = capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert code == 130
    assert "the first 4h 1m of virtual time are kept in" in told
    assert (summary["virtual_s"], summary["converged"]) == (14_460.0, False)
    assert summary["pending"][0] == "the run was interrupted after 4h 1m of virtual time"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_second_ctrl_c_drops_the_run(
        capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed_at_the_first_step(monkeypatch)
    monkeypatch.setattr(Story, "result", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    code = call(["rehearse", str(UPDATE), "--no-report", "--out", str(tmp_path / "run")])

    assert code == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
