"""Kubernetes Events, as client-go's recorder sends them: from a background thread, repeats counted, spam dropped.

The same text about the same object raises the count of its Event instead of making another; a component may send 25
Events about an object at once and one every 300 s after that; what cannot be sent is dropped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from twin.backends.base import ApiError, NotFound
from twin.backends.kube_http import TokenBucket
from twin.model.core import Event, ObjectReference
from twin.model.meta import Key, Object, ObjectMeta, format_time

REMEMBERED: Final = 4096
BURST: Final = 25
REFILL_S: Final = 300.0
WAITING: Final = 1000


class _Said(NamedTuple):
    about: str
    type: str
    reason: str
    message: str


@dataclass(slots=True)
class _Sent:
    key: Key
    count: int


class Recorder:
    """Sends Events of one component to one cluster."""

    def __init__(self, create: Callable[[Event], Event], patch: Callable[[Key, dict[str, object]], object],
                 component: str) -> None:
        self._create = create
        self._patch = patch
        self._component = component
        self._queue: queue.Queue[tuple[Object, str, str, str, float] | None] = queue.Queue(WAITING)
        self._sent: OrderedDict[_Said, _Sent] = OrderedDict()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name=f"events-{component}", daemon=True)
        self._thread.start()

    def record(self, about: Object, type_: str, reason: str, message: str) -> None:
        """Queue an Event. Never blocks, never raises: a full queue drops it."""
        try:
            self._queue.put_nowait((about, type_, reason, message, time.time()))
        except queue.Full:
            return

    def close(self, within_s: float = 2.0) -> None:
        """Send what is queued, then end."""
        try:
            self._queue.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            about, type_, reason, message, at = item
            if self._allowed(about):
                try:
                    self._send(about, type_, reason, message, at)
                except ApiError:
                    continue  # as client-go: an Event that the server refuses is gone

    def _allowed(self, about: Object) -> bool:
        bucket = self._buckets.setdefault(_identity(about), TokenBucket(1.0 / REFILL_S, BURST))
        self._buckets.move_to_end(_identity(about))
        while len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket.try_take(time.monotonic())

    def _send(self, about: Object, type_: str, reason: str, message: str, at: float) -> None:
        said = _Said(_identity(about), type_, reason, message)
        sent = self._sent.get(said)
        if sent is not None:
            sent.count += 1
            self._sent.move_to_end(said)
            try:
                self._patch(sent.key, {"count": sent.count, "lastTimestamp": format_time(at)})
                return
            except NotFound:  # expired: begin anew
                pass
        created = self._create(self._event(about, said, at))
        self._sent[said] = _Sent(created.key, 1)
        while len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)

    def _event(self, about: Object, said: _Said, at: float) -> Event:
        meta = about.metadata
        namespace = meta.namespace or "default"
        return Event(
            metadata=ObjectMeta(namespace=namespace, name=f"{meta.name}.{time.time_ns():x}"),
            involved_object=ObjectReference(
                kind=about.KIND, namespace=meta.namespace, name=meta.name, uid=meta.uid,
                api_version=about.api_version(), resource_version=meta.resource_version),
            reason=said.reason, message=said.message, type=said.type, count=1,
            first_timestamp=format_time(at), last_timestamp=format_time(at),
            source={"component": self._component}, reporting_component=self._component)


def _identity(about: Object) -> str:
    return f"{about.KIND}/{about.metadata.namespace}/{about.metadata.name}/{about.metadata.uid}"
