"""Our answers for the service kinds against a real API server's: golden/services/rejections.jsonl (2025-02)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controllers.services.webhooks import WEBHOOKS
from twin.backends.base import ApiError
from twin.model.kinds import KINDS
from twin.model.merge import merge_json
from twin.sim.admission import Webhooks, admit

GOLDEN = Path(__file__).parents[2].parent / "shared/dpf/golden/services/rejections.jsonl"
Json = dict[str, Any]

pytestmark = pytest.mark.shared

TEXT = "Invalid value: null: some validation rules were not checked because the object was invalid"
# what -> (why, our status, a piece of our message)
CHANGED: dict[str, tuple[str, int, str]] = {
    "protocol SCTP, upper-case port name": (
        "Go reports fields of one object in random order, we in name order", 422,
        "ports[0].name in body should match '^[a-z0-9-]+$', spec.configPorts.ports[0].protocol: Unsupported value"),
    "serviceDaemonSet.resources (a v25.4 field) in this tree": ("services.md 1.3: exists", 201, ""),
    "serviceDaemonSet.updateStrategy (a v25.4 field)": ("services.md 1.6: exists", 201, ""),
    "nodeEffect with two members": (
        "provisioning.md 1.8: two more members", 422,
        "only one of taint, noEffect, drain, customLabel, customAction, hold can be set"),
    "in cluster with interfaces": (
        "services.md 1.6: applyNodeEffect must be false too", 422,
        'spec: Invalid value: "object": interfaces are not supported when deploying in cluster'),
    "in cluster with nodeEffect true": ("services.md 1.6: refused", 422, "upgradePolicy.applyNodeEffect must be false"),
    "no provisioningController": (
        "provisioning.md 9.1: the kind has a rule now", 422, "spec.provisioningController: Required value, <nil>: "),
    "bfbPVCName missing": (
        "provisioning.md 9.1: the kind has a rule now", 422, "bfbPVCName: Required value, <nil>: " + TEXT),
    "controlPlaneMTU 0 (accepted in this tree)": (
        "provisioning.md 9.1: minimum 1000", 422, "should be greater than or equal to 1000"),
    "highSpeedMTU -1": ("provisioning.md 9.1: minimum 1000", 422, "should be greater than or equal to 1000"),
}


def lines() -> list[Json]:
    if not GOLDEN.exists():
        pytest.skip("../shared is absent: no recording to compare with")
    return [json.loads(line) for line in GOLDEN.read_text().splitlines()]


def answer(line: Json) -> tuple[int, str | None, str | None]:
    kind, manifest = KINDS[line["kind"]], line["manifest"]
    hooks = Webhooks(WEBHOOKS)
    try:
        if "first" in manifest:
            first = admit(kind, manifest["first"], None, operation="CREATE", webhooks=hooks)
            admit(kind, merge_json(first, manifest["then merge patch"]), first, operation="UPDATE", webhooks=hooks)
            return 200, None, None
        strict = "strict decoding" in (line["message"] or "")
        admit(kind, manifest, None, operation="CREATE", webhooks=hooks, field_validation="Strict" if strict else "Warn")
    except ApiError as error:
        return error.code, error.reason, str(error)
    return 201, None, None


def test_every_answer_about_a_service_kind_is_ours_but_for_listed_changes() -> None:
    wrong = []
    for line in lines():
        ours = answer(line)
        want = (line["status"], line["reason"], line["message"])
        if line["what"] in CHANGED:
            _, status, piece = CHANGED[line["what"]]
            if (ours[0], piece in (ours[2] or "")) != (status, True) or ours == want:
                wrong.append((line["what"], status, piece, ours))
        elif ours != want:
            wrong.append((line["what"], *want, ours))
    assert not wrong, "\n\n".join(map(str, wrong))


def test_every_listed_change_names_a_recorded_line() -> None:
    assert set(CHANGED) <= {line["what"] for line in lines()}
