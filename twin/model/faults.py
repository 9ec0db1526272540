"""Faults as data: what goes wrong, where, how badly. When it begins and ends stands beside it in a timeline.

Each kind is a frozen record; `Fault` is their union, told apart by `kind`. Targets are names or patterns (`worker1*`,
`*`) of a fleet's hosts, racks, DPUs or image servers. A fault that is a moment (a restart, a removed file) has no end;
`LASTING` names the kinds that have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal, Union, get_args

from pydantic import BeforeValidator, Field

from twin.model.edge import Edge, Seconds
from twin.model.fleet import Fleet


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Targets = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_several), Field(
    min_length=1, json_schema_extra={"description": "A name, a pattern such as worker1*, or a list of them"})]


class _Fault(Edge):
    """`AT` names the target field and what it selects from the fleet; '' when it is checked elsewhere."""


class HostPower(_Fault):
    """Hosts lose power, their DPUs with them. At the end they boot again."""

    kind: Literal["host-power"]
    host: Targets


class RackPower(_Fault):
    """Every host of the racks loses power. At the end they boot again."""

    kind: Literal["rack-power"]
    rack: Targets


class HostLost(_Fault):
    """Hosts vanish and their core Nodes are deleted. At the end the Nodes are registered again."""

    kind: Literal["host-lost"]
    host: Targets


class HostRebooted(_Fault):
    """Somebody reboots hosts behind DPF's back: a moment."""

    kind: Literal["host-rebooted"]
    host: Targets


class RebootFails(_Fault):
    """Reboots of the hosts fail: all of them, or the attempts listed (the first is 1)."""

    kind: Literal["reboot-fails"]
    host: Targets
    attempts: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None


class BridgeMissing(_Fault):
    """br-dpu, or its default route, is gone from the hosts."""

    kind: Literal["bridge-missing"]
    host: Targets


class DmsUnreachable(_Fault):
    """Calls to the hosts' DMS find no answer: black-holed (time out) or refused at once."""

    kind: Literal["dms-unreachable"]
    host: Targets
    how: Literal["black-hole", "refused"] = "black-hole"


class DmsSlow(_Fault):
    """Every DMS call of the hosts takes `factor` times as long."""

    kind: Literal["dms-slow"]
    host: Targets
    factor: Annotated[float, Field(gt=1, le=1e6)]


