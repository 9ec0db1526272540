"""The golden recordings as data: what was done (`Step`), what changed (`Change`), how the stand-ins were set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parents[2].parent / "shared/dpf/golden/provisioning"
ABSENT: Final = not FOLDER.is_dir()
WHY_ABSENT: Final = "the recordings of ../shared are not here"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done at `t_s`: an object was created, or an Action. `status` is the HTTP answer, 0: none,
    and `message` what it said."""

    t_s: float
    verb: str
    status: int
    message: str
    document: Json

    @property
    def kind(self) -> str:
        return str(self.document.get("kind", ""))

    @property
    def target(self) -> tuple[str, str]:
        """Kind and name of the object that the step is about."""
        if self.kind == "Action":
            kind, _, name = str(self.document.get("target", "/")).partition("/")
            return kind, name
        return self.kind, str(self.document["metadata"]["name"])

    @property
    def what(self) -> str:
        return str(self.document.get("note") or f"{self.verb} {'/'.join(self.target)}")


@dataclass(frozen=True, slots=True)
class Change:
    """One watch event. `changed` maps dotted paths (keys' own dots escaped) to new values, None: removed."""

    t_s: float
    op: str
    kind: str
    cluster: str
    namespace: str
    name: str
    changed: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """One line of the controllers' log."""

    t_s: float
    controller: str
    name: str
    what: str


@dataclass(frozen=True)
class Recording:
    name: str
    steps: tuple[Step, ...]
    changes: tuple[Change, ...]
    settings: Mapping[str, str]
    """How the stand-ins were set, as the case's README says: `activate_delay: 0.5`, `maint: pending`."""

    @property
    def end_s(self) -> float:
        """When the recording ends: the last thing done or seen."""
        return max([0.0, *(s.t_s for s in self.steps[-1:]), *(c.t_s for c in self.changes[-1:])])

    def seconds(self, name: str, default: float) -> float:
        return float(self.settings.get(name, default))


def names() -> list[str]:
    return [] if ABSENT else sorted(p.parent.name for p in FOLDER.glob("*/input.yaml"))


@lru_cache(maxsize=4)
def load(name: str) -> Recording:
    folder = FOLDER / name
    text = (folder / "input.yaml").read_text()
    steps = tuple(_step(part) for part in re.split(r"^---\n", text, flags=re.MULTILINE) if part.strip())
    changes = tuple(_change(json.loads(line)) for line in (folder / "timeline.jsonl").read_text().splitlines())
    return Recording(name, steps, changes, _settings((folder / "README.md").read_text()))


def passes(name: str) -> list[Pass]:
    """What the controllers logged, in their order."""
    lines = (FOLDER / name / "reconcile.jsonl").read_text().splitlines()
    return [Pass(r["t_s"], r["controller"], r["name"], r["what"]) for r in map(json.loads, lines)]


def _step(part: str) -> Step:
    head = re.match(r"# t=([\d.]+) (.*?)(?: -> (\d+)(?: (\".*\"))?)?\n", part)
    assert head is not None, part
    message = json.loads(head[4]) if head[4] else ""
    return Step(float(head[1]), head[2], int(head[3] or 0), message, yaml.safe_load(part))


def _change(line: Json) -> Change:
    return Change(line["t_s"], line["op"], line["kind"], line.get("cluster", ""), line["namespace"], line["name"],
                  line["changed"])


def _settings(readme: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in readme.splitlines():
        for head in ("Fake DMS/host: ", "Neighbours: ", "Controller flags: "):
            if head in line:
                part = line.split(head)[1].split(". ")[0].split(" (")[0].rstrip(".")
                for name, value in re.findall(r"([\w-]+)[ =](\w[\w. ]*)", part):
                    found[name] = value.rstrip(".")
    return found
