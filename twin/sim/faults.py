"""What each fault of `twin.model.faults` does to a world, and how it heals.

A row per kind: what begins the fault and returns what ends it (nothing for moments). `Lasting` does so for all that
set something on targets; power is counted by the hosts themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from twin.actors.actor import hold
from twin.backends.base import NotFound
from twin.model import faults as f
from twin.model.core import Pod, Secret
from twin.model.dms_commands import board
from twin.model.fleet import default_image
from twin.model.meta import Key, replace
from twin.sim.client import Cache
from twin.sim.clock import ns
from twin.sim.dms_servers import Attempts
from twin.sim.host import SimHost
from twin.sim.runner import touch
from twin.sim.troubles import Heal
from twin.sim.volume import file_of
from twin.sim.world import World

BFB_ROOT: Final = "/bfb"
WEBHOOK_DOWN: Final = "dial tcp 10.96.0.20:443: connect: connection refused"


def begin(world: World, fault: Any, for_s: float | None) -> None:
    """Begin the fault now; it heals after `for_s` seconds (None: a moment, or for ever)."""
    kind = f.kind_name(type(fault))
    target = f.target_text(fault)
    world.trace.fault(world.env.now, kind, target, True)
    heal = EFFECTS[type(fault)](world, fault)
    if heal is None or for_s is None:
        return

    def end() -> None:
        heal()
        world.trace.fault(world.env.now, kind, target, False)

    world.env.call_at(ns(for_s), end)


@dataclass(frozen=True)
class Lasting:
    """A fault that sets a value on each of its targets while it lasts; `twin.sim.troubles` says which value rules.

    The world is any that has `troubles`: a lab's too.
    """

    on: Callable[[Any, Any], Iterable[Any]]
    put: Callable[[Any, Any, Any], object]
    """Tells a target what rules; `healthy` when nothing troubles it any more."""
    value: Callable[[Any], Any] = lambda fault: True
    healthy: Any = False
    every: bool = False
    """Faults that overlap do not rule each other out: `put` is given all their values."""

    def __call__(self, world: Any, fault: Any) -> Heal:
        return all_of([world.troubles.begin((type(fault), target), self.value(fault), self.healthy,
                                            partial(self.put, world, target), every=self.every)
                       for target in self.on(world, fault)])


def all_of(heals: Sequence[Heal]) -> Heal:
    def heal() -> None:
        for one in heals:
            one()

    return heal


def _names(field: str) -> Callable[[World, Any], tuple[str, ...]]:
    return lambda world, fault: f.targets(fault, field, world.fleet)


def _whole(world: World, fault: Any) -> tuple[str, ...]:
    """There is one."""
    return ("",)


def _hosts(world: World, fault: Any) -> list[SimHost]:
    return [world.hosts.hosts[n] for n in f.targets(fault, "host", world.fleet)]


def _attempts(fault: Any) -> Attempts:
    return Attempts(fault.attempts, getattr(fault, "message", ""))


# --- power


def _power(world: World, hosts: Iterable[SimHost]) -> Heal:
    struck = list(hosts)
    for host in struck:
        world.chronicle.fault_began(host, world.env.now)
        world.hosts.power_off(host)
    return all_of([partial(world.hosts.power_on, host) for host in struck])


def _host_power(world: World, fault: f.HostPower) -> Heal:
    return _power(world, _hosts(world, fault))


def _rack_power(world: World, fault: f.RackPower) -> Heal:
    return _power(world, [h for r in f.targets(fault, "rack", world.fleet) for h in world.hosts.rack(r)])


def _host_lost(world: World, fault: f.HostLost) -> Heal:
    hosts = _hosts(world, fault)
    for host in hosts:
        world.retire(host.name)
    return all_of([partial(world.return_to_service, host.name) for host in hosts])


def _host_rebooted(world: World, fault: f.HostRebooted) -> None:
    for host in _hosts(world, fault):
        world.hosts.reboot(host)


def _bridge(world: World, name: str, missing: bool) -> None:
    world.hosts.set_bridge(world.hosts.hosts[name], br_dpu=not missing, default_route=not missing)
    world.machines.changed(name)


# --- DMS and DPUs


def _dms_pod_lost(world: World, fault: f.DmsPodLost) -> None:
    for host in f.targets(fault, "host", world.fleet):
        try:
            world.host_cluster.delete(Pod, Key(world.settings.namespace, f"{host}-dms"), "admin", world.env.now)
        except NotFound:
            continue


def _dpu_reset(world: World, fault: f.DpuReset) -> None:
    for name in f.targets(fault, "dpu", world.fleet):
        world.hosts.reset_dpu(world.hosts.dpus[name])


def _part(world: World, name: str, opn: str | None) -> None:
    dpu = world.hosts.dpus[name]
    own = board(dpu.card)
    dpu.board = own if opn is None else own._replace(part_number=opn, description="unknown")
    touch(world.hosts.readers, dpu.token)


# --- images and the volume


def _nfs(world: World, _: str, down: bool) -> None:
    world.volume.outage(down)
    for host in world.machines.names():
        world.machines.changed(host)


def path_of(name: str) -> str:
    """On the volume."""
    return name if name.startswith("/") else f"{BFB_ROOT}/{name}"


def _bfb_file_removed(world: World, fault: f.BfbFileRemoved) -> None:
    world.volume.put(path_of(fault.file), None)


def _bfb_file_replaced(world: World, fault: f.BfbFileReplaced) -> None:
    world.volume.put(path_of(fault.file), file_of(default_image(fault.content, fault.content)))


# --- control plane


def _kubeconfig_rotated(world: World, fault: f.KubeconfigRotated) -> None:
    for key in world.dpu_clusters:
        if not f.fitting(fault.cluster, [str(key)]):
            continue
        secret_key = Key(key.namespace, f"{key.name}-admin-kubeconfig")
        text = world.rotate(key)
        secret = world.host_cluster.find(Secret, secret_key)
        if secret is not None:
            data = {**secret.data, "admin.conf": world.encoded(text)}
            world.host_cluster.update(replace(secret, data=data), "kamaji", world.env.now)


def _slow_api(world: World, _: str, factor: float) -> None:
    world.host_cluster.slowness = factor
    touch(world.host_cluster.readers, "up")


def _api_errors(world: World, _: str, ruling: tuple[f.ApiErrors, list[int]] | None) -> None:
    """Its requests are counted from the fault's beginning: each draws once."""
    if ruling is None:
        world.host_cluster.flaky = None
        return
    fault, asked = ruling

    def strikes() -> bool:
        asked[0] += 1
        return world.timing.uniform("api-errors", str(asked[0])) < fault.probability

    world.host_cluster.flaky = (strikes, fault.landed)


