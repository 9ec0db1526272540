"""The hardware a rollout runs on: racks, hosts, DPU cards, image servers, the BFB volume, links, the person on call.

Frozen values in a stable order with stable names and addresses: a larger fleet has the smaller one as its beginning.
`twin.model.fleet_file` makes them from what a user writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from twin.model.names import DMS_PORT as DMS_PORT

if TYPE_CHECKING:
    import networkx

GI: Final = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """One DPU in a host.

    `pci` is domain-bus-device with hyphens, as labels carry it. `firmware` is what runs on the NIC before the rollout.
    `fw_reset`: mlxfwreset says Supported for level 3 and sync 1, so new firmware needs no host reboot.
    `pci_rescan`: MFRL's pci_rescan_required reads 1 after an install, so the host must reboot whatever the firmware.
    """

    name: str
    host: str
    rack: str
    index: int
    pci: str
    model: str
    opn: str
    psid: str
    serial: str
    cores: int
    memory_bytes: int
    pf0: str
    pfs: int
    oob_ip: str
    bmc_ip: str
    firmware: str
    fw_reset: bool = False
    pci_rescan: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """A workload pod on a host when the story begins. `grace_s` is how long it takes to leave once evicted.

    `controller` is the kind that owns it: a DaemonSet's pods stay in a drain, a ReplicaSet's are made again elsewhere.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    grace_s: float = 30.0
    controller: str = "ReplicaSet"


@dataclass(frozen=True, slots=True)
class Budget:
    """A PodDisruptionBudget. Exactly one of the two bounds is given: a count, or text such as '50%'."""

    namespace: str
    name: str
    selector: Mapping[str, str]
    min_available: int | str | None = None
    max_unavailable: int | str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A server. `reboot` is gNOI, external or script; `reboot_script` names the ConfigMap of the latter.

    `kubernetes` False: no core Node; its DPUNode and DPUDevices are registered by hand.
    `oob_bridge` False: br-dpu or its default route is missing.
    """

    name: str
    rack: str
    index: int
    ip: str
    cards: tuple[Card, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    kubernetes: bool = True
    oob_bridge: bool = True
    reboot: str = "gNOI"
    reboot_script: str = ""
    pods: tuple[Pod, ...] = ()


@dataclass(frozen=True, slots=True)
class Rack:
    """A power and network failure domain. `uplink_bytes_per_s` is shared by its hosts."""

    name: str
    uplink_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A BFB on a server. `content` identifies its bytes; `firmware` is the NIC firmware it carries."""

    name: str
    size_bytes: int
    content: str
    versions: Mapping[str, str]
    firmware: str


@dataclass(frozen=True, slots=True)
class ImageServer:
    """An HTTP server for all URLs that begin with `url`. `files` None: it has every file (`default_image`)."""

    name: str
    url: str
    bandwidth_bytes_per_s: float
    files: Mapping[str, ImageFile] | None = None

    def file(self, url: str) -> ImageFile | None:
        """The file at this URL; None is a 404."""
        path = url[len(self.url):].lstrip("/")
        return default_image(path, url) if self.files is None else self.files.get(path)


