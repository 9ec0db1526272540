"""All controllers, one table: what runs, in which of upstream's processes, with how many workers.

One file per upstream controller, in folders named as upstream's components. Each is a reconciler over the protocols of
`twin.backends.base`; `twin.runtime.reconcile` is the contract. `warts` lists where v25.4 is reproduced as it is.
"""

from __future__ import annotations

from typing import Final

from controllers.cluster_managers.kamaji import KamajiReconciler
from controllers.cluster_managers.static import StaticReconciler
from controllers.provisioning.bfb import BfbReconciler
from controllers.provisioning.dpu import DpuReconciler
from controllers.provisioning.dpucluster import DpuClusterReconciler
from controllers.provisioning.dpunode import DpuNodeReconciler
from controllers.provisioning.dpuset import DpuSetReconciler
from controllers.provisioning.node import NodeReconciler
from controllers.services.dpudeployment import DpuDeploymentReconciler
from twin.runtime.reconcile import Controller

PROVISIONING: Final = "provisioning"
DPUSERVICE: Final = "dpuservice"
KAMAJI: Final = "kamaji-cluster-manager"
STATIC: Final = "static-cluster-manager"

CONTROLLERS: Final[tuple[Controller, ...]] = (
    Controller("node", PROVISIONING, NodeReconciler.make),
    Controller("dpunode", PROVISIONING, DpuNodeReconciler.make),
    Controller("bfb", PROVISIONING, BfbReconciler.make),
    Controller("dpucluster", PROVISIONING, DpuClusterReconciler.make),
    Controller("dpuset", PROVISIONING, DpuSetReconciler.make),
    Controller("dpu", PROVISIONING, DpuReconciler.make),
    Controller("kamaji-cluster-manager", KAMAJI, KamajiReconciler.make),
    Controller("static-cluster-manager", STATIC, StaticReconciler.make),
    Controller("dpudeployment", DPUSERVICE, DpuDeploymentReconciler.make),
)
"""In the order in which passes due at one instant run. One worker each: upstream's `--concurrency` default."""
