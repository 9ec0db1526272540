"""The hardware of a lab: simulated hosts and DPUs that keep pace with the clock, behind real sockets.

One process holds it all. DMS and pod exec answer on each host's own loopback address; the host network script and
reboots show in real network namespaces; a DPU that comes up joins its cluster's real API server. Time runs `speed`
times as fast for the hardware, and only for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from twin.actors.hosts import Card, Machine
from twin.backends.host_network import NetworkFailed
from twin.backends.lab.certificates import authority, issue
from twin.backends.lab.dms_emulator import BlackHole, DmsServer, Switches
from twin.backends.lab.dms_emulator import Identity as ServerIdentity
from twin.backends.lab.join import JoinCommand
from twin.backends.lab.kubelet import Kubelet, NoContainer
from twin.backends.lab.lab import wiring
from twin.backends.lab.netns import Namespaces
from twin.model import bfb_image
from twin.model.device import Image
from twin.model.fleet import DEFAULT_IMAGE_BYTES, Fleet, Host, ImageFile
from twin.model.meta import Key
from twin.model.provisioning import Taint
from twin.model.timing import Timing
from twin.sim.clock import TwinEnvironment
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimHost
from twin.sim.links import Links
from twin.sim.machines import SimArms, SimMachines
from twin.sim.paced import PacedWorld
from twin.sim.personality import HostPersonality, ReceivedFile
from twin.sim.volume import SimVolume

Join = Callable[[str, JoinCommand], bool]
"""(DPU, its join command) -> did the join come about? Returns at once (`twin.backends.lab.join.Joins.ask`)."""


class Hardware:
    """Everything that is emulated. `machines` and `arms` are what actors see; `world.call` is how to cause trouble.

    `identity` gives a host's DMS its certificate; `volume` is where the BFB volume is mounted.
    """

    def __init__(self, fleet: Fleet, timing: Timing, *, identity: Callable[[Host], ServerIdentity], join: Join,
                 folder: Path, volume: Path, speed: float = 1.0, namespaces: Namespaces | None = None,
                 say: Callable[[str], None] = lambda line: None,
                 observe: Callable[[str, str, str, str], None] | None = None) -> None:
        self.fleet = fleet
        self._join = join
        self._images = {_versions(f): f for s in fleet.image_servers for f in (s.files or {}).values()}
        env = TwinEnvironment()
        links = Links(env)
        self.hosts = Hosts(env, timing, fleet.hosts, join=self._asked, observe=observe, collapse=False)
        self.volume = SimVolume(env, links, fleet.image_servers,
                                bandwidth_bytes_per_s=fleet.volume.bandwidth_bytes_per_s)
        self.dms = SimDms(env, self.hosts, self.volume, links, timing, network=fleet.network, racks=fleet.racks,
                          credentials=lambda key: "")
        self.world = PacedWorld(env, time.monotonic, speed=speed)
        self._sim_machines = SimMachines(self.hosts, self.dms, self.volume, fleet.control_plane)
        self.machines = PacedMachines(self._sim_machines, self.world)
        self.arms = SimArms(self.hosts)
        kubelets = authority("kubelets")
        switched: dict[str, DmsServer | BlackHole | Kubelet] = {}
        for host in fleet.hosts:
            person = HostPersonality(self.world, self.dms, host.name, self._image_of, volume)
            switched[f"dms/{host.name}"] = DmsServer(
                host.name, host.ip, person, identity(host), folder=folder / "hosts" / host.name / "images")
            switched[f"hole/{host.name}"] = BlackHole(host.name, host.ip)
            switched[f"kubelet/{host.name}"] = Kubelet(
                host.ip, issue(kubelets, host.name, addresses=(host.ip,)), _executor(person))
        self.switches = Switches(switched, say)
        self._mirror = NetworkMirror(namespaces, fleet, say) if namespaces is not None else None
        self.world.after = self._follow
        self.world.call(lambda: None)

    def close(self) -> None:
        """End the world, then the servers."""
        self.world.stop()
        self.switches.close()
        if self._mirror is not None:
            self._mirror.close()

    @property
    def retired(self) -> Mapping[str, None]:
        """Hosts out of service."""
        return self._sim_machines.retired

    def retire(self, host: str) -> None:
        """The host is taken away: it goes dark, and its kubelet is not heard again."""
        def away() -> None:
            self._sim_machines.retired[host] = None
            self.hosts.power_off(self.hosts.hosts[host])
        self.world.call(away)

    def return_to_service(self, host: str) -> None:
        """It boots, and its kubelet registers it anew."""
        def back() -> None:
            self._sim_machines.retired.pop(host, None)
            self.hosts.power_on(self.hosts.hosts[host])
        self.world.call(back)

    def _follow(self) -> None:
        """In the world's thread, whenever something may have changed: sockets and namespaces follow the hosts."""
        for name, server in self.dms.servers.items():
            up = server.host.up
            answers = up and server.running and not server.refused and not server.black_hole
            self.switches.want_all({f"dms/{name}": answers, f"hole/{name}": up and server.black_hole,
                                    f"kubelet/{name}": up})
            if self._mirror is not None:
                self._mirror.show(server.host)

    def _asked(self, name: str, token: str, server: str) -> bool:
        return self._join(name, JoinCommand(server, token, ()))

    def _image_of(self, file: ReceivedFile) -> Image | None:
        """The image in a received file, with the nominal size of the fleet's file of these versions."""
        if file.path is None:
            return None
        with file.path.open("rb") as opened:
            try:
                versions, firmware = bfb_image.versions(opened), bfb_image.firmware_of(opened)
            except bfb_image.BadImage:
                return None
        named = self._images.get(versions.bsp)
        if named is not None:
            return Image(named.content, named.size_bytes, versions, firmware)
        # Only the lab's image server leaves a firmware version in an image, and its files stand for large ones.
        return Image(file.md5, DEFAULT_IMAGE_BYTES if firmware else file.size, versions, firmware)


