"""What several neighbours ask about pods: which of them a node holds, what they tolerate, what a selector selects."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from twin.model.core import Pod
from twin.model.meta import Key, Object, condition_status
from twin.model.provisioning import LabelSelector, Taint

FOREVER: Final = float("inf")
NOT_READY: Final = "node.kubernetes.io/not-ready"
UNREACHABLE: Final = "node.kubernetes.io/unreachable"
UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
FINISHED: Final = ("Succeeded", "Failed")
"""Phases of a pod whose containers never run again."""


class PodsByNode:
    """The bound pods of each node, by `on(name)`; the token is the node's name. Answers are in order of arrival."""

    kinds: tuple[type[Object], ...] = (Pod,)

    def __init__(self) -> None:
        self._nodes: dict[str, dict[Key, Pod]] = {}

    def observe(self, old: Any, new: Any) -> Iterable[Hashable]:
        was = old.spec.node_name if old is not None else ""
        now = new.spec.node_name if new is not None else ""
        if was and was != now:
            self._nodes[was].pop(old.key, None)
        if now:
            self._nodes.setdefault(now, {})[new.key] = new
        return (was, now) if was and now and was != now else (was or now,)

    def on(self, node: str) -> list[Pod]:
        return list(self._nodes.get(node, {}).values())


def pod_ready(pod: Pod) -> bool:
    return condition_status(pod.status.conditions, "Ready") == "True"


def finished(pod: Pod) -> bool:
    """Will its containers never run again?"""
    return pod.status.phase in FINISHED


def toleration_s(pod: Pod, taint: Taint, default_s: float = FOREVER) -> float:
    """How long a pod stays on a node with this taint: 0 not at all, `FOREVER`, or seconds.

    `default_s`: what the admission plugin DefaultTolerationSeconds gives every pod for not-ready and unreachable.
    """
    longest = -1.0
    for t in pod.spec.tolerations:
        key, effect = t.get("key", ""), t.get("effect", "")
        if (key and key != taint.key) or (effect and effect != taint.effect):
            continue
        if key and t.get("operator", "Equal") == "Equal" and t.get("value", "") != taint.value:
            continue
        seconds = t.get("tolerationSeconds")
        longest = max(longest, FOREVER if seconds is None else float(seconds))
    if longest < 0 and taint.effect == "NoExecute" and taint.key in (NOT_READY, UNREACHABLE):
        return default_s
    return max(longest, 0.0)


def evicted_after_s(pod: Pod, taints: Iterable[Taint], default_s: float) -> float:
    """When NoExecute taints drive this pod away, in seconds after they were set."""
    least = FOREVER
    for taint in taints:
        if taint.effect == "NoExecute":
            least = min(least, toleration_s(pod, taint, default_s))
    return least


# --- selectors


def selected(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Does a LabelSelector (an empty one: everything) select these labels?"""
    for k, v in selector.match_labels.items():
        if labels.get(k) != v:
            return False
    return all(_holds(e.operator, labels.get(e.key), e.values) for e in selector.match_expressions)


def _holds(operator: str, value: str | None, values: tuple[str, ...]) -> bool:
    if operator == "In":
        return value is not None and value in values
    if operator == "NotIn":
        return value is None or value not in values
    if operator == "Exists":
        return value is not None
    return value is None  # DoesNotExist


@lru_cache(maxsize=256)
def parse_selector(text: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """A label selector as kubectl takes it (`a=b,c!=d,e in (f,g),h,!i`): (operator, key, values) in order.

    Raises ValueError.
    """
    found = []
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", text):
        term = part.strip()
        for pattern, operator in _TERMS:
            match = pattern.fullmatch(term)
            if match:
                values = tuple(v.strip() for v in match[2].split(",")) if match.lastindex == 2 else ()
                found.append((operator, match[1], values))
                break
        else:
            raise ValueError(f"unable to parse label selector {text!r} at {term!r}")
    return tuple(found)


_LABEL: Final = r"([A-Za-z0-9][-A-Za-z0-9_./]*)"
_TERMS: Final = tuple((re.compile(pattern), operator) for pattern, operator in (
    (_LABEL + r"\s+in\s+\(([^)]*)\)", "In"), (_LABEL + r"\s+notin\s+\(([^)]*)\)", "NotIn"),
    (_LABEL + r"\s*==?\s*([-A-Za-z0-9_.]*)", "In"), (_LABEL + r"\s*!=\s*([-A-Za-z0-9_.]*)", "NotIn"),
    (r"!\s*" + _LABEL, "DoesNotExist"), (_LABEL, "Exists")))


def selects(text: str, labels: Mapping[str, str]) -> bool:
    """Does this selector text select these labels? Empty text selects everything."""
    return all(_holds(operator, labels.get(key), values) for operator, key, values in parse_selector(text))
