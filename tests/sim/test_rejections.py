"""Our answers against a real API server's: golden/provisioning/rejections.jsonl (development tree of 2025-02).

Manifests are first put into v25.4 form (renamed fields). What v25.4 changed for good stands in `CHANGED`, each with the
sheet's section; anything else must be the same: code, reason, message, and the stored object where it was accepted.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controllers.provisioning.webhooks import WEBHOOKS
from twin.backends.base import ApiError
from twin.model.kinds import KINDS, from_manifest
from twin.model.validation import prune
from twin.sim.admission import Webhooks, admit

GOLDEN = Path(__file__).parents[2].parent / "shared/dpf/golden/provisioning/rejections.jsonl"
NS = "dpf-operator-system"
Json = dict[str, Any]

pytestmark = pytest.mark.shared

ENUM_25_4 = '"Initialize Interface", "Checking Host Reboot Required"'
NODE_EFFECT = ("only one of taint, noEffect, drain or customLabel can be set",
               "only one of taint, noEffect, drain, customLabel, customAction, hold can be set")

# what -> (why, what our answer is instead: status, message and stored as far as they differ)
CHANGED: dict[str, tuple[str, Json]] = {
    "spec empty": ("1.2: dpuDeviceName is new and required", {
        "message": 'DPU.provisioning.dpu.nvidia.com "x-p1" is invalid: [spec.bfb: Required value, spec.dpuDeviceName: '
                   "Required value, spec.dpuNodeName: Required value, <nil>: Invalid value: null: some validation "
                   "rules were not checked because the object was invalid; correct the existing errors to complete "
                   "validation]"}),
    "hold (v25.4 field) in this tree": ("1.8: hold exists", {"status": 201, "message": None, "reason": None}),
    "customAction (v25.4 field) in this tree": (
        "1.8: customAction exists", {"status": 201, "message": None, "reason": None}),
    "two reboot methods": ("1.6: nodeRebootMethod is an object of which one field is set", {
        "message": 'DPUNode.provisioning.dpu.nvidia.com "x-n2" is invalid: spec.nodeRebootMethod: Invalid value: '
                   '"object": only one of gNOI, external, script can be set'}),
    "empty spec (defaults shown in stored)": (
        "1.6: the default is gNOI", {"stored": {"spec": {"nodeRebootMethod": {"gNOI": {}}}}}),
    "pciAddress with colons": ("1.4: pciAddress has a pattern", {
        "status": 422, "reason": "Invalid",
        "message": 'DPUDevice.provisioning.dpu.nvidia.com "x-v4" is invalid: spec.pciAddress: Invalid value: '
                   '"0000:2b:00": spec.pciAddress in body should match '
                   "'^([0-9a-fA-F]{4}[-])?[0-9a-fA-F]{2}[-][0-9a-fA-F]{2}$'"}),
    "empty spec": ("1.4: numberOfPFs defaults to 1", {"stored": {"spec": {"numberOfPFs": 1}}}),
    "bmcIp set once": ("1.4: numberOfPFs defaults to 1", {
        "stored": {"spec": {"bmcIp": "10.0.0.1", "pciAddress": "0000-2b-00", "numberOfPFs": 1}}}),
    "v25.4 field dpuNodeSelector, Strict": ("1.7: the names are exchanged; the old one is unknown now", {
        "message": 'DPUSet in version "v1alpha1" cannot be handled as a DPUSet: strict decoding error: '
                   'unknown field "spec.nodeSelector"'}),
}
ELSEWHERE = {"namespace does not exist": "the server itself looks for the namespace, before admission"}

# What stood in the store before a line, where lines that would tell are held back or were the harness's own.
BEFORE: dict[str, Json] = {
    "pciAddress changed": {"spec": {"pciAddress": "0000-2b-00"}},
    "automaticNodeReboot false": {"spec": {"dpuFlavor": "other"}},
    "bmcIp set once": {"spec": {"pciAddress": "0000-2b-00"}},
}
GONE = {"delete BFB no longer named by a DPUSet": ("DPUSet", "set-1")}


def _object(kind: str, name: str, **rest: Any) -> Json:
    return {"apiVersion": "provisioning.dpu.nvidia.com/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": NS}, **rest}


def _initial() -> dict[tuple[str, str], Json]:
    bfb = _object("BFB", "bf-bundle", spec={"url": "http://127.0.0.1:8000/bf-bundle-2.9.1-40.bfb", "fileName": "i.bfb"},
                  status={"fileName": "dpf-operator-system-bf-bundle.bfb", "phase": "Downloading", "versions": {}})
    flavor = _object("DPUFlavor", "flavor-1", spec={"grub": {"kernelParameters": ["a=b"]}})
    conditions = [{"lastTransitionTime": "2025-02-24T00:00:00Z", "message": "", "reason": reason, "status": "True",
                   "type": type_} for type_, reason in (("Created", "Created"), ("Ready", "HealthCheckPassed"))]
    cluster = _object("DPUCluster", "dpucluster-1",
                      spec={"type": "static", "version": "v1.34.4", "maxNodes": 1000, "kubeconfig": "secret"},
                      status={"phase": "Ready", "conditions": conditions})
    return {(o["kind"], o["metadata"]["name"]): o for o in (bfb, flavor, cluster)}


class Server:
    """Just enough of a server to replay the recording: a dict of objects around `admit`."""

    def __init__(self) -> None:
        self.objects = _initial()
        self.webhooks = Webhooks(WEBHOOKS, url="https://127.0.0.1:9443")

    def list(self, kind: Any, namespace: str | None = None) -> list[Any]:
        return [from_manifest(o) for (name, _), o in self.objects.items() if KINDS[name] is kind]

    def answer(self, line: Json) -> Json:
        """status, reason, message, stored: as the recording has them."""
        self.webhooks.down = ("dial tcp 127.0.0.1:9443: connect: connection refused"
                              if "webhook server is down" in line["what"] else "")
        try:
            stored = self._do(line)
        except ApiError as error:
            return {"status": error.code, "reason": error.reason or None, "message": str(error)}
        out: Json = {"status": 201 if line["op"] == "create" else 200, "reason": None, "message": None}
        return out if stored is None else {**out, "stored": stored}

    def _do(self, line: Json) -> Json | None:
        kind = KINDS[line["kind"]]
        if line["op"] == "create":
            new = v25_4(line["kind"], line["manifest"], line["what"])
            mode = "Strict" if "Strict" in line["what"] else "Ignore"
            stored = admit(kind, new, None, operation="CREATE", webhooks=self.webhooks, reader=self,
                           field_validation=mode)
            name = new["metadata"]["name"]
            if not name.startswith("x-"):  # the recording cleaned up after each of those
                self.objects[line["kind"], name] = stored
            return stored
        key = (line["kind"], line["manifest"]["target"].split("/")[1])
        old = self.objects[key]
        if line["op"] == "delete":
            admit(kind, old, old, operation="DELETE", webhooks=self.webhooks, reader=self)
            return None
        old = self.objects[key] = merge(old, BEFORE.get(line["what"], {}))
        new = merge(old, v25_4(line["kind"], line["manifest"]["mergePatch"], line["what"]))
        stored = admit(kind, new, old, operation="UPDATE", webhooks=self.webhooks, reader=self,
                       subresource=line["manifest"].get("subresource", ""))
        self.objects[key] = stored
        return stored


def merge(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = merge(out.get(name), value)
    return out


def v25_4(kind: str, manifest: Json, what: str = "") -> Json:
    """The manifest with the names of v25.4: dpuNodeSelector, dpuNodeName and a dpuDeviceName."""
    out = copy.deepcopy(manifest)
    spec = out.get("spec") or {}
    for old, new in {"DPUSet": {"nodeSelector": "dpuNodeSelector"}, "DPU": {"nodeName": "dpuNodeName"}}.get(
            kind, {}).items():
        if old in spec:
            spec[new] = spec.pop(old)
        elif new in spec:
            spec[old] = spec.pop(new)
    if kind == "DPU" and "metadata" in out and spec:
        spec["dpuDeviceName"] = "device"
    return out


def comparable(kind: str, stored: Json) -> Json:
    """Name, namespace, spec and status in v25.4's form, without what a running controller had added."""
    obj = v25_4(kind, stored) if "dpuNodeSelector" not in stored.get("spec", {}) and (
        "dpuNodeName" not in stored.get("spec", {})) else copy.deepcopy(stored)
    obj = prune(KINDS[kind], obj)[0]
    spec, status = obj.get("spec"), obj.get("status")
    if spec and spec.get("cluster") == {}:
        del spec["cluster"]
    if spec:
        spec.pop("dpuDeviceName", None)
    for condition in (status or {}).get("conditions", []):
        condition["lastTransitionTime"] = "T"
    meta = {name: obj["metadata"][name] for name in ("name", "namespace")}
    return {"metadata": meta, **({"spec": spec} if spec is not None else {}), **({"status": status} if status else {})}


