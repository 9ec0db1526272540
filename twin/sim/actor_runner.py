"""Drives one neighbour system: its passes take no time, so it needs a set of keys and timers, not a worker."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from functools import partial

from twin.backends.base import ApiError
from twin.model.meta import Key
from twin.runtime.queue import NS, BackOff
from twin.runtime.reconcile import Context, Reconciler
from twin.sim.clock import EPOCH, TwinEnvironment
from twin.sim.runner import PASSES

_BACKOFF = BackOff()


class ActorRunner:
    """`add` and `wake` put a key in line; everything in line is worked on at the end of the instant."""

    def __init__(self, env: TwinEnvironment, reconciler: Reconciler, *, index: int) -> None:
        self.env = env
        self.reconciler = reconciler
        self._priority = PASSES + index
        self._line: dict[Key, None] = {}
        self._due: dict[Key, int] = {}
        self._failures: dict[Key, int] = {}
        self._scheduled = False

    def add(self, key: Key) -> None:
        self._line[key] = None
        if not self._scheduled:
            self._scheduled = True
            self.env.post(0, self._drain, (), self._priority)

    wake = add

    def add_all(self, keys: Collection[Key]) -> None:
        for key in keys:
            self.add(key)

    def stale(self, key: Key) -> None:
        """Every pass is run, so nothing is known unchanged."""

    def _drain(self) -> None:
        self._scheduled = False
        line, self._line = self._line, {}
        now = self.env._now
        ctx = Context(EPOCH + now / NS)
        reconcile = self.reconciler.reconcile
        for key in line:
            try:
                result = reconcile(ctx, key)
            except ApiError:
                self._again(key, self._failed(key))
                continue
            except Exception:
                text = f"{self.reconciler.name} {key} at {now / NS:.3f} s:\n{traceback.format_exc()}"
                raise RuntimeError(text) from None
            if result.error:
                self._again(key, self._failed(key))
                continue
            if self._failures:
                self._failures.pop(key, None)
            if result.requeue_after_s is not None:
                self._again(key, round(result.requeue_after_s * NS))

    def _failed(self, key: Key) -> int:
        n = self._failures.get(key, 0)
        self._failures[key] = n + 1
        return min(_BACKOFF.base_ns << min(n, 40), _BACKOFF.max_ns)

    def _again(self, key: Key, delay: int) -> None:
        at = self.env._now + delay
        pending = self._due.get(key)
        if pending is None or at < pending:
            self._due[key] = at
            self.env.call_at(delay, partial(self._fire, key, at))

    def _fire(self, key: Key, at: int) -> None:
        if self._due.get(key) == at:
            del self._due[key]
            self.add(key)