@dataclass(frozen=True, slots=True)
class Network:
    """Capacities of the management network, in bytes per second: controller pod, one host's out-of-band port."""

    controller_bytes_per_s: float
    host_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Volume:
    """The NFS volume at /bfb: shared by the controller and every host that reads it."""

    bandwidth_bytes_per_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ControlPlaneNode:
    name: str
    ip: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks after the fleet. A task that is False is never done by anybody.

    `after_s` None: the timing profile's `operator-response` (holds) and `manual-reboot` (reboots).
    `release`: how a hold is released, `false` (sets the annotation to false: works) or `remove` (as the documents say).
    """

    reboots: bool = True
    releases: bool = True
    release: str = "false"
    after_s: float | None = None


@dataclass(frozen=True)
class Fleet:
    """Everything, in order: racks, then hosts, each with its cards."""

    name: str
    racks: tuple[Rack, ...]
    hosts: tuple[Host, ...]
    image_servers: tuple[ImageServer, ...]
    network: Network
    volume: Volume
    control_plane: tuple[ControlPlaneNode, ...]
    budgets: tuple[Budget, ...] = ()
    person: Person = Person()

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        return tuple(c for h in self.hosts for c in h.cards)

    @cached_property
    def host(self) -> Mapping[str, Host]:
        return {h.name: h for h in self.hosts}

    @cached_property
    def card(self) -> Mapping[str, Card]:
        return {c.name: c for c in self.cards}

    @cached_property
    def rack(self) -> Mapping[str, Rack]:
        return {r.name: r for r in self.racks}

    def hosts_in(self, rack: str) -> tuple[Host, ...]:
        return tuple(h for h in self.hosts if h.rack == rack)

    def image_server(self, url: str) -> ImageServer | None:
        """The server with the longest prefix of this URL; None: no such host."""
        fitting = [s for s in self.image_servers if url.startswith(s.url)]
        return max(fitting, key=lambda s: len(s.url), default=None)

    def graph(self) -> networkx.DiGraph[tuple[str, str]]:
        """Failure domains (`relation="holds"`: rack > host > DPU) and links (`relation="link"`, `bytes_per_s`).

        Vertices are (kind, name) pairs: rack, host, dpu, controller, volume, image-server.
        """
        import networkx  # 0.15 s to load, and most runs never draw the graph

        graph: networkx.DiGraph[tuple[str, str]] = networkx.DiGraph()
        controller, volume = ("controller", ""), ("volume", "")
        for server in self.image_servers:
            graph.add_edge(("image-server", server.name), controller, relation="link",
                           bytes_per_s=min(server.bandwidth_bytes_per_s, self.network.controller_bytes_per_s))
        graph.add_edge(controller, volume, relation="link", bytes_per_s=self.volume.bandwidth_bytes_per_s)
        for rack in self.racks:
            graph.add_edge(controller, ("rack", rack.name), relation="link", bytes_per_s=rack.uplink_bytes_per_s)
        for host in self.hosts:
            graph.add_edge(("rack", host.rack), ("host", host.name), relation="holds",
                           bytes_per_s=self.network.host_bytes_per_s)
            for card in host.cards:
                graph.add_edge(("host", host.name), ("dpu", card.name), relation="holds")
        return graph


DEFAULT_IMAGE_BYTES: Final = 1_500_000_000
"""An assumption: bf-bundle images of 2025 are about 1.5 GB; no size is published."""

DEFAULT_FIRMWARE: Final = "32.41.1000"
"""Runs on a card before the rollout, unless the fleet says otherwise: older than any image's, so installs change it."""


def default_image(name: str, content: str) -> ImageFile:
    """The file a server without a list has under this name.

    Versions follow the name where it holds one (bf-bundle-3.0.0-135: DOCA 3.0.0, so BSP 5.0.0.135, upstream's rule
    DOCA major = BSP major - 2); otherwise they are made from the name, so that different names differ.
    """
    from hashlib import blake2b

    number = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little") % 90_000 + 10_000
    doca, build = _version_in(name) or ((2, 11, 0), number)
    bsp = f"{doca[0] + 2}.{doca[1]}.{doca[2]}.{build}"
    versions = {"bsp": bsp, "doca": f"{doca[0]}.{doca[1]}.{doca[2]}", "uefi": f"{bsp.rpartition('.')[0]}-{build}",
                "atf": f"v2.2(release):{bsp.rpartition('.')[0]}-{build}"}
    firmware = f"32.{45 + doca[0]}.{1000 + (doca[1] * 10 + doca[2]) % 1000}"
    return ImageFile(name, DEFAULT_IMAGE_BYTES, content, versions, firmware)


def _version_in(name: str) -> tuple[tuple[int, int, int], int] | None:
    import re

    match = re.search(r"(?<!\d)(\d{1,2})\.(\d{1,2})\.(\d{1,2})-(\d{1,6})(?!\d)", name)
    if match is None:
        return None
    return (int(match[1]), int(match[2]), int(match[3])), int(match[4])
