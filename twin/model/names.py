"""Finalizers, labels, annotations and names of generated things (provisioning.md 1.9-1.12), each spelled once."""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "provisioning.dpu.nvidia.com/"
NFD: Final = "feature.node.kubernetes.io/"


class Finalizer:
    BFB: Final = DOMAIN + "bfb-protection"
    DPU: Final = DOMAIN + "dpu-protection"
    DPUSET: Final = DOMAIN + "dpuset-protection"
    DPUNODE: Final = DOMAIN + "dpunode-protection"
    CLUSTER_MANAGER: Final = DOMAIN + "cluster-manager-clean-up"
    CLUSTER: Final = DOMAIN + "cluster-manager-internal-clean-up"
    DPUDEPLOYMENT: Final = "dpu.nvidia.com/dpudeployment"


class Label:
    DPUSET_NAME: Final = DOMAIN + "dpuset-name"
    DPUSET_NAMESPACE: Final = DOMAIN + "dpuset-namespace"
    DPUNODE_NAME: Final = DOMAIN + "dpunode-name"
    DPUDEVICE_NAME: Final = DOMAIN + "dpudevice-name"
    DEVICE_PCI_ADDRESS: Final = DOMAIN + "dpudevice-pciAddress"
    DEVICE_PSID: Final = DOMAIN + "dpudevice-psid"
    DEVICE_OPN: Final = DOMAIN + "dpudevice-opn"
    DEVICE_NUM_OF_PFS: Final = DOMAIN + "dpudevice-num-of-pfs"
    DEVICE_PF0_NAME: Final = DOMAIN + "dpudevice-pf0-name"
    DEVICE_BMC_IP: Final = DOMAIN + "dpudevice-bmc-ip"
    HOST: Final = DOMAIN + "host"
    DOCA_BFB_VERSION: Final = DOMAIN + "DOCA-BFB-version"
    REBOOT_METHOD: Final = DOMAIN + "reboot-method"
    SCRIPT_NAME: Final = DOMAIN + "script-name"
    COMPONENT: Final = DOMAIN + "component"
    DPU_ENABLED: Final = NFD + "dpu-enabled"
    OOB_BRIDGE: Final = NFD + "dpu-oob-bridge-configured"
    CLUSTER: Final = "dpu.nvidia.com/cluster"
    TENANT: Final = "tenant.clastix.io"
    OWNED_BY_DPUDEPLOYMENT: Final = "svc.dpu.nvidia.com/owned-by-dpudeployment"
    CONSUMED_BY_DPUDEPLOYMENT: Final = "svc.dpu.nvidia.com/consumed-by-dpudeployment-"
    """A prefix: the key ends in ten hex digits (services.md 2.2)."""


class Annotation:
    POWERCYCLE_COMMAND: Final = DOMAIN + "powercycle-command"
    REBOOT_COMMAND: Final = DOMAIN + "reboot-command"
    HOST_POWER_CYCLE_REQUIRED: Final = DOMAIN + "host-power-cycle-required"
    EXTERNAL_REBOOT_REQUIRED: Final = DOMAIN + "dpunode-external-reboot-required"
    WAIT_FOR_EXTERNAL_NODEEFFECT: Final = DOMAIN + "wait-for-external-nodeeffect"
    NUM_OF_TRUSTED_SFS: Final = DOMAIN + "num-of-trusted-sfs"


DMS_COMPONENT: Final = "dms"
DMS_PORT: Final = 9339
KUBECONFIG_KEY: Final = "admin.conf"


def dms_pod(node: str) -> str:
    return f"{node}-dms"


def dms_certificate(node: str) -> str:
    return f"{node}-dms-server-cert"


def dms_secret(node: str) -> str:
    return f"{node}-server-secret"


def bfb_file(namespace: str, name: str) -> str:
    """The file name of a BFB without spec.fileName."""
    return f"{namespace}-{name}.bfb"


def admin_kubeconfig(cluster: str) -> str:
    return f"{cluster}-admin-kubeconfig"


def keepalived(cluster: str) -> str:
    """The DaemonSet's name and the ConfigMap's."""
    return f"{cluster}-keepalived"
