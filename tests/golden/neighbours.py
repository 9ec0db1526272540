"""What a step of a recording did besides the API: words of its note -> what is done in our world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from tests.golden.stage import Play
from twin.actors.joining import dpu_node
from twin.model import faults
from twin.model.core import NodeStatus
from twin.model.meta import Condition, replace
from twin.model.provisioning import NodeAddress
from twin.sim.neighbours import power_cycle


def _nothing(play: Play) -> None:
    """The note only said something, or the patch that follows does it."""


def _power_cycle(play: Play) -> None:
    power_cycle(play.world, "worker1")


def _join(play: Play) -> None:
    play.heal("join-fails")


def _api_down(play: Play) -> None:
    play._begin(faults.DpuApiDown(kind="dpu-api-down"))


def _link(up: bool) -> Callable[[Play], None]:
    """The DPU's kubelet falls silent, or is heard again."""

    def act(play: Play) -> None:
        for dpu in play.world.hosts.dpus.values():
            play.world.hosts.set_p0(dpu, up)

    return act


def _join_by_hand(play: Play) -> None:
    """The recording's script made the Node anew and set it Ready."""
    name = next(iter(play.world.hosts.dpus))
    server = next(iter(play.world.dpu_clusters.values()))
    addresses = (NodeAddress(type="InternalIP", address="127.0.2.200"), NodeAddress(type="Hostname", address=name))
    now = play.world.env.now
    node = server.create(dpu_node(name, NodeStatus(addresses=addresses)), "script", now)
    ready = (Condition(type="Ready", status="True", reason="KubeletReady"),)
    server.update(replace(node, status=replace(node.status, conditions=ready)), "script", now, status=True)


NOTES: Final[Mapping[str, Callable[[Play], None]]] = {
    "files in /bfb": _nothing,
    "phase": _nothing,
    "correct the annotation": _nothing,
    "rebooted by hand": _power_cycle,
    "API server killed": _api_down,
    "API server started": lambda play: play.heal("dpu-api-down"),
    "Node joins NotReady": _join,
    "Node joins again": _join_by_hand,
    "Node NotReady": _link(False),
    "Node Ready, other address": _link(True),
    "Node Ready": _nothing,  # our kubelet turns Ready by itself, as long after the join
}
