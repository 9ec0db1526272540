"""The verbs that touch real parts: `live`, `lab`, `diff-runs`. Registered by `api.cli`."""

from __future__ import annotations

from typing import Annotated

import typer

from api.flags import Output, Policies, Quiet, app, check_output, check_speed, until_seconds
from api.output import answer

lab_app = typer.Typer(help="A fleet on this machine with real parts: API servers, DMS over gRPC, netlink.",
                      rich_markup_mode=None, no_args_is_help=True, add_completion=False)
app.add_typer(lab_app, name="lab")

Dir = Annotated[str, typer.Option("--dir", help="The lab's folder", metavar="DIR")]


@lab_app.command("up")
def lab_up(
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Emulated hosts", metavar="N")] = 2,
    dpus_per_host: Annotated[int, typer.Option("--dpus-per-host", min=1, max=8, help="DPUs in each host",
                                             metavar="M")] = 1,
    speed: Annotated[float, typer.Option("--speed", help="Emulated hardware runs so many times as fast",
                                         metavar="X")] = 1.0,
    folder: Dir = "",
    fleet: Annotated[str, typer.Option("--fleet", help="A fleet file instead of --hosts", metavar="FILE")] = "",
    timing: Annotated[str, typer.Option("--timing", help="default, fixed or a file", metavar="NAME|FILE")] = "default",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the hardware's durations", metavar="N")] = 1,
    no_netns: Annotated[bool, typer.Option("--no-netns", help="Without network namespaces (needs no root)")] = False,
    output: Output = "table",
    quiet: Quiet = False,
) -> None:
    """Start a lab; returns when the API server is ready and the hosts are registered."""
    from api.lab import LabRequest, up

    check_output(output)
    check_speed(speed)
    raise typer.Exit(up(LabRequest(folder=folder, hosts=hosts, dpus_per_host=dpus_per_host, speed=speed, fleet=fleet,
                                   timing=timing, seed=seed, netns=not no_netns, output=output, quiet=quiet)))


@lab_app.command("status")
def lab_status(folder: Dir = "", output: Output = "table") -> None:
    """What runs, and where."""
    from api.lab import status

    check_output(output)
    raise typer.Exit(status(folder, output))


@lab_app.command("down")
def lab_down(folder: Dir = "", quiet: Quiet = False) -> None:
    """End the lab and remove everything of it; harmless when there is none."""
    from api.lab import down

    raise typer.Exit(down(folder, quiet=quiet))


@app.command()
def live(
    policies: Policies,
    kubeconfig: Annotated[str, typer.Option("--kubeconfig", help="The host cluster; in a pod its service account",
                                            metavar="FILE")] = "",
    context: Annotated[str, typer.Option("--context", help="The kubeconfig's context; default the current one",
                                         metavar="NAME")] = "",
    lab: Annotated[bool, typer.Option("--lab", help="The lab on this machine")] = False,
    folder: Dir = "",
    shadow: Annotated[bool, typer.Option("--shadow", help="Decide, log what would be written, touch nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    controllers: Annotated[str, typer.Option("--controllers", help="Only these, e.g. bfb,dpuset",
                                             metavar="LIST")] = "",
    actors: Annotated[str, typer.Option("--actors", help="Neighbours to play where they are missing: "
                                        "maintenance-operator,cert-manager", metavar="LIST")] = "",
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Where DPF is installed",
                                           metavar="NAMESPACE")] = "dpf-operator-system",
    volume: Annotated[str, typer.Option("--volume", help="Where the BFB volume is mounted", metavar="DIR")] = "/bfb",
    listen: Annotated[str, typer.Option("--listen", help="/metrics, /healthz, /readyz", metavar="ADDRESS:PORT")] = "",
    webhooks: Annotated[str, typer.Option("--webhooks", help="Serve the admission webhooks here",
                                          metavar="ADDRESS:PORT")] = "",
    out: Annotated[str, typer.Option("--out", help="Write a run folder at the end", metavar="DIR")] = "",
    record: Annotated[str, typer.Option("--record", help="trace,objects or none: what --out holds; default both",
                                        metavar="LIST")] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="--out without report, figures and tables")] = False,
    log_format: Annotated[str, typer.Option("--log-format", help="text or json", metavar="FORMAT")] = "text",
    until: Annotated[str, typer.Option("--until", help="Stop after so long", metavar="DURATION")] = "",
    quiet: Quiet = False,
) -> None:
    """Run the controllers on a real fleet, or beside it with --shadow."""
    from api.live_run import LiveRequest
    from api.live_run import live as run

    raise typer.Exit(run(LiveRequest(
        kubeconfig=kubeconfig, context=context, lab=lab, folder=folder, shadow=shadow, yes=yes,
        controllers=_listed(controllers), actors=_listed(actors), policies=tuple(policies), namespace=namespace,
        volume=volume, listen=listen, webhooks=webhooks, out=out, record=record, report=not no_report,
        log_format=log_format,
        until_s=until_seconds(until), quiet=quiet)))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@app.command("diff-runs")
def diff_runs(
    a: Annotated[str, typer.Argument(help="A run folder", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another", metavar="B")],
    output: Output = "table",
) -> None:
    """Where two runs differ: phase sequences, conditions, final objects, durations. Exit code 1 if they do."""
    from pathlib import Path

    from api.output import document
    from reports.diff_runs import diff, text
    from reports.folder import read

    check_output(output)
    found = diff(read(Path(a)), read(Path(b)))
    answer(document(found.document(), output) if output in ("json", "yaml") else text(found, a, b))
    raise typer.Exit(0 if found.same else 1)
