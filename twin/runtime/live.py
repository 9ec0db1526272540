"""Drives one controller's work queue on threads: the same `WorkQueue`, the same reconcilers, real time.

The only place below the command line that reads the wall clock; reconcilers get it as `ctx.now`. A poll that changes
nothing costs nothing here too: a pass that wrote nothing and asked nobody outside the caches is remembered with what it
read, and while none of that changes the poll is answered without running it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from twin.backends.base import ApiError, Crash
from twin.model.meta import Key, Object
from twin.runtime.queue import NS, WorkQueue
from twin.runtime.reconcile import Context, Reconciler, Result, Terminal, Watch

KEPT_WAITS: Final = 100_000


class NotLeading(Crash):
    """The lease is lost: whatever was about to be done is not done, and the process ends."""


class Watcher(Protocol):
    """Where changes come from (`twin.backends.kube.Cluster`)."""

    def watch(self, kind: type[Object], callback: Callable[[Object | None, Object | None], None]) -> None: ...


class Readers:
    """Which remembered passes read what. Tokens are those of the caches (`twin.backends.kube.LiveKube.reads`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[Hashable, dict[tuple[LiveRunner, Key], None]] = {}
        self._local = threading.local()

    def begin(self, runner: LiveRunner, key: Key) -> None:
        """The calling thread starts a pass."""
        self._local.at = (runner, key)
        self._local.tokens = set()
        self._local.outside = False

    def end(self) -> set[Hashable] | None:
        """Its pass is over: what it read, or None when the answer may differ next time for reasons nobody will tell."""
        (runner, key), tokens, outside = self._local.at, self._local.tokens, self._local.outside
        self._local.at = None
        if outside:
            self.forget(runner, key, tokens)
            return None
        found: set[Hashable] = tokens
        return found

    def read(self, token: Hashable) -> None:
        """The calling thread's pass reads this; the caches say when it changes."""
        at = getattr(self._local, "at", None)
        if at is None or token in self._local.tokens:
            return
        self._local.tokens.add(token)
        if isinstance(token, tuple) and token and token[0] == "live":
            self._local.outside = True
            return
        with self._lock:
            self._by_token.setdefault(token, {})[at] = None

    def outside(self) -> None:
        """The calling thread's pass wrote, or asked something that tells nobody when it changes."""
        if getattr(self._local, "at", None) is not None:
            self._local.outside = True

    def touched(self, token: Hashable) -> None:
        with self._lock:
            waiting = self._by_token.pop(token, None)
        for runner, key in waiting or ():
            runner.stale(key)

    def forget(self, runner: LiveRunner, key: Key, tokens: set[Hashable]) -> None:
        """This pass is not remembered (any more)."""
        with self._lock:
            for token in tokens:
                found = self._by_token.get(token)
                if found is not None:
                    found.pop((runner, key), None)
                    if not found:
                        del self._by_token[token]


class LiveRunner:
    """One controller: reconciler, queue, worker threads.

    `may_work` is asked before each pass. `on_pass` hears of every pass that was run: (key, queue wait, duration, result
    or what it raised), in seconds. `on_bug` gets what no controller may raise; it should end the process.
    """

    def __init__(self, reconciler: Reconciler, *, workers: int = 1, readers: Readers | None = None,
                 may_work: Callable[[], bool] = lambda: True,
                 on_pass: Callable[[Key, float, float, Result | Exception], None] = lambda *told: None,
                 on_bug: Callable[[BaseException], None]) -> None:
        self.reconciler = reconciler
        self.name = reconciler.name
        self.workers = workers
        self.queue = WorkQueue()
        self.adds = self.retries = self.skipped = self.run = self.errors = 0
        self.waits_s: deque[float] = deque(maxlen=KEPT_WAITS)
        self.busy_s = 0.0
        self._readers = readers if workers == 1 else None
        self._may_work = may_work
        self._on_pass = on_pass
        self._on_bug = on_bug
        self._changed = threading.Condition()
        self._busy: dict[Key, float] = {}
        self._again: dict[Key, None] = {}
        self._spoiled: dict[Key, None] = {}
        self._memo: dict[Key, tuple[Result, float | None, set[Hashable]]] = {}
        self._stopping = False
        self._threads: list[threading.Thread] = []

    # --- what the world calls

    def listen(self, source: Watcher) -> None:
        """Wake on what the reconciler watches, once for every object there is."""
        for watch in self.reconciler.watches:
            source.watch(watch.kind, self._listener(watch))

    def add(self, key: Key) -> None:
        """A watch event maps to this key."""
        with self._changed:
            if self._stopping:
                return
            self.adds += 1
            if key in self._busy:
                self._again[key] = None
            elif self.queue.push(key, time.monotonic_ns()):
                self._changed.notify()

    def wake(self, key: Key) -> None:
        """Something outside the API server changed for this key: look at it afresh."""
        self.stale(key)
        self.add(key)

    def stale(self, key: Key) -> None:
        """Something the key's last pass read has changed."""
        with self._changed:
            memo = self._memo.pop(key, None)
            if key in self._busy:
                self._spoiled[key] = None
        if memo is not None and self._readers is not None:
            self._readers.forget(self, key, memo[2])

    @property
    def depth(self) -> int:
        return len(self.queue)

    @property
    def active(self) -> int:
        """Workers in a pass."""
        return len(self._busy)

    @property
    def unfinished_s(self) -> float:
        """How long passes have been going on that are not over, in sum."""
        now = time.monotonic()
        with self._changed:
            return sum(now - began for began in self._busy.values())

    @property
    def longest_s(self) -> float:
        now = time.monotonic()
        with self._changed:
            return max((now - began for began in self._busy.values()), default=0.0)

    # --- life

    def start(self) -> None:
        for n in range(self.workers):
            thread = threading.Thread(target=self._work, name=f"{self.name}-{n}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """No new pass is begun."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def drain(self, deadline: float) -> bool:
        """Wait for passes under way until this monotonic time; False when some are not over."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(t.is_alive() for t in self._threads)

    # --- the workers

    def _listener(self, watch: Watch) -> Callable[[Object | None, Object | None], None]:
        def heard(old: Object | None, new: Object | None) -> None:
            if watch.when is not None and not watch.when(old, new):
                return
            objects = [o for o in ((new, old) if old is not new else (new,)) if o is not None]
            if watch.to is None:
                self.add(objects[0].key)
                return
            for obj in objects:
                for key in watch.to(self.reconciler, obj):
                    self.add(key)
        return heard

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                key, wait_s = taken
                if not self._may_work():
                    raise NotLeading(f"{self.name}: the lease is lost")
                self._pass(key, wait_s)
        except BaseException as error:
            self._on_bug(error)

    def _take(self) -> tuple[Key, float] | None:
        """The next key to look at; None when it is time to end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic_ns()
                for _ in self.queue.mature(now):
                    pass
                while self.queue.line:
                    key, entered = self.queue.pop()
                    if key in self._busy:
                        self._again[key] = None
                        continue
                    if self._unchanged(key, now):
                        continue
                    self._busy[key] = time.monotonic()
                    if self.queue.line:
                        self._changed.notify()
                    return key, (now - entered) / NS
                due = self.queue.next_due()
                self._changed.wait(None if due is None else max(0.0, (due - now) / NS))
        return None

    def _unchanged(self, key: Key, now: int) -> bool:
        """Would a pass do what the last one did? Then it has been done."""
        memo = self._memo.get(key)
        if memo is None or (memo[1] is not None and time.time() >= memo[1]):
            return False
        self.skipped += 1
        if memo[0].requeue_after_s is not None:
            self.queue.push_after(key, now, int(memo[0].requeue_after_s * NS))
        return True

    def _pass(self, key: Key, wait_s: float) -> None:
        self._forget(key)
        if self._readers is not None:
            self._readers.begin(self, key)
        context = Context(time.time())
        began = time.monotonic()
        outcome: Result | Exception
        try:
            outcome = self.reconciler.reconcile(context, key)
        except (ApiError, Terminal) as error:
            outcome = error
        took_s = time.monotonic() - began
        tokens = self._readers.end() if self._readers is not None else None
        self._done(key, outcome, context, tokens)
        self.run += 1
        self.busy_s += took_s
        self.waits_s.append(wait_s)
        self._on_pass(key, wait_s, took_s, outcome)

    def _forget(self, key: Key) -> None:
        with self._changed:
            memo = self._memo.pop(key, None)
            self._spoiled.pop(key, None)
        if memo is not None and self._readers is not None:
            self._readers.forget(self, key, memo[2])

    def _done(self, key: Key, outcome: Result | Exception, context: Context, tokens: set[Hashable] | None) -> None:
        """What controller-runtime does with the end of a pass."""
        now = time.monotonic_ns()
        with self._changed:
            del self._busy[key]
            if isinstance(outcome, Terminal):
                self.errors += 1
                self.queue.forget(key)
            elif isinstance(outcome, Exception) or outcome.error:
                self.errors += 1
                self.retries += 1
                self.queue.push_failed(key, now)
            else:
                self.queue.forget(key)
                if outcome.requeue_after_s is not None:
                    self.queue.push_after(key, now, max(0, int(outcome.requeue_after_s * NS)))
                if tokens is not None and key not in self._spoiled:
                    self._memo[key] = (outcome, context.unchanged_until, tokens)
            if self._again.pop(key, False) is None:
                self.queue.push(key, now)
            self._spoiled.pop(key, None)
            self._changed.notify()
