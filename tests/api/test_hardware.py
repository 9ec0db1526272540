"""Emulated hardware, end to end: the wire, the namespaces, the image server and the join are real."""

from __future__ import annotations

import base64
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backends"))

from lab_parts import need_root, planes, programs
from test_join import a_token, command

from api.hardware import Hardware
from twin.backends.base import DmsTarget, Operation, RpcError
from twin.backends.bfb import LiveVolume
from twin.backends.dms import LiveDms
from twin.backends.kube import LiveClusters, LiveKube
from twin.backends.lab.certificates import Pair, authority, issue
from twin.backends.lab.control_plane import DPU_CLUSTER_CONTROLLERS, ControlPlane, ControlPlanes, join_objects
from twin.backends.lab.image_server import ImageProxy
from twin.backends.lab.join import Joins
from twin.backends.lab.lab import on_loopback, wiring
from twin.backends.lab.netns import Namespaces
from twin.backends.netlink import LiveNetlink
from twin.model import bfcfg, fleet_file, timing_profile
from twin.model import dms_commands as commands
from twin.model.core import Node
from twin.model.fleet import Fleet, Host
from twin.model.meta import Key, ObjectMeta
from twin.model.provisioning import DpuFlavorSpec
from twin.model.timing import Timing

__all__ = ["planes", "programs"]

pytestmark = pytest.mark.slow

CA = authority("dms")
CLIENT = issue(CA, "client")
URL = "http://bfb.example.com/bf-bundle-3.0.0-135.bfb"


class Bench:
    """A lab's hardware and the live backends in front of it."""

    def __init__(self, folder: Path, kube: LiveKube, speed: float) -> None:
        self.fleet: Fleet = on_loopback(fleet_file.from_data({
            "apiVersion": "dpf-twin/v1", "name": "lab", "generate": {"racks": 1, "hosts_per_rack": 2},
            "image_servers": [{"name": "bfb", "url": "http://bfb.example.com/",
                               "bandwidth_bytes_per_s": 1.25e9}]}), block=203)
        self.said: list[str] = []
        self.kube = kube
        (folder / "bfb").mkdir()
        self.namespaces = Namespaces(folder)
        self.joins = Joins(self.joined, self.said.append)
        self.volume = LiveVolume(folder / "bfb")
        self.proxy = ImageProxy(self.fleet, speed=speed)
        self.namespaces.make(wiring(self.fleet.hosts))
        self.hardware = Hardware(
            self.fleet, Timing(timing_profile.default(), 1), identity=self.identity, join=self.joins.ask,
            folder=folder, volume=folder / "bfb", speed=speed, namespaces=self.namespaces, say=self.said.append)
        data = {"tls.crt": CLIENT.certificate, "tls.key": CLIENT.key, "ca.crt": CA.certificate}
        secret = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        self.dms = LiveDms(lambda key: secret, locate=self.volume.locate)

    def identity(self, host: Host) -> Callable[[], tuple[Pair, str]]:
        return lambda: (issue(CA, host.name, addresses=(host.ip,)), CA.certificate)

    def joined(self, name: str, server: str, config: str) -> None:
        LiveClusters().connect(config).create(Node(metadata=ObjectMeta(name=name)))

    def target(self, index: int = 0) -> DmsTarget:
        return DmsTarget(self.fleet.hosts[index].ip, 9339, Key("ns", "client"))

    def close(self) -> None:
        self.dms.close()
        self.hardware.close()
        self.proxy.close()
        self.volume.close()
        assert self.namespaces.remove() == []


@pytest.fixture(scope="module")
def dpu_cluster(planes: ControlPlanes) -> ControlPlane:
    return planes.start("dpu-hardware", controllers=DPU_CLUSTER_CONTROLLERS)


@pytest.fixture
def admin(dpu_cluster: ControlPlane) -> LiveKube:
    kube = LiveClusters().connect(dpu_cluster.kubeconfig_text)
    for manifest in join_objects(dpu_cluster):
        kube.apply(manifest, "test", force=True)
    return kube


