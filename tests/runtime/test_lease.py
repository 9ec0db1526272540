"""Leader election by client-go's rules, on a store of one object."""

from __future__ import annotations

from typing import Any

import pytest

from twin.backends.base import AlreadyExists, Conflict, NotFound, Unavailable
from twin.model.core import Lease
from twin.model.meta import Key, replace
from twin.runtime.lease import Elector, Rules, micro_time

KEY = Key("dpf-operator-system", "leader")
WALL = 1.7e9


class OneLease:
    """A server that keeps one Lease and may be away."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.away = False
        self.version = 0

    def read_live(self, kind: Any, key: Key) -> Lease:
        self._up()
        if self.lease is None:
            raise NotFound("no lease")
        return self.lease

    def create(self, lease: Lease) -> Lease:
        self._up()
        if self.lease is not None:
            raise AlreadyExists("there is one")
        return self._keep(lease)

    def update(self, lease: Lease) -> Lease:
        self._up()
        if lease.metadata.resource_version != str(self.version):
            raise Conflict("modified")
        return self._keep(lease)

    def _keep(self, lease: Lease) -> Lease:
        self.version += 1
        self.lease = replace(lease, metadata=replace(lease.metadata, resource_version=str(self.version)))
        return self.lease

    def _up(self) -> None:
        if self.away:
            raise Unavailable("connection refused")


def turn(elector: Elector, server: Any, now: float) -> bool:
    return elector.turn(server, now, WALL + now)


def test_the_first_leads_and_the_second_waits_until_the_lease_is_old() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    assert turn(a, server, 0)
    assert not turn(b, server, 1)
    assert not turn(b, server, 15.9), "15 s since b saw the lease last change"
    assert turn(b, server, 16)
    assert server.lease is not None
    assert server.lease.spec.lease_transitions == 1
    assert not turn(a, server, 17)


def test_a_leader_that_renews_keeps_the_lease_and_its_acquire_time() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    for now in range(0, 60, 2):
        assert turn(a, server, now)
        assert not turn(b, server, now + 1)
    assert server.lease is not None
    assert server.lease.spec.acquire_time == micro_time(WALL)
    assert server.lease.spec.renew_time == micro_time(WALL + 58)


def test_a_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    assert turn(a, server, 0)
    turn(b, server, 0.5)
    server.away = True
    assert turn(a, server, 8)
    assert not a.may_work(10)
    assert not turn(a, server, 10)
    server.away = False
    assert not turn(b, server, 14)
    assert turn(b, server, 15.5)


def test_a_leader_that_was_stopped_finds_that_it_may_not_work() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    turn(a, server, 0)
    turn(b, server, 1)
    assert turn(b, server, 20)
    assert a.leading
    assert not a.may_work(20), "before it even looked"
    assert not turn(a, server, 20)
    assert a.holder == "b"


def test_a_released_lease_is_taken_at_once() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    turn(a, server, 0)
    turn(b, server, 1)
    a.release(server, WALL + 2)  # type: ignore[arg-type]
    assert not a.may_work(2)
    assert turn(b, server, 3)


def test_of_two_that_create_at_once_one_leads() -> None:
    server, a, b = OneLease(), Elector(KEY, "a"), Elector(KEY, "b")
    read = server.read_live

    def raced(kind: Any, key: Key) -> Lease:
        server.read_live = read  # type: ignore[method-assign]
        turn(b, server, 0)
        raise NotFound("no lease")

    server.read_live = raced  # type: ignore[method-assign]
    assert not turn(a, server, 0)
    assert b.may_work(0)


def test_rules_that_would_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match=r"retry x 1\.2 < renew < lease"):
        Rules(lease_s=10, renew_s=10)
