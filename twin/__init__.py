"""A digital twin of DPF's provisioning: its controllers, and a world to run them in.

model      kinds, fleets, devices, durations, faults: values and pure functions, no clock
backends   `base`: what controllers may ask of a world; the rest: real API servers, DMS, netlink
runtime    the one controller contract, its work queue, its memory; the threads that drive it live
sim        virtual time: API server, hosts, DPUs, DMS, links, and the runner
actors     the neighbours: kubelet, scheduler, Kamaji, cert-manager, maintenance operator, people
Beside this package: `controllers` (DPF's own), `scenarios` (`load`, `run`), `reports`, `api` (the command line).

Imports point down: model, then backends.base and runtime, then the rest. The names below load when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_HOMES: Final = {
    "Bfb": "twin.model.provisioning",
    "Device": "twin.model.device",
    "Dpu": "twin.model.provisioning",
    "DpuSet": "twin.model.provisioning",
    "Fleet": "twin.model.fleet",
    "KubeApi": "twin.backends.base",
    "Profile": "twin.model.timing",
    "Reconciler": "twin.runtime.reconcile",
    "Result": "twin.runtime.reconcile",
    "World": "twin.sim.world",
}

__all__ = ["Bfb", "Device", "Dpu", "DpuSet", "Fleet", "KubeApi", "Profile", "Reconciler", "Result", "World"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
