"""What a timeline may name: parts of the fleet, controllers, and objects that some manifest brings.

What only a run knows (which Jobs there will be, the names of bf.cfg files) is not checked; `twin.sim.faults.misses` is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controllers import CONTROLLERS
from scenarios.base import Manifest, TimelineEntry
from twin.model import faults as f
from twin.model.fleet import Fleet
from twin.model.names import admin_kubeconfig, bfb_file
from twin.sim.faults import path_of
from twin.sim.files import GARBAGE

PROCESSES: Final = tuple(dict.fromkeys(n for c in CONTROLLERS for n in (c.manager, f"{c.manager}-2", c.name)))
"""Also those that `two-leaders` starts."""
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Known:
    """What there is to name. `manifests`: all that are applied at some time; None: they could not all be read."""

    fleet: Fleet
    manifests: Sequence[Manifest] | None

    def ids(self, kind: str) -> list[Manifest]:
        return [m for m in self.manifests or () if m.id.kind == kind]

    def clusters(self) -> tuple[str, ...]:
        """A user's own API server is known by its Secret."""
        suffix = admin_kubeconfig("")
        return tuple(dict.fromkeys([
            *(f"{m.id.namespace}/{m.id.name}" for m in self.ids("DPUCluster")),
            *(f"{m.id.namespace}/{m.id.name.removesuffix(suffix)}" for m in self.ids("Secret")
              if m.id.name.endswith(suffix))]))

    def budgets(self) -> tuple[str, ...]:
        return (*(f"{b.namespace}/{b.name}" for b in self.fleet.budgets),
                *(f"{m.id.namespace}/{m.id.name}" for m in self.ids("PodDisruptionBudget")))

    def files(self) -> tuple[str, ...]:
        return tuple(_file_name(m) for m in self.ids("BFB"))


def _file_name(bfb: Manifest) -> str:
    spec = bfb.data.get("spec")
    own = spec.get("fileName") if isinstance(spec, dict) else None
    return str(own or bfb_file(bfb.id.namespace, bfb.id.name))


def unknown(entry: TimelineEntry, known: Known) -> Iterator[tuple[Path, str, Any]]:
    """(field of the entry, rule, value) of every name that fits nothing."""
    if entry.scale is not None and entry.scale.hosts > len(known.fleet.hosts):
        yield ("scale", "hosts"), f"the fleet has {len(known.fleet.hosts)} hosts", entry.scale.hosts
    if entry.cordon is not None:
        yield from _unfit(("cordon", "node"), entry.cordon.node, known.fleet.host, "the fleet has no such host")
    if entry.operator is not None and entry.operator.reboot is not None:
        yield from _unfit(("operator", "reboot"), entry.operator.reboot, known.fleet.host,
                          "the fleet has no such host")
    if entry.restart is not None:
        yield from _unfit(("restart",), (entry.restart,), PROCESSES, "there is no such controller or process")
    if entry.fault is None:
        return
    for field in type(entry.fault).model_fields:
        names = f.names_of(field, known.fleet)
        if names is not None:
            yield from _unfit(("fault", field), getattr(entry.fault, field), names, f"the fleet has no such {field}")
    check = CHECKS.get(type(entry.fault))
    if check is not None:
        yield from check(entry.fault, known)


def _unfit(path: Path, patterns: Sequence[str], names: Iterable[str], rule: str) -> Iterator[tuple[Path, str, str]]:
    for pattern in patterns:
        if not f.fitting((pattern,), names):
            yield path, rule + _near(pattern, names), pattern


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {near[0]}?" if near else ""


def _controllers(fault: Any, known: Known) -> Iterator[tuple[Path, str, Any]]:
    return _unfit(("fault", "controller"), fault.controller, PROCESSES, "there is no such controller or process")


def _clusters(fault: Any, known: Known) -> Iterator[tuple[Path, str, Any]]:
    if known.manifests is not None:
        patterns = [p for p in fault.cluster if p != "*"]
        yield from _unfit(("fault", "cluster"), patterns, known.clusters(), "no manifest is such a DPUCluster")


def _budgets(fault: f.PdbStuck, known: Known) -> Iterator[tuple[Path, str, Any]]:
    name = f"{fault.namespace}/{fault.name}"
    if known.manifests is not None and name not in known.budgets():
        rule = "neither fleet nor manifests have such a PodDisruptionBudget"
        yield ("fault", "name"), rule + _near(name, known.budgets()), name


def _files(fault: Any, known: Known) -> Iterator[tuple[Path, str, Any]]:
    """Names of bf.cfg and temporary files end with a UID."""
    name = path_of(fault.file).removeprefix(path_of(""))
    a_run_knows = name.endswith(".cfg") or (name.startswith("bfb-") and not name.endswith(".bfb"))
    if known.manifests is not None and not a_run_knows and name not in known.files():
        yield ("fault", "file"), f"no BFB has such a file{_near(name, known.files())}", fault.file


def _content(fault: f.ImageServerWrongContent, known: Known) -> Iterator[tuple[Path, str, Any]]:
    """A server without a list has every BFB."""
    servers = [s for s in known.fleet.image_servers if f.fitting(fault.server, [s.name])]
    fits = (fault.content in s.files if s.files is not None else fault.content.endswith(".bfb") for s in servers)
    if servers and fault.content != GARBAGE and not all(fits):
        yield ("fault", "content"), f"must be {GARBAGE}, or the name of a BFB that the servers have", fault.content


CHECKS: Final[dict[type, Callable[[Any, Known], Iterator[tuple[Path, str, Any]]]]] = {
    f.WatchBroken: _controllers, f.WatchDuplicate: _controllers, f.DpuApiDown: _clusters,
    f.KubeconfigRotated: _clusters, f.PdbStuck: _budgets, f.BfbFileRemoved: _files, f.BfbFileReplaced: _files,
    f.ImageServerWrongContent: _content,
}
