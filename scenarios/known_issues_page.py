"""docs/known-issues.md: `python -m scenarios.known_issues_page` prints it.

It joins what stands in four places: the table of issues, the headers of library scenarios, the policies of
`controllers/warts.py`, and the detections of `scenarios/known_issues.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controllers.warts import WARTS
from scenarios.known_issues import SHOWS
from scenarios.known_issues_table import HEAD, ISSUES, NOT_SHOWN, KnownIssue

LIBRARY: Final = Path(__file__).with_name("library")


@dataclass(frozen=True, slots=True)
class Story:
    """A scenario file's header."""

    name: str
    covers: str
    scenario: str
    expect: str


def story(name: str) -> Story:
    """Raises: ValueError, OSError."""
    head = [line[2:] for line in (LIBRARY / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:3]]
    parts = [line.partition(": ") for line in head]
    if [p[0] for p in parts] != ["Covers", "Scenario", "Expect"]:
        raise ValueError(f"{name}: the header is Covers, Scenario, Expect")
    return Story(name, *(p[2] for p in parts))


def policies_of(issue: KnownIssue) -> list[str]:
    """The policies that fix this issue's warts."""
    return list(dict.fromkeys(w.policy for w in WARTS if w.id in issue.warts and w.policy))


def page() -> str:
    """docs/known-issues.md."""
    rows = [f"| {i.ref} | {i.symptom} | {_links(i.scenarios)} | {_code(i.rules)} | {_code(policies_of(i))} "
            f"| {'yes' if i.ref in SHOWS else 'no'} |" for i in ISSUES]
    return "\n".join([
        *HEAD,
        "| reference | symptom | scenario | `check` rule | policy | named in reports |", "|---|---|---|---|---|---|",
        *rows, "", "## One by one", "",
        *(line for issue in ISSUES for line in _section(issue)),
        "## Not shown here", "", "| reference | why |", "|---|---|",
        *(f"| {ref} | {why} |" for ref, why in NOT_SHOWN.items()), ""])


def _section(issue: KnownIssue) -> Iterable[str]:
    yield f"### {issue.ref}"
    yield ""
    yield f"{issue.symptom[0].upper()}{issue.symptom[1:]}."
    yield f"Source: {issue.source}." + (f" Way out: {issue.way_out}." if issue.way_out else "")
    yield ""
    for name in issue.scenarios:
        of = story(name)
        yield f"- `{name}`: {of.scenario}"
        yield f"  {of.expect}"
    yield ""


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{n}](../scenarios/library/{n}.yaml)" for n in names) or "-"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) or "-"


if __name__ == "__main__":
    sys.stdout.write(page())
