"""`$NAME` and `${NAME}` in manifests, as `envsubst` fills them in, but a missing one is a mistake with its place.

Only text that YAML keeps counts: a name in a comment may be missing. In a block scalar (`|` or `>`), where scripts
stand, a name with a small letter that nobody defined is the script's own variable and stays.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from twin.model.mistakes import BadInput, Mistake
from twin.model.yamlmarks import Loader

_NAME = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters: legal in YAML, in nobody's manifest
_HELD = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True, slots=True)
class Filled:
    """The text with its variables filled in, which ones were used, and the way back to places in the file."""

    text: str
    used: tuple[str, ...]
    moves: Mapping[int, tuple[tuple[int, int], ...]]  # line -> (column after a value, columns it is off by)

    def place(self, line: int, column: int) -> tuple[int, int]:
        moves = self.moves.get(line, ())
        i = bisect_right(moves, (column, 1 << 60))
        return line, max(1, column - (moves[i - 1][1] if i else 0))


def fill(text: str, variables: Mapping[str, str], file: str) -> Filled:
    """Fill in the variables of one file.

    Raises:
        BadInput: every name that has no value, and values with a line break.
    """
    if "$" not in text:
        return Filled(text, (), {})
    names = [m[1] or m[2] for m in _NAME.finditer(text)]
    broken = sorted({n for n in names if "\n" in variables.get(n, "")})
    if broken:
        raise BadInput([Mistake(file, f"the value of ${n} holds a line break") for n in broken])
    _check_missing(text, variables, file)
    return _filled(text, variables)


def fill_text(text: str, variables: Mapping[str, str]) -> Filled:
    """The same for one value that was YAML already. Raises BadInput, without places."""
    missing = dict.fromkeys(n for m in _NAME.finditer(text) if (n := m[1] or m[2]) not in variables and n.isupper())
    if missing:
        raise BadInput([Mistake("", _rule(n)) for n in missing])
    return _filled(text, variables)


def _rule(name: str) -> str:
    return (f"variable ${name} has no value: give --var {name}=... or set it in the scenario's variables or the "
            "environment")


def _filled(text: str, variables: Mapping[str, str]) -> Filled:
    used: dict[str, None] = {}
    moves: dict[int, list[tuple[int, int]]] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if "$" in line:
            lines[number] = _fill_line(line, number + 1, variables, used, moves)
    return Filled("\n".join(lines), tuple(used), {n: tuple(m) for n, m in moves.items()})


def _fill_line(line: str, number: int, variables: Mapping[str, str], used: dict[str, None],
               moves: dict[int, list[tuple[int, int]]]) -> str:
    out, end, off = "", 0, 0
    for match in _NAME.finditer(line):
        name = match[1] or match[2]
        if name not in variables:
            continue
        out += line[end:match.start()] + variables[name]
        end = match.end()
        off += len(variables[name]) - (match.end() - match.start())
        used[name] = None
        moves.setdefault(number, []).append((len(out) + 1, off))
    return out + line[end:]


def _check_missing(text: str, variables: Mapping[str, str], file: str) -> None:
    """Raises BadInput if a name without a value is in the YAML (not in its comments, not a script's own)."""
    matches = [m for m in _NAME.finditer(text) if (m[1] or m[2]) not in variables]
    if not matches:
        return
    held, end = "", 0
    for i, match in enumerate(matches):
        held += text[end:match.start()] + f"{_OPEN}{i}{_CLOSE}"
        end = match.end()
    mistakes = []
    for i, in_block in _in_scalars(held + text[end:]):
        name, start = matches[i][1] or matches[i][2], matches[i].start()
        if in_block and not name.isupper():
            continue
        mistakes.append(Mistake(file, _rule(name), text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)))
    if mistakes:
        raise BadInput(mistakes)


def _in_scalars(text: str) -> list[tuple[int, bool]]:
    """Numbers of the held places that stand in scalars, in file order, and whether that is a block scalar."""
    found: dict[int, bool] = {}
    seen: set[int] = set()
    try:
        todo: list[Node] = [n for n in yaml.compose_all(text, Loader=Loader) if n is not None]
    except yaml.YAMLError:
        return []  # told with its place when the file is parsed
    while todo:
        node = todo.pop()
        if isinstance(node, ScalarNode):
            for m in _HELD.finditer(node.value):
                found[int(m[1])] = node.style in ("|", ">")
        elif id(node) not in seen:
            seen.add(id(node))
            todo.extend([n for pair in node.value for n in pair] if isinstance(node, MappingNode) else node.value)
    return sorted(found.items())
