"""What is in the recordings besides watch events: the controllers' errors, and the order of conditions at the end."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
import yaml

from tests.golden import recording
from tests.golden.differences import LIMITS, NO_LIMIT
from tests.golden.playing import played
from tests.golden.recording import ABSENT, WHY_ABSENT
from twin.model.kinds import to_manifest

pytestmark = [pytest.mark.shared, pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)]

SHARED_CONTROLLERS: Final = ("bfb", "dpucluster", "dpuset")

ONLY_RECORDED: Final = {
    "job .* timed out": "4.1: v25.4 downloads in process, without a Job",
    "failed to created DPU index 0 on node W the label of .*": "5.1: v25.4 asks DPUDevices, not labels of Nodes",
    "failed to finalize DPUSet .* not found": "a pass on a stale cache; a race",
}
ONLY_OURS: Final = {
    "bfbs.* not found": "a pass on a stale cache; a race",
    "dpus.* not found": "a pass on a stale cache; a race",
    "dpuclusters.* not found": "a pass on a stale cache; a race",
}
CONFLICT: Final = "the object has been modified"


def _plain(text: str) -> str:
    text = re.sub(r"https?://[\d.:]+", "URL", text.replace("\\\\", "\\"))
    return re.sub(r"worker\d", "W", re.sub(r"dial tcp [\d.:]+", "dial tcp ADDRESS:", text))


def _left(texts: set[str], allowed: dict[str, str]) -> set[str]:
    return {t for t in texts if not any(re.fullmatch(a, t) for a in allowed)}


@pytest.mark.parametrize("name", recording.names())
def test_errors_of_the_controllers_that_v25_4_kept_read_as_recorded(name: str) -> None:
    case = played(name)
    theirs = {_plain(p.what.removeprefix("error: ")) for p in recording.passes(name)
              if p.controller in SHARED_CONTROLLERS and p.what.startswith("error: ") and CONFLICT not in p.what}
    ours = {_plain(look.error) for look in case.play.looked
            if look.controller in SHARED_CONTROLLERS and look.error and CONFLICT not in look.error}
    assert _left(ours, ONLY_OURS) == _left(theirs, ONLY_RECORDED)


RENAMED: Final = {"DMSRunning": "InterfaceInitialized"}
NEW: Final = ("FWConfigured", "CheckedHostRebootNeed", "DPUClusterReady", "Deleting")


def _types(o: dict[str, Any]) -> list[str]:
    return [RENAMED.get(c["type"], c["type"]) for c in o.get("status", {}).get("conditions", ())]


def _whole(name: str) -> bool:
    limit = LIMITS.get(name, NO_LIMIT)
    return not (limit.kinds or limit.same or limit.until)


@pytest.mark.parametrize("name", [n for n in recording.names() if _whole(n)])
def test_conditions_end_in_upstreams_order(name: str) -> None:
    """Order of first appearance: what both have stands in the same order."""
    case = played(name)
    final = {(o["kind"], o["metadata"]["name"]): _types(o) for o in yaml.load_all(
        (recording.FOLDER / name / "final.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if o["kind"] in ("DPU", "DPUCluster")}
    world = case.play.world
    ours = {(o.KIND, o.metadata.name): _types(to_manifest(o)) for resource in world.host_cluster.resources()
            for o in world.host_cluster.table(resource).values() if o.KIND in ("DPU", "DPUCluster")}
    assert final.keys() == ours.keys()
    for key, types in ours.items():
        assert [t for t in types if t not in NEW] == final[key], key
