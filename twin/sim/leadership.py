"""Who leads: controller processes, their leases, and the way back of one that lost its own (client-go's rules).

A leader renews its lease every `leader-retry`. Cut off from the API server it tries on for `leader-renew` and ends; its
container is started again, with the kubelet's back-off while there is no API server to begin with. A new process
leads once the old lease, which nobody released, has run out `leader-lease` after its last renewal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from twin.model.timing import Timing
from twin.sim.clock import TwinEnvironment, ns
from twin.sim.manager import Manager

BACK_OFF_S: Final = 10.0
BACK_OFF_MAX_S: Final = 300.0
"""The kubelet's, between restarts of a container that ends: doubling from 10 s to 5 min."""


class Leadership:
    """`reachable` answers whether the API server that keeps the leases is up."""

    def __init__(self, env: TwinEnvironment, timing: Timing, reachable: Callable[[], bool]) -> None:
        self._env = env
        self._timing = timing
        self._reachable = reachable
        self._since: dict[str, int] = {}  # when the process of this name began to lead, if not with the run
        self._outages = 0
        self._retry = max(1, ns(timing.sample("leader-retry")))

    def restart(self, manager: Manager) -> None:
        """The process ends now, and another takes its place."""
        if not manager.running:
            return
        renewed = self._env.now - self._age(manager)
        manager.stop()
        begins = ns(self._timing.sample("controller-restart", manager.name, str(manager.starts)))
        self._env.call_at(begins, self._begin, manager, renewed + ns(self._timing.sample("leader-lease")), BACK_OFF_S)

    def cut_off(self, managers: Iterable[Manager]) -> None:
        """The API server went away now: leaders end unless it is back before their time is up."""
        self._outages += 1
        for manager in managers:
            left = self._retry - self._age(manager) + ns(self._timing.sample("leader-renew"))
            self._env.call_at(left, self._lost, manager, self._outages)

    def _age(self, manager: Manager) -> int:
        """Since the last renewal."""
        return (self._env.now - self._since.get(manager.name, 0)) % self._retry

    def _lost(self, manager: Manager, outage: int) -> None:
        if not self._reachable() and outage == self._outages:
            self.restart(manager)

    def _begin(self, manager: Manager, lease_ends: int, back_off_s: float) -> None:
        """A new process begins, and asks for the lease."""
        if not self._reachable():
            self._env.call_at(ns(back_off_s), self._begin, manager, lease_ends,
                              min(2 * back_off_s, BACK_OFF_MAX_S))
            return
        left = max(lease_ends - self._env.now, 0)
        self._env.call_at(-(-left // self._retry) * self._retry, self._lead, manager)

    def _lead(self, manager: Manager) -> None:
        if not manager.running:
            self._since[manager.name] = self._env.now
            manager.start()