def expected(line: Json) -> Json:
    out = {name: line[name] for name in ("status", "reason", "message")}
    text = out["message"] or ""
    text = text.replace(*NODE_EFFECT).replace("spec.nodeName", "spec.dpuNodeName")
    out["message"] = text.replace('"Initialize Interface"', ENUM_25_4) or None
    if "stored" in line:
        out["stored"] = comparable(line["kind"], line["stored"])
    if line["what"] in CHANGED:
        change = dict(CHANGED[line["what"]][1])
        if "stored" in change:
            change["stored"] = {**out["stored"], **change["stored"]}
        out.update(change)
        if out["status"] >= 400:
            out.pop("stored", None)
    return out


def lines() -> Iterator[Json]:
    if GOLDEN.exists():
        yield from map(json.loads, GOLDEN.read_text().splitlines())


@pytest.fixture(scope="module")
def answers() -> list[tuple[Json, Json]]:
    """Every line of the recording with our answer, in the recording's order: later lines build on earlier ones."""
    if not GOLDEN.exists():
        pytest.skip("../shared is absent: no recording to compare with")
    server, out = Server(), []
    for line in lines():
        if line["what"] in ELSEWHERE:
            continue
        server.objects.pop(GONE.get(line["what"], ("", "")), None)
        out.append((line, server.answer(line)))
    return out


def test_every_answer_of_the_real_server_is_ours_but_for_listed_changes(answers: list[tuple[Json, Json]]) -> None:
    wrong = []
    for line, ours in answers:
        want = expected(line)
        if ours["message"]:
            ours["message"] = re.sub(r"\(0x[0-9a-f]+\)", "(0x<pointer>)", ours["message"])
        stored = ours.pop("stored", None)
        if "stored" in want:
            ours["stored"] = comparable(line["kind"], stored) if stored is not None else None
        if ours != want:
            wrong.append((line["kind"], line["what"], want, ours))
    assert not wrong, "\n\n".join(f"{k}: {w}\n want {a}\n ours {b}" for k, w, a, b in wrong)


def test_every_listed_change_is_still_needed(answers: list[tuple[Json, Json]]) -> None:
    for line, _ in answers:
        if line["what"] in CHANGED:
            instead = CHANGED[line["what"]][1]
            assert any(line.get(name) != value for name, value in instead.items()), line["what"]
    known = {line["what"] for line in lines()}
    assert set(CHANGED) | set(ELSEWHERE) | set(BEFORE) | set(GONE) <= known
