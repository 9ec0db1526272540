"""Fleets as users write them: explicit racks and hosts, `generate`, or both, made into a `Fleet`."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from twin.model import fleet
from twin.model.edge import Bytes, BytesPerSecond, Edge, Seconds
from twin.model.fleet import Card, Fleet, Host
from twin.model.mistakes import BadInput, Mistake
from twin.model.objectmeta import ANNOTATIONS_BYTES, label_value_problems, qualified_name_problems
from twin.model.parts import PARTS
from twin.model.yamlmarks import Marked, mistakes_of

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
                            max_length=200)]
LABEL_LENGTH: Final = 63
LabelledName = Annotated[Name, Field(max_length=LABEL_LENGTH)]
"""Of something whose name is also the value of a label."""
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


def _without(problems: Callable[[str], Sequence[str]], rule: str) -> AfterValidator:
    """Text that the API server has no `problems` with."""
    def checked(value: str) -> str:
        if problems(value):
            raise ValueError(rule)
        return value

    return AfterValidator(checked)


def _not_large(annotations: dict[str, str]) -> dict[str, str]:
    if sum(len(k) + len(v) for k, v in annotations.items()) > ANNOTATIONS_BYTES:
        raise ValueError(f"annotations must have at most {ANNOTATIONS_BYTES} bytes")
    return annotations


_PLAIN = "at most 63 letters, digits, -, _ and ., with a letter or digit at both ends"
_KEY = f"a key must be [prefix/]name, the name of {_PLAIN}"
LabelKey = Annotated[str, _without(qualified_name_problems, _KEY)]
AnnotationKey = Annotated[str, _without(lambda key: qualified_name_problems(key.lower()), _KEY)]
LabelValue = Annotated[str, _without(label_value_problems, f"must have {_PLAIN}")]
Labels = dict[LabelKey, LabelValue]
Annotations = Annotated[dict[AnnotationKey, str], AfterValidator(_not_large)]
Share = Annotated[
    Annotated[int, Field(ge=0), Tag("count")] | Annotated[str, Field(pattern=r"^\d+%$"), Tag("share")],
    Discriminator(lambda given: "share" if isinstance(given, str) and not given.isdigit() else "count")]
MODELS = {part.model: part for part in reversed(tuple(PARTS.values()))}
"""The usual part of each model: the first that the table has."""

_MODEL_NAMES = ", ".join(sorted(MODELS))

PCI_BUSES = ("2b", "a2", "38", "d5", "5a", "c8", "17", "e3")


def _ip(value: Any) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError("must be an IPv4 address") from None


Ip = Annotated[str, BeforeValidator(_ip)]


class DpuEntry(Edge):
    """One DPU of a host. What is absent is made from its host and its place."""

    pci: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{4}-)?[0-9a-fA-F]{2}-[0-9a-fA-F]{2}$")] | None = Field(
        default=None, description="PCI address with hyphens, domain-bus-device: 0000-2b-00")
    model: str = Field(default="B3220", description=f"One of {_MODEL_NAMES}, or your own with cores and memory")
    opn: str | None = Field(default=None, description="Part number as flint prints it")
    psid: Annotated[str, Field(pattern=r"^MT_\d{10}$")] | None = None
    serial: str | None = None
    cores: Annotated[int, Field(gt=0)] | None = None
    memory_bytes: Bytes | None = None
    pf0: Annotated[LabelValue, Field(min_length=1)] | None = Field(
        default=None, description="Name of the first physical function's interface")
    pfs: Annotated[int, Field(ge=1, le=16)] = 2
    oob_ip: Ip | None = None
    bmc_ip: Ip | None = None
    firmware: str = Field(default=fleet.DEFAULT_FIRMWARE, description="NIC firmware before the rollout")
    fw_reset: bool = Field(default=False, description="mlxfwreset can load new firmware without a host reboot")
    pci_rescan: bool = Field(default=False, description="the host must reboot after an install, whatever the firmware")

    @model_validator(mode="after")
    def _known(self) -> DpuEntry:
        if self.model not in MODELS and (self.cores is None or self.memory_bytes is None):
            raise ValueError(f"model {self.model!r} is none of {_MODEL_NAMES}: give cores and memory_bytes too")
        return self


class PodEntry(Edge):
    """A workload pod on a host. The name of a generated host's pod ends with the host's."""

    name: LabelledName
    namespace: Namespace = "default"
    labels: Labels = {}
    grace_s: Seconds = 30.0
    controller: Literal["ReplicaSet", "StatefulSet", "DaemonSet", "none"] = "ReplicaSet"


class BudgetEntry(Edge):
    """A PodDisruptionBudget."""

    name: Name
    namespace: Namespace = "default"
    selector: Annotated[Labels, Field(min_length=1)]
    min_available: Share | None = None
    max_unavailable: Share | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> BudgetEntry:
        if (self.min_available is None) == (self.max_unavailable is None):
            raise ValueError("give exactly one of min_available, max_unavailable")
        return self


class HostTemplate(Edge):
    """What all generated hosts have."""

    labels: Labels = {}
    annotations: Annotations = {}
    kubernetes: bool = True
    oob_bridge: bool = True
    reboot: Literal["gNOI", "external", "script"] = "gNOI"
    reboot_script: str = Field(default="", description="ConfigMap with the pod template, for reboot: script")
    pods: list[PodEntry] = []

    @model_validator(mode="after")
    def _script_named(self) -> HostTemplate:
        if (self.reboot == "script") != bool(self.reboot_script):
            raise ValueError("reboot: script and reboot_script go together")
        return self


class HostEntry(HostTemplate):
    """One host. If `generate` makes a host of this name, the fields given here replace the generated ones."""

    name: LabelledName
    rack: Name | None = None
    ip: Ip | None = None
    dpus: Annotated[list[DpuEntry], Field(max_length=len(PCI_BUSES))] | None = Field(
        default=None, description="Absent: one DPU")


class Generate(Edge):
    """Hosts worker1, worker2, ... rack by rack (r1, r2, ...)."""

    racks: Annotated[int, Field(ge=1, le=10_000)] = 1
    hosts_per_rack: Annotated[int, Field(ge=1, le=10_000)] = 1
    dpus_per_host: Annotated[int, Field(ge=1, le=len(PCI_BUSES))] = 1
    host: HostTemplate = HostTemplate()
    dpu: DpuEntry = DpuEntry()
    host_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*)?$")] = Field(
        default="worker", description="What generated host names begin with")

    @field_validator("dpu")
    @classmethod
    def _no_identity(cls, dpu: DpuEntry) -> DpuEntry:
        own = [n for n in ("pci", "serial", "oob_ip", "bmc_ip") if getattr(dpu, n) is not None]
        if own:
            raise ValueError(f"{', '.join(own)} cannot be the same for all DPUs")
        return dpu

    @model_validator(mode="after")
    def _bounded(self) -> Generate:
        if self.racks * self.hosts_per_rack * self.dpus_per_host > 100_000:
            raise ValueError("at most 100,000 DPUs")
        return self


class RackEntry(Edge):
    name: Name
    uplink_bytes_per_s: BytesPerSecond = 3.125e9


class Versions(Edge):
    bsp: str | None = None
    doca: str | None = None
    uefi: str | None = None
    atf: str | None = None


class ImageEntry(Edge):
    """A BFB on an image server. What is absent follows its name."""

    size_bytes: Bytes = fleet.DEFAULT_IMAGE_BYTES
    versions: Versions = Versions()
    firmware: str | None = Field(default=None, description="NIC firmware the image carries")
    content: str | None = Field(default=None, description="Identity of the bytes; two files may share it")


class ImageServerEntry(Edge):
    name: Name
    url: Annotated[str, Field(pattern=r"^https?://.+")] = Field(description="All URLs that begin with this")
    bandwidth_bytes_per_s: BytesPerSecond = 1.25e9
    files: dict[str, ImageEntry] | None = Field(
        default=None, description="Paths below url; any other is a 404. Absent: every file is there")


class NetworkEntry(Edge):
    controller_bytes_per_s: BytesPerSecond = 1.25e9
    host_bytes_per_s: BytesPerSecond = 1.25e8


class VolumeEntry(Edge):
    """The volume at /bfb. A download that finds it full fails, and what it brought stays until its BFB is deleted."""

    bandwidth_bytes_per_s: BytesPerSecond = 1e9
    size_bytes: Bytes = 10 * fleet.GI


class PersonEntry(Edge):
    """The person on call."""

    reboots: bool = True
    releases: bool = True
    release: Literal["false", "remove"] = "false"
    after_s: Seconds | None = Field(default=None, description="Absent: the timing profile says")


class FleetFile(Edge):
    """A fleet: racks, hosts with their DPUs and workload, image servers, links. Explicit, generated, or both."""

    apiVersion: Literal["dpf-twin/v1"] = "dpf-twin/v1"
    name: Name = "fleet"
    generate: Generate | None = None
    racks: list[RackEntry] = []
    hosts: list[HostEntry] = []
    image_servers: list[ImageServerEntry] | None = Field(
        default=None, description="Absent: one server that has every URL, at 125 MB/s")
    network: NetworkEntry = NetworkEntry()
    volume: VolumeEntry = VolumeEntry()
    control_plane: Annotated[int, Field(ge=1, le=9, description="Control-plane nodes of the host cluster")] = 3
    budgets: list[BudgetEntry] = []
    operator: PersonEntry = PersonEntry()


def load(doc: Marked, prefix: Sequence[str | int] = ()) -> Fleet:
    """The fleet of a document, or of the part of it at `prefix` (a fleet that stands in its scenario).

    Raises:
        BadInput: all mistakes, with their places.
    """
    data = doc.data
    for step in prefix:
        data = data[step]
    about = f"fleet {data['name']}" if isinstance(data, dict) and isinstance(data.get("name"), str) else "fleet"
    try:
        file = FleetFile.model_validate(data)
    except ValidationError as error:
        raise BadInput(mistakes_of(error, doc, about, prefix)) from None
    wrong = list(_wrong(file))
    if wrong:
        raise BadInput([doc.mistake((*prefix, *path), rule, got, about=about) for path, rule, got in wrong])
    return made(file)


def from_data(data: Any) -> Fleet:
    """The fleet of plain data, for tests and tools. Raises BadInput."""
    try:
        file = FleetFile.model_validate(data)
    except ValidationError as error:
        raise BadInput(str(error)) from None
    wrong = [Mistake("", f"{rule}", field=".".join(map(str, path))) for path, rule, _ in _wrong(file)]
    if wrong:
        raise BadInput(wrong)
    return made(file)


def _wrong(file: FleetFile) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    """What no single field shows: (path, rule, value)."""
    told: dict[tuple[str | int, ...], tuple[tuple[str | int, ...], str, Any]] = {}
    for one in _wrong_names(file):
        told.setdefault(one[0], one)  # what all generated hosts get wrong is told of the first
    yield from told.values()
    if file.generate is None and not file.hosts:
        yield ("hosts",), "a fleet needs at least one host: give hosts or generate", None
    racks = {r.name for r in file.racks}
    first: dict[tuple[str, str], str] = {}

    def twice(kind: str, value: str, owner: str) -> bool:
        return first.setdefault((kind, value), owner) != owner

    for i, rack in enumerate(file.racks):
        if twice("rack", rack.name, str(i)):
            yield ("racks", i, "name"), "another rack has this name", rack.name
    generated = set(_rack_names(file))
    for i, host in enumerate(file.hosts):
        if twice("host", host.name, str(i)):
            yield ("hosts", i, "name"), "another host has this name", host.name
        if host.rack is not None and racks and host.rack not in racks | generated:
            yield ("hosts", i, "rack"), "no such rack in racks", host.rack
        if host.ip is not None and twice("ip", host.ip, f"host {i}"):
            yield ("hosts", i, "ip"), "another host has this address", host.ip
        for j, dpu in enumerate(host.dpus or ()):
            if dpu.pci is not None and twice(f"pci {i}", _pci(dpu, j), str(j)):
                yield ("hosts", i, "dpus", j, "pci"), "another DPU of this host has this PCI address", dpu.pci
            for name in ("oob_ip", "bmc_ip", "serial"):
                value = getattr(dpu, name)
                if value is not None and twice("serial" if name == "serial" else "ip", value, f"{i}/{j}/{name}"):
                    yield ("hosts", i, "dpus", j, name), "another one has this value", value
    for i, server in enumerate(file.image_servers or ()):
        if twice("image server", server.name, str(i)):
            yield ("image_servers", i, "name"), "another image server has this name", server.name
    for i, budget in enumerate(file.budgets):
        if twice("budget", f"{budget.namespace}/{budget.name}", str(i)):
            yield ("budgets", i, "name"), "another budget has this name", budget.name


def _wrong_names(file: FleetFile) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    """What is wrong with the names of hosts and their pods, as they are in the end."""
    nodes = {node.name for node in _control_plane(file)}
    pods: dict[tuple[str, str], None] = {}
    for host in _placed(file):
        if host.name in nodes:
            yield host.at, "a control-plane node has this name", host.name
        if len(host.name) > LABEL_LENGTH:
            yield host.at, f"a host's name must have at most {LABEL_LENGTH} characters", host.name
        for i, pod in enumerate(host.template.pods):
            name, at = host.pod(pod), (*host.pods_at, i, "name")
            if (pod.namespace, name) in pods:
                yield at, "another pod of this namespace has this name", name
            if len(name) > LABEL_LENGTH:
                yield at, f"a pod's name must have at most {LABEL_LENGTH} characters, its host's included", name
            pods[pod.namespace, name] = None


def _rack_names(file: FleetFile) -> list[str]:
    return [f"r{i + 1}" for i in range(file.generate.racks)] if file.generate else []


def made(file: FleetFile) -> Fleet:
    """The fleet of a valid file: generated hosts first, then the explicit ones it does not know, in file order."""
    hosts = tuple(_host(placed, index) for index, placed in enumerate(_placed(file)))
    listed = {r.name: r for r in file.racks}
    names = dict.fromkeys([*_rack_names(file), *listed, *(h.rack for h in hosts)])
    return Fleet(
        name=file.name,
        racks=tuple(fleet.Rack(n, (listed.get(n) or RackEntry(name=n)).uplink_bytes_per_s) for n in names),
        hosts=hosts,
        image_servers=tuple(_image_servers(file)),
        network=fleet.Network(file.network.controller_bytes_per_s, file.network.host_bytes_per_s),
        volume=fleet.Volume(file.volume.bandwidth_bytes_per_s, file.volume.size_bytes),
        control_plane=_control_plane(file),
        budgets=tuple(fleet.Budget(b.namespace, b.name, b.selector, b.min_available, b.max_unavailable)
                      for b in file.budgets),
        person=fleet.Person(file.operator.reboots, file.operator.releases, file.operator.release,
                            file.operator.after_s),
    )


def _control_plane(file: FleetFile) -> tuple[fleet.ControlPlaneNode, ...]:
    return tuple(fleet.ControlPlaneNode(f"cp{i + 1}", f"10.0.0.{10 + i}") for i in range(file.control_plane))


class _Placed(NamedTuple):
    """A host of the file, generated or explicit, and where its name and its pods stand."""

    name: str
    rack: str
    template: HostTemplate
    dpus: Sequence[DpuEntry]
    ip: str | None
    at: tuple[str | int, ...]
    pods_at: tuple[str | int, ...]

    def pod(self, pod: PodEntry) -> str:
        """The name of a pod; those that all generated hosts have end with the host's."""
        return f"{pod.name}-{self.name}" if self.pods_at[0] == "generate" else pod.name


