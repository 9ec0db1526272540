"""Leases of controller processes: who ends when it cannot renew, and when the next one leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from twin.model import timing_profile
from twin.model.timing import Fixed, Profile, Timing
from twin.sim.clock import SECOND, TwinEnvironment, ns
from twin.sim.leadership import Leadership


class Process:
    """A manager as `Leadership` handles it."""

    name = "provisioning"

    def __init__(self, env: TwinEnvironment) -> None:
        self.running = True
        self.starts = 1
        self.log: list[tuple[str, float]] = []
        self._env = env

    def start(self) -> None:
        self.running = True
        self.starts += 1
        self.log.append(("start", self._env.now / SECOND))

    def stop(self) -> None:
        self.running = False
        self.log.append(("stop", self._env.now / SECOND))


class Story:
    def __init__(self, **seconds: float) -> None:
        times = {"leader-lease": 15.0, "leader-renew": 10.0, "leader-retry": 2.0, "controller-restart": 8.0,
                 **{name.replace("_", "-"): s for name, s in seconds.items()}}
        base = timing_profile.named("fixed")
        profile = Profile("test", {**base.operations, **{
            name: replace(base.operations[name], takes=Fixed(s)) for name, s in times.items()}}, base.limits)
        self.env = TwinEnvironment()
        self.up = True
        self.process: Any = Process(self.env)
        self.leadership = Leadership(self.env, Timing(profile, 1), lambda: self.up)

    def at(self, second: float, do: Callable[[], object]) -> None:
        self.env.call_at(ns(second) - self.env.now, do)

    def outage(self, begins: float, ends: float) -> None:
        self.at(begins, self._down)
        self.at(ends, self._back)

    def _down(self) -> None:
        self.up = False
        self.leadership.cut_off([self.process])

    def _back(self) -> None:
        self.up = True

    def run(self, seconds: float = 3600.0) -> list[tuple[str, float]]:
        self.env.run(until=ns(seconds))
        log: list[tuple[str, float]] = self.process.log
        return log


@pytest.mark.parametrize(("restart_s", "leads"), [(8.0, 116.0), (1.0, 115.0), (30.0, 130.0)])
def test_a_new_process_leads_at_its_first_try_after_the_old_lease_ran_out(restart_s: float, leads: float) -> None:
    s = Story(controller_restart=restart_s)
    s.at(100.0, lambda: s.leadership.restart(s.process))  # it renewed in this second: free from 115 s on

    assert s.run() == [("stop", 100.0), ("start", leads)]


def test_a_lease_renewed_earlier_runs_out_earlier() -> None:
    s = Story(controller_restart=1.0)
    s.at(101.5, lambda: s.leadership.restart(s.process))  # renewed at 100 s, tries at 102.5, 104.5, ... 116.5

    assert s.run() == [("stop", 101.5), ("start", 116.5)]


def test_an_outage_shorter_than_the_renewal_is_not_noticed() -> None:
    s = Story()
    s.outage(100.0, 111.9)

    assert s.run() == []


def test_a_leader_that_cannot_renew_ends_and_the_next_waits_for_the_api_server() -> None:
    s = Story()
    s.outage(100.0, 1000.0)

    # begins at 120 s without an API server; again after 10, 20, 40, 80, 160, 300, 300 s
    assert s.run() == [("stop", 112.0), ("start", 1030.0)]


def test_two_short_outages_are_not_one_long_one() -> None:
    s = Story()
    s.outage(100.0, 105.0)
    s.outage(111.0, 118.0)

    assert s.run() == []


def test_a_process_that_is_gone_already_is_not_ended_twice() -> None:
    s = Story()
    s.outage(100.0, 125.0)
    s.at(110.0, lambda: s.leadership.restart(s.process))

    assert s.run() == [("stop", 110.0), ("start", 128.0)]
