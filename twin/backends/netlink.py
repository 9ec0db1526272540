"""Links, bridges, addresses and routes of this machine or of one network namespace, by pyroute2.

Verbs are idempotent and return at once. Failures are OSErrors that name the link and what was wanted.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from twin.backends import namespaces

T = TypeVar("T")

_UP: Final = 1  # IFF_UP
_MAIN_TABLE: Final = 254
_EXISTS: Final = 17  # EEXIST
_ABSENT: Final = (3, 19)  # ESRCH, ENODEV


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `master` is the bridge it is a member of, or ''; `kind` is '' for hardware."""

    name: str
    kind: str
    mtu: int
    up: bool
    master: str
    address: str


@dataclass(frozen=True, slots=True)
class Route:
    """One IPv4 route of the main table. `destination` is '' for the default route."""

    destination: str
    gateway: str
    device: str
    metric: int


class Netlink(Protocol):
    """One network namespace. Names are interface names. All verbs may raise OSError."""

    def links(self) -> Mapping[str, Link]: ...

    def routes(self) -> Sequence[Route]: ...

    def addresses(self, name: str) -> Sequence[str]:
        """`10.0.0.1/24`, IPv4 only."""
        ...

    def add_bridge(self, name: str) -> None: ...

    def add_pair(self, name: str, peer: str, peer_namespace: str = "") -> None:
        """A veth pair; the peer may live in another namespace."""
        ...

    def remove(self, name: str) -> None:
        """Remove a link; missing is fine."""
        ...

    def set_up(self, name: str, up: bool = True) -> None: ...

    def set_mtu(self, name: str, mtu: int) -> None: ...

    def set_master(self, name: str, bridge: str) -> None:
        """Make the link a member of a bridge; '' takes it out."""
        ...

    def add_address(self, name: str, address: str) -> None: ...

    def add_default_route(self, gateway: str, device: str, metric: int = 0) -> None: ...

    def remove_default_route(self, device: str) -> None: ...


class LiveNetlink:
    """`Netlink` of a named namespace ('' is our own). Holds a thread in it and one netlink socket; close it."""

    def __init__(self, namespace: str = "") -> None:
        self.namespace = namespace
        # pyroute2 has sockets per thread, so everything happens in one that lives in the namespace.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"netlink-{namespace}")
        try:
            self._socket = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def _open(self) -> Any:
        from pyroute2 import IPRoute
        if self.namespace:
            namespaces.enter(self.namespace)
        return IPRoute()

    def _ask(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def close(self) -> None:
        self._thread.submit(self._socket.close)
        self._thread.shutdown()

    def links(self) -> Mapping[str, Link]:
        raw = self._ask(lambda: list(self._socket.get_links()))
        names = {int(link["index"]): str(link.get_attr("IFLA_IFNAME")) for link in raw}
        return {link.name: link for link in (_link(r, names) for r in raw)}

    def routes(self) -> Sequence[Route]:
        names = {i: n for n, i in self._indexes().items()}
        found = []
        for route in self._ask(lambda: list(self._socket.get_routes(family=socket.AF_INET, table=_MAIN_TABLE))):
            destination = route.get_attr("RTA_DST")
            found.append(Route(
                f"{destination}/{route['dst_len']}" if destination else "", str(route.get_attr("RTA_GATEWAY") or ""),
                names.get(route.get_attr("RTA_OIF"), ""), int(route.get_attr("RTA_PRIORITY") or 0)))
        return found

    def addresses(self, name: str) -> Sequence[str]:
        index = self._index(name)
        return [f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}"
                for a in self._ask(lambda: list(self._socket.get_addr(family=socket.AF_INET, index=index)))]

    def add_bridge(self, name: str) -> None:
        self._add(name, kind="bridge")

    def add_pair(self, name: str, peer: str, peer_namespace: str = "") -> None:
        if not peer_namespace:
            self._add(name, kind="veth", peer={"ifname": peer})
            return
        handle = os.open(namespaces.FOLDER / peer_namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._add(name, kind="veth", peer={"ifname": peer, "net_ns_fd": handle})
        finally:
            os.close(handle)

    def remove(self, name: str) -> None:
        index = self._indexes().get(name)
        if index is not None:
            self._do(f"remove link {name}", lambda: self._socket.link("del", index=index), tolerate=_ABSENT)

    def set_up(self, name: str, up: bool = True) -> None:
        self._set(name, state="up" if up else "down")

    def set_mtu(self, name: str, mtu: int) -> None:
        self._set(name, mtu=mtu)

    def set_master(self, name: str, bridge: str) -> None:
        self._set(name, master=self._index(bridge) if bridge else 0)

    def add_address(self, name: str, address: str) -> None:
        ip, _, length = address.partition("/")
        index = self._index(name)
        self._do(f"add address {address} to {name}",
                 lambda: self._socket.addr("add", index=index, address=ip, prefixlen=int(length or 32)),
                 tolerate=(_EXISTS,))

    def add_default_route(self, gateway: str, device: str, metric: int = 0) -> None:
        index = self._index(device)
        extra = {"priority": metric} if metric else {}
        self._do(f"add default route via {gateway} on {device}",
                 lambda: self._socket.route("replace", family=socket.AF_INET, dst="default", gateway=gateway,
                                            oif=index, **extra))

    def remove_default_route(self, device: str) -> None:
        index = self._index(device)
        for route in self.routes():
            if not route.destination and route.device == device:
                extra = {"priority": route.metric} if route.metric else {}
                self._do(f"remove the default route on {device}",
                         lambda extra=extra: self._socket.route("del", family=socket.AF_INET, dst="default",
                                                                oif=index, **extra),
                         tolerate=_ABSENT)

    # --- inside

    def _indexes(self) -> dict[str, int]:
        raw = self._ask(lambda: list(self._socket.get_links()))
        return {str(link.get_attr("IFLA_IFNAME")): int(link["index"]) for link in raw}

    def _index(self, name: str) -> int:
        index = self._indexes().get(name)
        if index is None:
            raise OSError(_ABSENT[1], f"Cannot find device {name}{self._where()}")
        return index

    def _where(self) -> str:
        return f" in namespace {self.namespace}" if self.namespace else ""

    def _add(self, name: str, **options: Any) -> None:
        if name in self._indexes():
            return
        self._do(f"add link {name}", lambda: self._socket.link("add", ifname=name, **options), tolerate=(_EXISTS,))

    def _set(self, name: str, **options: Any) -> None:
        index = self._index(name)
        what = ", ".join(f"{k} {v}" for k, v in options.items())
        self._do(f"set {what} on {name}", lambda: self._socket.link("set", index=index, **options))

    def _do(self, what: str, work: Any, tolerate: tuple[int, ...] = ()) -> None:
        from pyroute2.netlink.exceptions import NetlinkError
        try:
            self._ask(work)
        except NetlinkError as error:
            if error.code not in tolerate:
                raise OSError(error.code, f"{what}{self._where()}: {error.args[1]}") from error


def _link(raw: Any, names: Mapping[int, str]) -> Link:
    info = raw.get_attr("IFLA_LINKINFO")
    return Link(name=str(raw.get_attr("IFLA_IFNAME")), kind=str(info.get_attr("IFLA_INFO_KIND")) if info else "",
                mtu=int(raw.get_attr("IFLA_MTU") or 0), up=bool(raw["flags"] & _UP),
                master=names.get(raw.get_attr("IFLA_MASTER") or 0, ""), address=str(raw.get_attr("IFLA_ADDRESS") or ""))
