"""PodDisruptionBudgets: the arithmetic of their status, and evictions that respect it.

Counts follow the pods one by one, so that a budget over thousands of pods costs what changed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twin.actors.actor import Actor
from twin.actors.podviews import finished, pod_ready, selected
from twin.backends.base import ApiError, KubeApi
from twin.model.core import Pod, PodDisruptionBudget, PodDisruptionBudgetStatus, ReplicaSet
from twin.model.meta import Key, Object, condition_status, format_time, parse_time, replace
from twin.runtime.reconcile import DONE, Context, Result, Watch

DISRUPTED_S: Final = 120.0
"""A pod whose eviction was granted counts as gone for so long, even if its deletion does not show."""

VIOLATES: Final = "Cannot evict pod as it would violate the pod's disruption budget."
SEVERAL: Final = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."


def scaled(value: int | str, total: int, *, up: bool = True) -> int:
    """A count, or a percentage of `total` rounded up (or down). Raises ValueError."""
    if isinstance(value, int):
        return value
    if not value.endswith("%") or not value[:-1].isdecimal():
        raise ValueError(f"must be a count or a percentage such as 10% (got {value!r})")
    share = int(value[:-1]) * total
    return -(-share // 100) if up else share // 100


@dataclass(slots=True, eq=False)
class _Count:
    """The pods of one budget."""

    budget: PodDisruptionBudget
    pods: dict[Key, Pod] = field(default_factory=dict)
    healthy: dict[Key, None] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    """Pods per controller; '' those without."""
    wanted: int = 0
    """Replicas that those controllers want together (a controller we do not know wants the pods it has)."""


class Budgets:
    """Which budgets select a pod, and how many pods each of them has.

    Tokens: a budget's key, and ("of", namespace) for which budgets there are.
    """

    kinds: tuple[type[Object], ...] = (PodDisruptionBudget, ReplicaSet, Pod)

    def __init__(self) -> None:
        self._counts: dict[Key, _Count] = {}
        self._index: dict[str, dict[tuple[str, str], dict[Key, None]]] = {}
        self._pods: dict[str, dict[str, Pod]] = {}
        self._replicas: dict[str, int] = {}

    def of(self, pod: Pod) -> list[Key]:
        """The budgets that select this pod."""
        index = self._index.get(pod.metadata.namespace)
        if not index:
            return []
        found = []
        labels = pod.metadata.labels
        for pair in (*labels.items(), ("", "")):
            for key in index.get(pair, ()):
                selector = self._counts[key].budget.spec.selector
                if selector is not None and selected(selector, labels):
                    found.append(key)
        return found

    def count(self, key: Key) -> _Count | None:
        return self._counts.get(key)

    def observe(self, old: Any, new: Any) -> Iterable[Hashable]:
        either = new if new is not None else old
        if isinstance(either, Pod):
            space = either.metadata.namespace
            pods = self._pods.get(space)
            if pods is None:
                pods = self._pods[space] = {}
            if new is not None:
                pods[new.metadata.name] = new
            else:
                pods.pop(either.metadata.name, None)
            return self._pod(old, new) if space in self._index else ()
        if isinstance(either, ReplicaSet):
            return self._replica_set(old, new)
        return self._budget(old, new)

    def _budget(self, old: PodDisruptionBudget | None, new: PodDisruptionBudget | None) -> Iterable[Hashable]:
        if old is not None and new is not None and old.spec == new.spec:
            self._counts[new.key].budget = new
            return (new.key,)
        if old is not None:
            self._counts.pop(old.key, None)
            self._index.get(old.metadata.namespace, {}).get(_indexed(old), {}).pop(old.key, None)
        if new is not None:
            self._counts[new.key] = count = _Count(new)
            self._index.setdefault(new.metadata.namespace, {}).setdefault(_indexed(new), {})[new.key] = None
            selector = new.spec.selector
            for pod in self._pods.get(new.metadata.namespace, {}).values():
                if selector is not None and selected(selector, pod.metadata.labels):
                    self._add(count, pod)
        key = (new or old).key  # type: ignore[union-attr]
        return (key, ("of", key.namespace))

    def _pod(self, old: Pod | None, new: Pod | None) -> Iterable[Hashable]:
        changed: dict[Key, None] = {}
        if old is not None:
            for key in self.of(old):
                self._remove(self._counts[key], old)
                changed[key] = None
        if new is not None:
            for key in self.of(new):
                self._add(self._counts[key], new)
                changed[key] = None
        return changed

    def _replica_set(self, old: ReplicaSet | None, new: ReplicaSet | None) -> Iterable[Hashable]:
        uid = (new or old).metadata.uid  # type: ignore[union-attr]
        holders = [c for c in self._counts.values() if uid in c.owners]
        for count in holders:
            count.wanted -= self._wants(count, uid)
        if new is not None:
            self._replicas[uid] = 1 if new.spec.replicas is None else new.spec.replicas
        else:
            self._replicas.pop(uid, None)
        for count in holders:
            count.wanted += self._wants(count, uid)
        return [c.budget.key for c in holders]

    def _wants(self, count: _Count, uid: str) -> int:
        pods = count.owners.get(uid, 0)
        return self._replicas.get(uid, pods) if pods else 0

    def _add(self, count: _Count, pod: Pod) -> None:
        self._shift(count, _controller(pod), 1)
        count.pods[pod.key] = pod
        if pod_ready(pod) and not pod.deleting:
            count.healthy[pod.key] = None

    def _remove(self, count: _Count, pod: Pod) -> None:
        if count.pods.pop(pod.key, None) is not None:
            self._shift(count, _controller(pod), -1)
            count.healthy.pop(pod.key, None)

    def _shift(self, count: _Count, uid: str, by: int) -> None:
        count.wanted -= self._wants(count, uid)
        count.owners[uid] = count.owners.get(uid, 0) + by
        count.wanted += self._wants(count, uid)


def _controller(pod: Pod) -> str:
    return next((r.uid for r in pod.metadata.owner_references if r.controller), "")


def _indexed(budget: PodDisruptionBudget) -> tuple[str, str]:
    """One label that every selected pod carries; ('', '') when the selector demands none."""
    selector = budget.spec.selector
    return next(iter(selector.match_labels.items()), ("", "")) if selector is not None else ("", "")


def budget_status(count: _Count, now: float) -> PodDisruptionBudgetStatus:
    """kube-controller-manager's arithmetic. Pods without a controller count as wanted as they are."""
    budget = count.budget
    spec, old = budget.spec, budget.status
    expected = count.wanted
    if spec.max_unavailable is not None:
        desired = max(0, expected - scaled(spec.max_unavailable, expected))
    elif isinstance(spec.min_available, int):
        expected, desired = len(count.pods), spec.min_available
    else:
        desired = scaled(spec.min_available, expected) if spec.min_available is not None else 1
    disrupted = _still_disrupted(old.disrupted_pods, count, now)
    healthy = len(count.healthy) - sum(
        1 for name in disrupted if Key(budget.metadata.namespace, name) in count.healthy)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    return replace(old, disruptions_allowed=allowed, current_healthy=healthy, desired_healthy=desired,
                   expected_pods=expected, disrupted_pods=disrupted,
                   observed_generation=budget.metadata.generation)


