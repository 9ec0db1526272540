"""The informer cache of one cluster: objects by kind, indexed by label, with running views and change callbacks.

Everything here happens under one lock, so that callbacks and views see changes one at a time and in order. A callback
may read the cache; it must not wait for a thread that does.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from twin.backends.base import View
from twin.model.meta import Key, Object

T = TypeVar("T", bound=Object)
V = TypeVar("V", bound=View)

Callback = Callable[[Object | None, Object | None], None]
"""(old, new): new is None for a deletion, old for an addition; the same object twice for a resync."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached object: decoded, and as the server sent it (what we do not model survives a write)."""

    obj: Object
    raw: bytes


class Index:
    """The cached objects of one kind."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.keys: list[Key] = []
        self.by_label: dict[str, dict[str, dict[Key, None]]] = {}
        self.callbacks: list[Callback] = []
        self.views: list[View] = []

    def labelled(self, label: str, value: str) -> dict[Key, None]:
        """Keys of objects with this label; a label is indexed from its first use on."""
        index = self.by_label.get(label)
        if index is None:
            index = self.by_label[label] = {}
            for key in self.keys:
                found = self.entries[key].obj.metadata.labels.get(label)
                if found is not None:
                    index.setdefault(found, {})[key] = None
        return index.get(value, {})


class Cache:
    """All kinds of one cluster. `touched` is told the token of everything that is about to read differently."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.touched: Callable[[Hashable], None] = lambda token: None
        self._indexes: dict[type[Object], Index] = {}
        self._views: dict[type[View], View] = {}

    def index(self, kind: type[Object]) -> Index:
        found = self._indexes.get(kind)
        if found is None:
            found = self._indexes[kind] = Index()
        return found

    # --- reading

    def get(self, kind: type[T], key: Key) -> T | None:
        with self.lock:
            entry = self.index(kind).entries.get(key)
        return cast("T | None", entry.obj) if entry else None

    def entry(self, kind: type[Object], key: Key) -> Entry | None:
        with self.lock:
            return self.index(kind).entries.get(key)

    def list(self, kind: type[T], namespace: str | None, labels: Mapping[str, str] | None) -> list[T]:
        """In key order."""
        with self.lock:
            index = self.index(kind)
            keys: Iterable[Key]
            if labels:
                pools = [index.labelled(label, value) for label, value in labels.items()]
                smallest = min(pools, key=len)
                keys = sorted(k for k in smallest if all(k in pool for pool in pools))
                if namespace is not None:
                    keys = [k for k in keys if k.namespace == namespace]
            elif namespace is not None:
                keys = index.keys[bisect_left(index.keys, Key(namespace, "")):
                                  bisect_left(index.keys, Key(namespace + "\0", ""))]
            else:
                keys = index.keys
            return [cast(T, index.entries[k].obj) for k in keys]

    def view(self, view: type[V]) -> V:
        """The view of this class behind the cache's lock: each call on it is whole."""
        with self.lock:
            found = self._views.get(view)
            if found is None:
                found = self._views[view] = view()
                for kind in found.kinds:
                    index = self.index(kind)
                    index.views.append(found)
                    for key in index.keys:
                        found.observe(None, index.entries[key].obj)
        return cast(V, _Guarded(found, self.lock))

    def watch(self, kind: type[Object], callback: Callback) -> None:
        """Call back on every change from now on, and once as an addition for every object there is."""
        with self.lock:
            index = self.index(kind)
            index.callbacks.append(callback)
            for key in list(index.keys):
                callback(None, index.entries[key].obj)

    def resync(self) -> None:
        """Call back for every watched object as if it had been updated (client-go's resync)."""
        with self.lock:
            for index in list(self._indexes.values()):
                for key in list(index.keys) if index.callbacks else ():
                    obj = index.entries[key].obj
                    for callback in index.callbacks:
                        callback(obj, obj)

    # --- feeding

    def put(self, kind: type[Object], obj: Object, raw: bytes) -> None:
        with self.lock:
            index = self.index(kind)
            old = index.entries.get(obj.key)
            if old is not None and old.obj.metadata.resource_version == obj.metadata.resource_version:
                return
            self._change(kind, index, obj.key, old.obj if old else None, Entry(obj, raw))

    def remove(self, kind: type[Object], key: Key) -> None:
        with self.lock:
            index = self.index(kind)
            old = index.entries.get(key)
            if old is not None:
                self._change(kind, index, key, old.obj, None)

    def replace(self, kind: type[Object], entries: Mapping[Key, Entry]) -> None:
        """The outcome of a list: deliver the difference from what is cached."""
        with self.lock:
            index = self.index(kind)
            for key in [k for k in index.keys if k not in entries]:
                self._change(kind, index, key, index.entries[key].obj, None)
            for key in sorted(entries):
                self.put(kind, entries[key].obj, entries[key].raw)

    def _change(self, kind: type[Object], index: Index, key: Key, old: Object | None, entry: Entry | None) -> None:
        if entry is None:
            del index.entries[key]
            del index.keys[bisect_left(index.keys, key)]
        else:
            if old is None:
                insort(index.keys, key)
            index.entries[key] = entry
        new = entry.obj if entry else None
        self.touched((kind, key))
        self.touched((kind, None))
        self._reindex(kind, index, key, old, new)
        for view in index.views:
            for token in view.observe(old, new):
                self.touched(token)
        for callback in index.callbacks:
            callback(old, new)

    def _reindex(self, kind: type[Object], index: Index, key: Key, old: Object | None, new: Object | None) -> None:
        for label, values in index.by_label.items():
            was = old.metadata.labels.get(label) if old is not None else None
            now = new.metadata.labels.get(label) if new is not None else None
            if was is not None:
                self.touched((kind, label, was))
                if was != now:
                    values[was].pop(key, None)
            if now is not None:
                if was != now:
                    self.touched((kind, label, now))
                values.setdefault(now, {})[key] = None


class _Guarded:
    """A view whose calls hold the cache's lock. Its methods must return finished values, not iterators."""

    __slots__ = ("_lock", "_view")

    def __init__(self, view: View, lock: threading.RLock) -> None:
        self._view = view
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            value = getattr(self._view, name)
        return self._locked(value) if callable(value) else value

    def _locked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)
        return call
