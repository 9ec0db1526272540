"""Digests of pods that several neighbours ask for: which pods a node holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from twin.model.core import Pod
from twin.model.meta import Key, Object, condition_status
from twin.model.provisioning import Taint

FOREVER: Final = float("inf")
NOT_READY: Final = "node.kubernetes.io/not-ready"
UNREACHABLE: Final = "node.kubernetes.io/unreachable"
UNSCHEDULABLE: Final = "node.kubernetes.io/unschedulable"
DEFAULT_TOLERATION_S: Final = 300.0
"""What the admission plugin DefaultTolerationSeconds gives every pod for not-ready and unreachable."""


class PodsByNode:
    """The bound pods of each node, by `on(name)`; the token is the node's name. Answers are in order of arrival."""

    kinds: tuple[type[Object], ...] = (Pod,)

    def __init__(self) -> None:
        self._nodes: dict[str, dict[Key, Pod]] = {}

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]:
        was = old.spec.node_name if isinstance(old, Pod) else ""
        now = new.spec.node_name if isinstance(new, Pod) else ""
        if was and was != now and old is not None:
            self._nodes[was].pop(old.key, None)
        if isinstance(new, Pod) and now:
            self._nodes.setdefault(now, {})[new.key] = new
        return (was, now) if was and now and was != now else (was or now,)

    def on(self, node: str) -> list[Pod]:
        return list(self._nodes.get(node, {}).values())


def pod_ready(pod: Pod) -> bool:
    return condition_status(pod.status.conditions, "Ready") == "True"


def finished(pod: Pod) -> bool:
    """Will its containers never run again?"""
    return pod.status.phase in ("Succeeded", "Failed")


def toleration_s(pod: Pod, taint: Taint) -> float:
    """How long a pod stays on a node with this taint: 0 not at all, `FOREVER`, or seconds."""
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
        return DEFAULT_TOLERATION_S
    return max(longest, 0.0)


def evicted_after_s(pod: Pod, taints: Iterable[Taint]) -> float:
    """When NoExecute taints drive this pod away, in seconds after they were set."""
    return min((toleration_s(pod, t) for t in taints if t.effect == "NoExecute"), default=FOREVER)
