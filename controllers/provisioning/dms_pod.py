"""What the Node controller makes for a host: the DMS pod and its server certificate (provisioning.md 3.1)."""

from __future__ import annotations

from typing import Any, Final

from twin.backends.base import Settings
from twin.model.core import Certificate, DpfOperatorConfig, Node, Pod, PodSpec
from twin.model.meta import ObjectMeta, OwnerReference
from twin.model.names import DMS_COMPONENT, DMS_PORT, Label, dms_certificate, dms_pod, dms_secret

SERVICE_ACCOUNT: Final = "dpf-provisioning-dms-service-account"
ISSUER: Final = "dpf-provisioning-issuer"
CERTIFICATE_DURATION: Final = "8760h"
RENEW_BEFORE: Final = "4380h"
"""365 days, renewed at half of them."""

CONFIG_DIR: Final = "/opt/dpf/dms"
STATE_DIR: Final = "/var/lib/dpf/dms"
PROBE: Final = {"exec": {"command": ["mountpoint", "-q", "/bfb"]}, "timeoutSeconds": 1, "periodSeconds": 10,
                "failureThreshold": 30}

PRIVILEGED: Final = {"privileged": True}
MOUNTS: Final[list[dict[str, Any]]] = [
    {"name": "server-secret", "mountPath": f"{CONFIG_DIR}/certs", "readOnly": True},
    {"name": "bfb", "mountPath": "/bfb"},
    {"name": "dev", "mountPath": "/dev"},
    {"name": "sys", "mountPath": "/sys"},
    {"name": "dms-config", "mountPath": CONFIG_DIR},
    {"name": "dms-state", "mountPath": STATE_DIR},
]

TOLERATIONS: Final[tuple[dict[str, str], ...]] = (
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
)
"""upstream: dms-does-not-tolerate-nodeeffect. A node effect that is a NoExecute taint evicts the DMS it relies on."""


def internal_ip(node: Node) -> str:
    """The host's own address; '' when the Node has none yet."""
    return next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")


def _owner(config: DpfOperatorConfig) -> tuple[OwnerReference, ...]:
    return (config.owner_reference(controller=False, block=False),)


def certificate(config: DpfOperatorConfig, node: Node, settings: Settings) -> Certificate:
    name = node.metadata.name
    return Certificate(
        metadata=ObjectMeta(name=dms_certificate(name), namespace=settings.namespace, owner_references=_owner(config)),
        spec={
            "commonName": dms_pod(name),
            "duration": CERTIFICATE_DURATION,
            "renewBefore": RENEW_BEFORE,
            "ipAddresses": [internal_ip(node)],
            "secretName": dms_secret(name),
            "usages": ["server auth", "digital signature", "key encipherment"],
            "issuerRef": {"name": ISSUER, "kind": "Issuer"},
        })


def pod(config: DpfOperatorConfig, node: Node, settings: Settings) -> Pod:
    """The bare DMS pod. It comes back by itself after a reboot of its host; nothing makes it again once deleted."""
    name = node.metadata.name
    controller = config.spec.provisioning_controller
    return Pod(
        metadata=ObjectMeta(name=dms_pod(name), namespace=settings.namespace, owner_references=_owner(config),
                            labels={Label.COMPONENT: DMS_COMPONENT}),
        spec=PodSpec(
            host_network=True,
            service_account_name=SERVICE_ACCOUNT,
            restart_policy="Always",
            affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]}}},
            tolerations=TOLERATIONS,
            image_pull_secrets=tuple({"name": secret} for secret in config.spec.image_pull_secrets),
            init_containers=(
                _container("rshim-preflight", settings, [], {"terminationMessagePath": "/dev/termination-log"}),
                _container("dms-init", settings, _register(node, settings)),
                _container("configure-vf", settings, ["--config", f"{STATE_DIR}/vf-config"]),
            ),
            containers=(_container("dms", settings, ["--config", f"{CONFIG_DIR}/dms.conf"], {
                "ports": [{"name": "dms", "containerPort": DMS_PORT, "protocol": "TCP"}], "startupProbe": PROBE}),),
            volumes=(
                {"name": "server-secret", "secret": {"secretName": dms_secret(name)}},
                {"name": "bfb", "persistentVolumeClaim": {
                    "claimName": controller.bfb_pvc_name if controller is not None else ""}},
                {"name": "dev", "hostPath": {"path": "/dev"}},
                {"name": "sys", "hostPath": {"path": "/sys"}},
                {"name": "dms-config", "emptyDir": {}},
                {"name": "dms-state", "hostPath": {"path": STATE_DIR, "type": "DirectoryOrCreate"}},
            )))


def _register(node: Node, settings: Settings) -> list[str]:
    """dmsinit's arguments: which host it is, and how the user wants it rebooted."""
    arguments = ["register", "--k8s-env", "true", "--node-name", node.metadata.name, "--namespace", settings.namespace,
                 "--address", f"{internal_ip(node)}:{DMS_PORT}"]
    method = node.metadata.labels.get(Label.REBOOT_METHOD)
    if method:
        arguments += ["--reboot-method", method]
    script = node.metadata.labels.get(Label.SCRIPT_NAME)
    if script:
        arguments += ["--script-name", script]
    return arguments


def _container(name: str, settings: Settings, arguments: list[str], more: dict[str, Any] | None = None,
               ) -> dict[str, Any]:
    return {
        "name": name, "image": settings.dms_image, "command": [f"/usr/local/bin/{name}"], "args": arguments,
        "securityContext": PRIVILEGED, "volumeMounts": MOUNTS,
        **(more or {}),
    }
