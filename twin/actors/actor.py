"""What all neighbours share: a queue key to wake, and things that take time.

An actor is a reconciler (`twin.runtime.reconcile`) that may also be woken by hardware or by the end of something it
waits for. What takes time is drawn once, when it starts, and measured by the world's clock, so that a pass only asks
whether it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

from twin.actors.hosts import Durations, Hosts, Wake, asleep
from twin.backends.base import Clock, KubeApi, Operation
from twin.model.meta import Key
from twin.runtime.reconcile import DONE, Context, Reconciler, Result, Watch


class Actor:
    """`wake` is set by whoever runs the actor: it queues the key, and forgets that its last pass changed nothing."""

    name = ""
    watches: tuple[Watch, ...] = ()

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations) -> None:
        self.kube = kube
        self.clock = clock
        self.durations = durations
        self.wake: Wake = asleep
        self._waits: dict[tuple[Key, Hashable], tuple[tuple[str, ...], Operation | None]] = {}

    def start(self) -> None:
        """Look at what no watch brings up, once, after `wake` was set."""

    def over(self, key: Key, operation: str, *entity: str) -> bool:
        """Has this operation of this entity ended? The first question starts it; its end wakes the key."""
        found = self._waits.get((key, operation))
        if found is None or found[0] != entity:
            return self._start_waiting((key, operation), entity, self.durations(operation, *entity))
        return found[1] is None or found[1].finished

    def waited(self, key: Key, what: Hashable, entity: tuple[str, ...], seconds: Callable[[], float]) -> bool:
        """Have so many seconds passed since this was first asked? Asking for another entity starts anew."""
        found = self._waits.get((key, what))
        if found is None or found[0] != entity:
            return self._start_waiting((key, what), entity, seconds())
        return found[1] is None or found[1].finished

    def forget(self, key: Key, what: Hashable) -> None:
        """Stop waiting for this; its end wakes nobody any more."""
        self._waits.pop((key, what), None)

    def _start_waiting(self, token: tuple[Key, Hashable], entity: tuple[str, ...], takes_s: float) -> bool:
        """Wait from now on; True if there is nothing to wait for."""
        if takes_s <= 0:
            self._waits[token] = (entity, None)
            return True
        sleep = self.clock.sleep(takes_s)
        self._waits[token] = (entity, sleep)
        sleep.callbacks.append(partial(self._ended, token))
        return sleep.finished

    def _ended(self, token: tuple[Key, Hashable], sleep: Operation) -> None:
        found = self._waits.get(token)
        if found is not None and found[1] is sleep:
            self.wake(token[0])


def wake_if_up(actor: Actor, hosts: Hosts, name: str) -> None:
    """For actors that have nothing to do on a host that is down: its key is its Node's."""
    machine = hosts.machine(name)
    if machine is not None and machine.up:
        actor.wake(Key("", name))


class Runner(Protocol):
    """Whoever runs an actor."""

    reconciler: Reconciler

    def wake(self, key: Key) -> None: ...


class Held:
    """Stands in for an actor that does not work, on some keys or (None) on all: notes what it misses."""

    def __init__(self, actor: Reconciler) -> None:
        self.name = actor.name
        self.watches = actor.watches
        self.actor = actor
        self.missed: dict[Key | None, dict[Key, None]] = {}

    def reconcile(self, ctx: Context, key: Key) -> Result:
        for missed in (self.missed.get(None), self.missed.get(key)):
            if missed is not None:
                missed[key] = None
                return DONE
        return self.actor.reconcile(ctx, key)


def hold(runner: Runner, held: bool, only: Key | None = None) -> None:
    """The actor stops working (on this key), or goes on with all it missed."""
    now = runner.reconciler
    standing_in = now if isinstance(now, Held) else Held(now)
    if held:
        standing_in.missed[only] = {}
        runner.reconciler = standing_in
        return
    missed = standing_in.missed.pop(only)
    if not standing_in.missed:
        runner.reconciler = standing_in.actor
    for key in list(missed):
        runner.wake(key)
