"""YAML that remembers where everything stands.

libyaml composes the nodes (fast, with line and column); plain data is built from them by the rules Kubernetes
tools use: no dates, no base-60 numbers, `1e9` is a number, a key may stand once. Lines and columns count from 1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from twin.model.mistakes import BadInput, Mistake, dotted, shown

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_BYTES: Final = 32 * 2**20
"""A larger file is refused: no manifest, scenario or fleet needs it."""

MAX_DEPTH: Final = 200
_MAX_ALIAS_GROWTH: Final = 10

Path_ = tuple[str | int, ...]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_JSON_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


Place = Callable[[int, int], tuple[int, int]]
"""Maps line and column of a parsed text to those of the text that stands in the file."""


def _same(line: int, column: int) -> tuple[int, int]:
    return line, column


@dataclass(frozen=True, slots=True)
class Marked:
    """One YAML document: plain data, and where each path of it stands."""

    file: str
    data: Any
    node: Node = field(repr=False, compare=False)
    place: Place = field(default=_same, repr=False, compare=False)

    def mark(self, path: Sequence[str | int] = ()) -> tuple[int, int]:
        """Line and column of the value at this path, or of its nearest ancestor that exists."""
        node = self.node
        for step in path:
            below = _below(node, step)
            if below is None:
                break
            node = below[1]
        return self.place(node.start_mark.line + 1, node.start_mark.column + 1)

    def key_mark(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Line and column of the key that ends this path (of the item, in a list); the nearest ancestor if absent."""
        node = place = self.node
        for step in path:
            below = _below(node, step)
            if below is None:
                place = node
                break
            place, node = below
        return self.place(place.start_mark.line + 1, place.start_mark.column + 1)

    def mistake(self, path: Sequence[str | int], rule: str, got: Any = None, *, about: str = "",
                at_key: bool = False) -> Mistake:
        line, column = self.key_mark(path) if at_key else self.mark(path)
        return Mistake(self.file, rule, line, column, about, dotted(path), "" if got is None else shown(got))


