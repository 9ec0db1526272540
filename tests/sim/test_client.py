"""What a request costs its caller: latency, the client's rate limit, a server that is busy, slow, down or flaky."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.api import Api, config, key
from twin.backends.base import ApiError, Unavailable
from twin.model.core import ConfigMap
from twin.model.meta import replace
from twin.sim.client import ApiCosts, Cache, RateLimit, SimKube
from twin.sim.clock import SECOND
from twin.sim.runner import Meter

MS = 1_000_000


def client(api: Api, limit: RateLimit | None = None, **costs: int) -> tuple[SimKube, Meter]:
    meter = Meter("c")
    return SimKube(Cache(api.server), meter, ApiCosts(**costs), limit), meter


def test_reads_of_the_cache_are_free_and_requests_take_their_latency() -> None:
    api = Api()
    made = api.create(config("a"))
    kube, meter = client(api, read_ns=3, write_ns=10)
    assert kube.get(ConfigMap, key("a")) is made
    assert meter.cost_ns == 0
    kube.read_live(ConfigMap, key("a"))
    assert meter.cost_ns == 3
    kube.update(replace(made, data={"x": "1"}))
    assert meter.cost_ns == 13


def test_a_cache_sees_a_write_only_after_its_lag() -> None:
    api = Api(lag_ns=50)
    kube, _ = client(api)
    assert kube.list(ConfigMap) == []
    api.create(config("a"))
    api.env.run(49)
    assert kube.list(ConfigMap) == []
    api.env.run(51)
    assert [o.metadata.name for o in kube.list(ConfigMap)] == ["a"]


def test_the_rate_limit_gives_a_burst_at_once_and_then_its_rate() -> None:
    limit = RateLimit(qps=20, burst=30)
    assert [limit.wait_ns(0) for _ in range(33)] == [0] * 30 + [50 * MS, 100 * MS, 150 * MS]
    assert limit.wait_ns(10 * SECOND) == 0


def test_without_a_rate_nothing_waits() -> None:
    limit = RateLimit(qps=0, burst=0)
    assert [limit.wait_ns(0) for _ in range(1000)] == [0] * 1000


def test_the_limit_is_shared_by_reads_and_writes_and_charged_to_the_pass() -> None:
    api = Api()
    kube, meter = client(api, RateLimit(qps=10, burst=1), read_ns=1, write_ns=1)
    kube.create(config("a"))
    assert meter.cost_ns == 1
    kube.read_live(ConfigMap, key("a"))
    assert meter.cost_ns == pytest.approx(100 * MS, abs=5)


def test_writes_wait_for_the_store_which_takes_one_at_a_time() -> None:
    api = Api(write_ns=100)
    kube, meter = client(api, write_ns=0)
    costs = []
    for n in range(4):
        before = meter.cost_ns
        kube.create(config(f"c{n}"))
        meter.cost_ns, cost = 0, meter.cost_ns - before
        costs.append(cost)
    assert costs == [0, 100, 200, 300]
    assert api.server.busy_ns(10_000) == 0


def test_a_slow_server_takes_its_factor_longer() -> None:
    api = Api()
    api.create(config("a"))
    api.server.slowness = 4.0
    kube, meter = client(api, read_ns=3)
    kube.read_live(ConfigMap, key("a"))
    assert meter.cost_ns == 12


def test_a_server_that_is_down_refuses_the_connection() -> None:
    api = Api()
    api.server.down = True
    kube, _ = client(api)
    with pytest.raises(Unavailable, match="connect: connection refused"):
        kube.create(config("a"))


def test_a_time_out_may_leave_the_write_behind() -> None:
    for lands in (True, False):
        api = Api()
        api.server.flaky = (lambda: True, lands)
        kube, _ = client(api)
        with pytest.raises(ApiError, match="may still be processing the request"):
            kube.create(config("a"))
        assert (api.now(config("a")) is not None) is lands


def test_an_apply_counts_as_a_write_and_stores_nothing_when_nothing_changes() -> None:
    api = Api()
    kube, meter = client(api, write_ns=7)
    manifest: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "1"},
                                "metadata": {"name": "a", "namespace": "one"}}
    made = kube.apply(manifest, "m")
    before = api.server.resource_version
    assert kube.apply(manifest, "m") is made
    assert (api.server.resource_version, meter.cost_ns) == (before, 14)
