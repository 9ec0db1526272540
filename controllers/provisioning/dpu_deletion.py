"""Error and Deleting: how a DPU ends (provisioning.md 2.2, 8.6)."""

from __future__ import annotations

from typing import Final

from controllers.provisioning import node_effect
from controllers.provisioning.allocator import Allocator
from controllers.provisioning.dpu_cluster_client import cluster_client
from controllers.provisioning.dpu_pass import Pass, Unmet, dms_target, siblings
from controllers.provisioning.flags import GNOI
from controllers.provisioning.install_files import bf_cfg_path
from twin.backends.base import ApiError, NotFound
from twin.model import dms_commands as commands
from twin.model.core import Certificate, CertificateRequest, Node, Secret
from twin.model.meta import Key, Object, replace, strip_finalizer
from twin.model.names import Finalizer, dms_certificate, dms_secret
from twin.model.provisioning import DpuCluster, DpuNode, DpuStatus

FINALIZER_REF_COUNT: Final = "dpunode-finalizer-ref-count"
"""Policy: a DPUNode keeps its finalizer until the last of its DPUs is gone."""


def error(p: Pass) -> DpuStatus:
    """Terminal. All that is left to do is to give the worker back."""
    _lift(p)
    return p.status


def deleting(p: Pass) -> DpuStatus:
    """Undo everything, in upstream's order; whatever fails is tried again without end.

    upstream: deletion-needs-dms-and-cluster. Neither a dead host nor a dead DPU cluster can be skipped.
    """
    p.b.memory.get(Allocator).release(p.dpu, p.b.memory)
    _lift(p)
    _remove_bf_cfg(p)
    left = _remove_leftovers(p)
    _remove_node(p)
    _remove_host_network(p)
    _release_dpu_node(p)
    if not left:
        _finish(p)
    return p.status


def _lift(p: Pass) -> None:
    try:
        node_effect.lift_at_end(p)
    except ApiError as no:
        raise Unmet("RemoveNodeEffectError", str(no)) from no


def _remove_bf_cfg(p: Pass) -> None:
    path = bf_cfg_path(p.dpu)
    try:
        if p.b.volume.exists(path):
            p.b.volume.remove(path)
    except OSError as no:
        raise Unmet("DeleteBFBCFGFileError", str(no)) from no


def _remove_leftovers(p: Pass) -> bool:
    """Delete what older releases and the BMC path named after the DPU. True if there was any: look again next pass."""
    name = p.key.name
    found = False
    wanted: tuple[tuple[type[Object], str], ...] = (
        (Certificate, dms_certificate(name)), (Secret, dms_secret(name)), (CertificateRequest, name))
    for kind, leftover in wanted:
        key = Key(p.key.namespace, leftover)
        try:
            there = p.kube.get(kind, key)
        except ApiError as no:
            raise Unmet("GetObjectsError", str(no)) from no
        if there is None:
            continue
        found = True
        try:
            p.kube.delete(kind, key)
        except NotFound:
            pass
        except ApiError as no:
            raise Unmet("DeleteObjectsError", str(no)) from no
    return found


def _remove_node(p: Pass) -> None:
    """Delete the DPU's Node. Skipped for a DPU without cluster.

    upstream: node-left-in-lost-cluster. With the DPUCluster object gone the Node stays where it is.
    """
    ref = p.dpu.spec.cluster
    cluster = p.kube.get(DpuCluster, Key(ref.namespace, ref.name)) if ref.name else None
    if cluster is None:
        return
    key = Key("", p.key.name)
    try:
        client = cluster_client(p.b, p.kube, cluster, "dpu")
        # Upstream sends the DELETE every time. Asking first costs the same one request and no write.
        client.read_live(Node, key)
        client.delete(Node, key)
    except NotFound:
        pass
    except (ApiError, ValueError) as no:
        text = str(no)
        text = "Delete" + text[3:] if text.startswith("Get ") else text
        raise Unmet("DeleteNodeError", f"failed to delete node, err: {text}") from no


def _remove_host_network(p: Pass) -> None:
    if p.status.dpu_install_interface != GNOI:
        return
    try:
        target = dms_target(p.b, p.kube, p.dpu)
    except ValueError as no:
        raise Unmet("CreateGRPCConnectionError", str(no)) from no
    pci = p.dpu.spec.pci_address
    if pci is None:
        raise Unmet("GetPCIAddrFromDPUError", f"PCI address of DPU {p.key} is not set")
    p.ask(target, commands.host_network_delete(pci), "ExecuteDMSDebugCmdError")


def _release_dpu_node(p: Pass) -> None:
    """upstream: dpunode-finalizer-not-counted. The first DPU of a host to go frees the DPUNode for all."""
    if FINALIZER_REF_COUNT in p.b.policies and siblings(p):
        return
    node = p.kube.get(DpuNode, Key(p.key.namespace, p.dpu.spec.dpu_node_name))
    if node is None or Finalizer.DPUNODE not in node.metadata.finalizers:
        return
    try:
        p.kube.update(replace(node, metadata=strip_finalizer(node.metadata, Finalizer.DPUNODE)))
    except NotFound:
        pass
    except ApiError as no:
        raise Unmet("RemoveDPUNodeFinalizerError", str(no)) from no


def _finish(p: Pass) -> None:
    try:
        p.kube.update(replace(p.dpu, metadata=strip_finalizer(p.dpu.metadata, Finalizer.DPU)))
    except NotFound:
        pass
    except ApiError as no:
        raise Unmet("UpdateError", str(no)) from no
