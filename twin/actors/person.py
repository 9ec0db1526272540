"""The person on call: power-cycles hosts that ask for it and lets held DPUs go, each after a while.

Both requests are annotations (provisioning.md 1.11). A reboot is answered by removing the annotation, but only once the
host is back; a hold by setting it to false, or by removing it as the documents say, which upstream sets again.
"""

from __future__ import annotations

from collections.abc import Callable

from twin.actors.actor import Actor
from twin.actors.hosts import Durations
from twin.backends.base import Clock, KubeApi, NotFound, Operation
from twin.model.fleet import Person as Habits
from twin.model.meta import Key, Object
from twin.model.names import Annotation
from twin.model.provisioning import Dpu, DpuNode
from twin.runtime.reconcile import DONE, Context, Result, Watch

PowerCycle = Callable[[str], Operation]
"""Power-cycle the host of this name; the operation ends when it is up again."""


def _asks(annotation: str) -> Callable[[Object | None, Object | None], bool]:
    """Did the annotation appear, change or go?"""

    def when(old: Object | None, new: Object | None) -> bool:
        if old is not None and new is not None and old is not new and (
                old.metadata.annotations is new.metadata.annotations):
            return False
        before = old.metadata.annotations.get(annotation) if old is not None else None
        after = new.metadata.annotations.get(annotation) if new is not None else None
        return before != after or (old is new and after is not None)

    return when


class Reboots(Actor):
    """Answers DPUNodes that need an external reboot. Takes `manual-reboot` until the button is pressed."""

    name = "person-reboots"
    watches = (Watch(DpuNode, when=_asks(Annotation.EXTERNAL_REBOOT_REQUIRED)),)

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, power_cycle: PowerCycle,
                 habits: Habits = Habits()) -> None:
        super().__init__(kube, clock, durations)
        self._power_cycle = power_cycle
        self._habits = habits
        self._asked: dict[Key, int] = {}
        self._cycles: dict[Key, Operation] = {}

    def reconcile(self, ctx: Context, key: Key) -> Result:
        node = self.kube.get(DpuNode, key)
        if node is None or node.metadata.annotations.get(Annotation.EXTERNAL_REBOOT_REQUIRED) != "true":
            if self._cycles.pop(key, None) is not None:
                self._asked[key] = self._asked.get(key, 0) + 1
            self.forget(key, "manual-reboot")
            return DONE
        if not self._habits.reboots or not _responded(
                self, self._habits, key, "manual-reboot", self._asked.get(key, 0)):
            return DONE
        cycle = self._cycles.get(key)
        if cycle is None:
            cycle = self._cycles[key] = self._power_cycle(key.name)
            cycle.callbacks.append(lambda _: self.wake(key))
        if cycle.finished:
            _annotate(self.kube, DpuNode, key, Annotation.EXTERNAL_REBOOT_REQUIRED, None)
        return DONE


class Releases(Actor):
    """Answers DPUs on hold. Takes `operator-response`."""

    name = "person-releases"
    watches = (Watch(Dpu, when=_asks(Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT)),)

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, habits: Habits = Habits()) -> None:
        super().__init__(kube, clock, durations)
        self._habits = habits
        self._held: dict[Key, int] = {}

    def reconcile(self, ctx: Context, key: Key) -> Result:
        dpu = self.kube.get(Dpu, key)
        if dpu is None or dpu.metadata.annotations.get(Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT) != "true":
            self.forget(key, "operator-response")
            return DONE
        if not self._habits.releases or not _responded(
                self, self._habits, key, "operator-response", self._held.get(key, 0)):
            return DONE
        self._held[key] = self._held.get(key, 0) + 1
        _annotate(self.kube, Dpu, key, Annotation.WAIT_FOR_EXTERNAL_NODEEFFECT,
                  "false" if self._habits.release == "false" else None)
        return DONE


def _responded(actor: Actor, habits: Habits, key: Key, operation: str, times: int) -> bool:
    """Has the person had time to react to this request (the `times`-th of its object)?"""
    after = habits.after_s
    if after is None:
        return actor.over(key, operation, key.namespace, key.name, str(times))
    return actor.waited(key, operation, (str(times),), lambda: after)


def _annotate(kube: KubeApi, kind: type[Object], key: Key, name: str, value: str | None) -> None:
    try:
        kube.patch(kind, key, {"metadata": {"annotations": {name: value}}})
    except NotFound:
        return


class Annotator(Actor):
    """Looks after an annotation on objects of one kind: where `due(object)` says so, sets it, or removes it (None).

    Takes `after_s` (None: `operator-response`) from when it shows until the person acts, each time anew.
    """

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, kind: type[Object], annotation: str,
                 value: str | None, due: Callable[[Object], bool], after_s: float | None = None) -> None:
        super().__init__(kube, clock, durations)
        self.name = "person-annotations"
        self.watches = (Watch(kind, when=_asks(annotation)),)
        self._kind = kind
        self._annotation = annotation
        self._value = value
        self._due = due
        self._habits = Habits(after_s=after_s)
        self._times: dict[Key, int] = {}
        self.present = True

    def reconcile(self, ctx: Context, key: Key) -> Result:
        obj = self.kube.get(self._kind, key)
        if obj is None or not self.present or not self._due(obj):
            self.forget(key, "operator-response")
            return DONE
        times = self._times.get(key, 0)
        if _responded(self, self._habits, key, "operator-response", times):
            self._times[key] = times + 1
            _annotate(self.kube, self._kind, key, self._annotation, self._value)
        return DONE
