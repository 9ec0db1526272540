"""The command itself and what its verbs share: flags, and the words for a flag that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from api.output import Refused
from twin.version import DPF_RELEASE

app = typer.Typer(
    name="dpf-twin", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help=f"Rehearse a BlueField DPU fleet change under DPF {DPF_RELEASE} before you make it: how long, what breaks, "
         "which limit binds.",
    context_settings={"help_option_names": ["-h", "--help"]})

OUTPUTS: Final = ("table", "wide", "json", "yaml")

Output = Annotated[str, typer.Option("-o", "--output", help="table, wide, json or yaml", metavar="FORMAT")]
Variables = Annotated[list[str], typer.Option("--var", help="A value for $NAME in manifests (repeatable)",
                                              metavar="NAME=VALUE", default_factory=list, show_default=False)]
Policies = Annotated[list[str], typer.Option("--policy", help="A named fix of upstream behaviour (repeatable)",
                                             metavar="NAME", default_factory=list, show_default=False)]
Fleet = Annotated[str, typer.Option("--fleet", help="The fleet that --manifests are applied to", metavar="FILE")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No notes on stderr")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More notes on stderr")]
RunDir = Annotated[Path, typer.Option("--run", help="The run folder", metavar="DIR")]
At = Annotated[str, typer.Option("--at", help="Virtual time, e.g. 2h15m; the end of the run if absent",
                                 metavar="DURATION")]
Namespace = Annotated[str, typer.Option("-n", "--namespace", metavar="NAMESPACE",
                                        help="Only this one; for a list the default is dpf-operator-system")]
AllNamespaces = Annotated[bool, typer.Option("-A", "--all-namespaces", help="Objects of all namespaces")]
Labels = Annotated[str, typer.Option("-l", "--selector", help="Label selector, as kubectl's", metavar="SELECTOR")]
Cluster = Annotated[str, typer.Option("--cluster", help="A DPU cluster; the host cluster if absent", metavar="NAME")]


def check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise Refused(f"-o: must be one of {', '.join(OUTPUTS)} (got {output})")


def check_speed(speed: float) -> None:
    if not 0 < speed < float("inf"):
        raise Refused(f"--speed: must be greater than 0 and finite (got {speed:g})")


def assignments(variables: list[str]) -> dict[str, str]:
    """`--var NAME=VALUE`s as a mapping; the later wins. Raises Refused."""
    wrong = [v for v in variables if not v.partition("=")[1] or not v.partition("=")[0].isidentifier()]
    if wrong:
        raise Refused("\n".join(f"--var: must be NAME=VALUE (got {v})" for v in wrong))
    return {name: value for name, _, value in (v.partition("=") for v in variables)}


def until_seconds(text: str, flag: str = "--until") -> float | None:
    """A duration flag in seconds, None if it is absent. Raises Refused."""
    from twin.model.units import seconds

    if not text:
        return None
    try:
        return seconds(text)
    except ValueError as error:
        raise Refused(f"{flag}: {error} (got {text})") from None
