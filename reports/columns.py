"""How kubectl prints objects as rows: upstream's printer columns, and those kubectl itself knows for core kinds.

Kinds of ours carry their columns (`COLUMNS`, the same that `dpf-twin crd` prints); neighbours' stand in a table here,
as their CRDs have them; core kinds need functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from twin.model.kinds import KINDS
from twin.model.meta import parse_time

Json = Mapping[str, Any]


class Column(NamedTuple):
    """A heading and what to put under it, given the object and the Unix time. `wide` columns need `-o wide`."""

    heading: str
    cell: Callable[[Json, float], str]
    wide: bool = False


# --- values


def age(now: float, since: str) -> str:
    """Time since an RFC 3339 time, as kubectl shortens it (`HumanDuration`): 90s, 5m10s, 3h12m, 2d4h."""
    if not since:
        return "<unknown>"
    s = int(now - parse_time(since))
    if s < 0:
        return "<invalid>" if s < -1 else "0s"
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m" + (f"{s % 60}s" if s % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if days < 730:
        return f"{days}d"
    years = days // 365
    return f"{years}y" + (f"{days % 365}d" if years < 8 and days % 365 else "")


_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[\?\(@\.(\w+)==[\"']([^\"']*)[\"']\)\]")


def find(obj: Any, path: str) -> Any:
    """What a printer column's JSON path points at (fields and one kind of filter); None when there is nothing."""
    for step in _STEP.finditer(path):
        if step[1]:
            obj = obj.get(step[1]) if isinstance(obj, Mapping) else None
        else:
            found = obj if isinstance(obj, list | tuple) else ()
            obj = next((o for o in found if isinstance(o, Mapping) and o.get(step[2]) == step[3]), None)
        if obj is None:
            return None
    return obj


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def path_column(heading: str, path: str, type_: str = "string", wide: bool = False) -> Column:
    if type_ == "date":
        return Column(heading, lambda obj, now: age(now, str(find(obj, path) or "")), wide)
    return Column(heading, lambda obj, now: _text(find(obj, path)), wide)


AGE: Final = path_column("Age", ".metadata.creationTimestamp", "date")
_READY = ".status.conditions[?(@.type=='Ready')]"


def _paths(*columns: tuple[str, str] | tuple[str, str, str] | tuple[str, str, str, bool]) -> tuple[Column, ...]:
    return tuple(path_column(*c) for c in columns)


# --- core kinds


def _conditions(obj: Json) -> dict[str, Json]:
    return {c.get("type", ""): c for c in obj.get("status", {}).get("conditions", ())}


def _node_status(obj: Json, _: float) -> str:
    ready = _conditions(obj).get("Ready", {}).get("status")
    text = {"True": "Ready", "False": "NotReady"}.get(ready or "", "Unknown" if ready is None else "NotReady")
    return text + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


def _node_roles(obj: Json, _: float) -> str:
    prefix = "node-role.kubernetes.io/"
    roles = sorted(k.removeprefix(prefix) for k in obj["metadata"].get("labels", {}) if k.startswith(prefix))
    return ",".join(roles) or "<none>"


def _node_ip(obj: Json, _: float) -> str:
    return next((a["address"] for a in obj.get("status", {}).get("addresses", ()) if a["type"] == "InternalIP"),
                "<none>")


def _pod_ready(obj: Json, _: float) -> str:
    statuses = obj.get("status", {}).get("containerStatuses", ())
    return f"{sum(bool(s.get('ready')) for s in statuses)}/{len(obj.get('spec', {}).get('containers', ()))}"


def _pod_status(obj: Json, _: float) -> str:
    """Phase or reason, the first init container that is not done, a container's waiting or terminated reason."""
    status = obj.get("status", {})
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    inits = status.get("initContainerStatuses", ())
    for i, container in enumerate(inits):
        state = container.get("state", {})
        if state.get("terminated", {}).get("exitCode", 1) == 0:
            continue
        why = state.get("waiting", {}).get("reason") or state.get("terminated", {}).get("reason")
        return f"Init:{why}" if why and why != "PodInitializing" else f"Init:{i}/{len(inits)}"
    for container in status.get("containerStatuses", ()):
        state = container.get("state", {})
        why = state.get("waiting", {}).get("reason") or state.get("terminated", {}).get("reason")
        if why:
            return str(why)
    return str(status.get("reason") or status.get("phase") or "Pending")


def _restarts(obj: Json, _: float) -> str:
    status = obj.get("status", {})
    return str(sum(s.get("restartCount", 0) for s in
                   (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))))


def _job_status(obj: Json, _: float) -> str:
    conditions = _conditions(obj)
    return next((t for t in ("Complete", "Failed") if conditions.get(t, {}).get("status") == "True"), "Running")


def _event_object(obj: Json, _: float) -> str:
    about = obj.get("involvedObject", {})
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _ports(obj: Json, _: float) -> str:
    ports = obj.get("spec", {}).get("ports", ())
    return ",".join(f"{p['port']}{':' + str(p['nodePort']) if p.get('nodePort') else ''}/{p.get('protocol', 'TCP')}"
                    for p in ports) or "<none>"


def _count(field: str) -> Callable[[Json, float], str]:
    return lambda obj, _: str(len(obj.get(field, {})))


def _or(path: str, missing: str) -> Callable[[Json, float], str]:
    return lambda obj, _: _text(find(obj, path)) or missing


