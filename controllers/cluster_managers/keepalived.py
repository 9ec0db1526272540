"""keepalived on the control-plane nodes holds a DPU cluster's virtual IP (provisioning.md 7.3).

Each node starts as BACKUP with the last octet of its address as priority; a node whose API server port does not answer
gives the address up.
"""

from __future__ import annotations

from typing import Any, Final

from controllers.cluster_managers import control_plane_nodes
from twin.model.core import ConfigMap, DaemonSet
from twin.model.meta import ObjectMeta, OwnerReference
from twin.model.names import keepalived
from twin.model.provisioning import DpuCluster, Keepalived

TEMPLATE_KEY: Final = "keepalived.conf.tmpl"
CHECK_INTERVAL_S: Final = 2
CHECK_RISE: Final = 3
CHECK_FALL: Final = 2
RENDER_IMAGE: Final = "alpine:3.20.3"
IMAGE: Final = "osixia/keepalived:2.0.20"

TEMPLATE: Final = f"""\
global_defs {{
  enable_script_security
  script_user root
}}
vrrp_script apiserver {{
  script "/usr/bin/nc -z -w 1 127.0.0.1 $NODE_PORT"
  interval {CHECK_INTERVAL_S}
  rise {CHECK_RISE}
  fall {CHECK_FALL}
}}
vrrp_instance dpu_cluster {{
  state BACKUP
  interface $INTERFACE
  virtual_router_id $VIRTUAL_ROUTER_ID
  priority $PRIORITY
  virtual_ipaddress {{
    $VIRTUAL_IP
  }}
  track_script {{
    apiserver
  }}
}}
"""

RENDER: Final = """\
PRIORITY="${NODE_IP##*.}"
sed -e "s|[$]NODE_PORT|$NODE_PORT|" -e "s|[$]INTERFACE|$INTERFACE|" -e "s|[$]PRIORITY|$PRIORITY|" \\
    -e "s|[$]VIRTUAL_ROUTER_ID|$VIRTUAL_ROUTER_ID|" -e "s|[$]VIRTUAL_IP|$VIRTUAL_IP|" \\
    /conf-template/keepalived.conf.tmpl > /conf/keepalived.conf
"""


def owner(cluster: DpuCluster) -> tuple[OwnerReference, ...]:
    """What goes with the DPUCluster. Not a controlling reference, and it blocks nothing."""
    return (cluster.owner_reference(controller=False, block=None),)


def config_map(cluster: DpuCluster) -> ConfigMap:
    return ConfigMap(metadata=_meta(cluster), data={TEMPLATE_KEY: TEMPLATE})


def daemon_set(cluster: DpuCluster, at: Keepalived, node_port: int) -> DaemonSet:
    name = {"app.kubernetes.io/name": keepalived(cluster.metadata.name)}
    return DaemonSet(metadata=_meta(cluster), spec={
        "selector": {"matchLabels": name},
        "template": {"metadata": {"labels": name}, "spec": _pod(cluster, at, node_port)},
    })


def _meta(cluster: DpuCluster) -> ObjectMeta:
    return ObjectMeta(name=keepalived(cluster.metadata.name), namespace=cluster.metadata.namespace,
                      owner_references=owner(cluster))


def _pod(cluster: DpuCluster, at: Keepalived, node_port: int) -> dict[str, Any]:
    settings = {"INTERFACE": at.interface, "VIRTUAL_ROUTER_ID": str(at.virtual_router_id), "NODE_PORT": str(node_port),
                "VIRTUAL_IP": at.vip}
    return {
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "affinity": control_plane_nodes.affinity(at.node_selector),
        "tolerations": control_plane_nodes.tolerations(),
        "volumes": [
            {"name": "conf", "emptyDir": {"sizeLimit": "50Mi"}},
            {"name": "conf-template", "configMap": {"name": keepalived(cluster.metadata.name)}},
        ],
        "initContainers": [{
            "name": "create-conf", "image": RENDER_IMAGE, "command": ["/bin/sh", "-c", RENDER],
            "env": [{"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                    *({"name": k, "value": v} for k, v in settings.items())],
            "volumeMounts": [{"name": "conf-template", "mountPath": "/conf-template", "readOnly": True},
                             {"name": "conf", "mountPath": "/conf"}],
        }],
        "containers": [{
            "name": "keepalived", "image": IMAGE, "securityContext": {"privileged": True},
            "resources": {"requests": {"cpu": "5m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
            "volumeMounts": [{"name": "conf", "mountPath": "/usr/local/etc/keepalived"}],
        }],
    }
