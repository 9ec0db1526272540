"""`dpf-twin rehearse`: load, run the replications, write the run folder, print the summary."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from api.output import Refused, note

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
    runs, interrupted = _runs(request, scenario, record)
    if not runs:
        note("interrupted: no replication was finished, nothing was written")
        return 130
    from scenarios.result import summarise

    summary = summarise(runs)
    folder = write(runs, summary, out, record=record, report=request.report)
    _print(summary, request)
    if not request.quiet:
        _notes(summary, folder, request)
    if interrupted:
        note(f"interrupted: {len(runs)} of {scenario.replications} replications were finished and kept in {folder}")
        return 130
    return 0 if summary.converged and all(e.holds for e in summary.expectations) else 1


def _runs(request: Request, scenario: Scenario, record: frozenset[str]) -> tuple[list[Run], bool]:
    """The finished replications in order, and whether somebody pressed Ctrl-C before the last."""
    from reports.progress import Progress
    from scenarios.replicate import Interrupted, replicate

    n, ended, interrupted = scenario.replications, 0, False
    with Progress(enabled=request.progress, horizon_s=scenario.horizon_s, label=scenario.name) as line:

        def going_on(_: int, story: Story) -> None:
            if line.due:
                line.update(story.world.env.now_s, story.world.trace.phase_now().values())

        def finished(run: Run) -> None:
            nonlocal ended
            ended += 1
            line.update(run.virtual_s, run.trace.phase_now().values())
            line.begin(f"{scenario.name}, {ended} of {n} finished")

        try:
            runs = replicate(scenario, jobs=request.jobs, record=record, progress=going_on, finished=finished)
        except Interrupted as stop:
            runs, interrupted = stop.runs, True
    for run in runs:
        run.command = command_line(request, scenario)
    return runs, interrupted


def _print(summary: Summary, request: Request) -> None:
    from api.output import document
    from api.summary import text

    if request.output in ("json", "yaml"):
        sys.stdout.write(document(summary.model_dump(mode="json"), request.output))
    else:
        sys.stdout.write(text(summary, wide=request.output == "wide"))


def _notes(summary: Summary, folder: Path, request: Request) -> None:
    for warning in summary.warnings:
        note(f"warning: {warning}")
    note(f"run folder: {folder}" + (f", report: {folder / 'report.md'}" if request.report else ""))
