"""What the controllers do to which resources, found by watching them: `python -m deploy.rules` prints RBAC rules.

Every library scenario runs in virtual time while each request of a controller to the host cluster is noted with the
line that makes it. Lines that no scenario reaches are in UNREACHED, by hand; a test holds both to the source.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controllers import CONTROLLERS
from scenarios.load import load_scenario
from scenarios.run import run
from twin.model.kinds import KINDS
from twin.model.meta import Object
from twin.sim.client import SimKube

ROOT: Final = Path(__file__).parents[1]
LIBRARY: Final = ROOT / "scenarios" / "library"
READ: Final = frozenset({"get", "list", "watch"})
"""What an informer needs, and `get` for the text of a version that is to be replaced."""
WRITES: Final = ("create", "update", "update_status", "patch", "delete", "apply")
READS: Final = ("get", "list", "read_live", "list_live")

Resource = tuple[str, str]
Rules = dict[Resource, frozenset[str]]


@dataclass
class Seen:
    """(group, resource) -> verbs, and the source lines that wrote."""

    rules: dict[Resource, set[str]] = field(default_factory=dict)
    lines: set[tuple[str, int]] = field(default_factory=set)

    def add(self, resource: Resource, *verbs: str) -> None:
        self.rules.setdefault(resource, set()).update(verbs)


def of_kind(kind: type[Object], part: str = "") -> Resource:
    return kind.GROUP, kind.PLURAL + (f"/{part}" if part else "")


def _about(method: str, arguments: tuple[Any, ...]) -> type[Object]:
    """The kind a request is about: an argument, the type of one, or a manifest's."""
    what = arguments[0]
    if method == "apply":
        return KINDS[what["kind"]]
    return what if isinstance(what, type) else type(what)


def note(seen: Seen, method: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Put down what one request needs."""
    kind = _about(method, arguments)
    if method in READS:
        seen.add(of_kind(kind), *READ)
    elif method == "update_status" or options.get("status"):
        seen.add(of_kind(kind, "status"), "update" if method == "update_status" else "patch")
    elif method == "apply":
        seen.add(of_kind(kind), "create", "patch")
    else:
        seen.add(of_kind(kind), method)


def watched(seen: Seen, controllers: Any) -> None:
    """What reconcilers watch, in every policy."""
    for reconciler in controllers:
        for watch in reconciler.watches:
            seen.add(of_kind(watch.kind), *READ)


def observe(paths: list[Path]) -> Seen:
    """Run these scenarios and watch. The client's methods are put back at the end."""
    from twin.sim.manager import Runner

    seen, ours = Seen(), {c.name for c in CONTROLLERS}
    originals: dict[str, Callable[..., Any]] = {m: getattr(SimKube, m) for m in (*WRITES, *READS, "event")}

    def spy(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: SimKube, *arguments: Any, **options: Any) -> Any:
            if self._meter.controller in ours and not self._credential:
                if method == "event":
                    seen.add(("", "events"), "create", "patch")
                else:
                    note(seen, method, arguments, options)
                if method in WRITES:
                    frame = sys._getframe(1)
                    seen.lines.add((frame.f_code.co_filename, frame.f_lineno))
            return original(self, *arguments, **options)
        return noted

    started = Runner.__init__

    def starts(runner: Any, env: Any, reconciler: Any, *arguments: Any, **options: Any) -> None:
        if reconciler.name in ours:
            watched(seen, [reconciler])
        started(runner, env, reconciler, *arguments, **options)

    try:
        Runner.__init__ = starts  # type: ignore[method-assign,assignment]
        for method, original in originals.items():
            setattr(SimKube, method, spy(method, original))
        for path in paths:
            run(load_scenario(path))
    finally:
        Runner.__init__ = started  # type: ignore[method-assign]
        for method, original in originals.items():
            setattr(SimKube, method, original)
    return seen


def write_calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every place in the controllers' source that writes to the host cluster (DPU clusters have admin kubeconfigs)."""
    for path in sorted((ROOT / "controllers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
                owner = ast.unparse(node.func.value)
                if owner.rpartition(".")[2].strip("_") in ("kube", "background"):
                    yield path, node


UNREACHED: Final[Mapping[tuple[str, str], Mapping[Resource, tuple[str, ...]]]] = {
    ("provisioning/dpu_deletion.py", "p.kube.delete(kind, key)"): {  # leftovers of older releases
        ("cert-manager.io", "certificates"): ("delete",), ("", "secrets"): ("delete",),
        ("cert-manager.io", "certificaterequests"): ("delete",)},
    ("provisioning/node_effect.py", "p.kube.patch(Node, node.key, {'metadata': {'labels': gone}})"): {
        ("", "nodes"): ("patch",)},
    ("services/dpudeployment.py", "self.kube.update(replace(deployment, metadata=replace(meta, finalizers=left)))"): {
        ("svc.dpu.nvidia.com", "dpudeployments"): ("update",)},
    ("services/dpudeployment.py", "self.kube.delete(DpuSet, dpuset.key)"): {
        ("provisioning.dpu.nvidia.com", "dpusets"): ("delete",)},
}
"""Writes that no library scenario comes to: (file below controllers/, source) -> what they need."""

PROCESS: Final[Mapping[Resource, tuple[str, ...]]] = {
    ("coordination.k8s.io", "leases"): ("get", "list", "create", "update"),  # its own, and whether upstream's is held
    ("", "pods/exec"): ("create", "get"),  # the host agent; a WebSocket is a GET
    ("", "events"): ("create", "patch"),
}
"""What `live` does for itself or through another protocol than `KubeApi`."""


def derived(seen: Seen) -> Rules:
    """All that `live` needs on the host cluster."""
    from api.live_record import NEIGHBOURS, WATCHED

    for extra in (*UNREACHED.values(), PROCESS):
        for resource, verbs in extra.items():
            seen.add(resource, *verbs)
    for kind in (*WATCHED, *NEIGHBOURS):
        seen.add(of_kind(kind), *READ)
    return {resource: frozenset(verbs) for resource, verbs in seen.rules.items()}


def unreached(seen: Seen) -> set[tuple[str, str]]:
    """Writes in the source that no scenario came to."""
    return {(path.relative_to(ROOT / "controllers").as_posix(), ast.unparse(call)) for path, call in write_calls()
            if not any((str(path), line) in seen.lines for line in range(call.lineno, (call.end_lineno or 0) + 1))}


ORDER: Final = ("get", "list", "watch", "create", "update", "patch", "delete")


def yaml_of(rules: Rules) -> str:
    """A ClusterRole's rules: resources of a group that need the same verbs stand together."""
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, resource), verbs in sorted(rules.items()):
        together.setdefault((group, tuple(v for v in ORDER if v in verbs)), []).append(resource)
    return "".join(f"- apiGroups: [{group or repr('')}]\n  resources: [{', '.join(resources)}]\n"
                   f"  verbs: [{', '.join(verbs)}]\n" for (group, verbs), resources in together.items())


if __name__ == "__main__":
    sys.stdout.write(yaml_of(derived(observe(sorted(LIBRARY.glob("*.yaml"))))))
