"""What each fault of `twin.model.faults` does to a world, and how it heals.

A row per kind: a function that begins the fault and returns what ends it (nothing for moments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from twin.backends.base import NotFound
from twin.model import faults as f
from twin.model.core import Pod, Secret
from twin.model.fleet import default_image
from twin.model.meta import Key, replace
from twin.sim.clock import ns
from twin.sim.host import SimHost
from twin.sim.kube import ApiServer
from twin.sim.runner import touch
from twin.sim.volume import file_of
from twin.sim.world import World

Heal = Callable[[], None]
T = TypeVar("T")
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


def _each(items: Iterable[T], do: Callable[[T], object]) -> Heal:
    """Does this to every item, later."""

    def heal() -> None:
        for item in items:
            do(item)

    return heal


def _names(world: World, fault: Any, field: str) -> tuple[str, ...]:
    return f.targets(fault, field, world.fleet)


def _hosts(world: World, fault: Any) -> list[SimHost]:
    return [world.hosts.hosts[n] for n in _names(world, fault, "host")]


# --- power


def _power(world: World, hosts: Iterable[SimHost]) -> Heal:
    struck = list(hosts)
    for host in struck:
        world.chronicle.fault_began(host, world.env.now)
        world.hosts.power_off(host)
    return _each(struck, lambda h: world.hosts.power_on(h))


def _host_power(world: World, fault: f.HostPower) -> Heal:
    return _power(world, _hosts(world, fault))


def _rack_power(world: World, fault: f.RackPower) -> Heal:
    return _power(world, [h for r in _names(world, fault, "rack") for h in world.hosts.rack(r)])


def _host_lost(world: World, fault: f.HostLost) -> Heal:
    hosts = _hosts(world, fault)
    for host in hosts:
        world.retire(host.name)
    return _each(hosts, lambda h: world.return_to_service(h.name))


def _host_rebooted(world: World, fault: f.HostRebooted) -> None:
    for host in _hosts(world, fault):
        world.hosts.reboot(host)


def _reboot_fails(world: World, fault: f.RebootFails) -> Heal:
    hosts = _names(world, fault, "host")
    for host in hosts:
        world.dms.fail_reboots(host, fault.attempts)
    return _each(hosts, lambda h: world.dms.heal_attempts(h))


def _bridge_missing(world: World, fault: f.BridgeMissing) -> Heal:
    hosts = _hosts(world, fault)

    def put(there: bool) -> None:
        for host in hosts:
            world.hosts.set_bridge(host, br_dpu=there, default_route=there)
            world.machines.changed(host.name)

    put(False)
    return lambda: put(True)


# --- DMS and DPUs


def _dms_unreachable(world: World, fault: f.DmsUnreachable) -> Heal:
    hosts = _names(world, fault, "host")
    for host in hosts:
        world.dms.unreachable(host, fault.how)
    return _each(hosts, lambda h: world.dms.unreachable(h, ""))


def _dms_slow(world: World, fault: f.DmsSlow) -> Heal:
    hosts = _names(world, fault, "host")
    for host in hosts:
        world.dms.slow(host, fault.factor)
    return _each(hosts, lambda h: world.dms.slow(h, 1.0))


def _dms_error(world: World, fault: f.DmsError) -> Heal:
    hosts = _names(world, fault, "host")
    for host in hosts:
        world.dms.answer_error(host, fault.code, fault.message, fault.command)
    return _each(hosts, lambda h: world.dms.answer_error(h))


def _dms_pod_lost(world: World, fault: f.DmsPodLost) -> None:
    for host in _names(world, fault, "host"):
        try:
            world.host_cluster.delete(Pod, Key(world.settings.namespace, f"{host}-dms"), "admin", world.env.now)
        except NotFound:
            continue


def _install_fails(world: World, fault: f.InstallFails) -> Heal:
    dpus = _names(world, fault, "dpu")
    for dpu in dpus:
        world.dms.fail_installs(dpu, fault.attempts, fault.message)
    return _each(dpus, lambda d: world.dms.heal_attempts(d))


def _network_script_fails(world: World, fault: f.NetworkScriptFails) -> Heal:
    dpus = _names(world, fault, "dpu")
    for dpu in dpus:
        world.dms.fail_network(dpu, fault.attempts)
    return _each(dpus, lambda d: world.dms.heal_attempts(d))


def _join_fails(world: World, fault: f.JoinFails) -> Heal:
    dpus = [world.hosts.dpus[n] for n in _names(world, fault, "dpu")]
    for dpu in dpus:
        world.hosts.allow_join(dpu, False)
    return _each(dpus, lambda d: world.hosts.allow_join(d, True))


def _dpu_reset(world: World, fault: f.DpuReset) -> None:
    for name in _names(world, fault, "dpu"):
        world.hosts.reset_dpu(world.hosts.dpus[name])


def _dpu_link_down(world: World, fault: f.DpuLinkDown) -> Heal:
    dpus = [world.hosts.dpus[n] for n in _names(world, fault, "dpu")]
    for dpu in dpus:
        world.hosts.set_p0(dpu, False)
    return _each(dpus, lambda d: world.hosts.set_p0(d, True))


def _part_unknown(world: World, fault: f.PartUnknown) -> Heal:
    dpus = [world.hosts.dpus[n] for n in _names(world, fault, "dpu")]
    boards = [d.board for d in dpus]

    def put(replacements: Iterable[Any]) -> None:
        for dpu, board in zip(dpus, replacements, strict=True):
            dpu.board = board
            touch(world.hosts.readers, ("device", dpu.name))

    put([b._replace(part_number=fault.opn, description="unknown") for b in boards])
    return lambda: put(boards)


# --- images and the volume


def _image_server(change: Callable[[World, str, Any], None], heal: Callable[[World, str], None],
                  ) -> Callable[[World, Any], Heal]:
    def effect(world: World, fault: Any) -> Heal:
        servers = _names(world, fault, "server")
        for name in servers:
            change(world, name, fault)
        return _each(servers, lambda n: heal(world, n))

    return effect


def _answer(world: World, name: str, *, status: int = 0, instead: str = "") -> None:
    server = world.volume.servers[name]
    server.status, server.instead = status, instead


def _nfs_down(world: World, fault: f.NfsDown) -> Heal:
    def put(down: bool) -> None:
        world.volume.outage(down)
        for host in world.machines.names():
            world.machines.changed(host)

    put(True)
    return lambda: put(False)


def _path(name: str) -> str:
    return name if name.startswith("/") else f"{BFB_ROOT}/{name}"


def _bfb_file_removed(world: World, fault: f.BfbFileRemoved) -> None:
    world.volume.put(_path(fault.file), None)


def _bfb_file_replaced(world: World, fault: f.BfbFileReplaced) -> None:
    world.volume.put(_path(fault.file), file_of(default_image(fault.content, fault.content)))


# --- control plane


def _down(world: World, servers: list[ApiServer], down: bool) -> None:
    for server in servers:
        server.down = down
        touch(server.readers, "up")
    if not down:
        world.hosts.join_may_succeed()


def _dpu_api_down(world: World, fault: f.DpuApiDown) -> Heal:
    servers = [s for k, s in world.dpu_clusters.items() if f.fitting(fault.cluster, [str(k)])]
    _down(world, servers, True)
    return lambda: _down(world, servers, False)


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


def _api_down(world: World, fault: f.ApiDown) -> Heal:
    world.host_api_down(True)

    def heal() -> None:
        world.host_api_down(False)
        world.hosts.join_may_succeed()

    return heal


def _api_slow(world: World, fault: f.ApiSlow) -> Heal:
    def put(factor: float) -> None:
        world.host_cluster.slowness = factor
        touch(world.host_cluster.readers, "up")

    put(fault.factor)
    return lambda: put(1.0)


def _api_errors(world: World, fault: f.ApiErrors) -> Heal:
    server, asked = world.host_cluster, [0]

    def strikes() -> bool:
        asked[0] += 1
        return world.timing.uniform("api-errors", str(asked[0])) < fault.probability

    server.flaky = (strikes, fault.landed)

    def heal() -> None:
        server.flaky = None

    return heal


def _webhook_down(world: World, fault: f.WebhookDown) -> Heal:
    hooks = world.webhooks

    def put(text: str) -> None:
        if hooks is not None:
            hooks.down = text

    put(WEBHOOK_DOWN)
    return lambda: put("")


def _watch_broken(world: World, fault: f.WatchBroken) -> Heal:
    caches = world.caches(fault.controller)
    for cache in caches:
        cache.connected = False
    return _each(caches, lambda c: c.relist())


def _watch_duplicate(world: World, fault: f.WatchDuplicate) -> Heal:
    caches = world.caches(fault.controller)
    for cache in caches:
        cache.twice = True

    def heal() -> None:
        for cache in caches:
            cache.twice = False

    return heal


def _controller_restart(world: World, fault: f.ControllerRestart) -> None:
    for manager in world.managers.values():
        world.restart(manager.name)


def _two_leaders(world: World, fault: f.TwoLeaders) -> Heal:
    second = world.second_leader("provisioning")
    return second.stop


def _pdb_stuck(world: World, fault: f.PdbStuck) -> Heal:
    return world.hold_budget(Key(fault.namespace, fault.name))


def _job_fails(world: World, fault: f.JobFails) -> Heal:
    world.failing_jobs.append(fault.name)
    return lambda: world.failing_jobs.remove(fault.name)


def _certificate_late(world: World, fault: f.CertificateLate) -> Heal:
    return world.hold_actor("cert-manager")


EFFECTS: Final[dict[type, Callable[[World, Any], Heal | None]]] = {
    f.HostPower: _host_power, f.RackPower: _rack_power, f.HostLost: _host_lost, f.HostRebooted: _host_rebooted,
    f.RebootFails: _reboot_fails, f.BridgeMissing: _bridge_missing, f.DmsUnreachable: _dms_unreachable,
    f.DmsSlow: _dms_slow, f.DmsError: _dms_error, f.DmsPodLost: _dms_pod_lost, f.InstallFails: _install_fails,
    f.NetworkScriptFails: _network_script_fails, f.JoinFails: _join_fails, f.DpuReset: _dpu_reset,
    f.DpuLinkDown: _dpu_link_down, f.PartUnknown: _part_unknown,
    f.ImageServerDown: _image_server(lambda w, n, _: w.volume.server_down(n, True),
                                     lambda w, n: w.volume.server_down(n, False)),
    f.ImageServerSlow: _image_server(lambda w, n, x: w.volume.server_slow(n, x.factor),
                                     lambda w, n: w.volume.server_slow(n, 1.0)),
    f.ImageServerStatus: _image_server(lambda w, n, x: _answer(w, n, status=x.status), _answer),
    f.ImageServerWrongContent: _image_server(lambda w, n, x: _answer(w, n, instead=x.content), _answer),
    f.NfsDown: _nfs_down, f.BfbFileRemoved: _bfb_file_removed, f.BfbFileReplaced: _bfb_file_replaced,
    f.DpuApiDown: _dpu_api_down, f.KubeconfigRotated: _kubeconfig_rotated, f.ApiDown: _api_down, f.ApiSlow: _api_slow,
    f.ApiErrors: _api_errors, f.WebhookDown: _webhook_down, f.WatchBroken: _watch_broken,
    f.WatchDuplicate: _watch_duplicate, f.ControllerRestart: _controller_restart, f.TwoLeaders: _two_leaders,
    f.PdbStuck: _pdb_stuck, f.JobFails: _job_fails, f.CertificateLate: _certificate_late,
}

