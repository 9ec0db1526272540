"""Hardware for contract tests: what stands behind the simulated and behind the emulated DMS and kubelets."""

from __future__ import annotations

from twin.model import fleet_file, timing_profile
from twin.model.fleet import Fleet
from twin.model.timing import Timing
from twin.sim.clock import TwinEnvironment
from twin.sim.dms import SimDms
from twin.sim.host import Hosts
from twin.sim.links import Links
from twin.sim.volume import SimVolume

BFB = "bf-bundle-3.0.0-135.bfb"


class World:
    """Two hosts with one DPU each, their DMS, and the volume."""

    def __init__(self) -> None:
        self.fleet: Fleet = fleet_file.from_data({
            "apiVersion": "dpf-twin/v1", "name": "pair",
            "generate": {"racks": 1, "hosts_per_rack": 2, "dpus_per_host": 1}})
        self.env = TwinEnvironment()
        timing = Timing(timing_profile.default(), 1)
        self.hosts = Hosts(self.env, timing, self.fleet.hosts, join=lambda name, token, server: False)
        links = Links(self.env)
        self.volume = SimVolume(self.env, links, (), bandwidth_bytes_per_s=self.fleet.volume.bandwidth_bytes_per_s)
        self.dms = SimDms(self.env, self.hosts, self.volume, links, timing, network=self.fleet.network,
                          racks=self.fleet.racks, credentials=lambda key: "")
        self.names = [h.name for h in self.fleet.hosts]