def _placed(file: FleetFile) -> Iterator[_Placed]:
    explicit = {h.name: (i, h) for i, h in enumerate(file.hosts)}
    gen = file.generate
    number = 0
    for rack in _rack_names(file):
        assert gen is not None
        for _ in range(gen.hosts_per_rack):
            number += 1
            name = f"{gen.host_name}{number}"
            found = explicit.pop(name, None)
            if found is None:
                yield _Placed(name, rack, gen.host, [gen.dpu] * gen.dpus_per_host, None, ("generate", "host_name"),
                              ("generate", "host", "pods"))
                continue
            i, own = found
            given = own.model_fields_set & HostTemplate.model_fields.keys()
            yield _Placed(name, own.rack or rack, gen.host.model_copy(update={n: getattr(own, n) for n in given}),
                          [gen.dpu] * gen.dpus_per_host if own.dpus is None else own.dpus, own.ip, ("hosts", i, "name"),
                          ("hosts", i, "pods") if "pods" in given else ("generate", "host", "pods"))
    for i, own in explicit.values():
        yield _Placed(own.name, own.rack or "r1", own, [DpuEntry()] if own.dpus is None else own.dpus, own.ip,
                      ("hosts", i, "name"), ("hosts", i, "pods"))


def _host(host: _Placed, index: int) -> Host:
    name, rack, template = host.name, host.rack, host.template
    pods = tuple(fleet.Pod(p.namespace, host.pod(p), p.labels, p.grace_s, p.controller) for p in template.pods)
    cards = tuple(_card(name, rack, index, i, dpu) for i, dpu in enumerate(host.dpus))
    return Host(name, rack, index, host.ip or _address(10, 64, index), cards, template.labels, template.annotations,
                template.kubernetes, template.oob_bridge, template.reboot, template.reboot_script, pods)


