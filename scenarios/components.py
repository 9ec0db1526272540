"""Which processes of an installation run: what the DPF operator makes of a DPFOperatorConfig (services.md 4.3).

No more of the operator is played. Without a DPFOperatorConfig everything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from controllers import DPUSERVICE, KAMAJI, PROVISIONING, STATIC
from controllers.provisioning.flags import CONFIG, REDFISH, interface_of
from twin.model.meta import Object
from twin.model.operator import DpfOperatorConfig, DpfOperatorConfigSpec
from twin.sim.world import World

NOT_MODELLED: Final = ("DPFOperatorConfig: installViaRedfish is not modelled: DPUs stop in Initialize Interface "
                       "(RedfishNotModelled) at the latest")
OPERATOR_DELETES: Final = ("DPFOperatorConfig deleted: the DPF operator is not modelled: it would delete DPUClusters, "
                           "DPUSets, BFBs, DPUFlavors and its components, too (services.md 4.6)")


SWITCHED: Final = ("provisioningController", "dpuServiceController", "kamajiClusterManager", "staticClusterManager",
                   "dpuDetector")
"""Components whose `disable` is played."""


def off(spec: DpfOperatorConfigSpec) -> frozenset[str]:
    """The processes that this configuration does not bring."""
    static = spec.static_cluster_manager
    parts = {PROVISIONING: spec.provisioning_controller, DPUSERVICE: spec.dpu_service_controller,
             KAMAJI: spec.kamaji_cluster_manager}
    found = {name for name, part in parts.items() if part is not None and part.disable}
    if static is None or static.disable:
        found.add(STATIC)
    return frozenset(found)


def follow(world: World, warn: Callable[[str], None]) -> None:
    """Let the world's processes come and go with its DPFOperatorConfig."""

    def changed(old: Object | None, new: Object | None, at_ns: int) -> None:
        if new is None:
            warn(OPERATOR_DELETES)
        if not isinstance(new, DpfOperatorConfig) or new.metadata.name != CONFIG:
            return
        if new.spec.overrides is not None and new.spec.overrides.paused:
            return
        if _redfish(new) and not _redfish(old):
            warn(NOT_MODELLED)
        left_out = off(new.spec)
        for name in (PROVISIONING, DPUSERVICE, KAMAJI, STATIC):
            world.want(name, name not in left_out)

    world.host_cluster.observers.setdefault(DpfOperatorConfig, []).append(changed)


def _redfish(config: Object | None) -> bool:
    controller = config.spec.provisioning_controller if isinstance(config, DpfOperatorConfig) else None
    return controller is not None and interface_of(controller) == REDFISH
