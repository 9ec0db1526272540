"""The seam: what controllers may ask of a world, simulated or real.

Every verb returns at once. Verbs that start minutes-long work return an `Operation`; background tasks
(`twin.runtime.memory`) wait for it, reconcilers never do. Errors stand beside the protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from twin.model.meta import Key, Object

T = TypeVar("T", bound=Object)


# --- errors: each answers one question of the caller


class ApiError(Exception):
    """The API server said no. `code` and `reason` are those of its Status body.

    `str(error)` is the message, as client-go prints it.
    """

    code = 500
    reason = "InternalError"

    def __init__(self, message: str, *, code: int | None = None, reason: str | None = None,
                 details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason
        self.details = details or {}


ASKED_FOR_CREDENTIALS: Final = "the server has asked for the client to provide credentials"
"""What client-go makes of a 401 where it asks for raw text (/version); elsewhere it prints the answer's Status."""


class NotFound(ApiError):
    code, reason = 404, "NotFound"


class AlreadyExists(ApiError):
    code, reason = 409, "AlreadyExists"


class Conflict(ApiError):
    """Stale resourceVersion, or a field owned by another manager: read again, then retry."""

    code, reason = 409, "Conflict"


class Invalid(ApiError):
    code, reason = 422, "Invalid"


class Forbidden(ApiError):
    code, reason = 403, "Forbidden"


class Gone(ApiError):
    """The watch's resourceVersion is too old: list again."""

    code, reason = 410, "Expired"


class Unavailable(ApiError):
    """No answer: connection refused, time-out, overload. The request may have landed (`maybe_landed`)."""

    code, reason = 503, "ServiceUnavailable"
    maybe_landed = False


class RpcError(Exception):
    """DMS or a host did not do it. `code` is the gRPC status name, `str(error)` the text a condition shows."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Crash(BaseException):
    """An injected crash of the controller process: nothing may swallow it."""


# --- operations: long work that was started


@dataclass(slots=True, eq=False)
class Operation:
    """Work in progress. `finished` when done; then `error` is None or says why, and `value` holds the answer.

    A background task yields it to wait. Callbacks run once, at the end, in the world's own clock.
    `on_cancel` is how a world gives up work that ends with the process that started it (a download); None: it goes on.
    """

    name: str
    finished: bool = False
    error: Exception | None = None
    value: Any = None
    callbacks: list[Callable[[Operation], None]] = field(default_factory=list)
    on_cancel: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Give it up, if it is still going on and the world can; nobody is told that it ended."""
        if not self.finished and self.on_cancel is not None:
            self.finished, self.callbacks = True, []
            self.on_cancel()

    def succeed(self, value: Any = None) -> None:
        """It ended. Nothing happens if it had ended before."""
        if self.finished:
            return
        self.finished, self.value = True, value
        callbacks, self.callbacks = self.callbacks, []
        for call in callbacks:
            call(self)

    def fail(self, error: Exception) -> None:
        """It ended, with this error."""
        if not self.finished:
            self.error = error
            self.succeed()


# --- the API server


