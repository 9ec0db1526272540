"""Calls that would make a run irreproducible are banned below the runners, each with what to use instead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VIRTUAL = ("controllers", "twin/model", "twin/actors", "twin/sim", "twin/runtime", "scenarios")
"""What runs in virtual time: it receives its time, draws from named streams, returns at once."""
WALL = {"twin/runtime/live.py", "twin/runtime/backstage.py", "scenarios/run.py", "scenarios/story.py",
        "twin/sim/paced.py"}
"""May read the wall clock: the live runner and its background work, what a run cost and its progress line, a lab."""

CLOCK = "logic receives the time: ctx.now, or the Clock it was given"
CHANCE = "draw from a named stream of the run's seed: Timing.sample(operation, entity), Timing.uniform(name, ...)"
NAME = "derive names from the object: twin.model.names"
WAIT = "return and ask to be looked at again (Result.requeue_after_s), or yield an Operation in a background task"
BANNED = {
    "time.time": CLOCK, "time.time_ns": CLOCK, "time.monotonic": CLOCK, "time.perf_counter": CLOCK,
    "datetime.datetime.now": CLOCK, "datetime.datetime.utcnow": CLOCK, "datetime.datetime.today": CLOCK,
    "datetime.date.today": CLOCK,
    "time.sleep": WAIT, "asyncio.sleep": WAIT,
    "uuid.uuid1": NAME, "uuid.uuid4": NAME, "os.urandom": CHANCE, "secrets": CHANCE, "random": CHANCE,
    "os.getpid": NAME,
    "hash": "a hash of text differs from process to process: use twin.model.names or zlib.crc32",
}
SEEDED = "random.Random"
"""A stream of its own, if it gets a seed."""


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`time.sleep` for what is called so here, whatever it was imported as; '' for anything but a name."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def banned(source: str) -> Iterator[tuple[int, str]]:
    """(line, what and what instead)."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name.partition(".")[0]: a.name if a.asname else a.name.partition(".")[0]
                      for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name == SEEDED and node.args:
            continue
        rule = BANNED.get(name) or BANNED.get(name.partition(".")[0] if "." in name else "")
        if rule is not None:
            yield node.lineno, f"{name}: {rule}"


def set_iterations(source: str) -> Iterator[int]:
    """Lines that iterate over a set display, a set comprehension or `set(...)`: the hash seed decides their order."""
    for node in ast.walk(ast.parse(source)):
        over: list[ast.expr] = []
        if isinstance(node, ast.For):
            over = [node.iter]
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp):
            over = [g.iter for g in node.generators]
        elif isinstance(node, ast.Call) and dotted(node.func, {}) in ("list", "tuple", "dict.fromkeys", "enumerate"):
            over = node.args[:1]
        elif isinstance(node, ast.Starred):
            over = [node.value]
        for expression in over:
            if is_set(expression):
                yield expression.lineno


def is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return is_set(node.left) or is_set(node.right)
    return isinstance(node, ast.Set | ast.SetComp) or (
        isinstance(node, ast.Call) and dotted(node.func, {}) in ("set", "frozenset"))


def files(folders: tuple[str, ...]) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_below_the_runners_reads_a_clock_or_throws_dice() -> None:
    found = [f"{p.relative_to(ROOT)}:{line} {what}" for p in files(VIRTUAL) if str(p.relative_to(ROOT)) not in WALL
             for line, what in banned(p.read_text())]

    assert found == []


def test_nothing_iterates_over_a_set() -> None:
    found = [f"{p.relative_to(ROOT)}:{line} iterates over a set: iterate over a dict, or sorted(...)"
             for p in files((*VIRTUAL, "api", "reports")) for line in set_iterations(p.read_text())]

    assert found == []


@pytest.mark.parametrize(("source", "name"), [
    ("import time\ntime.time()", "time.time"),
    ("from time import sleep as nap\nnap(1)", "time.sleep"),
    ("import datetime as d\nd.datetime.now()", "datetime.datetime.now"),
    ("from datetime import datetime\ndatetime.now(tz=None)", "datetime.datetime.now"),
    ("import random\nrandom.random()", "random.random"),
    ("from random import choice\nchoice([1])", "random.choice"),
    ("import random\nrandom.Random()", "random.Random"),
    ("import uuid\nuuid.uuid4()", "uuid.uuid4"),
    ("import secrets\nsecrets.token_hex()", "secrets.token_hex"),
    ("hash('x')", "hash"),
])
def test_a_planted_call_is_found_with_its_replacement(source: str, name: str) -> None:
    (_, text), = banned(source)

    assert text.startswith(name + ": ")
    assert len(text) > len(name) + 20


@pytest.mark.parametrize("source", [
    "import random\nrandom.Random('1/dpu/install')", "clock.now()", "self.time.time()", "from time import strftime",
])
def test_what_is_reproducible_is_fine(source: str) -> None:
    assert list(banned(source)) == []


@pytest.mark.parametrize("source", [
    "for x in {a, b}: pass", "[x for x in set(y)]", "list({x for x in y})", "f(*{1, 2})", "(x for x in set(a) | b)",
    "dict.fromkeys({a})",
])
def test_a_planted_iteration_over_a_set_is_found(source: str) -> None:
    assert list(set_iterations(source)) == [1]


@pytest.mark.parametrize("source", [
    "for x in sorted({a, b}): pass", "x in {a, b}", "len(set(y))", "for x in {a: 1}: pass",
])
def test_sets_for_membership_and_in_order_are_fine(source: str) -> None:
    assert list(set_iterations(source)) == []