def _still_disrupted(pods: Mapping[str, str], count: _Count, now: float) -> Mapping[str, str]:
    namespace = count.budget.metadata.namespace
    left = {}
    for name, since in pods.items():
        pod = count.pods.get(Key(namespace, name))
        if pod is not None and not pod.deleting and now < parse_time(since) + DISRUPTED_S:
            left[name] = since
    return left if len(left) != len(pods) else pods


def _budgets_of(reconciler: Disruption, pod: Any) -> Iterable[Key]:
    return reconciler.budgets().of(pod)


def _counts_change(old: Any, new: Any) -> bool:
    if old is None or new is None or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp:
        return True
    was, now = old.status.conditions, new.status.conditions
    if was is not now and (condition_status(was, "Ready") == "True") != (condition_status(now, "Ready") == "True"):
        return True
    labels = new.metadata.labels
    return labels is not old.metadata.labels and bool(labels != old.metadata.labels)


def _all_budgets(reconciler: Disruption, _: Object) -> Iterable[Key]:
    return [b.key for b in reconciler.kube.list(PodDisruptionBudget)]


def _scale_changes(old: Object | None, new: Object | None) -> bool:
    return not isinstance(old, ReplicaSet) or not isinstance(new, ReplicaSet) or (
        old.spec.replicas != new.spec.replicas)


class Disruption(Actor):
    """Keeps the status of PodDisruptionBudgets."""

    name = "disruption"
    watches = (Watch(PodDisruptionBudget), Watch(Pod, to=_budgets_of, when=_counts_change),
               Watch(ReplicaSet, to=_all_budgets, when=_scale_changes))

    def budgets(self, key: Key | None = None) -> Budgets:
        return self.kube.view(Budgets, key)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        count = self.budgets(key).count(key)
        budget = self.kube.get(PodDisruptionBudget, key)
        if count is None or budget is None or budget.deleting:
            return DONE
        status = budget_status(count, ctx.now)
        if status != budget.status:
            self.kube.update_status(replace(budget, status=status))
        waiting = [parse_time(since) + DISRUPTED_S for since in status.disrupted_pods.values()]
        if waiting and not ctx.reached(min(waiting)):
            # The count of a pod that was to go and did not comes back.
            return Result(requeue_after_s=math.ceil(min(waiting) - ctx.now))
        return DONE


class Evictions:
    """The API server's pods/eviction, for servers that have none: the budget is charged, then the pod deleted."""

    def __init__(self, kube: KubeApi) -> None:
        self._kube = kube

    def evict(self, pod: Pod, now: float) -> None:
        """Raises: ApiError 429 when a budget forbids it, 500 when several budgets select the pod, NotFound."""
        keys = self._kube.view(Budgets, ("of", pod.metadata.namespace)).of(pod)
        if keys and not finished(pod) and pod.status.phase != "Pending" and not pod.deleting:
            if len(keys) > 1:
                raise ApiError(SEVERAL, code=500)
            self._charge(pod, keys[0], now)
        self._kube.delete(Pod, pod.key, uid=pod.metadata.uid)

    def _charge(self, pod: Pod, key: Key, now: float) -> None:
        budget = self._kube.read_live(PodDisruptionBudget, key)
        status, policy = budget.status, budget.spec.unhealthy_pod_eviction_policy
        if not pod_ready(pod) and (policy == "AlwaysAllow" or (
                status.current_healthy >= status.desired_healthy and status.desired_healthy > 0)):
            return
        if status.disruptions_allowed <= 0 or status.observed_generation < budget.metadata.generation:
            raise ApiError(VIOLATES, code=429, reason="TooManyRequests")
        self._kube.update_status(replace(budget, status=replace(
            status, disruptions_allowed=status.disruptions_allowed - 1,
            disrupted_pods={**status.disrupted_pods, pod.metadata.name: format_time(now)})))
