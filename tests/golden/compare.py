"""A recording and our play of it, brought into one form by the table of allowed differences, and compared."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.golden.differences import DIFFERENCES, NO_LIMIT, Difference, Limit
from tests.golden.views import GONE, History, Subject, View

Sequences = dict[str, list["Line"]]


@dataclass(frozen=True, slots=True)
class Line:
    """One write in its normal form. `t_s` is no part of what is compared."""

    text: str
    t_s: float = field(compare=False)


class Normal:
    """Brings the histories of one side of a case into normal form; notes which differences it used."""

    def __init__(self, case: str, side: str) -> None:
        self._rules = [d for d in DIFFERENCES if d.applies(case, side)]
        self.used: dict[str, int] = {}

    def sequences(self, histories: Mapping[Subject, History], limit: Limit = NO_LIMIT) -> Sequences:
        """Per subject its lines; facts that the table sets apart form sequences of their own."""
        found: Sequences = {}
        for subject, history in histories.items():
            if limit.kinds and subject.kind not in limit.kinds:
                continue
            if any(re.fullmatch(w, str(subject)) for w in limit.without):
                continue
            for label, lines in self._of(subject, history).items():
                if lines:
                    found[f"{subject}{label}"] = lines
        return found

    def view(self, subject: Subject, view: Mapping[str, str], only: str) -> dict[str, str]:
        """A view's facts whose names begin with `only`, in normal form."""
        facts = (self._ruled(subject, f"{k}={v}")[0] for k, v in view.items() if k.startswith(only))
        return dict(f.split("=", 1) for f in facts if f is not None)

    def _of(self, subject: Subject, history: History) -> dict[str, list[Line]]:
        lines: dict[str, list[Line]] = {"": []}
        known: dict[str, str] = {}
        carried: dict[str, str] = {}
        for write in history.writes:
            if write.op == "+":
                known = {}
            facts, apart, carry = self._write(subject, write.facts)
            for label, texts in apart.items():
                lines.setdefault(label, []).extend(Line(t, write.t_s) for t in texts)
                lines[label].sort(key=lambda line: line.text)
            facts = {**carried, **facts}
            carried = {}
            if carry and write.op == "~":
                carried = facts
                continue
            news = {k: v for k, v in facts.items() if known.get(k, GONE) != v}
            known |= facts
            if news or write.op != "~":
                lines[""].append(_line(write.op, news, write.t_s))
        news = {k: v for k, v in carried.items() if known.get(k, GONE) != v}
        if news:
            lines[""].append(_line("~", news, history.writes[-1].t_s))
        return lines

    def _write(self, subject: Subject, facts: Iterable[tuple[str, str]]) -> tuple[View, dict[str, list[str]], bool]:
        """The facts that stay, those set apart by label, and whether the write is carried into the next one."""
        kept: View = {}
        apart: dict[str, list[str]] = {}
        carry = False
        for key, value in facts:
            text, rules = self._ruled(subject, f"{key}={value}")
            carry = carry or any(r.carry for r in rules)
            label = next((r.apart for r in rules if r.apart), "")
            if text is None:
                continue
            if label:
                apart.setdefault(f" ({label})", []).append(text)
            else:
                name, _, rest = text.partition("=")
                kept[name] = rest
        return kept, apart, carry

    def _ruled(self, subject: Subject, text: str) -> tuple[str | None, list[Difference]]:
        used = []
        now: str | None = text
        for rule in self._rules:
            if now is None:
                break
            after, hit = rule.on(str(subject), now)
            if hit:
                used.append(rule)
                self.used[rule.id] = self.used.get(rule.id, 0) + 1
                now = after
        return now, used


def _line(op: str, facts: View, t_s: float) -> Line:
    return Line(f"{op} " + "; ".join(f"{k}={v}" for k, v in sorted(facts.items())), t_s)


# --- names that may be exchanged


def renamed(sequences: Sequences, names: Mapping[str, str]) -> Sequences:
    """The same with workers called otherwise: which DPU a roll-out takes first is random upstream."""
    if all(a == b for a, b in names.items()):
        return sequences

    def swap(text: str) -> str:
        for i, old in enumerate(names):
            text = text.replace(old, f"\0{i}\0")
        for i, new in enumerate(names.values()):
            text = text.replace(f"\0{i}\0", new)
        return text

    return {swap(s): [Line(swap(line.text), line.t_s) for line in lines] for s, lines in sequences.items()}


MAX_PERMUTED: Final = 4


def permutations(workers: Iterable[str]) -> Iterator[dict[str, str]]:
    names = list(workers)
    if len(names) > MAX_PERMUTED:
        yield {n: n for n in names}
        return
    for order in itertools.permutations(names):
        yield dict(zip(names, order, strict=True))


def difference(recorded: Sequences, ours: Sequences) -> list[str]:
    """What is not the same, as a unified diff per subject; empty when all is."""
    found: list[str] = []
    for subject in sorted(recorded.keys() | ours.keys()):
        a = [line.text for line in recorded.get(subject, ())]
        b = [line.text for line in ours.get(subject, ())]
        if a != b:
            found.append(f"=== {subject}")
            lines = difflib.unified_diff(a, b, "recorded", "ours", lineterm="", n=1)
            found += [d for d in lines if not d.startswith(("---", "+++"))]
    return found


def best(recorded: Sequences, ours: Sequences, workers: Iterable[str]) -> tuple[list[str], Sequences]:
    """The smallest difference over all namings of the workers, and ours so named."""
    found: tuple[list[str], Sequences] | None = None
    for names in permutations(workers):
        mine = renamed(ours, names)
        left = difference(recorded, mine)
        if found is None or len(left) < len(found[0]):
            found = (left, mine)
        if not left:
            break
    assert found is not None
    return found
