"""Kubernetes Events, as client-go's recorder sends them: from a background thread, repeats counted, spam dropped.

`twin.runtime.events` says what is sent. A server that does not answer is asked again, 12 times 10 s apart; what it
refuses is dropped.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from twin.backends.base import ApiError, Crash, NotFound, Unavailable
from twin.model.core import Event, ObjectReference
from twin.model.meta import Key, Object, ObjectMeta, format_time
from twin.runtime.events import Correlator, Told

WAITING: Final = 1000
TRIES: Final = 12
TRY_S: Final = 10.0


class Recorder:
    """Sends Events of one component to one cluster."""

    def __init__(self, create: Callable[[Event], Event], patch: Callable[[Key, dict[str, object]], object],
                 component: str) -> None:
        self._create = create
        self._patch = patch
        self._component = component
        self._queue: queue.Queue[tuple[Object, str, str, str, float] | None] = queue.Queue(WAITING)
        self._correlator = Correlator()
        self._closing = threading.Event()
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
        self._closing.set()
        try:
            self._queue.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)

    def _run(self) -> None:
        with contextlib.suppress(Crash):  # nothing may be written any more: nor may Events
            self._work()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            about, type_, reason, message, at = item
            told = self._correlator.correlate(self._component, _identity(about), type_, reason, message, at)
            if told is not None:
                self._insist(about, type_, reason, told, at)

    def _insist(self, about: Object, type_: str, reason: str, told: Told, at: float) -> None:
        for left in range(TRIES - 1, -1, -1):
            try:
                self._send(about, type_, reason, told, at)
                return
            except Unavailable:
                if not left or self._closing.wait(TRY_S):
                    return
            except ApiError:
                return  # as client-go: an Event that the server refuses is gone

    def _send(self, about: Object, type_: str, reason: str, told: Told, at: float) -> None:
        if told.name:
            try:
                self._patch(Key(_namespace(about), told.name), {
                    "count": told.times, "lastTimestamp": format_time(at), "message": told.message})
                return
            except NotFound:  # expired: begin anew
                pass
        created = self._create(self._event(about, type_, reason, told, at))
        self._correlator.made(told, created.metadata.name)

    def _event(self, about: Object, type_: str, reason: str, told: Told, at: float) -> Event:
        meta = about.metadata
        return Event(
            metadata=ObjectMeta(namespace=_namespace(about), name=f"{meta.name}.{time.time_ns():x}"),
            involved_object=ObjectReference(
                kind=about.KIND, namespace=meta.namespace, name=meta.name, uid=meta.uid,
                api_version=about.api_version(), resource_version=meta.resource_version),
            reason=reason, message=told.message, type=type_, count=told.times,
            first_timestamp=format_time(told.first_s), last_timestamp=format_time(at),
            source={"component": self._component}, reporting_component=self._component)


def _namespace(about: Object) -> str:
    return about.metadata.namespace or "default"


def _identity(about: Object) -> str:
    return f"{about.KIND}/{about.metadata.namespace}/{about.metadata.name}/{about.metadata.uid}"
