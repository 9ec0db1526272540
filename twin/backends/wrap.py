"""Wrappers of the protocols for real time: every effect is allowed first, timed, and told.

The simulated backends charge a meter for what a verb costs; these measure what it cost, so that live runs calibrate
rehearsals. `Gate` raises what ends the process when it may not act any more (the lease is lost).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from twin.backends.base import ApiError, Clock, DmsTarget, KubeApi, KubeClusters, Operation, RpcError, View
from twin.model.meta import Key, Object
from twin.runtime.backstage import OPERATIONS, Backstage

T = TypeVar("T", bound=Object)
V = TypeVar("V", bound=View)
R = TypeVar("R")

UNTOLD: Final = frozenset({"exists", "connect"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was answered (or not). `outcome` is '' or the reason of the refusal."""

    controller: str
    verb: str
    kind: str
    key: Key
    version: str
    seconds: float
    outcome: str
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Ears:
    """What a wrapper asks and tells. `outside` hears of everything that makes a pass worth running again."""

    gate: Callable[[], None]
    outside: Callable[[], None]
    told: Callable[[Call], None]


class WrappedKube:
    """`KubeApi`."""

    def __init__(self, inner: KubeApi, controller: str, ears: Ears, cluster: str = "") -> None:
        self._inner = inner
        self._controller = controller
        self._ears = ears
        self._cluster = cluster

    # --- reads

    def get(self, kind: type[T], key: Key) -> T | None:
        if self._cluster:
            return self._do("get", kind, key, lambda: self._inner.get(kind, key))
        return self._inner.get(kind, key)

    def list(self, kind: type[T], namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        if self._cluster:
            return self._do("list", kind, Key(namespace or "", ""), lambda: self._inner.list(kind, namespace, labels))
        return self._inner.list(kind, namespace, labels)

    def view(self, view: type[V], token: Hashable) -> V:
        return self._inner.view(view, token)

    def read_live(self, kind: type[T], key: Key) -> T:
        return self._do("get", kind, key, lambda: self._inner.read_live(kind, key))

    def list_live(self, kind: type[T], namespace: str | None = None,
                  labels: Mapping[str, str] | None = None) -> Sequence[T]:
        return self._do("list", kind, Key(namespace or "", ""),
                        lambda: self._inner.list_live(kind, namespace, labels))

    def version(self) -> Mapping[str, Any]:
        return self._do("get", Object, Key("", "/version"), self._inner.version)

    # --- writes

    def create(self, obj: T) -> T:
        return self._write("create", type(obj), obj.key, lambda: self._inner.create(obj))

    def update(self, obj: T) -> T:
        return self._write("update", type(obj), obj.key, lambda: self._inner.update(obj))

    def update_status(self, obj: T) -> T:
        return self._write("status", type(obj), obj.key, lambda: self._inner.update_status(obj))

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], *, status: bool = False,
              resource_version: str = "") -> T:
        return self._write("patch", kind, key, lambda: self._inner.patch(
            kind, key, merge, status=status, resource_version=resource_version))

    def apply(self, manifest: Mapping[str, Any], manager: str, *, force: bool = False) -> Object:
        meta = manifest.get("metadata") or {}
        key = Key(str(meta.get("namespace", "")), str(meta.get("name", "")))
        return self._write("apply", Object, key, lambda: self._inner.apply(manifest, manager, force=force),
                           str(manifest.get("kind", "")))

    def delete(self, kind: type[T], key: Key, *, propagation: str = "Background", uid: str = "") -> None:
        self._write("delete", kind, key, lambda: self._inner.delete(kind, key, propagation=propagation, uid=uid))

    def event(self, about: Object, type_: str, reason: str, message: str) -> None:
        self._ears.gate()
        self._ears.outside()
        self._inner.event(about, type_, reason, message)

    # --- inside

    def _write(self, verb: str, kind: type[Object], key: Key, do: Callable[[], R], name: str = "") -> R:
        self._ears.gate()
        return self._do(verb, kind, key, do, name)

    def _do(self, verb: str, kind: type[Object], key: Key, do: Callable[[], R], name: str = "") -> R:
        self._ears.outside()
        began, outcome, version = time.monotonic(), "", ""
        try:
            answer = do()
            if isinstance(answer, Object):
                version, key = answer.metadata.resource_version, answer.key
            return answer
        except ApiError as error:
            outcome = error.reason
            raise
        finally:
            self._ears.told(Call(self._controller, verb, name or getattr(kind, "KIND", ""), key, version,
                                 time.monotonic() - began, outcome, self._cluster))


