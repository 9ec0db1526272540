"""Dms: the same tests on the simulated DMS and on gRPC with mutual TLS to an emulator before the same hosts."""

from __future__ import annotations

import base64
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from dms_world import BFB, World

from twin.backends.base import Dms, DmsTarget, Operation, RpcError
from twin.backends.dms import LiveDms
from twin.backends.lab.certificates import Pair, authority, issue
from twin.backends.lab.dms_emulator import BlackHole, DmsServer, Switches
from twin.backends.wrap import Ears, WrappedDms
from twin.model import bfcfg
from twin.model import dms_commands as commands
from twin.model.device import Image
from twin.model.fleet import default_image
from twin.model.meta import Key
from twin.model.provisioning import DpuFlavorSpec
from twin.runtime.backstage import Backstage
from twin.sim.clock import SECOND
from twin.sim.paced import PacedWorld
from twin.sim.personality import HostPersonality, ReceivedFile
from twin.sim.runner import Meter
from twin.sim.volume import file_of

SECRET = Key("dpf-operator-system", "dpf-provisioning-client-secret")
IMAGE = file_of(default_image(BFB, BFB))
SPEED = 2000.0


class Rig(ABC):
    """A world behind one implementation of `Dms`."""

    dms: Dms
    speed = 1.0  # of the hardware's clock against the asker's
    poll_s = 3.0
    patience_s = 5.0
    """How long a connection is waited for."""

    def __init__(self) -> None:
        self.world = World()
        self.first = self.world.names[0]
        self.host = self.world.hosts.hosts[self.first]
        self.dpu = self.host.dpus[0]

    @property
    def target(self) -> DmsTarget:
        return DmsTarget(self.host.ip, 9339, SECRET)

    @abstractmethod
    def do(self, change: Callable[[], Any]) -> Any:
        """Change the world from outside."""

    @abstractmethod
    def put(self, path: str, content: bytes) -> None:
        """A file on the BFB volume; only `BFB` is an image."""

    @abstractmethod
    def end(self, op: Operation) -> Any:
        """Wait for an operation: its value, or its error raised."""

    @abstractmethod
    def start(self) -> None:
        """dmsd runs on every host."""

    @abstractmethod
    def took(self, ask: Callable[[], object]) -> float:
        """Seconds that a call held whoever made it."""

    def close(self) -> None:  # noqa: B027  most have nothing to close
        ...