def _webhooks(world: World, _: str, text: str) -> None:
    if world.webhooks is not None:
        world.webhooks.down = text


def _caches(world: World, fault: Any) -> list[Cache]:
    return world.caches(fault.controller)


def _watch(world: World, cache: Cache, broken: bool) -> None:
    if broken:
        cache.connected = False
    else:
        cache.relist()


def _controller_restart(world: World, fault: f.ControllerRestart) -> None:
    for manager in world.managers.values():
        world.restart(manager.name)


def _two_leaders(world: World, fault: f.TwoLeaders) -> Heal:
    return world.second_leader("provisioning").stop


EFFECTS: Final[dict[type, Callable[[World, Any], Heal | None]]] = {
    f.HostPower: _host_power, f.RackPower: _rack_power, f.HostLost: _host_lost, f.HostRebooted: _host_rebooted,
    f.RebootFails: Lasting(_names("host"), lambda w, h, all_: w.dms.fail_reboots(h, *all_), _attempts, every=True),
    f.BridgeMissing: Lasting(_names("host"), _bridge),
    f.DmsUnreachable: Lasting(_names("host"), lambda w, h, how: w.dms.unreachable(h, how), lambda x: x.how, ""),
    f.DmsSlow: Lasting(_names("host"), lambda w, h, factor: w.dms.slow(h, factor), lambda x: x.factor, 1.0),
    f.DmsError: Lasting(_names("host"), lambda w, h, all_: w.dms.answer_errors(h, *all_),
                        lambda x: (x.code, x.message, x.command), every=True),
    f.DmsPodLost: _dms_pod_lost,
    f.InstallFails: Lasting(_names("dpu"), lambda w, d, all_: w.dms.fail_installs(d, *all_), _attempts, every=True),
    f.NetworkScriptFails: Lasting(_names("dpu"), lambda w, d, all_: w.dms.fail_network(d, *all_), _attempts,
                                  every=True),
    f.JoinFails: Lasting(_names("dpu"), lambda w, d, fails: w.hosts.allow_join(w.hosts.dpus[d], not fails)),
    f.DpuReset: _dpu_reset,
    f.DpuLinkDown: Lasting(_names("dpu"), lambda w, d, down: w.hosts.set_p0(w.hosts.dpus[d], not down)),
    f.PartUnknown: Lasting(_names("dpu"), _part, lambda x: x.opn, None),
    f.ImageServerDown: Lasting(_names("server"), lambda w, s, down: w.volume.server_down(s, down)),
    f.ImageServerSlow: Lasting(_names("server"), lambda w, s, factor: w.volume.server_slow(s, factor),
                               lambda x: x.factor, 1.0),
    f.ImageServerStatus: Lasting(_names("server"), lambda w, s, status: setattr(w.volume.servers[s], "status", status),
                                 lambda x: x.status, 0),
    f.ImageServerWrongContent: Lasting(
        _names("server"), lambda w, s, instead: setattr(w.volume.servers[s], "instead", instead),
        lambda x: x.content, ""),
    f.NfsDown: Lasting(_whole, _nfs), f.BfbFileRemoved: _bfb_file_removed, f.BfbFileReplaced: _bfb_file_replaced,
    f.DpuApiDown: Lasting(_whole, lambda w, _, all_: w.dpu_apis_down(all_), lambda x: x.cluster, every=True),
    f.KubeconfigRotated: _kubeconfig_rotated,
    f.ApiDown: Lasting(_whole, lambda w, _, down: w.host_api_down(down)),
    f.ApiSlow: Lasting(_whole, _slow_api, lambda x: x.factor, 1.0),
    f.ApiErrors: Lasting(_whole, _api_errors, lambda x: (x, [0]), None),
    f.WebhookDown: Lasting(_whole, _webhooks, lambda x: WEBHOOK_DOWN, ""),
    f.WatchBroken: Lasting(_caches, _watch), f.WatchDuplicate: Lasting(
        _caches, lambda w, cache, twice: setattr(cache, "twice", twice)),
    f.ControllerRestart: _controller_restart, f.TwoLeaders: _two_leaders,
    f.PdbStuck: Lasting(lambda w, x: [Key(x.namespace, x.name)], lambda w, key, held: w.hold_budget(key, held)),
    f.JobFails: Lasting(_whole, lambda w, _, all_: setattr(w, "failing_jobs", all_), lambda x: x.name, every=True),
    f.CertificateLate: Lasting(_whole, lambda w, _, held: hold(w.actors["cert-manager"][1], held)),
}


def misses(world: World, fault: Any) -> str:
    """Why the fault would strike nothing now, or '': what no check before the run can know."""
    found = PRESENT.get(type(fault))
    return found[1] if found is not None and not found[0](world, fault) else ""


def _dms_pods(world: World, fault: f.DmsPodLost) -> bool:
    pods = world.host_cluster.table(Pod)
    return any(Key(world.settings.namespace, f"{h}-dms") in pods for h in f.targets(fault, "host", world.fleet))


PRESENT: Final[dict[type, tuple[Callable[[World, Any], object], str]]] = {
    f.DmsPodLost: (_dms_pods, "there is no such DMS pod"),
    f.BfbFileRemoved: (lambda w, x: path_of(x.file) in w.volume.files, "there is no such file"),
    f.KubeconfigRotated: (lambda w, x: f.fitting(x.cluster, map(str, w.dpu_clusters)), "there is no such DPU cluster"),
    f.WatchBroken: (_caches, "no such process runs"), f.WatchDuplicate: (_caches, "no such process runs"),
}
"""Is there anything to strike?"""
