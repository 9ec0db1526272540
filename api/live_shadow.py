"""`live --shadow`: everything is decided, nothing is touched. What would be written is logged once until it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from api.live_log import Log
from twin.backends.base import KubeApi
from twin.backends.wrap import Ears, WrappedKube
from twin.model import dms_commands as commands
from twin.model.core import Secret
from twin.model.kinds import from_manifest, to_manifest
from twin.model.merge import merged
from twin.model.meta import Key, Object
from twin.runtime.backstage import LiveMemory
from twin.runtime.memory import Task, TaskBody
from twin.runtime.reconcile import Terminal

T = TypeVar("T", bound=Object)

READS: Final = frozenset({"flint", "flint-full", "mfrl", "reset-query", "uptime"})
"""Commands that only look."""
LOOKS: Final = frozenset({"dial", "exists", "versions"})
SHOWN: Final = 2000


class Shadowed(Terminal):
    """The pass would now do something to the world outside the API server. It ends here."""


class Would:
    """The log of what would have been done."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said: dict[tuple[str, str, str], str] = {}
        self._lock = threading.Lock()

    def __call__(self, controller: str, verb: str, about: str, content: str = "") -> None:
        key = (controller, verb, about)
        with self._lock:
            if self._said.get(key) == content:
                return
            self._said[key] = content
        self._log("would", controller=controller, verb=verb, object=about, **({"content": content} if content else {}))


class ShadowKube(WrappedKube):
    """`KubeApi` whose writes answer as if they had been made."""

    def __init__(self, inner: KubeApi, controller: str, ears: Ears, would: Would, cluster: str = "") -> None:
        super().__init__(inner, controller, ears, cluster)
        self._would = would

    def create(self, obj: T) -> T:
        self._say("create", obj)
        return obj

    def update(self, obj: T) -> T:
        self._say("update", obj)
        return obj

    def update_status(self, obj: T) -> T:
        self._say("update status of", obj)
        return obj

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], *, status: bool = False,
              resource_version: str = "") -> T:
        text = "" if kind is Secret else msgspec.json.encode(merge).decode()[:SHOWN]
        self._would(self._controller, "patch status of" if status else "patch", f"{kind.KIND} {key}", text)
        return merged(self._inner.get(kind, key) or self._inner.read_live(kind, key), merge)

    def apply(self, manifest: Mapping[str, Any], manager: str, *, force: bool = False) -> Object:
        obj = from_manifest(dict(manifest))
        self._say("apply", obj)
        return obj

    def delete(self, kind: type[T], key: Key, *, propagation: str = "Background", uid: str = "") -> None:
        self._would(self._controller, "delete", f"{kind.KIND} {key}")

    def event(self, about: Object, type_: str, reason: str, message: str) -> None:
        self._would(self._controller, "event", f"{about.KIND} {about.key}", f"{type_} {reason} {message}")

    def _say(self, verb: str, obj: Object) -> None:
        manifest = to_manifest(obj)
        part = manifest.get("status") if verb == "update status of" else {
            k: v for k, v in manifest.items() if k not in ("apiVersion", "kind", "status")}
        text = "" if isinstance(obj, Secret) else msgspec.json.encode(part).decode()[:SHOWN]
        self._would(self._controller, verb, f"{type(obj).KIND or manifest.get('kind')} {obj.key}", text)


class ShadowClusters:
    """`KubeClusters`: DPU clusters are read, never written."""

    def __init__(self, inner: Any, controller: str, ears: Ears, would: Would) -> None:
        self._inner, self._controller, self._ears, self._would = inner, controller, ears, would

    def connect(self, kubeconfig: str) -> Any:
        return ShadowKube(self._inner.connect(kubeconfig), self._controller, self._ears, self._would, "dpu-cluster")


class ShadowHands:
    """Dms, HostAgent and BfbVolume: looks are let through, everything else ends the pass."""

    def __init__(self, inner: Any, controller: str, would: Would) -> None:
        self._inner, self._controller, self._would = inner, controller, would

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if verb in LOOKS or (verb == "get" and _looks(args[1])):
                return getattr(self._inner, verb)(*args, **options)
            about = " ".join(str(a) for a in args if isinstance(a, str | Key))
            self._would(self._controller, verb, about)
            raise Shadowed(f"would {verb} {about}")
        return call


def _looks(command: str) -> bool:
    try:
        return commands.parse(command).kind in READS
    except Exception:  # whatever it is, it is none of the commands that only look
        return False


class ShadowMemory(LiveMemory):
    """Background tasks are noted, never run."""

    def __init__(self, bug: Callable[[BaseException], None], would: Would) -> None:
        super().__init__(bug)
        self._would = would

    def start(self, token: Hashable, body: TaskBody, attempt: int = 0) -> Task:
        body.close()
        words = " ".join(str(part) for part in token) if isinstance(token, tuple) else str(token)
        self._would("", "start the task", words)
        task = Task(attempt=attempt)
        with self._lock:
            self._tasks[token] = task
        return task