def _below(node: Node, step: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key, value
    elif isinstance(node, SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step]
    return None


# --- reading


def read(path: Path, shown_as: str = "") -> bytes:
    """The bytes of a file.

    Raises:
        BadInput: it cannot be read, is not a file, or is larger than MAX_BYTES.
    """
    name = shown_as or str(path)
    try:
        if os.path.isdir(path):
            raise BadInput([Mistake(name, "is a folder, a file was expected")])
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BadInput([_too_large(name, size)])
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no path has a zero byte
        raise BadInput([Mistake(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")]) from None
    if len(content) > MAX_BYTES:
        raise BadInput([_too_large(name, len(content))])
    return content


def _too_large(name: str, size: int) -> Mistake:
    limit = f"larger than {MAX_BYTES // 2**20} MiB, the most this tool reads"
    return Mistake(name, limit, got=f"{size / 2**20:.0f} MiB")


def text_of(content: bytes, file: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        BadInput: it is not UTF-8, or holds bytes that no text has.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput([Mistake(file, "not a text file: expected UTF-8", line, 1,
                                got=f"byte 0x{content[error.start]:02x}")]) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadInput([Mistake(file, "not a text file: expected UTF-8", line, 1, got="byte 0x00")])
    return text


def documents(text: str, file: str, place: Place = _same) -> list[Marked]:
    """All YAML documents of a text that hold something. `place` is for a text that was changed before it got here.

    Raises:
        BadInput: broken YAML, a duplicate key, an alias that grows or refers to itself, nesting beyond MAX_DEPTH, or
            nothing at all.
    """
    found = []
    mistakes: list[Mistake] = []
    for node in _composed(text, file, place):
        builder = _Builder(file)
        data = builder.build_all(node)
        mistakes += [_moved(m, place) for m in builder.mistakes]
        if data is not None:
            found.append(Marked(file, data, node, place))
    if mistakes:
        raise BadInput(mistakes)
    if not found:
        raise BadInput([Mistake(file, "empty: holds no YAML document")])
    return found


def document(text: str, file: str) -> Marked:
    """The one YAML document of a text, a mapping.

    Raises:
        BadInput: as `documents`, or there is more than one, or it is not a mapping.
    """
    found = documents(text, file)
    if len(found) > 1:
        raise BadInput([found[1].mistake((), "one YAML document was expected, here a second one starts")])
    if not isinstance(found[0].data, dict):
        raise BadInput([found[0].mistake((), "a mapping (key: value) was expected", found[0].data)])
    return found[0]


def _moved(mistake: Mistake, place: Place) -> Mistake:
    line, column = place(mistake.line, mistake.column)
    return replace(mistake, line=line, column=column)


def _composed(text: str, file: str, place: Place) -> Iterator[Node]:
    _check_depth(text, file)
    try:
        for node in yaml.compose_all(text, Loader=Loader):
            if node is not None:
                yield node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise BadInput([_moved(Mistake(file, _yaml_rule(error, text, line, column), line + 1, column + 1),
                               place)]) from None
    except yaml.YAMLError as error:
        raise BadInput([Mistake(file, f"not YAML: {str(error).splitlines()[0]}")]) from None


def _yaml_rule(error: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    lines = text.split("\n")
    here = lines[line] if line < len(lines) else ""
    indent = here[:len(here) - len(here.lstrip())]
    if "\t" in indent or here[column:column + 1] == "\t":
        return "tabs may not indent YAML, use spaces"
    what = (error.problem or "cannot be parsed").replace("did not find expected", "expected")
    return f"not YAML: {what}" + (f", {error.context}" if error.context else "")


def _check_depth(text: str, file: str) -> None:
    """Refuses flow nesting that would overflow the composer's stack. Brackets in strings count too: they are few."""
    if text.count("[") + text.count("{") <= MAX_DEPTH and "- - -" not in text and "? ?" not in text:
        return
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                mark = event.start_mark
                if depth > MAX_DEPTH and mark is not None:
                    rule = f"nested deeper than {MAX_DEPTH} levels"
                    raise BadInput([Mistake(file, rule, mark.line + 1, mark.column + 1)])
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return  # told by the composer, with its place


class _Builder:
    """Plain data from composed nodes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()
        self._sizes: dict[int, int] = {}

    def build_all(self, node: Node) -> Any:
        data = self.build(node, 0)
        if not self.mistakes and self._size(node) > _MAX_ALIAS_GROWTH * len(self._sizes) + 10_000:
            self._wrong(node, "aliases (*name) grow this file beyond reason")
        return data

    def build(self, node: Node, depth: int) -> Any:
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if id(node) in self._made:
            return self._made[id(node)]
        if id(node) in self._open:
            self._wrong(node, "an alias (*name) refers to the value it stands in")
            return None
        if depth > MAX_DEPTH:
            self._wrong(node, f"nested deeper than {MAX_DEPTH} levels")
            return None
        self._open.add(id(node))
        value = self._mapping(node, depth) if isinstance(node, MappingNode) else [
            self.build(item, depth + 1) for item in node.value]
        self._open.discard(id(node))
        self._made[id(node)] = value
        return value

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._wrong(key, "a key must be plain text")
                continue
            below = self.build(value, depth + 1)
            if key.tag == "tag:yaml.org,2002:merge":
                merged += [m for m in (below if isinstance(below, list) else [below]) if isinstance(m, dict)]
            elif key.value in data:
                self._wrong(key, f"duplicate key {key.value!r}")
            else:
                data[key.value] = below
        for other in merged:
            for name, below in other.items():
                data.setdefault(name, below)
        return data

    def _scalar(self, node: ScalarNode) -> Any:
        tag, text = node.tag.rpartition(":")[2], node.value
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() in ("yes", "true", "on")
        if tag == "int" and ":" not in text:
            return _integer(text.replace("_", ""))
        if tag == "float" and ":" not in text:
            return _floating(text.replace("_", "").lower())
        if tag == "str" and not node.style and _JSON_NUMBER.fullmatch(text):
            return float(text)
        return text

    def _size(self, node: Node) -> int:
        """Nodes there would be without aliases."""
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        if isinstance(node, MappingNode):
            size = 1 + sum(1 + self._size(v) for _, v in node.value)
        elif isinstance(node, SequenceNode):
            size = 1 + sum(self._size(v) for v in node.value)
        else:
            size = 1
        self._sizes[id(node)] = size
        return size

    def _wrong(self, node: Node, rule: str) -> None:
        self.mistakes.append(Mistake(self.file, rule, node.start_mark.line + 1, node.start_mark.column + 1))


def _integer(text: str) -> int | str:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.lstrip("+"))
    try:
        if digits.startswith(("0b", "0x", "0o")):
            return sign * int(digits, 0)
        return sign * int(digits, 8 if digits.startswith("0") and len(digits) > 1 else 10)
    except ValueError:
        return text


def _floating(text: str) -> float | str:
    if text.lstrip("+-") == ".inf":
        return float("-inf") if text.startswith("-") else float("inf")
    if text == ".nan":
        return float("nan")
    try:
        return float(text)
    except ValueError:
        return text


# --- pydantic's findings in our form


def mistakes_of(error: ValidationError, doc: Marked, about: str, prefix: Sequence[str | int] = ()) -> list[Mistake]:
    """A pydantic error as mistakes of this document; `prefix` is the path of the validated part in it."""
    found: dict[Mistake, None] = {}
    for item in error.errors(include_url=False):
        path = _path_in(doc, (*prefix, *item["loc"]), len(prefix), missing=item["type"] == "missing")
        kind = item["type"]
        if kind == "missing":
            mistake = doc.mistake(path, "required field is missing", about=about)
        elif kind == "extra_forbidden":
            mistake = doc.mistake(path, "unknown field", about=about, at_key=True)
        elif kind == "union_tag_invalid":
            tag = item["ctx"]["discriminator"].strip("'")
            rule = f"must be one of {item['ctx']['expected_tags']}".replace("'", "")
            mistake = doc.mistake((*path, tag), rule, item["ctx"]["tag"], about=about)
        elif kind == "union_tag_not_found":
            mistake = doc.mistake((*path, item["ctx"]["discriminator"].strip("'")), "required field is missing",
                                  about=about)
        else:
            got = item.get("input")
            whole = kind == "value_error" and isinstance(got, dict)  # the rule is about several fields of it
            mistake = doc.mistake(path, _rule(item["msg"]), None if whole else got, about=about,
                                  at_key=item["loc"][-1:] == ("[key]",))
        found.setdefault(mistake)
    return sorted(found, key=lambda m: (m.line, m.column))


def rules_of(error: ValidationError) -> list[str]:
    """What a pydantic error says, in our words."""
    return [_rule(item["msg"]) for item in error.errors(include_url=False)]


def _path_in(doc: Marked, loc: Sequence[Any], start: int, *, missing: bool) -> Path_:
    """The steps of a pydantic location that exist in the data (union tags and validator names do not)."""
    data: Any = doc.data
    path: list[str | int] = []
    for number, step in enumerate(loc):
        listed = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if listed or (isinstance(data, dict) and step in data):
            data = data[step]
        elif not (missing and number == len(loc) - 1) and number >= start:
            continue
        path.append(step)
    return tuple(path)


_SHOULD_HAVE: Final = re.compile(r"^\w+ should have (.*?)(?: after validation, not .*)?$")


def _rule(message: str) -> str:
    for old, new in (("Value error, ", ""), ("Assertion failed, ", ""), ("Input should be", "must be"),
                     ("valid dictionary or instance of", "mapping:"), ("valid dictionary", "mapping"),
                     ("a valid integer", "an integer"), ("a valid ", "a "), ("String should match", "must match")):
        message = message.replace(old, new)
    message = _SHOULD_HAVE.sub(r"must have \1", message)
    return message[:1].lower() + message[1:] if message[:2] != message[:2].upper() else message
