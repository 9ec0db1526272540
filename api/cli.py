"""The command `dpf-twin`: verbs, flags and exit codes (docs/reference.md). Every verb loads what it needs when it runs.

Exit codes: 0 fine; 1 the answer is no; 2 bad input or usage, nothing done; 3 a real part is missing; 130 interrupted.
stdout carries the answer only, stderr progress and notes.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, Final

import typer

from api.flags import (
    AllNamespaces,
    At,
    Cluster,
    Fleet,
    Labels,
    Namespace,
    Output,
    Policies,
    Quiet,
    RunDir,
    Variables,
    Verbose,
    app,
    assignments,
    check_output,
    check_speed,
    until_seconds,
)
from api.output import Refused, answer, note
from twin.version import DPF_RELEASE, VERSION

__all__ = ["app", "call", "main"]

TO_COME: Final = ("diff", "packet", "sweep", "recommend", "plan", "execute", "score", "calibrate", "snapshot", "serve")
"""Verbs that are settled, but not in this release."""
_VERSION: Final = f"dpf-twin {VERSION} (DPF {DPF_RELEASE})"


def main() -> None:
    """The entry point of the console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: what is said goes nowhere
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open for the life of the process
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. What a user got wrong is told without a traceback."""
    try:
        if arguments == ["--version"]:  # the parser takes twice as long to load as the answer to print
            answer(_VERSION + "\n")
            return 0
        if arguments and arguments[0] in TO_COME:
            raise Refused(f"dpf-twin {arguments[0]}: not in this release")
        command = typer.main.get_command(app)
        code = command.main(arguments, prog_name="dpf-twin", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        note("interrupted")
        return 130
    except SystemExit:  # what the parser makes of a broken pipe
        if not {"-h", "--help"} & {*arguments}:
            raise
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        note(f"stdout: {(error.strerror or str(error)).lower()}")
        return 2
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        note(told)
        return int(getattr(error, "exit_code", 2))


def _told(error: Exception) -> str | None:
    """The lines for an error that is the user's; None for one that is ours."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # the command line parser's own errors
        context = getattr(error, "ctx", None)
        return f"{context.command_path if context else 'dpf-twin'}: {format_message()}"
    if isinstance(error, Refused) or hasattr(error, "exit_code"):
        return str(error)
    modules = sys.modules
    for module, name in (("twin.model.mistakes", "BadInput"), ("reports.folder", "FolderError"),
                         ("reports.look", "QueryError")):
        known = getattr(modules.get(module), name, None)
        if known is not None and isinstance(error, known):
            return str(error)
    return None


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version", is_eager=True)] = False,
) -> None:
    if version:
        answer(_VERSION + "\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        answer(context.get_help() + "\n")
        raise typer.Exit(2)


# --- verbs


@app.command()
def rehearse(
    scenario: Annotated[list[str], typer.Argument(help="A scenario file", metavar="SCENARIO", default_factory=list,
                                                  show_default=False)],
    variables: Variables,
    policies: Policies,
    manifests: Annotated[list[str], typer.Option("--manifests", help="Files, folders or globs, instead of a scenario",
                                                 metavar="PATH...", default_factory=list, show_default=False)],
    fleet: Fleet = "",
    output: Output = "table",
    out: Annotated[str, typer.Option("--out", help="Run folder; default reports/out/<scenario>-<seed>",
                                     metavar="DIR")] = "",
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of all draws; default the scenario's",
                                           metavar="N")] = None,
    replications: Annotated[int | None, typer.Option("--replications", help="Runs that differ only in seed",
                                                   metavar="N")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes for replications", metavar="N")] = 1,
    timing: Annotated[str, typer.Option("--timing", help="default, fixed or a file", metavar="NAME|FILE")] = "",
    until: Annotated[str, typer.Option("--until", help="End of observation, e.g. 36h", metavar="DURATION")] = "",
    record: Annotated[str, typer.Option("--record", help="trace,objects or none; default: both up to 1,000 DPUs",
                                        metavar="WHAT")] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="Summary only: no figures, tables, timeline")] = False,
    world: Annotated[str, typer.Option("--world", help="sim, or lab: real API servers, DMS and netlink",
                                       metavar="WORLD")] = "sim",
    speed: Annotated[float, typer.Option("--speed", help="With --world lab: emulated hardware runs so many times as "
                                                         "fast", metavar="N")] = 60.0,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress line on stderr")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a scenario in virtual time; print the summary, write the run folder."""
    from api.rehearse import Request
    from api.rehearse import rehearse as run

    check_output(output)
    if world not in ("sim", "lab"):
        raise Refused(f"--world: must be sim or lab (got {world})")
    request = Request(
        scenario=scenario, manifests=manifests, fleet=fleet, variables=assignments(variables), policies=tuple(policies),
        out=out, seed=seed, replications=replications, jobs=jobs, timing=timing or None, until_s=until_seconds(until),
        record=record, report=not no_report, progress=not no_progress and not quiet, quiet=quiet, verbose=verbose,
        output=output)
    if world == "lab":
        from api.rehearse_lab import rehearse as in_lab

        check_speed(speed)
        raise typer.Exit(in_lab(request, speed))
    raise typer.Exit(run(request))