class SimRig(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter("test")
        self.dms = self.world.dms.client(self.meter)

    def do(self, change: Callable[[], Any]) -> Any:
        return change()

    def put(self, path: str, content: bytes) -> None:
        from twin.sim.volume import File
        image = IMAGE.image if path.endswith(BFB) else None
        self.world.volume.put(path, File(path, IMAGE.size if image else len(content), image, content))

    def end(self, op: Operation) -> Any:
        env = self.world.env
        while not op.finished:
            env.step()
        if op.error is not None:
            raise op.error
        return op.value

    def start(self) -> None:
        for name in self.world.names:
            self.world.dms.start(name)

    def took(self, ask: Callable[[], object]) -> float:
        at, self.meter.cost_ns = self.world.env.now, 0
        ask()
        return (self.world.env.now - at + self.meter.cost_ns) / SECOND


class WireRig(Rig):
    """LiveDms -> mutual TLS -> emulator -> the same world, keeping pace with the wall clock."""

    speed = SPEED
    poll_s = 0.02
    patience_s = 0.5

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.monkeypatch = monkeypatch
        self.folder = folder
        ca = authority("dms-ca")
        client = issue(ca, "dpf-provisioning-client")
        data = {"tls.crt": client.certificate, "tls.key": client.key, "ca.crt": ca.certificate}
        secret = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        self.paced = PacedWorld(self.world.env, time.monotonic, speed=SPEED)
        self.addresses = {name: f"127.1.77.{n + 1}" for n, name in enumerate(self.world.names)}
        self.servers = Switches({name: self.server(name, address, ca) for name, address in self.addresses.items()}
                                | {f"hole/{name}": BlackHole(name, a) for name, a in self.addresses.items()})
        self.paced.after = self.follow
        self.failures: list[BaseException] = []
        self.stage = Backstage(self.failures.append)
        self.live = LiveDms(lambda key: secret, locate=lambda path: folder / Path(path).name,
                            deliver=self.stage.deliver)
        ears = Ears(lambda: None, lambda: None, lambda call: None)
        self.dms = cast(Dms, WrappedDms(self.live, "test", ears, self.stage, self.stage))

    @property
    def target(self) -> DmsTarget:
        return DmsTarget(self.addresses[self.first], 9339, SECRET)

    def server(self, name: str, address: str, ca: Pair) -> DmsServer:
        pair = issue(ca, name, addresses=(address,))
        personality = HostPersonality(self.paced, self.world.dms, name, self.image_of)
        return DmsServer(name, address, personality, lambda: (pair, ca.certificate))

    def image_of(self, file: ReceivedFile) -> Image | None:
        return IMAGE.image if file.content.startswith(b"Bfv1") else None

    def follow(self) -> None:
        for name, server in self.world.dms.servers.items():
            up = server.running and server.host.up
            self.servers.want_all({name: up and not server.refused and not server.black_hole,
                                   f"hole/{name}": server.host.up and server.black_hole})

    def do(self, change: Callable[[], Any]) -> Any:
        answer = self.paced.call(change)
        self.settle()
        return answer

    def settle(self) -> None:
        deadline = time.monotonic() + 90
        self.paced.call(lambda: None)
        while any(s.serving is not self.servers._wanted[n] for n, s in self.servers.servers.items()):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def put(self, path: str, content: bytes) -> None:
        (self.folder / Path(path).name).write_bytes(content)

    def end(self, op: Operation) -> Any:
        done = threading.Event()
        op.callbacks.append(lambda _: done.set())
        assert op.finished or done.wait(30), "the operation did not end"
        if op.error is not None:
            raise op.error
        return op.value

    def start(self) -> None:
        self.do(lambda: [self.world.dms.start(name) for name in self.world.names])

    def took(self, ask: Callable[[], object]) -> float:
        with self.monkeypatch.context() as patch:
            for where in ("twin.backends.dms.DIAL_S", "twin.backends.tls.CONNECT_S"):
                patch.setattr(where, self.patience_s)
            began = time.monotonic()
            ask()
            return time.monotonic() - began

    def close(self) -> None:
        self.live.close()
        self.stage.stop()
        self.paced.stop()
        self.servers.close()
        assert self.failures == []


@pytest.fixture(params=["sim", pytest.param("wire", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = SimRig() if request.param == "sim" else WireRig(tmp_path, monkeypatch)
    yield rig
    rig.close()


def config(rig: Rig) -> bytes:
    return bfcfg.render(DpuFlavorSpec(), hostname=rig.dpu.name, join_command="kubeadm join 10.0.0.1:6443 --token a.b",
                        number_of_pfs=2)


def activate(rig: Rig, image_bytes: int = 1000) -> str:
    """Send an image and its bf.cfg and begin the install; returns the version that was activated."""
    cfg = f"{rig.dpu.name}-uid.cfg"
    rig.put(f"/bfb/{BFB}", b"Bfv1" + bytes(image_bytes))
    rig.put(f"/bfb/{cfg}", config(rig))
    for name in (BFB, cfg):
        rig.end(rig.dms.os_install(rig.target, name, f"/bfb/{name}"))
    version = f"{BFB};{cfg}"
    rig.end(rig.dms.os_activate(rig.target, version))
    return version


def test_nobody_listens_before_dmsd_runs(rig: Rig) -> None:
    with pytest.raises(RpcError) as closed:
        rig.dms.dial(rig.target)
    assert str(closed.value) == f"dial tcp {rig.target.ip}:9339: connect: connection refused"
    with pytest.raises(RpcError) as refused:
        rig.dms.get(rig.target, commands.UPTIME)
    assert refused.value.code == "UNAVAILABLE"
    assert str(refused.value) == (
        'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial tcp '
        f'{rig.target.ip}:9339: connect: connection refused"')
    rig.start()
    rig.dms.dial(rig.target)


def test_a_command_answers_what_the_host_prints(rig: Rig) -> None:
    rig.start()
    assert commands.uptime_s(rig.dms.get(rig.target, commands.UPTIME)) >= 86_400 / rig.speed - 1
    text = rig.end(rig.dms.command(rig.target, commands.query_card(rig.dpu.card.pci)))
    assert rig.dpu.card.opn in text


def test_a_command_that_no_host_knows_fails_as_a_shell_does(rig: Rig) -> None:
    rig.start()
    for ask in (lambda: rig.dms.get(rig.target, "rm -rf /"), lambda: rig.end(rig.dms.command(rig.target, "rm -rf /"))):
        with pytest.raises(RpcError) as unknown:
            ask()
        assert (unknown.value.code, str(unknown.value)) == (
            "INTERNAL", "rpc error: code = Internal desc = exit status 127: bash: rm: command not found")


def test_the_mode_is_set_for_the_next_reset(rig: Rig) -> None:
    rig.start()
    rig.dms.set_mode(rig.target, "NIC")
    assert rig.dpu.device.next_mode == "nic"
    assert commands.hex_number(commands.rescan_required(
        rig.dms.get(rig.target, commands.read_mfrl(rig.dpu.card.pci)))) == 1
    with pytest.raises(RpcError, match="code = InvalidArgument desc = unknown mode 'switch'"):
        rig.dms.set_mode(rig.target, "switch")


def test_an_install_goes_from_stream_to_a_running_system(rig: Rig) -> None:
    rig.start()
    activate(rig, image_bytes=3_000_000)
    assert rig.end(rig.dms.reboot_status(rig.target)) == (True, "")
    asked, answer = 1, (True, "")
    while answer[0]:
        tick = rig.world.env.now + 3 * SECOND
        rig.do(lambda tick=tick: rig.world.env.call_at(max(0, tick - rig.world.env.now), int))
        passed(rig, lambda tick=tick: rig.world.env.now >= tick)
        answer = rig.end(rig.dms.reboot_status(rig.target))
        asked += 1
    assert answer == (False, "SUCCESS")
    assert asked > 2
    device = rig.dpu.device
    assert device.image is not None
    assert device.image.identity == BFB
    assert device.config is not None
    assert device.config.hostname == rig.dpu.name


def test_what_was_not_sent_cannot_be_activated(rig: Rig) -> None:
    rig.start()
    with pytest.raises(RpcError) as missing:
        rig.end(rig.dms.os_activate(rig.target, f"{BFB};x.cfg"))
    assert (missing.value.code, str(missing.value)) == (
        "NOT_FOUND", f"rpc error: code = NotFound desc = OS version '{BFB}' is not on the target")


def test_a_file_that_is_no_image_is_refused_when_it_is_activated(rig: Rig) -> None:
    rig.start()
    rig.put("/bfb/not.bfb", b"<html>")
    rig.put("/bfb/x.cfg", config(rig))
    rig.end(rig.dms.os_install(rig.target, "not.bfb", "/bfb/not.bfb"))
    rig.end(rig.dms.os_install(rig.target, "x.cfg", "/bfb/x.cfg"))
    with pytest.raises(RpcError, match=r"code = InvalidArgument desc = 'not\.bfb' is not a BFB image"):
        rig.end(rig.dms.os_activate(rig.target, "not.bfb;x.cfg"))


def test_a_file_that_is_not_on_the_volume_is_an_io_error(rig: Rig) -> None:
    rig.start()
    with pytest.raises(OSError, match=r"(?i)no such file or directory"):
        rig.end(rig.dms.os_install(rig.target, "none.bfb", "/bfb/none.bfb"))


def test_an_injected_error_answers_every_call_until_it_heals(rig: Rig) -> None:
    rig.start()
    rig.do(lambda: rig.world.dms.answer_errors(rig.first, ("INTERNAL", "boom", "")))
    for ask in (lambda: rig.end(rig.dms.command(rig.target, commands.UPTIME)),
                lambda: rig.end(rig.dms.os_activate(rig.target, "a;b"))):
        with pytest.raises(RpcError) as broken:
            ask()
        assert (broken.value.code, str(broken.value)) == ("INTERNAL", "rpc error: code = Internal desc = boom")
    rig.do(lambda: rig.world.dms.answer_errors(rig.first))
    rig.end(rig.dms.command(rig.target, commands.UPTIME))


def test_dmsd_that_ends_breaks_what_is_under_way(rig: Rig) -> None:
    rig.start()
    rig.do(lambda: rig.world.dms.slow(rig.first, 1e7))
    op = rig.dms.command(rig.target, commands.UPTIME)
    passed(rig, lambda: bool(rig.world.dms.servers[rig.first].pending), step=False)
    rig.do(lambda: rig.world.dms.stop(rig.first))
    with pytest.raises(RpcError) as broken:
        rig.end(op)
    assert (broken.value.code, str(broken.value)) == (
        "UNAVAILABLE", "rpc error: code = Unavailable desc = error reading from server: EOF")
    with pytest.raises(RpcError, match="connection refused"):
        rig.dms.dial(rig.target)


def test_a_host_that_reboots_is_away_and_comes_back(rig: Rig) -> None:
    rig.start()
    rig.end(rig.dms.command(rig.target, commands.power("cycle")))
    env, hosts = rig.world.env, rig.world.hosts

    def gone() -> bool:
        return not rig.host.up

    def unreachable() -> bool:
        try:
            rig.dms.dial(rig.target)
        except RpcError:
            return True
        return False

    passed(rig, gone)
    rig.do(lambda: None)
    passed(rig, unreachable, step=False)  # a connection that is open learns of its end when it hears of it
    passed(rig, lambda: rig.host.up)
    rig.do(lambda: rig.world.dms.start(rig.first))
    assert commands.uptime_s(rig.dms.get(rig.target, commands.UPTIME)) < 86_400
    assert env.now > 30 * SECOND
    assert hosts.hosts[rig.first].boots == 1


def test_a_black_hole_holds_every_call_for_its_time_out_until_it_heals(rig: Rig) -> None:
    rig.start()
    rig.put(f"/bfb/{BFB}", b"Bfv1")
    rig.do(lambda: rig.world.dms.unreachable(rig.first, "black-hole"))
    where = f"dial tcp {rig.target.ip}:9339: i/o timeout"
    wrapped = f'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: {where}"'
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: rig.dms.dial(rig.target), where),
        (lambda: rig.dms.get(rig.target, commands.UPTIME), wrapped),
        (lambda: rig.dms.set_mode(rig.target, "NIC"), wrapped),
        (lambda: rig.end(rig.dms.command(rig.target, commands.UPTIME)), wrapped),
        (lambda: rig.end(rig.dms.os_install(rig.target, BFB, f"/bfb/{BFB}")), wrapped),
        (lambda: rig.end(rig.dms.os_activate(rig.target, "a;b")), wrapped),
        (lambda: rig.end(rig.dms.reboot_status(rig.target)), wrapped),
        (lambda: rig.end(rig.dms.reboot_ended(rig.target, "a;b", every_s=rig.poll_s)), wrapped)]
    for ask, text in calls:
        def refused(ask: Callable[[], object] = ask, text: str = text) -> None:
            with pytest.raises(RpcError) as lost:
                ask()
            assert (lost.value.code, str(lost.value)) == ("UNAVAILABLE", text)

        assert rig.took(refused) >= rig.patience_s * 0.98
    rig.do(lambda: rig.world.dms.unreachable(rig.first, ""))
    rig.dms.dial(rig.target)
    rig.dms.get(rig.target, commands.UPTIME)


@pytest.mark.parametrize("how", ["black-hole", "refused"])
def test_a_server_that_gets_lost_breaks_what_is_under_way(rig: Rig, how: str) -> None:
    rig.start()
    rig.do(lambda: rig.world.dms.slow(rig.first, 1e7))
    op = rig.dms.command(rig.target, commands.UPTIME)
    passed(rig, lambda: bool(rig.world.dms.servers[rig.first].pending), step=False)
    rig.do(lambda: rig.world.dms.unreachable(rig.first, how))
    with pytest.raises(RpcError) as broken:
        rig.end(op)
    assert (broken.value.code, str(broken.value)) == (
        "UNAVAILABLE", "rpc error: code = Unavailable desc = error reading from server: EOF")


def test_polling_for_the_reboot_ends_with_the_install(rig: Rig) -> None:
    rig.start()
    version = activate(rig)
    ended = rig.dms.reboot_ended(rig.target, version, every_s=rig.poll_s)
    assert rig.end(ended) == (False, "SUCCESS")
    image = rig.dpu.device.image
    assert image is not None
    assert image.identity == BFB


def test_polling_for_the_reboot_ends_with_its_budget(rig: Rig) -> None:
    rig.start()
    version = activate(rig)

    def hang() -> None:
        assert rig.dpu.timer is not None
        rig.dpu.timer.cancel()

    rig.do(hang)
    with pytest.raises(RpcError) as late:
        rig.end(rig.dms.reboot_ended(rig.target, version, every_s=rig.poll_s, budget_s=2.5 * rig.poll_s))
    assert (late.value.code, str(late.value)) == (
        "DEADLINE_EXCEEDED", "rpc error: code = DeadlineExceeded desc = context deadline exceeded")


def passed(rig: Rig, true: Callable[[], bool], *, step: bool = True) -> None:
    """Let time pass until it is so."""
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        if isinstance(rig, SimRig) and step:
            rig.world.env.step()
        else:
            time.sleep(0.002)
