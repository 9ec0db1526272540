"""Before anything is owned: what is served, what we may do, who else is at work, what may be disrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from api.live_actors import ACTORS
from api.output import Refused
from controllers import CONTROLLERS
from twin.backends.base import ApiError, NotFound
from twin.backends.kube import Cluster, LiveKube
from twin.model.core import Lease, Node
from twin.model.kinds import KINDS
from twin.model.meta import Object, parse_time
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet, Phase
from twin.model.schema import has_crd

if TYPE_CHECKING:
    from api.live import Config, Live

RECENT_S: Final = 120.0
"""A field manager that wrote a status so lately is taken to be at work."""
OURS: Final = frozenset({"dpf-twin", "kubectl", "kubectl-client-side-apply", "kubectl-edit", "kubectl-patch", "lab"})
UPSTREAM_LEASE: Final = ("dpu.nvidia.com", "dpf", "doca")

NEEDS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("provisioning.dpu.nvidia.com", "bfbs", ("get", "list", "watch", "update")),
    ("provisioning.dpu.nvidia.com", "bfbs/status", ("update",)),
    ("provisioning.dpu.nvidia.com", "dpuclusters", ("get", "list", "watch", "update")),
    ("provisioning.dpu.nvidia.com", "dpuclusters/status", ("update",)),
    ("provisioning.dpu.nvidia.com", "dpudevices", ("get", "list", "watch", "update")),
    ("provisioning.dpu.nvidia.com", "dpuflavors", ("get", "list", "watch", "update")),
    ("provisioning.dpu.nvidia.com", "dpunodes", ("get", "list", "watch", "update", "patch", "delete")),
    ("provisioning.dpu.nvidia.com", "dpunodes/status", ("update",)),
    ("provisioning.dpu.nvidia.com", "dpus", ("get", "list", "watch", "create", "update", "patch", "delete")),
    ("provisioning.dpu.nvidia.com", "dpus/status", ("update",)),
    ("provisioning.dpu.nvidia.com", "dpusets", ("get", "list", "watch", "create", "update", "patch", "delete")),
    ("provisioning.dpu.nvidia.com", "dpusets/status", ("patch",)),
    ("operator.dpu.nvidia.com", "dpfoperatorconfigs", ("get", "list", "watch")),
    ("svc.dpu.nvidia.com", "dpudeployments", ("get", "list", "watch", "update")),
    ("svc.dpu.nvidia.com", "dpudeployments/status", ("update",)),
    ("", "configmaps", ("get", "list", "watch", "create")),
    ("", "events", ("create", "patch")),
    ("", "nodes", ("get", "list", "watch", "update", "patch")),
    ("", "pods", ("get", "list", "watch", "create")),
    ("", "pods/exec", ("get", "create")),
    ("", "secrets", ("get", "list", "watch", "delete")),
    ("", "services", ("get", "list", "watch", "create")),
    ("apps", "daemonsets", ("get", "list", "watch", "create")),
    ("batch", "jobs", ("get", "list", "watch", "create", "delete")),
    ("cert-manager.io", "certificaterequests", ("get", "list", "watch", "delete")),
    ("cert-manager.io", "certificates", ("get", "list", "watch", "create", "delete")),
    ("coordination.k8s.io", "leases", ("get", "list", "create", "update")),
    ("kamaji.clastix.io", "tenantcontrolplanes", ("get", "list", "watch", "create")),
    ("maintenance.nvidia.com", "nodemaintenances", ("get", "list", "watch", "create", "patch", "delete")),
)
"""(group, resource, verbs) of everything the controllers do on the host cluster; deploy/ grants exactly this.

