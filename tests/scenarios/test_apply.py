"""What the API server refuses the user is told as kubectl tells it, and is a warning of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stories import changed, written

from scenarios.run import run


def warnings(folder: Path, action: dict[str, Any]) -> list[str]:
    s = written(folder, timeline=[{"at": 1, **action}]).with_(horizon_s=2.0)
    where = f"{s.timeline[0].where}: at 1 s the API server refused "
    return [w.removeprefix(where) for w in run(s).warnings]


@pytest.mark.parametrize("what", ["delete", "patch"])
def test_an_object_that_is_not_there_cannot_be_changed(tmp_path: Path, what: str) -> None:
    """The usual trap: it is in another namespace."""
    action = {"kind": "DPUSet", "name": "dpuset", **({"merge": {}} if what == "patch" else {})}
    told, = warnings(tmp_path, {what: action})
    assert told.startswith(f"{what}: DPUSet/default/dpuset: ")
    assert told.endswith('"dpuset" not found (404 NotFound)')


def test_a_refusal_without_a_reason_shows_none(tmp_path: Path) -> None:
    step = changed(1, "DPUSet", "fleet", {"spec": {"strategy": "x"}})
    told, = warnings(tmp_path, {"patch": step["patch"]})
    assert told.endswith("of type v1alpha1.DPUSetStrategy (400)")
