"""Our CRDs against upstream's of February 2025: every fact of a field is the same, or a change of v25.4 listed here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from twin.model.cel import broken
from twin.model.kinds import KINDS
from twin.model.meta import Object
from twin.model.rules import Cel
from twin.model.schema import crd, has_crd, structural

CRDS = Path(__file__).parents[2].parent / "shared/dpf/crds/main-2025-02"
OURS = {name: kind for name, kind in KINDS.items() if has_crd(kind)}
Facts = dict[tuple[str, str], Any]

pytestmark = pytest.mark.shared

# kind -> {path, or path:keyword, or path/ for all below: section of the sheet}. P is provisioning.md, S services.md.
EFFECT = "P 1.8: customAction and hold are new, and so the rule's text"
POLICY = "S 1.4, 1.6: upgradePolicy.applyNodeEffect took the place of nodeEffect"
OLD_RULE = "rule only one of taint, noEffect, drain or customLabel can be set"
NEW_RULE = "rule only one of taint, noEffect, drain, customLabel, customAction, hold can be set"
REBOOT = "P 1.2: automaticNodeReboot went; DPUNode.nodeRebootMethod took its place"
CONDITIONS = "S 1.8, 1.9: standard status, new in v25.4"


def _effect(path: str) -> dict[str, str]:
    return dict.fromkeys((f"{path}:{OLD_RULE}", f"{path}:{NEW_RULE}", f"{path}.customAction", f"{path}.hold"), EFFECT)


CHANGES: dict[str, dict[str, str]] = {
    "DPU": {
        "spec.automaticNodeReboot": REBOOT,
        "spec.nodeName": "P 1.2: is dpuNodeName", "spec.dpuNodeName": "P 1.2: was nodeName",
        "spec.dpuDeviceName": "P 1.2: new", "spec.pciAddress:pattern": "P 1.2: new",
        "status.phase:enum": "P 2.1: Checking Host Reboot Required is new", "status.dpuInstallInterface": "P 1.2: new",
        **_effect("spec.nodeEffect"),
    },
    "DPUDevice": {
        "spec.pciAddress:pattern": "P 1.4: no colons", "spec.numberOfPFs": "P 1.4: new", "spec.pf0Name": "P 1.4: new",
    },
    "DPUNode": {
        "spec.dpus": "P 1.6: a list of names", "spec.dpus{}": "P 1.6: was a map", "spec.dpus[]/": "P 1.6: names",
        "spec.nodeRebootMethod/": "P 1.6: an object of which one field is set, default gNOI",
        "status.dpuInstallInterface:default": "P 1.6: no default",
    },
    "DPUSet": {
        "spec.nodeSelector/": "P 1.7: is dpuNodeSelector", "spec.dpuNodeSelector/": "P 1.7: was nodeSelector",
        "spec.dpuTemplate.spec.automaticNodeReboot": REBOOT, **_effect("spec.dpuTemplate.spec.nodeEffect"),
    },
    "DPFOperatorConfig": {
        "spec.networking.controlPlaneMTU:minimum": "P 9.1: 1000", "spec.networking.highSpeedMTU:minimum": "P 9.1: 1000",
        **{f"spec.overrides.{name}": "S 1.12: new" for name in (
            "dpuCNIBinPath", "dpuCNIPath", "dpuOpenvSwitchBinPath", "dpuOpenvSwitchRunPath",
            "dpuOpenvSwitchSystemSharedPath", "kubernetesAPIServerPort", "kubernetesAPIServerVIP")},
        "spec.provisioningController.installInterface/": "P 9.1: new",
        "spec.sfcController.secureFlowDeletionTimeout": "S 1.12: new",
    },
    "DPUService": {"spec.serviceDaemonSet.resources/": "S 1.3: new", "spec.serviceDaemonSet.resources{}": "S 1.3: new"},
    "DPUDeployment": {
        "spec.serviceChains.nodeEffect": POLICY, "spec.serviceChains.upgradePolicy/": POLICY,
        **_effect("spec.dpus.nodeEffect"),
    },
    "DPUServiceConfiguration": {
        "spec.nodeEffect": POLICY, "spec.upgradePolicy/": POLICY,
        "spec:rule upgradePolicy.applyNodeEffect must be false when deploying in cluster": "S 1.6: the text is ours",
        "spec.serviceConfiguration.configPorts/": "S 1.6: new",
        "spec.serviceConfiguration:rule configPorts cannot be set when deployInCluster is true": "S 1.6: new",
        "spec.serviceConfiguration.serviceDaemonSet.resources/": "S 1.6: new",
        "spec.serviceConfiguration.serviceDaemonSet.resources{}": "S 1.6: new",
        "spec.serviceConfiguration.serviceDaemonSet.updateStrategy/": "S 1.6: new",
    },
    "DPUServiceCredentialRequest": {"status.observedGeneration": "S 1.7: standard status"},
    "ServiceInterface": {"status.conditions/": CONDITIONS, "status.conditions[]/": CONDITIONS,
                         "status.observedGeneration": CONDITIONS},
    "ServiceChain": {"status.conditions/": CONDITIONS, "status.conditions[]/": CONDITIONS,
                     "status.observedGeneration": CONDITIONS},
}


def _facts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[tuple[str, str], Any]]:
    for keyword, value in schema.items():
        if keyword == "properties":
            for name, sub in value.items():
                if path or name in ("spec", "status"):
                    yield from _facts(sub, f"{path}.{name}" if path else name)
        elif keyword == "items":
            yield from _facts(value, f"{path}[]")
        elif keyword == "additionalProperties":
            yield from _facts(value, f"{path}{{}}")
        elif keyword == "required":
            for name in value:
                yield (f"{path}.{name}" if path else name, "required"), True
        elif keyword == "x-kubernetes-validations":
            for rule in value:
                yield (path, f"rule {rule['message']}"), "oldSelf" in rule["rule"]
        elif keyword == "allOf":  # controller-gen's way to say an enum twice
            for sub in value:
                yield from _facts(sub, path)
        elif keyword != "description":
            yield (path, keyword), value


def facts(document: dict[str, Any]) -> Facts:
    """(path, keyword) -> value for everything under spec and status."""
    return dict(_facts(document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))


def upstream(kind: type[Object]) -> dict[str, Any]:
    path = CRDS / f"{kind.GROUP}_{kind.PLURAL}.yaml"
    if not path.exists():
        pytest.skip("../shared is absent: no CRDs to compare with")
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def listed(kind: str, path: str, keyword: str) -> list[str]:
    """The entries of CHANGES that cover this fact."""
    return [key for key in CHANGES.get(kind, {})
            if key in (path, f"{path}:{keyword}") or (
                key.endswith("/") and (path == key[:-1] or path.startswith((f"{key[:-1]}.", f"{key[:-1]}[]"))))]


@pytest.mark.parametrize("name", OURS)
def test_every_fact_of_a_field_is_upstreams_or_a_listed_change(name: str) -> None:
    theirs, ours = facts(upstream(OURS[name])), facts(crd(OURS[name]))
    different = [key for key in {**theirs, **ours} if theirs.get(key, "-") != ours.get(key, "-")]
    used = {entry for path, keyword in different for entry in listed(name, path, keyword)}
    unlisted = [(path, keyword, theirs.get((path, keyword), "-"), ours.get((path, keyword), "-"))
                for path, keyword in different if not listed(name, path, keyword)]
    assert not unlisted, "\n".join(f"{p}: {k}: upstream {a}, ours {b}" for p, k, a, b in unlisted)
    assert used == set(CHANGES.get(name, {})), "a listed change that is none"


@pytest.mark.parametrize("name", OURS)
def test_names_scope_columns_and_subresources_are_upstreams(name: str) -> None:
    theirs, ours = upstream(OURS[name]), crd(OURS[name])
    for field in ("group", "names", "scope"):
        assert ours["spec"][field] == theirs["spec"][field]
    assert ours["metadata"]["name"] == theirs["metadata"]["name"]
    assert ours["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    mine, other = ours["spec"]["versions"][0], theirs["spec"]["versions"][0]
    for field in ("name", "served", "storage", "subresources"):
        assert mine.get(field) == other.get(field), field
    if name not in COLUMNS:
        columns = [{k: v for k, v in c.items() if k != "description"}
                   for c in other.get("additionalPrinterColumns", [])]
        assert mine.get("additionalPrinterColumns", []) == columns


COLUMNS = {"DPUServiceTemplate": "S 1.5: the standard columns"}


# --- our rules are in our words: do they judge as upstream's?


def _rules(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any], list[dict[str, str]]]]:
    if "x-kubernetes-validations" in schema:
        yield path, schema, schema["x-kubernetes-validations"]
    for name, sub in schema.get("properties", {}).items():
        yield from _rules(sub, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from _rules(schema[keyword], f"{path}.{keyword}")


KEYS = ("a", "x.dpu.nvidia.com/a", "a.dpu.nvidia.com")


def samples(schema: dict[str, Any]) -> list[Any]:
    """A handful of values of this schema: every subset of an object's fields, each field with a few values."""
    if "enum" in schema:
        return list(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        out: list[Any] = [{}]
        for name, sub in sorted(schema["properties"].items()):
            values = samples(sub)
            few = values[:1] if len(out) > 200 else values[:1] + values[-1:]
            out = [{**some, **extra} for some in out for extra in [{}, *({name: v} for v in few)]]
        return out
    if kind == "object":
        return [{}, *({key: v} for key in KEYS for v in samples(schema.get("additionalProperties", {}))[:1])]
    if kind == "array":
        return [[], *([v] for v in samples(schema["items"])[-3:])]
    return {"boolean": [False, True], "integer": [1, 2], "string": ["", "b", "c"]}.get(str(kind), [1])


@pytest.mark.parametrize("name", OURS)
def test_a_rule_of_upstreams_text_and_ours_judge_alike(name: str) -> None:
    theirs = upstream(OURS[name])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    ours = {(path, r["message"]): r["rule"] for path, _, rules in _rules(structural(OURS[name])) for r in rules}
    for path, schema, rules in _rules(theirs):
        values = samples(schema)
        for rule in rules:
            mine = ours.get((path, rule["message"]))
            if mine is None or mine == rule["rule"]:
                continue  # listed above, or the same text
            before = values[::1 + len(values) // 20] if "oldSelf" in mine else [None]
            verdicts = set()
            for value, old in itertools.product(values[:: 1 + len(values) // 400 * len(before)], before):
                a, b = (broken(Cel(text, "no"), value, old) for text in (rule["rule"], mine))
                assert bool(a) == bool(b), (path, rule["message"], value, old, a, b)
                verdicts.add(bool(a))
            assert verdicts == {False, True}, f"the samples do not try {path}: {rule['message']}"


def test_every_kind_that_upstream_ships_is_ours() -> None:
    if not CRDS.exists():
        pytest.skip("../shared is absent: no CRDs to compare with")
    files = sorted(path.stem for path in CRDS.glob("*.dpu.nvidia.com_*.yaml"))
    assert files == sorted(f"{kind.GROUP}_{kind.PLURAL}" for kind in OURS.values())
