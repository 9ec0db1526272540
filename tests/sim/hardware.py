"""A small fleet's hardware for tests: fixed times, no latency, everything by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twin.backends.base import DmsTarget, Operation
from twin.model import bfcfg, fleet_file, timing_profile
from twin.model.fleet import DMS_PORT, Fleet
from twin.model.meta import Key
from twin.model.provisioning import DpuFlavorSpec, NvConfig
from twin.model.timing import Fixed, Timing
from twin.sim.clock import TwinEnvironment, ns
from twin.sim.dms import SimDms
from twin.sim.host import Hosts, SimDpu, SimHost
from twin.sim.links import Link, Links
from twin.sim.runner import Meter
from twin.sim.volume import SimVolume

SECRET = Key("dpf-operator-system", "dpf-provisioning-client-secret")
POD_NAMESPACE = "dpf-operator-system"
FLAVOR = DpuFlavorSpec(bfcfg_parameters=("WITH_NIC_FW_UPDATE=yes",),
                       nvconfig=(NvConfig(parameters=("PF_TOTAL_SF=20",)),))
JOIN = "kubeadm join 10.0.0.1:6443 --token abcdef.0123456789abcdef"
BFB = "/bfb/ns-bf-bundle.bfb"

SECONDS = {
    "os-install": 600, "dpu-boot": 120, "arm-shutdown": 30, "fw-reset": 20, "host-reboot": 300, "host-drop": 2,
    "host-power-cycle": 400, "host-network-script": 10, "host-network-delete": 2, "dpu-join": 25, "cni-ready": 60,
    "join-retry": 5, "os-verify": 6, "dms-connect-timeout": 5, "host-network-wait": 50,
}


class Rig:
    """Hosts, volume, links and DMS of a fleet, with `SECONDS` and what `times` overrides."""

    def __init__(self, *, hosts: int = 1, dpus: int = 1, racks: int = 1, collapse: bool = True,
                 template: dict[str, Any] | None = None, first_dpu_only: bool = False, **times: float) -> None:
        profile = timing_profile.named("fixed")
        changed = {name.replace("_", "-"): seconds for name, seconds in times.items()}
        operations = {name: replace(o, takes=Fixed(float({**SECONDS, **changed}.get(name, 0.0))), fails=0.0)
                      for name, o in profile.operations.items()}
        self.fleet: Fleet = fleet_file.from_data({"generate": {
            "racks": racks, "hosts_per_rack": hosts, "dpus_per_host": dpus, **(template or {})}})
        self.env = TwinEnvironment()
        self.timing = Timing(replace(profile, operations=operations), 1)
        self.links = Links(self.env)
        self.log: list[tuple[float, str, str]] = []
        self.joins: list[tuple[float, str, str]] = []
        self.join_works = True
        self.credentials = ""
        uplink = Link("controller", self.fleet.network.controller_bytes_per_s)
        self.volume = SimVolume(self.env, self.links, self.fleet.image_servers, reader_link=uplink,
                                bandwidth_bytes_per_s=self.fleet.volume.bandwidth_bytes_per_s,
                                size_bytes=self.fleet.volume.size_bytes)
        self.hosts = Hosts(self.env, self.timing, self.fleet.hosts, join=self._join, observe=self._note,
                           collapse=collapse)
        self.dms = SimDms(self.env, self.hosts, self.volume, self.links, self.timing, network=self.fleet.network,
                          racks=self.fleet.racks, credentials=lambda _: self.credentials, controller_link=uplink,
                          first_dpu_only=first_dpu_only)
        self.meter = Meter("dpu")
        self.client = self.dms.client(self.meter)
        self.files = self.volume.client(self.meter)
        self.url = self.fleet.image_servers[0].url.rstrip("/")

    @property
    def host(self) -> SimHost:
        return next(iter(self.hosts.hosts.values()))

    @property
    def dpu(self) -> SimDpu:
        return next(iter(self.hosts.dpus.values()))

    def target(self, host: SimHost | None = None) -> DmsTarget:
        return DmsTarget((host or self.host).ip, DMS_PORT, SECRET)

    def pod(self, host: SimHost | None = None) -> Key:
        return Key(POD_NAMESPACE, f"{(host or self.host).name}-dms")

    def start(self) -> None:
        """Every dmsd runs, and the BFB is on the volume."""
        self.wait(self.files.download(f"{self.url}/bf-bundle-3.0.0-135.bfb", BFB, "/bfb/temp"))
        for name in self.hosts.hosts:
            self.dms.start(name)

    def wait(self, op: Operation) -> Any:
        """Run until the operation has ended; its value, or its error raised."""
        while not op.finished:
            self.env.step()
        if op.error is not None:
            raise op.error
        return op.value

    def seconds(self, s: float) -> None:
        self.env.run(until=self.env.now + ns(s))

    def send(self, dpu: SimDpu | None = None, **changes: Any) -> str:
        """Stream BFB and bf.cfg; returns the version to activate."""
        dpu = dpu or self.dpu
        target = self.target(dpu.host)
        cfg = f"{dpu.name}-uid.cfg"
        content = bfcfg.render(FLAVOR, **{"hostname": dpu.name, "join_command": JOIN, "number_of_pfs": 2, **changes})
        self.files.write(f"/bfb/{cfg}", content)
        self.wait(self.client.os_install(target, "ns-bf-bundle.bfb", BFB))
        self.wait(self.client.os_install(target, cfg, f"/bfb/{cfg}"))
        return f"ns-bf-bundle.bfb;{cfg}"

    def install(self, dpu: SimDpu | None = None, **changes: Any) -> None:
        """A whole OS install that succeeds."""
        dpu = dpu or self.dpu
        version = self.send(dpu, **changes)
        target = self.target(dpu.host)
        self.wait(self.client.os_activate(target, version))
        assert self.wait(self.client.reboot_ended(target, version)) == (False, "SUCCESS")

    def _join(self, name: str, token: str, server: str) -> bool:
        self.joins.append((self.env.now_s, name, token))
        return self.join_works

    def _note(self, change: str, host: str, dpu: str, detail: str) -> None:
        self.log.append((self.env.now_s, change, dpu or host))
