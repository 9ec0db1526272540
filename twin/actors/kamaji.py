"""Kamaji: a TenantControlPlane becomes a running control plane with an admin kubeconfig (golden case k1)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

from twin.actors.actor import Actor
from twin.actors.hosts import Durations
from twin.backends.base import Clock, KubeApi
from twin.model.core import Secret, TenantControlPlane
from twin.model.meta import Key, Object, ObjectMeta, replace
from twin.model.names import KUBECONFIG_KEY, admin_kubeconfig
from twin.runtime.reconcile import DONE, Context, Result, Watch, owner_key

SUPER_ADMIN_KEY: Final = "super-admin.conf"

Make = Callable[[TenantControlPlane], str]
"""Start this control plane (or find it started): its admin kubeconfig."""

Remove = Callable[[Key], None]
"""The TenantControlPlane of this key is gone: stop its control plane, if there is one."""


class Kamaji(Actor):
    """Reconciles TenantControlPlanes. Starting one, or changing its version, takes `kamaji-control-plane`.

    It is not Ready before it is reached: behind a virtual address, not before keepalived has taken that over.
    """

    name = "kamaji"
    watches = (Watch(TenantControlPlane),
               Watch(Secret, to=owner_key(TenantControlPlane), when=lambda old, new: new is None))

    def __init__(self, kube: KubeApi, clock: Clock, durations: Durations, make: Make,
                 remove: Remove = lambda key: None) -> None:
        super().__init__(kube, clock, durations)
        self._make = make
        self._remove = remove
        self._made: dict[Key, None] = {}

    def reconcile(self, ctx: Context, key: Key) -> Result:
        plane = self.kube.get(TenantControlPlane, key)
        if plane is None:
            self.forget(key, "kamaji-control-plane")
            self.forget(key, "keepalived-start")
            if key in self._made:
                del self._made[key]
                self._remove(key)
            return DONE
        if plane.deleting:
            return DONE
        wanted = wanted_version(plane)
        state, version = version_status(plane)
        if state == "Ready" and version == wanted:
            if self.kube.get(Secret, _secret_key(plane)) is None:
                self._store(plane)
            self._made[key] = None
            return DONE
        starting = "Upgrading" if version else "Provisioning"
        if state != starting:
            plane = self._set(plane, starting, version)
        entity = (key.namespace, key.name, plane.metadata.uid)
        reached = not has_virtual_address(plane) or self.over(key, "keepalived-start", *entity)
        if not self.over(key, "kamaji-control-plane", *entity, wanted) or not reached:
            return DONE
        self._store(plane)
        self._made[key] = None
        self._set(plane, "Ready", wanted)
        return DONE

    def _store(self, plane: TenantControlPlane) -> None:
        """The control plane runs; put its kubeconfig where the DPUCluster will look."""
        config = base64.b64encode(self._make(plane).encode()).decode()
        key = _secret_key(plane)
        if self.kube.get(Secret, key) is None:
            self.kube.create(Secret(
                metadata=ObjectMeta(namespace=key.namespace, name=key.name,
                                    owner_references=(plane.owner_reference(),)),
                data={KUBECONFIG_KEY: config, SUPER_ADMIN_KEY: config}))

    def _set(self, plane: TenantControlPlane, state: str, version: str) -> TenantControlPlane:
        resources = dict(plane.status.get("kubernetesResources") or {})
        entry = {"status": state, "version": version} if version else {"status": state}
        status: dict[str, Any] = {**plane.status, "kubernetesResources": {**resources, "version": entry}}
        return self.kube.update_status(replace(plane, status=status))


def has_virtual_address(plane: TenantControlPlane) -> bool:
    return bool((plane.spec.get("networkProfile") or {}).get("address"))


def wanted_version(plane: TenantControlPlane) -> str:
    return str((plane.spec.get("kubernetes") or {}).get("version", ""))


def version_status(plane: TenantControlPlane) -> tuple[str, str]:
    """('', 'Provisioning', 'Upgrading' or 'Ready'; the version that runs)."""
    entry = (plane.status.get("kubernetesResources") or {}).get("version") or {}
    return str(entry.get("status", "")), str(entry.get("version", ""))


def _secret_key(plane: Object) -> Key:
    return Key(plane.metadata.namespace, admin_kubeconfig(plane.metadata.name))
