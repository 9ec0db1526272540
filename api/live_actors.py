"""`live --actors`: neighbours that an installation lacks, played by the actors of a rehearsal on the real API server.

Only those are here that need nothing but an API server. Kubelets, hosts, dpu-detector and Kamaji stand for machines and
programs, so they are played in a lab alone; a person who lets held DPUs go is a person.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from twin.actors.actor import Actor
from twin.actors.certmanager import DEFAULT_DURATION_S, CertManager, go_duration_s
from twin.actors.maintenance import Evictor, Maintenance
from twin.actors.slots import Limits
from twin.backends.base import AlreadyExists, Clock, KubeApi, NotFound
from twin.backends.lab.certificates import Pair, authority, issue
from twin.model.core import Certificate, Pod, Secret
from twin.model.meta import Key, ObjectMeta

TIMES_S: Final[Mapping[str, float]] = {"drain-retry": 5.0, "drain-timeout": 300.0}
"""Intervals of the neighbour itself (timing defaults); what its work takes shows by itself."""
AUTHORITY: Final = "dpf-twin-certificate-authority"
"""The Secret with the authority that the stand-in for cert-manager signs with."""
DAY_S: Final = 86400.0


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the live process gives a stand-in beside its API server; each effect is gated by the lease."""

    namespace: str
    clock: Clock
    evictor: Evictor


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """One neighbour. `lease`: the Lease that the real one holds while it is at work."""

    name: str
    does: str
    lease: str
    needs: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(group, resource, verbs) beyond what the controllers need."""
    make: Callable[[KubeApi, Tools], Actor]


def _seconds(operation: str, *entity: str) -> float:
    return TIMES_S.get(operation, 0.0)


def _maintenance(kube: KubeApi, tools: Tools) -> Actor:
    return Maintenance(kube, tools.clock, _seconds, tools.evictor, Limits(max_parallel=1))  # the operator's default


def _cert_manager(kube: KubeApi, tools: Tools) -> Actor:
    return CertManager(kube, tools.clock, _seconds, lambda certificate, revision: _issue(
        certificate, _authority(kube, Key(tools.namespace, AUTHORITY))))


def _authority(kube: KubeApi, key: Key) -> Pair:
    """Made once for an installation. Raises: ApiError."""
    try:
        found = kube.read_live(Secret, key)
    except NotFound:
        made = authority("dpf-twin")
        data = {"tls.crt": _coded(made.certificate), "tls.key": _coded(made.key)}
        try:
            kube.create(Secret(metadata=ObjectMeta(namespace=key.namespace, name=key.name), type="kubernetes.io/tls",
                               data=data))
            return made
        except AlreadyExists:
            found = kube.read_live(Secret, key)
    return Pair(*(base64.b64decode(found.data[name]).decode() for name in ("tls.crt", "tls.key")))


def _issue(certificate: Certificate, ca: Pair) -> Mapping[str, str]:
    """Valid for as long as the Certificate asks, and a day more: whole days are signed."""
    spec = certificate.spec
    seconds = go_duration_s(str(spec["duration"])) if spec.get("duration") else DEFAULT_DURATION_S
    pair = issue(ca, str(spec.get("commonName") or certificate.metadata.name),
                 addresses=tuple(spec.get("ipAddresses") or ()), names=tuple(spec.get("dnsNames") or ()),
                 days=math.ceil(seconds / DAY_S))
    return {"tls.crt": _coded(pair.certificate), "tls.key": _coded(pair.key), "ca.crt": _coded(ca.certificate)}


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ACTORS: Final[tuple[StandIn, ...]] = (
    StandIn(name="maintenance-operator", does="cordons nodes and evicts their pods, one node at a time",
            lease="a9620a8f.nvidia.com", make=_maintenance, needs=(
                ("", "nodes", ("update",)), ("", "pods", ("list", "watch")), ("", "pods/eviction", ("create",)),
                ("maintenance.nvidia.com", "nodemaintenances", ("get", "list", "watch", "update")),
                ("maintenance.nvidia.com", "nodemaintenances/status", ("update",)))),
    StandIn(name="cert-manager", does="issues every Certificate from an authority of its own",
            lease="cert-manager-controller", make=_cert_manager, needs=(
                ("", "secrets", ("get", "list", "watch", "create", "update")),
                ("cert-manager.io", "certificates", ("get", "list", "watch")),
                ("cert-manager.io", "certificates/status", ("update",)))),
)


class GatedEvictor:
    """Evicts only while we lead."""

    def __init__(self, inner: Evictor, gate: Callable[[], None]) -> None:
        self._inner = inner
        self._gate = gate

    def evict(self, pod: Pod, now: float) -> None:
        self._gate()
        self._inner.evict(pod, now)
