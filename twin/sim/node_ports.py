"""What the API server fills into a Kubernetes Service of type NodePort."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from twin.backends.base import Invalid
from twin.model.core import Service
from twin.model.meta import replace

FIRST: Final = 30000
LAST: Final = 32767
"""kube-apiserver's default --service-node-port-range. A real one picks at random; here it is the lowest free one."""


def with_node_ports(service: Service, others: Iterable[Service]) -> Service:
    """The service with a node port for each port that asks for none. Raises Invalid when the range is used up."""
    if service.spec.type != "NodePort" or all(p.node_port for p in service.spec.ports):
        return service
    taken = {p.node_port for s in (*others, service) for p in s.spec.ports}
    ports = []
    for port in service.spec.ports:
        if not port.node_port:
            number = next((n for n in range(FIRST, LAST + 1) if n not in taken), None)
            if number is None:
                raise Invalid("failed to allocate a nodePort: range is full")
            taken.add(number)
            port = replace(port, node_port=number)
        ports.append(port)
    return replace(service, spec=replace(service.spec, ports=tuple(ports)))