class DmsError(_Fault):
    """DMS calls of the hosts answer a gRPC error; only commands that contain `command`, if it is given."""

    kind: Literal["dms-error"]
    host: Targets
    code: Literal["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNKNOWN",
                  "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "NOT_FOUND"] = "INTERNAL"
    message: str = "fault of the scenario"
    command: str = ""


class DmsPodLost(_Fault):
    """The DMS pods of the hosts are deleted while their DPUNodes live: a moment, upstream makes no new ones."""

    kind: Literal["dms-pod-lost"]
    host: Targets


class InstallFails(_Fault):
    """OS installations of the DPUs fail: all of them, or the attempts listed (the first is 1)."""

    kind: Literal["install-fails"]
    dpu: Targets
    attempts: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    message: str = "fault of the scenario"


class NetworkScriptFails(_Fault):
    """The host network script fails for the DPUs: always, or in the attempts listed (the first is 1)."""

    kind: Literal["network-script-fails"]
    dpu: Targets
    attempts: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None


class JoinFails(_Fault):
    """The DPUs do not join their DPU cluster."""

    kind: Literal["join-fails"]
    dpu: Targets


class DpuReset(_Fault):
    """The DPUs are reset outside DPF (their hosts stay up): a moment, the Arm side boots again."""

    kind: Literal["dpu-reset"]
    dpu: Targets


class DpuLinkDown(_Fault):
    """p0 of the DPUs is down: they lose their control plane."""

    kind: Literal["dpu-link-down"]
    dpu: Targets


class PartUnknown(_Fault):
    """The DPUs report a part number that no table knows, and a description without sizes."""

    kind: Literal["part-unknown"]
    dpu: Targets
    opn: str = "900-9D3XX-00XX-XX0"


class ImageServerDown(_Fault):
    """The image servers refuse connections; downloads under way break."""

    kind: Literal["image-server-down"]
    server: Targets


class ImageServerSlow(_Fault):
    """The image servers have 1/factor of their bandwidth."""

    kind: Literal["image-server-slow"]
    server: Targets
    factor: Annotated[float, Field(gt=1, le=1e6)]


class ImageServerStatus(_Fault):
    """The image servers answer every request with this HTTP status."""

    kind: Literal["image-server-status"]
    server: Targets
    status: Annotated[int, Field(ge=300, le=599)] = 404


class ImageServerWrongContent(_Fault):
    """The image servers deliver something else: no BFB at all (`garbage`), or another file of theirs."""

    kind: Literal["image-server-wrong-content"]
    server: Targets
    content: str = "garbage"


class NfsDown(_Fault):
    """The volume at /bfb does not answer: the controller's file calls fail, hosts cannot read images."""

    kind: Literal["nfs-down"]


class BfbFileRemoved(_Fault):
    """Somebody removes a file from the volume: a moment."""

    kind: Literal["bfb-file-removed"]
    file: Annotated[str, Field(min_length=1)]


class BfbFileReplaced(_Fault):
    """Somebody puts another image in a file's place: a moment. `content` names the image that is there afterwards."""

    kind: Literal["bfb-file-replaced"]
    file: Annotated[str, Field(min_length=1)]
    content: Annotated[str, Field(min_length=1)]


class DpuApiDown(_Fault):
    """The API servers of the DPU clusters (`namespace/name`, or a pattern) refuse connections, new ones' too."""

    kind: Literal["dpu-api-down"]
    cluster: Targets = ("*",)


class KubeconfigRotated(_Fault):
    """The DPU clusters' credentials change; Secrets hold the new ones, old clients are refused: a moment."""

    kind: Literal["kubeconfig-rotated"]
    cluster: Targets = ("*",)


class ApiDown(_Fault):
    """The host cluster's API server refuses connections."""

    kind: Literal["api-down"]


class ApiSlow(_Fault):
    """Requests to the host cluster's API server take `factor` times as long."""

    kind: Literal["api-slow"]
    factor: Annotated[float, Field(gt=1, le=1e6)]


class ApiErrors(_Fault):
    """Each write to the host cluster's API server fails with this probability; `landed`: although it took effect."""

    kind: Literal["api-errors"]
    probability: Annotated[float, Field(gt=0, le=1)]
    landed: bool = False


class WebhookDown(_Fault):
    """The admission webhooks do not answer: writes of BFB, DPUSet and DPUFlavor fail with 500."""

    kind: Literal["webhook-down"]


class WatchBroken(_Fault):
    """Watches of the controllers break: they see nothing new until the end, then list again."""

    kind: Literal["watch-broken"]
    controller: Targets = ("*",)


class WatchDuplicate(_Fault):
    """Every watch event reaches the controllers twice."""

    kind: Literal["watch-duplicate"]
    controller: Targets = ("*",)


class ControllerRestart(_Fault):
    """The controller manager's process ends and starts again: memory lost, caches synced anew. A moment."""

    kind: Literal["controller-restart"]


class TwoLeaders(_Fault):
    """A second controller manager acts as leader beside the first."""

    kind: Literal["two-leaders"]


class PdbStuck(_Fault):
    """A PodDisruptionBudget allows no eviction, whatever its pods do."""

    kind: Literal["pdb-stuck"]
    namespace: str = "default"
    name: Annotated[str, Field(min_length=1)]


class JobFails(_Fault):
    """Jobs whose name fits fail (customAction and reboot-script Jobs)."""

    kind: Literal["job-fails"]
    name: Targets = ("*",)


class CertificateLate(_Fault):
    """cert-manager issues nothing until the end."""

    kind: Literal["certificate-late"]


FAULTS: Final = (
    HostPower, RackPower, HostLost, HostRebooted, RebootFails, BridgeMissing, DmsUnreachable, DmsSlow, DmsError,
    DmsPodLost, InstallFails, NetworkScriptFails, JoinFails, DpuReset, DpuLinkDown, PartUnknown, ImageServerDown,
    ImageServerSlow, ImageServerStatus, ImageServerWrongContent, NfsDown, BfbFileRemoved, BfbFileReplaced, DpuApiDown,
    KubeconfigRotated, ApiDown, ApiSlow, ApiErrors, WebhookDown, WatchBroken, WatchDuplicate, ControllerRestart,
    TwoLeaders, PdbStuck, JobFails, CertificateLate,
)

AnyFault = Union[FAULTS]  # type: ignore[valid-type]  # noqa: UP007
Fault = Annotated[AnyFault, Field(discriminator="kind")]


def kind_name(fault: Any) -> str:
    """The word a scenario uses for this class of faults."""
    name: str = get_args(fault.model_fields["kind"].annotation)[0]
    return name


MOMENTS: Final = ("host-rebooted", "dms-pod-lost", "dpu-reset", "bfb-file-removed", "bfb-file-replaced",
                  "kubeconfig-rotated", "controller-restart")
LASTING: Final = tuple(n for n in map(kind_name, FAULTS) if n not in MOMENTS)

Span = Seconds
"""How long a fault lasts, in seconds."""


def fitting(patterns: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """The names that fit one of the patterns, in their own order."""
    return tuple(n for n in names if any(fnmatchcase(n, p) for p in patterns))


def names_of(field: str, fleet: Fleet) -> tuple[str, ...] | None:
    """What the target field `host`, `rack`, `dpu` or `server` may name in this fleet; None for other fields."""
    if field == "host":
        return tuple(fleet.host)
    if field == "rack":
        return tuple(fleet.rack)
    if field == "dpu":
        return tuple(fleet.card)
    if field == "server":
        return tuple(s.name for s in fleet.image_servers)
    return None


def target_text(fault: Edge) -> str:
    """What a fault strikes and how, as a trace names it: the values of its fields, `*` for all there are."""
    values = [v for k, v in fault.model_dump().items() if k != "kind" and v is not None]
    return ",".join(" ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in values)


def targets(fault: Edge, field: str, fleet: Fleet) -> tuple[str, ...]:
    """The names that this target field of the fault means in this fleet."""
    return fitting(getattr(fault, field), names_of(field, fleet) or ())
