"""Label and field selectors, as lists, watches and delete-collection take them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from twin.model.core import Event, Job, Namespace, Node, Pod, ReplicaSet, Secret
from twin.model.kinds import to_manifest
from twin.model.meta import Object
from twin.model.objectmeta import label_value_problems, qualified_name_problems
from twin.model.schema import has_crd
from twin.sim.status import Resource, bad_request

Test = Callable[[Object], bool]
_Labels = Callable[[Mapping[str, str]], bool]

_NAMES: Final = ("metadata.name", "metadata.namespace")
_FIELDS: Final[Mapping[Resource, tuple[str, ...]]] = {
    Pod: ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
          "status.phase", "status.podIP", "status.nominatedNodeName"),
    Event: ("involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
            "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
            "reportingComponent", "source", "type"),
    Node: ("spec.unschedulable",), Job: ("status.successful",), Secret: ("type",), Namespace: ("status.phase",),
    ReplicaSet: ("status.replicas",),
}
"""What the core kinds let fields be selected by, beside name and namespace."""
_MOVED: Final = {"status.successful": ("status", "succeeded"), "source": ("source", "component")}
_EMPTY: Final[Mapping[str, Any]] = {"spec.unschedulable": "false", "spec.hostNetwork": "false",
                                    "status.successful": "0", "status.replicas": "0", "spec.restartPolicy": "Always",
                                    "spec.schedulerName": "default-scheduler"}
_REQUIREMENT: Final = re.compile(
    r"\s*(?:(?P<no>!)\s*(?P<absent>[^\s,=!<>()]+)"
    r"|(?P<key>[^\s,=!<>()]+)\s*(?:(?P<op>==|=|!=)\s*(?P<value>[^\s,=!<>()]*)"
    r"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)")


def matching(resource: Resource, namespace: str | None, labels: str, fields: str) -> Test:
    """What passes both selectors (in this namespace). Raises: ApiError 400 for a selector that the server refuses."""
    by_label, by_field = label_selector(labels), field_selector(resource, fields)

    def test(obj: Object) -> bool:
        return ((namespace is None or obj.metadata.namespace == namespace)
                and by_label(obj.metadata.labels) and by_field(obj))

    return test


def label_selector(text: str) -> _Labels:
    """`a=b,c!=d,e in (f,g),h notin (i),j,!k`. Raises: ApiError 400."""
    tests: list[_Labels] = []
    at = 0
    while at < len(text):
        found = _REQUIREMENT.match(text, at)
        if found is None or found.end() == at:
            raise bad_request(f"unable to parse requirement: found '{text[at:].strip()}', expected: identifier")
        tests.append(_requirement(found))
        at = found.end()
    return lambda labels: all(test(labels) for test in tests)


def _requirement(found: re.Match[str]) -> _Labels:
    key = found["absent"] or found["key"]
    _valid(key, qualified_name_problems(key))
    if found["absent"]:
        return lambda labels: key not in labels
    if found["op"] is None and found["set"] is None:
        return lambda labels: key in labels
    values = [found["value"]] if found["op"] else [v.strip() for v in found["values"].split(",")]
    for value in values:
        _valid(value, label_value_problems(value))
    if found["op"] == "!=" or found["set"] == "notin":
        return lambda labels: labels.get(key) not in values
    return lambda labels: labels.get(key) in values


def _valid(text: str, problems: tuple[str, ...]) -> None:
    if problems:
        raise bad_request(f'unable to parse requirement: <nil>: Invalid value: "{text}": {"; ".join(problems)}')


def field_selector(resource: Resource, text: str) -> Test:
    """`metadata.name=a,status.phase!=Running`. Raises: ApiError 400."""
    wanted: list[tuple[str, str, bool]] = []
    for term in filter(None, text.split(",")):
        field, sign, value = re.match(r"([^=!]*)(!=|==|=|)(.*)", term).groups()  # type: ignore[union-attr]
        if not sign:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        _known(resource, field)
        wanted.append((field, value, sign != "!="))
    return lambda obj: all((_value(obj, field) == value) is equal for field, value, equal in wanted)


def _known(resource: Resource, field: str) -> None:
    known = (*_NAMES, *_FIELDS.get(resource, ()))
    if field in known:
        return
    if isinstance(resource, str) or has_crd(resource) or resource in _FIELDS:
        raise bad_request(f"field label not supported: {field}")
    raise bad_request(f'"{field}" is not a known field selector: only "metadata.name", "metadata.namespace"')


def _value(obj: Object, field: str) -> str:
    if field == "metadata.name":
        return obj.metadata.name
    if field == "metadata.namespace":
        return obj.metadata.namespace
    value: Any = to_manifest(obj)
    for name in _MOVED.get(field, tuple(field.split("."))):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return str(_EMPTY.get(field, ""))
    return str(value).lower() if isinstance(value, bool) else str(value)