_KIND_COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "Node": (Column("Status", _node_status), Column("Roles", _node_roles), AGE,
             path_column("Version", ".status.nodeInfo.kubeletVersion"), Column("Internal-IP", _node_ip, True)),
    "Pod": (Column("Ready", _pod_ready), Column("Status", _pod_status), Column("Restarts", _restarts), AGE,
            Column("IP", _or(".status.podIP", "<none>"), True), Column("Node", _or(".spec.nodeName", "<none>"), True)),
    "Job": (Column("Status", _job_status),
            Column("Completions", lambda o, _: f"{find(o, '.status.succeeded') or 0}/"
                                               f"{find(o, '.spec.completions') or 1}"), AGE),
    "Secret": (Column("Type", _or(".type", "Opaque")), Column("Data", _count("data")), AGE),
    "ConfigMap": (Column("Data", _count("data")), AGE),
    "Namespace": (Column("Status", lambda o, _: "Terminating" if o["metadata"].get("deletionTimestamp") else "Active"),
                  AGE),
    "Event": (path_column("Last Seen", ".lastTimestamp", "date"), path_column("Type", ".type"),
              path_column("Reason", ".reason"), Column("Object", _event_object), path_column("Message", ".message")),
    "Service": (Column("Type", _or(".spec.type", "ClusterIP")), Column("Cluster-IP", _or(".spec.clusterIP", "<none>")),
                Column("External-IP", lambda o, _: "<none>"), Column("Port(s)", _ports), AGE),
    "DaemonSet": (*_paths(("Desired", ".status.desiredNumberScheduled"), ("Current", ".status.currentNumberScheduled"),
                          ("Ready", ".status.numberReady")), AGE),
    "PodDisruptionBudget": (Column("Min Available", _or(".spec.minAvailable", "N/A")),
                            Column("Max Unavailable", _or(".spec.maxUnavailable", "N/A")),
                            Column("Allowed Disruptions", _or(".status.disruptionsAllowed", "0")), AGE),
    "Lease": (path_column("Holder", ".spec.holderIdentity"), AGE),
    "NodeMaintenance": _paths(("Node", ".spec.nodeName"), ("Requestor", ".spec.requestorID"),
                              ("Ready", _READY + ".status"), ("Phase", _READY + ".reason"),
                              ("Failed", ".status.conditions[?(@.type=='Failed')].reason")),
    "TenantControlPlane": (*_paths(("Version", ".spec.kubernetes.version"),
                                   ("Status", ".status.kubernetesResources.version.status"),
                                   ("Control-Plane endpoint", ".status.controlPlaneEndpoint"),
                                   ("Kubeconfig", ".status.kubeconfig.admin.secretName"),
                                   ("Datastore", ".status.storage.dataStoreName")), AGE),
    "Certificate": (*_paths(("Ready", _READY + ".status"), ("Secret", ".spec.secretName"),
                            ("Issuer", ".spec.issuerRef.name", "string", True),
                            ("Status", _READY + ".message", "string", True)), AGE),
    "CertificateRequest": (*_paths(("Approved", ".status.conditions[?(@.type=='Approved')].status"),
                                   ("Denied", ".status.conditions[?(@.type=='Denied')].status"),
                                   ("Ready", _READY + ".status"), ("Issuer", ".spec.issuerRef.name"),
                                   ("Requester", ".spec.username"),
                                   ("Status", _READY + ".message", "string", True)), AGE),
}
_READY_PHASE_AGE: Final = (*_paths(("Ready", _READY + ".status"), ("Phase", _READY + ".reason")), AGE)
for _kind in ("DPFOperatorConfig", "DPUDeployment", "DPUService", "DPUServiceChain", "DPUServiceCredentialRequest",
              "DPUServiceIPAM"):
    _KIND_COLUMNS[_kind] = _READY_PHASE_AGE
_KIND_COLUMNS["DPUServiceInterface"] = (
    *_READY_PHASE_AGE[:2], *_paths(("IfType", ".spec.template.spec.template.spec.interfaceType"),
                                   ("IfName", ".spec.template.spec.template.spec.interfaceName")), AGE)
_KIND_COLUMNS["ServiceInterface"] = (
    *_paths(("IfType", ".spec.interfaceType"), ("IfName", ".spec.interfaceName")), AGE)
_KIND_COLUMNS["ServiceInterfaceSet"] = (
    *_paths(("IfType", ".spec.template.spec.interfaceType"), ("IfName", ".spec.template.spec.interfaceName")), AGE)


def columns(kind: str, *, wide: bool = False) -> tuple[Column, ...]:
    """The columns after NAME for objects of this kind; only AGE for kinds nobody described."""
    cls = KINDS.get(kind)
    own = getattr(cls, "COLUMNS", ())
    found = tuple(path_column(*c) for c in own) if own else _KIND_COLUMNS.get(kind, (AGE,))
    return tuple(c for c in found if wide or not c.wide)


def table(headings: list[str], rows: list[list[str]], *, ruled: bool = False) -> str:
    """Columns three spaces apart, as kubectl aligns them; no line ends in spaces.

    Headings are in capitals (`get`), or as they are above a line of dashes (`describe`).
    """
    head = [headings, ["-" * len(h) for h in headings]] if ruled else [[h.upper() for h in headings]]
    cells = [*head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return "".join("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells)