`python -m deploy.rules` finds it out by watching them; a test holds the two together.
"""


def check_crds(cluster: Cluster) -> None:
    """Raises: Refused, naming the CRDs that are absent or do not serve our version."""
    wrong = []
    for kind in KINDS.values():
        if not has_crd(kind) or kind.GROUP == "svc.dpu.nvidia.com":
            continue
        try:
            answer = cluster.connection.request("GET", f"/apis/{kind.GROUP}/{kind.VERSION}")
        except NotFound:
            wrong.append(f"{kind.PLURAL}.{kind.GROUP} ({kind.VERSION})")
            continue
        served = {r["name"] for r in msgspec.json.decode(answer)["resources"]}
        if kind.PLURAL not in served:
            wrong.append(f"{kind.PLURAL}.{kind.GROUP} ({kind.VERSION})")
    if wrong:
        raise Refused(f"{cluster.connection.server}: CustomResourceDefinitions missing or of another version: "
                      f"{', '.join(wrong)}; install ours with `dpf-twin crd | kubectl apply --server-side -f -`")


def check_access(cluster: Cluster, config: Config) -> None:
    """Ask the server which of our verbs it allows. Raises: Refused, naming the first five that are missing."""
    rules = _rules(cluster, config.settings.namespace)
    if rules is None:
        return
    missing = []
    for group, resource, verbs in (*NEEDS, *(need for a in ACTORS if a.name in config.actors for need in a.needs)):
        wanted = verbs if config.lead else [v for v in ("get", "list", "watch") if v in verbs and "/" not in resource]
        missing += [f"{verb} {resource}" + (f".{group}" if group else "") for verb in wanted
                    if not any(_allows(rule, group, resource, verb) for rule in rules)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Refused(f"{cluster.connection.server}: no permission to {', '.join(missing[:5])}{more}; "
                      "deploy/rbac.yaml grants what is needed")


def _rules(cluster: Cluster, namespace: str) -> list[dict[str, Any]] | None:
    """SelfSubjectRulesReview; None when the server cannot say everything."""
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    answer = cluster.connection.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
                                        body=msgspec.json.encode(body))
    found = msgspec.json.decode(answer)["status"]
    return list(found["resourceRules"])


def _allows(rule: dict[str, Any], group: str, resource: str, verb: str) -> bool:
    if rule.get("resourceNames"):
        return False
    resources = rule.get("resources") or ()
    return (_in(group, rule.get("apiGroups") or ()) and _in(verb, rule.get("verbs") or ())
            and (_in(resource, resources) or f"*/{resource.partition('/')[2]}" in resources))


def _in(what: str, of: Any) -> bool:
    return what in of or "*" in of


def others(process: Live) -> str:
    """Who else controls these objects, in words; '' when nobody does."""
    kube = LiveKube(process.lease_cluster)
    now = time.time()
    for lease in kube.list_live(Lease):
        spec = lease.spec
        mine = lease.metadata.name == process.elector.key.name
        played = any(lease.metadata.name == a.lease for a in ACTORS if a.name in process.config.actors)
        foreign = played or any(word in lease.metadata.name for word in UPSTREAM_LEASE)
        if not foreign or mine or not spec.holder_identity or not spec.renew_time:
            continue
        if now < parse_time(spec.renew_time) + spec.lease_duration_seconds:
            return f"{spec.holder_identity} holds the lease {lease.key}"
    return _recent_manager(process, now)


def _recent_manager(process: Live, now: float) -> str:
    """A field manager that is none of ours and lately wrote the status of a DPU, BFB or DPUSet."""
    own = OURS | {c.name for c in CONTROLLERS}
    for kind in (Dpu, Bfb, DpuSet):
        path = f"/apis/{kind.GROUP}/{kind.VERSION}/{kind.PLURAL}"
        answer = msgspec.json.decode(process.lease_cluster.connection.request("GET", path, {"limit": "50"}))
        for item in answer["items"]:
            for entry in item["metadata"].get("managedFields") or ():
                at = entry.get("time", "")
                if (entry.get("subresource") == "status" and entry["manager"] not in own and at
                        and now - parse_time(at) < RECENT_S):
                    name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                    return f"{entry['manager']} wrote the status of {kind.KIND} {name} {now - parse_time(at):.0f} s ago"
    return ""


def plan_words(process: Live, shadow: bool) -> Iterator[str]:
    """What is printed before a yes is asked for."""
    cluster, cache = process.cluster, process.cluster.cache

    def count(kind: type[Object]) -> int:
        cluster.informer(kind)
        return len(cache.list(kind, None, None))

    yield f"cluster     {cluster.connection.server}"
    verb = "watches" if shadow else "will own"
    yield f"{verb:<11} " + ", ".join(f"{count(k)} {k.KIND}" for k in (
        Bfb, DpuCluster, DpuDevice, DpuFlavor, DpuNode, DpuSet, Dpu))
    if shadow:
        yield "touches     nothing"
        return
    for actor in (a for a in ACTORS if a.name in process.config.actors):
        yield f"plays       {actor.name}: {actor.does}"
    dpus = cache.list(Dpu, None, None)
    moving = [d for d in dpus if d.status is None or d.status.phase != Phase.READY or d.deleting]
    missing = {n.metadata.name for n in cache.list(DpuNode, None, None)} if count(DpuSet) else set()
    hosts = sorted({d.spec.dpu_node_name for d in moving} | (missing - {d.spec.dpu_node_name for d in dpus}))
    yield (f"may drain, reinstall and reboot {len(hosts)} of {count(DpuNode)} hosts now"
           + (f": {', '.join(hosts[:8])}" + (" ..." if len(hosts) > 8 else "") if hosts else "")
           + "; later any host whose DPUSet or BFB is changed")
    yield f"            {count(Node)} Nodes in the cluster"


__all__ = ["ApiError", "check_access", "check_crds", "others", "plan_words"]