class KubeReader(Protocol):
    """`get` and `list` read the informer cache (possibly stale, free); `read_live` asks the API server."""

    def get(self, kind: type[T], key: Key) -> T | None: ...

    def list(self, kind: type[T], namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Sequence[T]:
        """All cached objects of the kind (in this namespace) that carry all these labels, in a stable order."""
        ...

    def view(self, view: type[V], token: Hashable) -> V:
        """The process-wide view of this class, kept up to date by the informers. The pass is noted as reading it."""
        ...

    def read_live(self, kind: type[T], key: Key) -> T:
        """GET from the API server. Raises: NotFound, Unavailable."""
        ...

    def list_live(self, kind: type[T], namespace: str | None = None,
                  labels: Mapping[str, str] | None = None) -> Sequence[T]:
        """LIST from the API server. Raises: Unavailable."""
        ...

    def version(self) -> Mapping[str, Any]:
        """GET /version of the API server: gitVersion and the like. Raises: Unavailable."""
        ...


class KubeApi(KubeReader, Protocol):
    """Writes carry the object's resourceVersion where it has one (optimistic lock). All may raise `ApiError`."""

    def create(self, obj: T) -> T: ...

    def update(self, obj: T) -> T:
        """Replace metadata and spec. Returns the object as stored."""
        ...

    def update_status(self, obj: T) -> T:
        """Replace status only."""
        ...

    def patch(self, kind: type[T], key: Key, merge: Mapping[str, Any], *, status: bool = False,
              resource_version: str = "") -> T:
        """JSON merge patch (RFC 7396), camelCase keys."""
        ...

    def apply(self, manifest: Mapping[str, Any], manager: str, *, force: bool = False) -> Object:
        """Server-side apply."""
        ...

    def delete(self, kind: type[T], key: Key, *, propagation: str = "Background", uid: str = "") -> None:
        """Delete. Raises NotFound if it is gone already."""
        ...

    def event(self, about: Object, type_: str, reason: str, message: str) -> None:
        """Record a Kubernetes Event about the object. Never raises."""
        ...


class KubeClusters(Protocol):
    """Connections to other clusters."""

    def connect(self, kubeconfig: str) -> KubeApi:
        """A client for the cluster this kubeconfig names. Lazy: an unreachable server shows at the first verb.

        Raises: ValueError with upstream's text when the kubeconfig cannot be used.
        """
        ...


class View(Protocol):
    """A running digest of one or more kinds, so that a reconcile over thousands of objects costs what changed.

    It is fed by the informer cache, like a client-go Indexer. `observe` returns the tokens whose answer changed;
    a pass that read such a token is not known unchanged any more.
    """

    kinds: tuple[type[Object], ...]

    def __init__(self) -> None: ...

    def observe(self, old: Object | None, new: Object | None) -> Iterable[Hashable]: ...


V = TypeVar("V", bound=View)


# --- DMS and the host


class DmsTarget(NamedTuple):
    """Where a DMS listens and with which client certificate we speak to it.

    `identity` is `ns/name` of the Secret with tls.crt, tls.key and ca.crt.
    """

    ip: str
    port: int
    identity: Key


class Dms(Protocol):
    """gNOI and gNMI of one host's DOCA Management Service (provisioning.md 3)."""

    def dial(self, target: DmsTarget) -> None:
        """TCP reachability, 5 s. Raises RpcError."""
        ...

    def get(self, target: DmsTarget, command: str) -> str:
        """gNMI Get of `/nvidia/command[run=COMMAND]/run`: runs a shell command on the host. Raises RpcError."""
        ...

    def set_mode(self, target: DmsTarget, mode: str) -> None:
        """gNMI Set of `/nvidia/mode/config/mode`. Raises RpcError."""
        ...

    def command(self, target: DmsTarget, command: str) -> Operation:
        """As `get`, for long commands inside a background task. The value is the output."""
        ...

    def os_install(self, target: DmsTarget, version: str, path: str) -> Operation:
        """gNOI OS.Install: streams the file at `path` of the BFB volume."""
        ...

    def os_activate(self, target: DmsTarget, version: str) -> Operation:
        """gNOI OS.Activate of `<bfb>;<cfg>`."""
        ...

    def reboot_status(self, target: DmsTarget) -> Operation:
        """gNOI System.RebootStatus of the CPU: the value is `(active, status)`, status '' while active."""
        ...

    def reboot_ended(self, target: DmsTarget, version: str = "", every_s: float = 3.0,
                     budget_s: float | None = None) -> Operation:
        """`reboot_status` every `every_s` until it is inactive or fails, or the budget is spent (DEADLINE_EXCEEDED).

        The first call is made after `every_s`. `version` is the one that was activated. The value is `(False, status)`.
        """
        ...


class HostAgent(Protocol):
    """Pod exec into a host's DMS pod (Kubernetes hosts only)."""

    def execute(self, pod: Key, command: Sequence[str]) -> Operation:
        """Run a command in the pod's dms container; the value is its stdout, a non-zero exit an RpcError."""
        ...


RESUMES: Final = 8
RESUME_WAIT_S: Final = (1.0, 30.0)
"""A checked download goes on so often, after waits that double from the first to the second."""


class BfbVolume(Protocol):
    """The shared volume at /bfb."""

    def exists(self, path: str) -> bool:
        """Raises OSError when the volume is unreachable."""
        ...

    def remove(self, path: str) -> None:
        """Remove; missing is fine. Raises OSError."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Raises OSError."""
        ...

    def download(self, url: str, path: str, temp: str, *, checked: bool = False) -> Operation:
        """HTTP GET to `temp`, then rename. Fails on any status but 200 and on I/O errors.

        `checked`: a transfer that breaks goes on where it broke, `RESUMES` times, and what is no whole BFB is refused.
        """
        ...

    def versions(self, path: str) -> Mapping[str, str]:
        """bsp, doca, uefi, atf of the image at path. Raises ValueError if it cannot be parsed, OSError."""
        ...


class Clock(Protocol):
    """Time for background tasks (reconcilers get `ctx.now`)."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def sleep(self, seconds: float) -> Operation: ...


# --- the facts of an installation


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags and constants of upstream's managers and the facts of an installation (provisioning.md 9.1, 11)."""

    namespace: str = "dpf-operator-system"
    dms_pod_timeout_s: float = 300.0
    drain_timeout_s: int = 300
    """What the NodeMaintenance CRD fills in; 0 is no limit."""
    requeue_s: float = 5.0
    """How soon BFB, DPU and DPUNode are looked at again when nothing happens."""
    task_retries: int = 10
    """Of a background task, after its first attempt."""
    activate_budget_s: float = 1800.0
    """For OS.Activate and all RebootStatus polls together."""
    reboot_status_poll_s: float = 3.0
    cloud_init_s: float = 90.0
    bootstrap_token_s: float = 7200.0
    """How long a kubeadm join token lives."""
    client_secret: str = "dpf-provisioning-client-secret"
    dms_image: str = "dms:v25.4"
    seed: int = 0
    """Feeds the orders that are random upstream (Go map iteration), so that a run can be repeated."""
