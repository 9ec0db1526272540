"""The DPUServiceIPAM webhook, rule by rule (services.md 5)."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.services.webhooks import validate_ipam
from twin.runtime.webhook import Denied

Json = dict[str, Any]


def ipam(namespace: str = "dpf-operator-system", **spec: Any) -> Json:
    return {"metadata": {"name": "a", "namespace": namespace}, "spec": spec}


def network(**fields: Any) -> Json:
    return ipam(ipv4Network={"network": "10.0.0.0/24", "prefixSize": 29, **fields})


def subnet(**fields: Any) -> Json:
    return ipam(ipv4Subnet={"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "perNodeIPCount": 8, **fields})


def refusal(new: Json, old: Json | None = None) -> str:
    with pytest.raises(Denied) as denied:
        validate_ipam("UPDATE" if old else "CREATE", new, old, None)  # type: ignore[arg-type]
    assert (denied.value.code, denied.value.reason) == (400, "BadRequest")
    return str(denied.value)


@pytest.mark.parametrize("good", [
    network(), subnet(), subnet(subnet="10.0.0.7/24"), network(prefixSize=33), subnet(routes=[{"dst": "0.0.0.0/0"}]),
    network(allocations={"a": "10.0.0.0/29", "b": "10.0.0.0/29"}, exclusions=["10.0.0.3"]),
    subnet(subnet="fd00::/64", gateway="fd00::1"), network(defaultGateway=True, routes=[{"dst": "10.1.0.0/16"}]),
])
def test_what_the_real_webhook_lets_pass_passes(good: Json) -> None:
    assert validate_ipam("CREATE", good, None, None) is good  # type: ignore[arg-type]


@pytest.mark.parametrize(("bad", "text"), [
    (ipam(), "either ipv4Subnet or ipv4Network must be specified"),
    (ipam(namespace="x"), "currently only 'dpf-operator-system' namespace is supported"),
    (network(network="10.0.0.0"), "network 10.0.0.0 is not a valid network"),
    (network(prefixSize=20), "prefixSize 20 doesn't fit in network prefix 24"),
    (network(exclusions=["x", "11.0.0.1"]),
     "[exclusion x is not a valid IP, exclusion 11.0.0.1 is not part of network 10.0.0.0/24]"),
    (network(allocations={"n": "10.0.0.0/30"}), "allocation 10.0.0.0/30 is not part of the network 10.0.0.0/24"),
    (subnet(gateway="x"), "gateway x is not a valid IP"),
    (subnet(routes=[{"dst": "10.1.0.0"}]), "route 10.1.0.0 is not a valid subnet"),
])
def test_a_broken_rule_is_told_in_the_real_webhooks_words(bad: Json, text: str) -> None:
    assert refusal(bad) == text


@pytest.mark.parametrize("bad", [
    subnet(gateway="10.0.1.1"), subnet(routes=[{"dst": "fd00::/64"}]),
    subnet(defaultGateway=True, routes=[{"dst": "0.0.0.0/0"}]), network(allocations={"n": "x"}),
    ipam(ipv4Network=network()["spec"]["ipv4Network"], ipv4Subnet=subnet()["spec"]["ipv4Subnet"]),
])
def test_other_broken_rules_are_refused_too(bad: Json) -> None:
    assert refusal(bad)


def test_a_pool_may_grow_but_not_shrink_move_or_change_its_kind() -> None:
    assert validate_ipam("UPDATE", subnet(subnet="10.0.0.0/23"), subnet(), None)  # type: ignore[arg-type]
    for smaller in ("10.0.0.0/25", "10.1.0.0/24"):
        new = subnet(subnet=smaller, gateway=f"{smaller[:4]}.0.1")
        assert "you cannot shrink the ip subnet" in refusal(new, subnet())
    assert refusal(network(network="10.0.0.0/25"), network()) == "you cannot shrink the ip subnet"
    assert "transitioning from ipv4subnet" in refusal(network(), subnet())