@app.command()
def check(
    paths: Annotated[list[str], typer.Argument(help="Scenarios, fleets, timing profiles, manifests; files, folders or "
                                                    "globs", metavar="PATH...")],
    variables: Variables,
    policies: Policies,
    fleet: Fleet = "",
    output: Output = "table",
    quiet: Quiet = False,
) -> None:
    """Load and validate, and flag known problems before they happen. Runs nothing."""
    from api.check import check as run

    check_output(output)
    raise typer.Exit(run(paths, fleet, assignments(variables), tuple(policies), output, quiet=quiet))


@app.command()
def get(
    kind: Annotated[str, typer.Argument(help="dpu, bfb, nodes, ... or KIND/NAME", metavar="KIND")],
    run: RunDir,
    name: Annotated[str, typer.Argument(metavar="NAME")] = "",
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    output: Annotated[str, typer.Option("-o", "--output", help="wide, json, yaml or name", metavar="FORMAT")] = "table",
    at: At = "",
    cluster: Cluster = "",
) -> None:
    """Look at the objects of a finished run at any virtual time, as kubectl would show them."""
    from reports.folder import read
    from reports.look import Query
    from reports.look import get as look

    query = Query(kind=kind, name=name, namespace=namespace or None, all_namespaces=all_namespaces, selector=selector,
                  output=output, at_s=until_seconds(at, "--at"), cluster=cluster)
    _answer(look(read(run), query))


@app.command()
def describe(
    kind: Annotated[str, typer.Argument(help="dpu, bfb, nodes, ... or KIND/NAME", metavar="KIND")],
    run: RunDir,
    name: Annotated[str, typer.Argument(metavar="NAME")] = "",
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    selector: Labels = "",
    at: At = "",
    cluster: Cluster = "",
) -> None:
    """Everything about an object of a finished run at a virtual time, with the way it came there."""
    from reports.describe import describe as look
    from reports.folder import read
    from reports.look import Query

    query = Query(kind=kind, name=name, namespace=namespace or None, all_namespaces=all_namespaces, selector=selector,
                  at_s=until_seconds(at, "--at"), cluster=cluster)
    _answer(look(read(run), query))


@app.command()
def crd(
    kinds: Annotated[list[str], typer.Argument(help="Only these kinds", metavar="[KIND]...", default_factory=list,
                                               show_default=False)],
    output: Annotated[str, typer.Option("-o", "--output", help="yaml or json", metavar="FORMAT")] = "yaml",
) -> None:
    """Print the CustomResourceDefinitions, for `kubectl apply -f -`."""
    from api.schemas import crds

    answer(crds(kinds, output))


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="scenario, fleet, timing or summary", metavar="KIND")],
    output: Annotated[str, typer.Option("-o", "--output", help="json or yaml", metavar="FORMAT")] = "json",
) -> None:
    """Print the JSON Schema of what you write or receive."""
    from api.schemas import schema as of

    answer(of(kind, output))


# --- shared by verbs


def _answer(found: Any) -> None:
    answer(found.out)
    if found.err:
        note(found.err.removesuffix("\n"))
    raise typer.Exit(found.code)


from api import cli_live  # noqa: E402, F401  (registers `live`, `lab`, `diff-runs`, after the verbs above)

if __name__ == "__main__":
    main()
