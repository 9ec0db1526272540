"""The bf.cfg of one DPU: where it lies and what goes into it (provisioning.md 1.12, 4.2)."""

from __future__ import annotations

from typing import Final, TypeVar

from controllers.provisioning.dpu_cluster_client import cluster_client, kubeconfig_of
from controllers.provisioning.dpu_pass import not_found
from controllers.provisioning.join_command import create_token, join_command
from controllers.provisioning.reboot_command import reboot_plan
from twin.model import bfcfg
from twin.model.core import ConfigMap, DpfOperatorConfig
from twin.model.meta import Key, Object
from twin.model.provisioning import Dpu, DpuCluster, DpuDevice, DpuFlavor, DpuNode
from twin.runtime.backends import Backends

T = TypeVar("T", bound=Object)

ONE_CONFIG: Final = "exactly one DPFOperatorConfig necessary"
DEFAULT_MTU: Final = 1500
TEMPLATE_KEY: Final = "BF_CFG_TEMPLATE"


def bf_cfg_name(dpu: Dpu) -> str:
    """DMS wants the version of a configuration to end in .cfg."""
    return f"{dpu.metadata.name}-{dpu.metadata.uid}.cfg"


def bf_cfg_path(dpu: Dpu) -> str:
    return f"/bfb/{bf_cfg_name(dpu)}"


def control_plane_mtu(config: DpfOperatorConfig) -> int:
    networking = config.spec.networking
    return (networking.control_plane_mtu if networking else None) or DEFAULT_MTU


def render_bf_cfg(b: Backends, dpu: Dpu) -> bytes:
    """The file for one install attempt; makes a new bootstrap token. Raises ApiError, ValueError."""
    namespace, spec = dpu.metadata.namespace, dpu.spec
    flavor = _need(b, DpuFlavor, Key(namespace, spec.dpu_flavor))
    cluster = _need(b, DpuCluster, Key(spec.cluster.namespace, spec.cluster.name))
    node = _need(b, DpuNode, Key(namespace, spec.dpu_node_name))
    device = _need(b, DpuDevice, Key(namespace, spec.dpu_device_name))
    config = _config(b)
    kubeconfig, _ = kubeconfig_of(b.background, cluster)
    token = create_token(b, cluster_client(b, b.background, cluster, "dpu-task"), dpu)
    return bfcfg.render(
        flavor.spec, hostname=dpu.metadata.name, join_command=join_command(kubeconfig, token),
        number_of_pfs=device.spec.number_of_pfs, control_plane_mtu=control_plane_mtu(config),
        extra_reboot=reboot_plan(dpu, node).command == "skip", flavor_annotations=flavor.metadata.annotations,
        template=_template(b, config))


def _need(b: Backends, kind: type[T], key: Key) -> T:
    found = b.background.get(kind, key)
    if found is None:
        raise ValueError(not_found(kind, key.name))
    return found


def _config(b: Backends) -> DpfOperatorConfig:
    configs = b.background.list(DpfOperatorConfig)
    if len(configs) != 1:
        raise ValueError(ONE_CONFIG)
    if configs[0].spec.networking is None:
        raise ValueError("networking section is missing in DPFOperatorConfig")
    return configs[0]


def _template(b: Backends, config: DpfOperatorConfig) -> str | None:
    """The installation's own bf.cfg template, if its configuration names one. Raises ValueError when it is missing."""
    controller = config.spec.provisioning_controller
    name = controller.bf_cfg_template_config_map if controller is not None else ""
    if not name:
        return None
    found = _need(b, ConfigMap, Key(config.metadata.namespace, name))
    if TEMPLATE_KEY not in found.data:
        raise ValueError(f"ConfigMap {found.key} has no key {TEMPLATE_KEY}")
    return found.data[TEMPLATE_KEY]