def _versions(file: ImageFile) -> str:
    return file.versions.get("bsp", "")


def _executor(person: HostPersonality) -> Callable[[Key, str, Sequence[str]], tuple[int, str]]:
    def execute(pod: Key, container: str, command: Sequence[str]) -> tuple[int, str]:
        answer = person.execute(pod, command) if container == "dms" else None
        if answer is None:
            raise NoContainer
        return answer

    return execute


class PacedMachine:
    """A machine for actors on other threads: facts are read as they are, verbs run in the world's thread."""

    def __init__(self, machine: Machine, world: PacedWorld) -> None:
        self._machine = machine
        self._world = world

    @property
    def name(self) -> str:
        return self._machine.name

    @property
    def address(self) -> str:
        return self._machine.address

    @property
    def labels(self) -> Mapping[str, str]:
        return self._machine.labels

    @property
    def annotations(self) -> Mapping[str, str]:
        return self._machine.annotations

    @property
    def taints(self) -> Sequence[Taint]:
        return self._machine.taints

    @property
    def up(self) -> bool:
        return self._machine.up

    @property
    def boot_id(self) -> str:
        return self._machine.boot_id

    @property
    def cards(self) -> Sequence[Card]:
        return self._machine.cards

    @property
    def rshim_taken(self) -> bool:
        return self._machine.rshim_taken

    @property
    def oob_bridge(self) -> bool:
        return self._machine.oob_bridge

    @property
    def volume_mounted(self) -> bool:
        return self._machine.volume_mounted

    def configure_vf(self) -> None:
        self._world.call(self._machine.configure_vf)

    def start_dmsd(self) -> None:
        self._world.call(self._machine.start_dmsd)

    def stop_dmsd(self) -> None:
        self._world.call(self._machine.stop_dmsd)


class PacedMachines:
    """`twin.actors.hosts.Hosts` over the simulated ones. Subscribers are called in the world's thread."""

    def __init__(self, machines: SimMachines, world: PacedWorld) -> None:
        self._machines = machines
        self._world = world

    def names(self) -> Sequence[str]:
        return self._machines.names()

    def machine(self, name: str) -> Machine | None:
        found = self._machines.machine(name)
        return None if found is None else PacedMachine(found, self._world)

    def subscribe(self, changed: Callable[[str], None]) -> None:
        self._machines.subscribe(changed)

    def changed(self, name: str) -> None:
        """What kubelets and NFD see of this host has changed. Called in the world's thread."""
        self._machines.changed(name)


class NetworkMirror:
    """Makes the namespaces of hosts look as their simulated hosts do: VFs, VF 0 in br-dpu, MTU; a thread of its own."""

    def __init__(self, namespaces: Namespaces, fleet: Fleet, say: Callable[[str], None]) -> None:
        self._namespaces = namespaces
        self._wiring = {w.name: w for w in wiring(fleet.hosts)}
        self._say = say
        self._shown: dict[str, tuple[object, ...]] = {}
        self._queue: queue.SimpleQueue[tuple[str, dict[str, int], list[str], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="network-mirror", daemon=True)
        self._thread.start()

    def show(self, host: SimHost) -> None:
        """Called in the world's thread; returns at once."""
        state = (tuple(host.vfs.items()), tuple(host.bridged), host.mtu)
        if self._shown.get(host.name) != state:
            self._shown[host.name] = state
            self._queue.put((host.name, dict(host.vfs), list(host.bridged), host.mtu))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (wanted := self._queue.get()) is not None:
            name, vfs, bridged, mtu = wanted
            try:
                self._apply(name, vfs, bridged, mtu)
            except (OSError, NetworkFailed) as error:
                self._say(f"{name}: {error}")

    def _apply(self, name: str, vfs: Mapping[str, int], bridged: Sequence[str], mtu: int) -> None:
        host = self._wiring[name]
        sysfs = self._namespaces.sysfs(host)
        if not vfs and any(sysfs.number_of_vfs(f"{card.pci}.0") for card in host.cards):
            self._namespaces.boot(host)
        netlink, network = self._namespaces.network(host, rest=lambda seconds: None)
        try:
            saved = network.saved()
            for card in host.cards:
                if card.pci in bridged:
                    network.set_up(card.pci, vfs[card.pci], mtu)
                elif card.pci in saved and vfs:
                    network.delete(card.pci)
        finally:
            netlink.close()
