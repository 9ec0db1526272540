"""A simulated API server with two namespaces, for tests that write to it directly."""

from __future__ import annotations

from typing import Any

from twin.model.core import ConfigMap, Namespace
from twin.model.meta import Key, Object, ObjectMeta
from twin.sim.clock import SECOND, TwinEnvironment
from twin.sim.kube import ApiServer
from twin.sim.trace import Trace

SPACE = "one"


class Api:
    """`server`, and its clock. Writes are made by `me` at the present moment."""

    def __init__(self, **options: Any) -> None:
        self.env = TwinEnvironment()
        self.server = ApiServer(self.env, Trace(keep=True), **options)
        for name in (SPACE, "two"):
            self.server.create(Namespace(metadata=ObjectMeta(name=name)), "me", 0)

    def run(self, seconds: float = 1.0) -> None:
        self.env.run(self.env.now + round(seconds * SECOND))

    def create(self, obj: Object) -> Any:
        return self.server.create(obj, "me", self.env.now)

    def update(self, obj: Object, **options: Any) -> Any:
        return self.server.update(obj, "me", self.env.now, **options)

    def apply(self, manifest: dict[str, Any], manager: str, **options: Any) -> Any:
        return self.server.apply(manifest, manager, manager, self.env.now, **options)

    def delete(self, obj: Object, **options: Any) -> None:
        self.server.delete(type(obj), obj.key, "me", self.env.now, **options)

    def now(self, obj: Object) -> Any:
        """The object as stored, or None."""
        return self.server.table(type(obj)).get(obj.key)


def config(name: str, data: dict[str, str] | None = None, *, namespace: str = SPACE, **meta: Any) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace=namespace, **meta), data=data or {})


def key(name: str) -> Key:
    return Key(SPACE, name)