def _card(host: str, rack: str, host_index: int, index: int, dpu: DpuEntry) -> Card:
    pci = _pci(dpu, index)
    model = MODELS.get(dpu.model)  # None: the fleet gives its own
    name = f"{host}-{pci}"
    place = host_index * len(PCI_BUSES) + index
    return Card(
        name=name, host=host, rack=rack, index=index, pci=pci, model=dpu.model,
        opn=dpu.opn or (model.opn if model else dpu.model),
        psid=dpu.psid or (model.psid if model else "MT_0000000000"),
        serial=dpu.serial or f"MT{int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), 'big') % 10**12:012d}",
        cores=dpu.cores or (model.capacity.cores if model else 1),
        memory_bytes=dpu.memory_bytes or (model.capacity.memory_gb if model else 1) * fleet.GI,
        pf0=dpu.pf0 or f"ens{index + 1}f0np0", pfs=dpu.pfs,
        oob_ip=dpu.oob_ip or _address(10, 80, place), bmc_ip=dpu.bmc_ip or _address(10, 112, place),
        firmware=dpu.firmware, fw_reset=dpu.fw_reset, pci_rescan=dpu.pci_rescan,
    )


def _pci(dpu: DpuEntry, index: int) -> str:
    pci = (dpu.pci or f"{PCI_BUSES[index]}-00").lower()
    return pci if len(pci) > 5 else f"0000-{pci}"


def _address(first: int, second: int, index: int) -> str:
    """The index-th address of a /12 that begins at first.second.0.1; no .0 and no .255."""
    block, low = divmod(index, 254)
    return f"{first}.{second + block // 256}.{block % 256}.{low + 1}"


def _image_servers(file: FleetFile) -> Iterator[fleet.ImageServer]:
    if file.image_servers is None:
        yield fleet.ImageServer("any", "http", 1.25e8)
        return
    for server in file.image_servers:
        files = None if server.files is None else {
            path.lstrip("/"): _image(path.lstrip("/"), server.url, entry) for path, entry in server.files.items()}
        yield fleet.ImageServer(server.name, server.url, server.bandwidth_bytes_per_s, files)


def _image(path: str, url: str, entry: ImageEntry) -> fleet.ImageFile:
    usual = fleet.default_image(path, f"{url.rstrip('/')}/{path}")
    given = {k: v for k, v in entry.versions.model_dump().items() if v is not None}
    return fleet.ImageFile(path, entry.size_bytes, entry.content or usual.content, {**usual.versions, **given},
                           entry.firmware or usual.firmware)
