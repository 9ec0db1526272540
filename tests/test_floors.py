"""Imports point down: a file imports its own floor's package and anything lower, never a sibling on floor 2."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("twin", "controllers", "scenarios", "api", "reports")

# What a package is on which floor; the longest prefix counts. Floor 2 has siblings that do not know each other.
FLOORS = {
    "twin.version": 0, "twin.model": 0, "twin.backends.base": 1, "twin.runtime": 1,
    "twin.sim": 2, "twin.backends": 2, "twin.actors": 2, "controllers": 2, "scenarios": 3, "api": 4, "reports": 4,
}
ABOVE_SIBLINGS = {
    ("twin.sim", "twin.actors"): "the world wires its neighbours",
    ("twin.backends", "twin.actors"): "a lab runs the neighbours that it does not have",
}
# Third parties that only these may import.
ONLY = {
    "simpy": ("twin.sim",), "matplotlib": ("reports",), "pyarrow": ("reports",), "perfetto": ("reports",),
    "kubernetes": ("twin.backends",), "grpc": ("twin.backends",), "pyroute2": ("twin.backends",),
    "ovs": ("twin.backends",), "fastapi": ("api",), "typer": ("api",),
}


def package(module: str) -> str:
    """The package of FLOORS that a module belongs to; '' for modules of others."""
    return max((p for p in FLOORS if module == p or module.startswith(p + ".")), key=len, default="")


def imports(source: str) -> list[tuple[int, str]]:
    """(line, module) of every import, those within functions included; `from a import b` counts as a and as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def violations(module: str, source: str) -> list[str]:
    mine, found = package(module), []
    for line, target in imports(source):
        theirs = package(target)
        if theirs and theirs != mine:
            up = FLOORS[theirs] > FLOORS[mine]
            sibling = FLOORS[theirs] == FLOORS[mine] == 2 and (mine, theirs) not in ABOVE_SIBLINGS
            if up or sibling or FLOORS[theirs] == FLOORS[mine] == 3:
                found.append(f"{module}:{line} imports {target}, floor {FLOORS[mine]} imports floor {FLOORS[theirs]}")
        only = ONLY.get(target.partition(".")[0])
        if only is not None and not module.startswith(only):
            found.append(f"{module}:{line} imports {target}, only {' and '.join(only)} may")
    return found


def circles(known: dict[str, str]) -> list[tuple[str, ...]]:
    """Groups of modules (name -> source) that import each other, type-only imports included."""
    graph = {m: sorted({t for _, target in imports(source) if (t := _module(target, known)) and t != m})
             for m, source in known.items()}
    reach = {m: _reached(graph, m) for m in graph}
    groups = {tuple(sorted({m, *(n for n in reach[m] if m in reach[n])})) for m in graph if m in reach[m]}
    return sorted(groups)


def _module(target: str, known: dict[str, str]) -> str:
    """The module that an import loads: `twin.model.meta` for `twin.model.meta.Key`."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def _reached(graph: dict[str, list[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        if (module := todo.pop()) not in seen:
            seen.add(module)
            todo += graph[module]
    return seen


def modules() -> list[tuple[str, Path]]:
    paths = [p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]
    return [(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), p) for p in paths]


def test_imports_point_down() -> None:
    assert [v for module, path in modules() for v in violations(module, path.read_text())] == []


def test_no_file_imports_a_file_that_imports_it() -> None:
    assert circles({m: path.read_text() for m, path in modules()}) == []


def test_a_planted_circle_is_found_however_it_is_hidden() -> None:
    files = {"a": "from b import x", "b": "def f():\n    import c.d", "c.d": "if TYPE_CHECKING:\n    from a import y",
             "e": "import a"}

    assert circles(files) == [("a", "b", "c.d")]


def test_every_module_has_a_floor() -> None:
    assert [m for m, _ in modules() if not package(m) and m != "twin"] == []


@pytest.mark.parametrize(("module", "line"), [
    ("twin.model.meta", "from twin.sim.kube import ApiServer"),
    ("twin.model.meta", "import twin.runtime.queue"),
    ("twin.runtime.queue", "from controllers import CONTROLLERS"),
    ("twin.actors.pods", "from twin.sim.kube import ApiServer"),
    ("twin.sim.world", "from twin.backends.kube import connect"),
    ("twin.sim.world", "from twin.backends import kube"),
    ("controllers.provisioning.dpu", "def f():\n    from twin.actors.pods import x"),
    ("twin.sim.world", "import scenarios.run"),
    ("scenarios.run", "from reports.figures import figures"),
    ("controllers.provisioning.dpu", "import simpy"),
    ("scenarios.run", "def f():\n    import matplotlib.pyplot"),
    ("scenarios.run", "from kubernetes import client"),
])
def test_a_planted_violation_is_found(module: str, line: str) -> None:
    assert len(violations(module, line)) == 1


@pytest.mark.parametrize(("module", "line"), [
    ("twin.sim.world", "from twin.backends.base import Settings"),
    ("twin.sim.world", "from twin.actors.actor import Actor"),
    ("controllers.provisioning.dpu", "from twin.runtime.memory import Memory"),
    ("scenarios.run", "from controllers import CONTROLLERS"),
    ("api.rehearse", "from reports.folder import write"),
    ("twin.model.meta", "import msgspec"),
])
def test_what_points_down_is_fine(module: str, line: str) -> None:
    assert violations(module, line) == []