class WrappedClusters:
    """`KubeClusters`: what is asked of a DPU cluster is never cached."""

    def __init__(self, inner: KubeClusters, controller: str, ears: Ears) -> None:
        self._inner = inner
        self._controller = controller
        self._ears = ears

    def connect(self, kubeconfig: str) -> KubeApi:
        return cast(KubeApi, WrappedKube(self._inner.connect(kubeconfig), self._controller, self._ears, "dpu-cluster"))


class Wrapped:
    """Any of Dms, HostAgent and BfbVolume: calls are timed, and operations may be waited for from any thread.

    An operation is told when it ended.
    """

    def __init__(self, inner: Any, controller: str, ears: Ears, backstage: Backstage) -> None:
        self._inner = inner
        self._controller = controller
        self._ears = ears
        self._backstage = backstage

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        method = getattr(self._inner, verb)

        def call(*args: Any, **options: Any) -> Any:
            self._ears.gate()
            self._ears.outside()
            began = time.monotonic()
            if verb in OPERATIONS:
                op = self._backstage.shield(lambda: method(*args, **options))
                op.callbacks.append(lambda done: self._told(verb, args, began, done.error))
                return op
            error: Exception | None = None
            try:
                return method(*args, **options)
            except (RpcError, OSError, ValueError) as failure:
                error = failure
                raise
            finally:
                self._told(verb, args, began, error)
        return call

    def _told(self, verb: str, args: Sequence[Any], began: float, error: Exception | None) -> None:
        if verb in UNTOLD:
            return
        about = args[0] if args else ""
        name = about.ip if isinstance(about, DmsTarget) else str(about)
        outcome = "" if error is None else getattr(error, "code", "") or type(error).__name__
        self._ears.told(Call(self._controller, verb, "", Key("", name), "", time.monotonic() - began, outcome))


class WrappedDms(Wrapped):
    """`Dms`, with the polling that only simulated worlds can shorten done call by call."""

    def __init__(self, inner: Any, controller: str, ears: Ears, backstage: Backstage, clock: Clock) -> None:
        super().__init__(inner, controller, ears, backstage)
        self._clock = clock

    def reboot_ended(self, target: DmsTarget, version: str = "", every_s: float = 3.0,
                     budget_s: float | None = None) -> Operation:
        """`reboot_status` every `every_s`. See `twin.backends.base.Dms`."""
        from twin.runtime.backstage import LiveOperation
        began = time.monotonic()
        made = LiveOperation(f"reboot-ended {target.ip}")
        made.op.callbacks.append(lambda done: self._told("reboot_ended", (target,), began, done.error))
        ends = None if budget_s is None else self._clock.now() + budget_s

        def turn(_: Operation) -> None:
            self.reboot_status(target).callbacks.append(answered)

        def answered(done: Operation) -> None:
            if done.error is not None:
                made.end(done.error)
            elif not done.value[0]:
                made.end(None, done.value)
            else:
                again()

        def again() -> None:
            left = None if ends is None else ends - self._clock.now()
            if left is not None and left <= 0:
                made.end(RpcError("DEADLINE_EXCEEDED",
                                  "rpc error: code = DeadlineExceeded desc = context deadline exceeded"))
            elif not made.op.finished:
                self._clock.sleep(every_s if left is None else min(every_s, left)).callbacks.append(turn)

        again()
        return made.op
