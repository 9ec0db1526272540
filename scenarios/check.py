"""Pre-flight: known problems of DPF v25.4 that manifests, a fleet and a timeline show before anything runs.

The rules are in `rules_objects`, `rules_fleet` and `rules_timeline`, their table in `scenarios.rules`. Rules never
raise on what a schema has let pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from scenarios import rules_fleet, rules_objects, rules_timeline  # noqa: F401  they fill RULES
from scenarios.base import Manifest, Scenario, Step
from scenarios.rules import RULES, Picture, Place, Rule, Severity
from twin.model.mistakes import dotted, shown

__all__ = ["RULES", "Finding", "check", "check_scenario"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One known problem: where it shows, what happens, and what upstream calls it."""

    rule: str
    severity: Severity
    file: str
    line: int
    column: int
    object: str
    field: str
    words: str
    got: str = ""
    reference: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = ": ".join(p for p in (place, self.object, self.field) if p)
        return (f"{head}: {self.words}" + (f" (got {self.got})" if self.got else "")
                + f" [{self.severity} {self.rule}" + (f", {self.reference}" if self.reference else "") + "]")


def check(picture: Picture) -> list[Finding]:
    """All findings: errors first, then in the order of rules."""
    found: dict[Finding, None] = {}
    for r in RULES.values():
        if (r.needs_fleet and picture.fleet is None) or (r.needs_whole and not picture.whole):
            continue
        for place in r.look(picture):
            found.setdefault(_finding(r, place, picture))
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda f: order[f.severity])


def check_scenario(scenario: Scenario, fleet_file: str = "fleet") -> list[Finding]:
    return check(Picture(scenario.manifests, scenario.fleet, fleet_file, scenario.timeline, scenario.profile,
                         frozenset(scenario.policies)))


def _finding(r: Rule, place: Place, picture: Picture) -> Finding:
    severity = place.severity or r.severity
    got = "" if place.got is None else shown(place.got)
    if isinstance(place.at, Manifest):
        doc = place.at.doc
        line, column = doc.mark((*place.at.path, *place.path))
        return Finding(r.id, severity, doc.file, line, column, str(place.at.id), dotted(place.path), place.words, got,
                       r.reference)
    if isinstance(place.at, Step):
        file, line_text, column_text = place.at.where.rsplit(":", 2)
        return Finding(r.id, severity, file, int(line_text), int(column_text), "timeline", dotted(place.path),
                       place.words, got, r.reference)
    name = picture.fleet.name if picture.fleet else ""
    return Finding(r.id, severity, picture.fleet_file if place.path else "", 0, 0,
                   f"fleet {name}" if place.path else "", dotted(place.path), place.words, got, r.reference)
