"""The one form in which a user's mistakes are told: `FILE:LINE:COL: OBJECT: FIELD: RULE (got VALUE)`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing a user got wrong. Lines and columns count from 1; parts that do not apply are empty and left out."""

    file: str
    rule: str
    line: int = 0
    column: int = 0
    object: str = ""
    field: str = ""
    got: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = [p for p in (place, self.object, self.field) if p]
        return ": ".join([*parts, self.rule]) + (f" (got {self.got})" if self.got else "")


class BadInput(Exception):
    """What the user gave cannot be used. `mistakes` holds all that were found; `str` is one line for each."""

    def __init__(self, mistakes: Sequence[Mistake] | str) -> None:
        self.mistakes = (Mistake("", mistakes),) if isinstance(mistakes, str) else tuple(mistakes)
        super().__init__("\n".join(str(m) for m in self.mistakes))


def dotted(path: Sequence[str | int]) -> str:
    """`spec.dpus.dpuSets[0].nameSuffix`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def shown(value: Any, limit: int = 80) -> str:
    """A value as it stands in a message: JSON, cut at `limit` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value).__name__)
    return text if len(text) <= limit else text[:limit - 3] + "..."
