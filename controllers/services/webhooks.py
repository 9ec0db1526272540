"""The one admission webhook of the services half: DPUServiceIPAM (services.md 5). Every refusal is a 400."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any, Final

from twin.model.services import DpuServiceIpam
from twin.runtime.webhook import Denied, Json, Lister, Webhook

NAMESPACE: Final = "dpf-operator-system"
Network = IPv4Network | IPv6Network


class _Refused(Exception):
    """One broken rule."""


def validate_ipam(operation: str, obj: Json, old: Json | None, reader: Lister) -> Json:
    """CREATE and UPDATE. All broken rules are told at once, except where a check makes the next ones pointless."""
    spec = obj.get("spec") or {}
    before = (old or {}).get("spec") or {}
    problems = _problems(obj.get("metadata", {}).get("namespace", ""), spec, before if operation == "UPDATE" else {})
    if problems:
        text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        raise Denied(text, 400, "BadRequest")
    return obj


def _problems(namespace: str, spec: Json, before: Json) -> list[str]:
    if namespace != NAMESPACE:
        return [f"currently only '{NAMESPACE}' namespace is supported"]
    subnet, network = spec.get("ipv4Subnet"), spec.get("ipv4Network")
    if before and ("ipv4Subnet" in before, "ipv4Network" in before) != (subnet is not None, network is not None):
        return ["transitioning from ipv4subnet to ipv4network and vice versa is currently not supported"]
    if subnet is None and network is None:
        return ["either ipv4Subnet or ipv4Network must be specified"]
    if subnet is not None and network is not None:
        return ["only one of ipv4Subnet and ipv4Network can be specified"]
    out: list[str] = []
    try:
        if network is not None:
            _network(network, out)
        elif subnet is not None:
            _subnet(subnet, out)
    except _Refused as stop:
        out.append(str(stop))
    for mode, field in (("ipv4Network", "network"), ("ipv4Subnet", "subnet")):
        _shrunk(out, spec.get(mode, {}).get(field), before.get(mode, {}).get(field))
    return out


def _cidr(text: str) -> Network | None:
    """The network of `10.0.0.1/24` (host bits are fine), or None. An address without a prefix length is none."""
    try:
        return ip_interface(text).network if "/" in text else None
    except ValueError:
        return None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _network(spec: Json, out: list[str]) -> None:
    text, size = spec["network"], spec["prefixSize"]
    network = _cidr(text)
    if network is None:
        raise _Refused(f"network {text} is not a valid network")
    if network.prefixlen > size:
        raise _Refused(f"prefixSize {size} doesn't fit in network prefix {network.prefixlen}")
    for exclusion in spec.get("exclusions") or []:
        address = _address(exclusion)
        if address is None:
            out.append(f"exclusion {exclusion} is not a valid IP")
        elif address not in network:
            out.append(f"exclusion {exclusion} is not part of network {text}")
    allocations: Json = spec.get("allocations") or {}
    for node in sorted(allocations):
        part = _cidr(allocations[node])
        if part is None:
            out.append(f"allocation {allocations[node]} is not a valid subnet")
        elif part.prefixlen != size or part.network_address not in network:
            out.append(f"allocation {allocations[node]} is not part of the network {text}")
    _routes(spec, network, out)


def _subnet(spec: Json, out: list[str]) -> None:
    network, gateway = _cidr(spec["subnet"]), _address(spec["gateway"])
    if network is None:
        raise _Refused(f"subnet {spec['subnet']} is not a valid network")
    if gateway is None:
        raise _Refused(f"gateway {spec['gateway']} is not a valid IP")
    if gateway not in network:
        raise _Refused(f"gateway {spec['gateway']} is not part of subnet {spec['subnet']}")
    _routes(spec, network, out)


def _routes(spec: Json, network: Network, out: list[str]) -> None:
    for route in spec.get("routes") or []:
        target = _cidr(route["dst"])
        if target is None:
            out.append(f"route {route['dst']} is not a valid subnet")
            continue
        if target.version != network.version:
            out.append(f"route {route['dst']} is not same address family IPv{network.version}")
        if spec.get("defaultGateway") and target.prefixlen == 0 and target.network_address == type(
                target.network_address)(0):
            out.append(f"default route {route['dst']} is not allowed if 'defaultGateway' is true")


def _shrunk(out: list[str], new: Any, old: Any) -> None:
    """An update may widen the range, not narrow or move it."""
    before, after = _cidr(old or ""), _cidr(new or "")
    if before is None or after is None:
        return
    if ip_interface(old).ip not in after or after.prefixlen > before.prefixlen:
        out.append("you cannot shrink the ip subnet")


WEBHOOKS: Final = (
    Webhook("ipam-validator.svc.dpu.nvidia.com", "/validate-svc-dpu-nvidia-com-v1alpha1-dpuserviceipam", DpuServiceIpam,
            ("CREATE", "UPDATE"), False, validate_ipam),
)
