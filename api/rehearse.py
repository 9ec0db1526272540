"""`dpf-twin rehearse`: load, run the replications, write the run folder, print the summary."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from api.output import Refused, answer, note
from twin.model.units import duration

if TYPE_CHECKING:
    from scenarios.base import Scenario
    from scenarios.result import Run, Summary
    from scenarios.story import Story

RECORD_UP_TO: Final = 1_000
"""DPUs up to which the trace and the objects are recorded unless --record says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of `rehearse`, parsed. None and empty: as the scenario has it."""

    scenario: list[str]
    manifests: list[str]
    fleet: str = ""
    variables: Mapping[str, str]
    policies: tuple[str, ...] = ()
    out: str = ""
    seed: int | None = None
    replications: int | None = None
    jobs: int = 1
    timing: str | None = None
    until_s: float | None = None
    record: str = ""
    report: bool = True
    progress: bool = True
    quiet: bool = False
    verbose: bool = False
    output: str = "table"


def load(request: Request) -> Scenario:
    """The scenario that these flags mean.

    Raises:
        Refused: neither or both of SCENARIO and --manifests.  BadInput: all mistakes in what was read.
    """
    from scenarios.load import Overrides, load_manifests, load_scenario

    overrides = Overrides(variables=request.variables, seed=request.seed, replications=request.replications,
                          horizon_s=request.until_s, timing=request.timing, policies=request.policies)
    if request.manifests:
        if not request.fleet:
            raise Refused("rehearse: --manifests needs --fleet FILE")
        return load_manifests([*request.manifests, *request.scenario], request.fleet, overrides, os.environ)
    if len(request.scenario) != 1:
        raise Refused("rehearse: give one SCENARIO, or --manifests PATH... and --fleet FILE"
                      + (f" (got {len(request.scenario)})" if request.scenario else ""))
    if request.fleet:
        raise Refused("rehearse: --fleet goes with --manifests; a scenario names its own fleet")
    return load_scenario(Path(request.scenario[0]), overrides, os.environ)


def recorded(text: str, dpus: int) -> frozenset[str]:
    """What --record means for a fleet of this size. Raises Refused."""
    from reports.folder import RECORDABLE

    if not text:
        return RECORDABLE if dpus <= RECORD_UP_TO else frozenset()
    if text == "none":
        return frozenset()
    wanted = frozenset(part.strip() for part in text.split(","))
    if not wanted <= RECORDABLE:
        raise Refused(f"--record: must be none, or some of {', '.join(sorted(RECORDABLE))} (got {text})")
    return wanted


def command_line(request: Request, scenario: Scenario) -> str:
    """The command that reproduces the run: everything that changes its outcome, nothing else."""
    words = ["dpf-twin", "rehearse"]
    if request.manifests:
        words += [w for m in (*request.manifests, *request.scenario) for w in ("--manifests", m)]
        words += ["--fleet", request.fleet]
    else:
        words += request.scenario
    words += ["--seed", str(scenario.seed)]
    if request.replications is not None:
        words += ["--replications", str(request.replications)]
    if request.timing is not None:
        words += ["--timing", request.timing]
    if request.until_s is not None:
        words += ["--until", f"{request.until_s:g}s"]
    words += [w for p in request.policies for w in ("--policy", p)]
    given = {n: v for n, v in scenario.variables.items() if n in request.variables or os.environ.get(n) == v}
    words += [w for n, v in given.items() for w in ("--var", f"{n}={v}")]
    return shlex.join(words)


def rehearse(request: Request) -> int:
    """Do it; the exit code. Raises Refused, BadInput, FolderError."""
    from reports.folder import check_writable, default_dir, write

    scenario = load(request)
    record = recorded(request.record, len(scenario.fleet.cards))
    out = Path(request.out) if request.out else default_dir(scenario.name, scenario.seed)
    check_writable(out)
    if request.verbose:
        for name in scenario.inputs:
            note(f"read {name}")
    from scenarios.result import summarise

    with CtrlC(patient=request.jobs == 1 or scenario.replications == 1) as stop:
        runs = _runs(request, scenario, record, stop)
        if not runs:
            note("interrupted: no replication was finished, nothing was written")
            return 130
        stop.patient = True
        summary = summarise(runs)
        folder = write(runs, summary, out, record=record, report=request.report)
    _print(summary, request)
    if not request.quiet:
        _notes(summary, folder, request)
    if stop.pressed:
        note(f"interrupted: {_kept(runs, scenario.replications)} kept in {folder}")
        return 130
    return 0 if summary.converged and all(e.holds for e in summary.expectations) else 1


class CtrlC:
    """What Ctrl-C does while it is entered: patient, the first press is only noted; every other press interrupts."""

    def __init__(self, *, patient: bool) -> None:
        self.patient = patient
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        again, self.pressed = self.pressed, True
        if again or not self.patient:
            raise KeyboardInterrupt
        note("keeping what was run so far; Ctrl-C once more drops it")


def _kept(runs: list[Run], replications: int) -> str:
    if runs[0].cut:
        return f"the first {duration(runs[0].virtual_s)} of virtual time are"
    if replications == 1:
        return "the run was finished and is"
    return f"{len(runs)} of {replications} replications were finished and"


def _runs(request: Request, scenario: Scenario, record: frozenset[str], stop: CtrlC) -> list[Run]:
    """The finished replications in order. Of one that Ctrl-C found without any before it, what had happened by then."""
    from reports.progress import Progress
    from scenarios.replicate import Interrupted, replicate

    n, ended = scenario.replications, 0
    with Progress(enabled=request.progress, horizon_s=scenario.horizon_s, label=scenario.name) as line:

        def going_on(_: int, story: Story) -> None:
            if stop.pressed and ended:
                raise KeyboardInterrupt
            story.cut = stop.pressed
            if line.due:
                line.update(story.world.env.now_s, story.world.trace.phase_now().values())

        def finished(run: Run) -> None:
            nonlocal ended
            ended += 1
            line.update(run.virtual_s, run.trace.phase_now().values())
            line.begin(f"{scenario.name}, {ended} of {n} finished")
            if stop.pressed and ended < n:
                raise KeyboardInterrupt

        try:
            runs = replicate(scenario, jobs=request.jobs, record=record, progress=going_on, finished=finished)
        except Interrupted as early:
            stop.pressed, runs = True, early.runs
    for run in runs:
        run.command = command_line(request, scenario)
    return runs


def _print(summary: Summary, request: Request) -> None:
    from api.output import document
    from api.summary import text

    if request.output in ("json", "yaml"):
        answer(document(summary.model_dump(mode="json"), request.output))
    else:
        answer(text(summary, wide=request.output == "wide"))


def _notes(summary: Summary, folder: Path, request: Request) -> None:
    for warning in summary.warnings:
        note(f"warning: {warning}")
    note(f"run folder: {folder}" + (f", report: {folder / 'report.md'}" if request.report else ""))
