"""The table of warts and the code that reproduces them say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import controllers
from controllers.warts import POLICIES, WARTS, Wart

HERE = Path(controllers.__file__).parent
CODE = {path: path.read_text(encoding="utf-8") for path in sorted(HERE.rglob("*.py")) if path.name != "warts.py"}
MARK = re.compile(r"upstream: ([a-z0-9-]+)")
MARKED = {(path, mark) for path, text in CODE.items() for mark in MARK.findall(text)}


def test_every_mark_in_the_code_names_a_row() -> None:
    ids = {w.id for w in WARTS}
    unknown = sorted(f"{path.name}: {mark}" for path, mark in MARKED if mark not in ids)
    assert unknown == []


def test_every_row_is_marked_in_the_code() -> None:
    marks = {mark for _, mark in MARKED}
    assert sorted(w.id for w in WARTS if w.id not in marks) == []


def test_ids_are_unique() -> None:
    assert len({w.id for w in WARTS}) == len(WARTS)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_looked_at_by_some_controller(policy: str) -> None:
    assert any(f'"{policy}"' in text for text in CODE.values())


@pytest.mark.parametrize("wart", WARTS, ids=lambda w: w.id)
def test_every_row_says_what_and_where_from(wart: Wart) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", wart.id)
    assert re.fullmatch(r"(provisioning|services)\.md \d+(\.\d+)*(, \d+(\.\d+)*)*", wart.source)
    assert len(wart.what) > 20
    assert not wart.what.endswith(".")