@pytest.fixture
def bench(tmp_path: Path, admin: LiveKube, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    need_root()
    bench = Bench(tmp_path, admin, speed=400.0)
    monkeypatch.setenv("http_proxy", bench.proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield bench
    bench.close()


def ended(op: Operation) -> Any:
    done = threading.Event()
    op.callbacks.append(lambda _: done.set())
    assert op.finished or done.wait(60), f"{op.name} did not end"
    if op.error is not None:
        raise op.error
    return op.value


def eventually(true: Callable[[], bool], within_s: float = 40.0, said: Sequence[str] = ()) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def test_a_dpu_is_installed_rebooted_networked_and_joins(bench: Bench, admin: LiveKube,
                                                         dpu_cluster: ControlPlane) -> None:
    host = bench.fleet.hosts[0]
    card = host.cards[0]
    machine = bench.hardware.machines.machine(host.name)
    assert machine is not None
    machine.start_dmsd()
    eventually(lambda: bench.hardware.switches.servers[f"dms/{host.name}"].serving)

    assert ended(bench.volume.download(URL, "/bfb/a.bfb", "/bfb/temp")) == "/bfb/a.bfb"
    wanted = command(dpu_cluster, a_token(admin, "ffffff"))
    line = (f"kubeadm join {wanted.server} --token {wanted.token} "
            f"--discovery-token-ca-cert-hash {wanted.hashes[0]} --v=5")
    cfg = f"{card.name}-uid.cfg"
    bench.volume.write(f"/bfb/{cfg}", bfcfg.render(
        DpuFlavorSpec(), hostname=card.name, join_command=line, number_of_pfs=2))
    ended(bench.dms.os_install(bench.target(), "a.bfb", "/bfb/a.bfb"))
    ended(bench.dms.os_install(bench.target(), cfg, f"/bfb/{cfg}"))
    ended(bench.dms.os_activate(bench.target(), f"a.bfb;{cfg}"))
    eventually(lambda: ended(bench.dms.reboot_status(bench.target())) == (False, "SUCCESS"))

    ended(bench.dms.command(bench.target(), commands.host_network_setup(4, card.pci, 1500)))
    netlink = LiveNetlink(bench.namespaces.name(host.name))
    eventually(lambda: any(link.master == "br-dpu" and link.name != "eno1" for link in netlink.links().values()))
    netlink.close()
    eventually(lambda: admin.get(Node, Key("", card.name)) is not None, said=bench.said)
    eventually(lambda: (arm := bench.hardware.arms.arm(card.name)) is not None and arm.kubelet_ready)
    assert "".join(bench.said) == "" or all("no JWS signature" in line for line in bench.said)


def test_a_host_that_reboots_takes_its_sockets_and_vfs_with_it(bench: Bench) -> None:
    host = bench.fleet.hosts[1]
    machine = bench.hardware.machines.machine(host.name)
    assert machine is not None
    machine.start_dmsd()
    servers = bench.hardware.switches.servers
    eventually(lambda: servers[f"dms/{host.name}"].serving and servers[f"kubelet/{host.name}"].serving)
    ended(bench.dms.command(bench.target(1), commands.host_network_setup(4, host.cards[0].pci, 1500)))
    sysfs = bench.namespaces.sysfs(next(w for w in wiring(bench.fleet.hosts) if w.name == host.name))
    pci = commands.pci_address(host.cards[0].pci)
    eventually(lambda: sysfs.number_of_vfs(f"{pci}.0") == 4)
    ended(bench.dms.command(bench.target(1), commands.power("cycle")))
    eventually(lambda: not servers[f"kubelet/{host.name}"].serving)
    with pytest.raises(RpcError, match="connection refused"):
        bench.dms.dial(bench.target(1))
    eventually(lambda: sysfs.number_of_vfs(f"{pci}.0") == 0)
    eventually(lambda: servers[f"kubelet/{host.name}"].serving)
    machine.configure_vf()
    machine.start_dmsd()
    eventually(lambda: sysfs.number_of_vfs(f"{pci}.0") == 4)
    eventually(lambda: servers[f"dms/{host.name}"].serving)
    assert commands.uptime_s(bench.dms.get(bench.target(1), commands.UPTIME)) < 86_400


def test_a_black_hole_takes_the_place_of_dms_and_gives_it_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    host = bench.fleet.hosts[0]
    machine = bench.hardware.machines.machine(host.name)
    assert machine is not None
    machine.start_dmsd()
    servers = bench.hardware.switches.servers
    eventually(lambda: servers[f"dms/{host.name}"].serving)
    bench.hardware.world.call(lambda: bench.hardware.dms.unreachable(host.name, "black-hole"))
    eventually(lambda: servers[f"hole/{host.name}"].serving)
    with monkeypatch.context() as patch:
        patch.setattr("twin.backends.dms.DIAL_S", 0.5)
        with pytest.raises(RpcError, match=r"9339: i/o timeout$"):
            bench.dms.dial(bench.target())
    bench.hardware.world.call(lambda: bench.hardware.dms.unreachable(host.name, ""))
    eventually(lambda: servers[f"dms/{host.name}"].serving)
    bench.dms.dial(bench.target())
    assert bench.said == []
