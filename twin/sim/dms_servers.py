"""dmsd on every host: what it holds, what it does when asked, and what can be wrong with it (provisioning.md 3).

Assumed, since upstream's repository does not say: OS.Install of a file that is there with the same content is accepted
at once; dmsd loses received files with its pod, and an OS install under way breaks when dmsd ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from twin.backends.base import DmsTarget, Operation, RpcError
from twin.model import bfcfg
from twin.model import device as dev
from twin.model import dms_commands as commands
from twin.model.dms_commands import Command, ShellError
from twin.model.fleet import DMS_PORT, Network, Rack
from twin.model.meta import Key
from twin.model.timing import Timing
from twin.sim.clock import Call, TwinEnvironment, ns
from twin.sim.host import Hosts, SimDpu, SimHost
from twin.sim.links import Link, Links
from twin.sim.runner import touch
from twin.sim.volume import File, SimVolume

SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
BROKEN: Final = "rpc error: code = Unavailable desc = error reading from server: EOF"

WAIT_TRIES: Final = 10
"""The host network script looks so often within `host-network-wait`, for br-dpu and then for its route
(provisioning.md 8.3)."""

SHUTDOWN_LIMIT_S: Final = 150.0
"""bf-slr.sh polls the rshim log for "System Off" 30 times, 5 s apart (provisioning.md 3.4)."""


class Attempts:
    """A fault that hits every attempt from now on, or those listed (the first is 1)."""

    __slots__ = ("count", "hit", "message")

    def __init__(self, hit: Collection[int] | None = None, message: str = "") -> None:
        self.hit = hit
        self.message = message
        self.count = 0

    def strikes(self) -> bool:
        self.count += 1
        return self.hit is None or self.count in self.hit


class Server:
    """One host's dmsd. `black_hole`, `refused`, `factor` and `errors` are troubles set from outside.

    `token` names it among what a pass has read; `costs` is what each kind of call costs, in ns, once one was made.
    """

    __slots__ = ("black_hole", "costs", "errors", "factor", "files", "host", "pending", "refused", "running", "status",
                 "token", "waiting")

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.token = ("dms", host.name)
        self.costs: dict[str, int] = {}
        self.running = False
        self.black_hole = False
        self.refused = False
        self.factor = 1.0
        self.errors: Sequence[tuple[str, str, str]] = ()  # (code, message, part of a command or '')
        self.files: dict[str, File] = {}
        self.status: dict[SimDpu, str] = {}  # of the last OS.Activate for each DPU
        self.pending: dict[Operation, Call | Operation] = {}  # calls in progress, and what each waits for
        self.waiting: list[Callable[[], None]] = []  # to be told when `reboot_status` may answer differently


class DmsServers:
    """All DMS servers.

    `credentials` answers '' when the client certificate in this Secret can be used, else why not.
    `first_dpu_only`: OS installs always hit a host's first DPU, whatever bf.cfg they carry, as dmsd's single target
    PCI suggests (provisioning.md 3.1); by default the bf.cfg's name says which DPU is meant.
    """

    def __init__(self, env: TwinEnvironment, hosts: Hosts, volume: SimVolume, links: Links, timing: Timing, *,
                 network: Network, racks: Iterable[Rack], credentials: Callable[[Key], str],
                 controller_link: Link | None = None, first_dpu_only: bool = False) -> None:
        self.env = env
        self.hosts = hosts
        self.volume = volume
        self.links = links
        self.timing = timing
        self.credentials = credentials
        self.first_dpu_only = first_dpu_only
        self.servers = {name: Server(host) for name, host in hosts.hosts.items()}
        self.readers: dict[Any, dict[Any, None]] = {}
        """Passes that read ("dms", host), see `twin.sim.runner.touch`."""
        self.controller_link = controller_link or Link("controller uplink", network.controller_bytes_per_s)
        self.rack_links = {r.name: Link(f"rack uplink {r.name}", r.uplink_bytes_per_s) for r in racks}
        stream = timing.limit("os_stream_bytes_per_s")
        self._cap = min(network.host_bytes_per_s, stream) if stream else network.host_bytes_per_s
        self.by_ip = {s.host.ip: s for s in self.servers.values()}
        """Who listens at an address."""
        self.timeout_ns = ns(timing.sample("dms-connect-timeout", ""))
        """When a call gives up that nobody answers."""
        self._failing: dict[tuple[str, str], Sequence[Attempts]] = {}
        hosts.listeners.host_down.insert(0, lambda host: self.stop(host.name))
        for told in (hosts.listeners.host_down, hosts.listeners.host_up):
            told.append(lambda host: self._touched(self.servers[host.name]))
        hosts.listeners.install_ended.append(self._install_ended)

    # --- life of a server

    def start(self, host: str) -> None:
        """dmsd listens: its pod's main container runs."""
        server = self.servers[host]
        if not server.running:
            server.running = True
            self._touched(server)

    def stop(self, host: str) -> None:
        """dmsd ended: calls under way break, received files are gone, installs under way break."""
        server = self.servers[host]
        if not server.running:
            return
        server.running = False
        server.files.clear()
        self._touched(server)
        self._break(server, BROKEN)
        for dpu in server.host.dpus:
            self.hosts.fail_install(dpu, "dmsd ended during the installation")

    # --- troubles

    def unreachable(self, host: str, how: str) -> None:
        """`black-hole`, `refused`, or '' to heal. Streams that are under way break too."""
        server = self.servers[host]
        server.black_hole, server.refused = how == "black-hole", how == "refused"
        self._touched(server)
        if how:
            self._break(server, BROKEN)

    def slow(self, host: str, factor: float) -> None:
        """Every call takes this many times as long; 1 heals."""
        server = self.servers[host]
        server.factor = factor
        server.costs.clear()
        self._touched(server)

    def answer_errors(self, host: str, *errors: tuple[str, str, str]) -> None:
        """Calls answer the gRPC error (code, message, part of a command) whose part they contain, the last such one."""
        self.servers[host].errors = errors
        self._touched(self.servers[host])

    def fail_installs(self, dpu: str, *faults: Attempts) -> None:
        """OS installs of this DPU fail at their end from now on, in the attempts that one of these hits."""
        self._failing["install", dpu] = faults

    def fail_network(self, dpu: str, *faults: Attempts) -> None:
        """The host network script fails for this DPU."""
        self._failing["network", dpu] = faults

    def fail_reboots(self, host: str, *faults: Attempts) -> None:
        """Commands that reboot this host fail."""
        self._failing["reboot", host] = faults

    def _struck(self, what: str, name: str) -> Attempts | None:
        """The last fault that hits this attempt. All of them count it."""
        hits = [fault for fault in self._failing.get((what, name), ()) if fault.strikes()]
        return hits[-1] if hits else None

    # --- reaching a server

    def cost_ns(self, operation: str, server: Server) -> int:
        """What one call of this kind costs on this host; the same each time."""
        cost = server.costs.get(operation)
        if cost is None:
            cost = ns(self.timing.sample(operation, server.host.name))
            if server.factor != 1.0:
                cost = round(cost * server.factor)
            server.costs[operation] = cost
        return cost

    def unreached(self, server: Server | None, target: DmsTarget) -> tuple[int, str] | None:
        """Why no connection comes about and after how many ns, or None when it does."""
        if server is None or server.black_hole or not server.host.up:
            return self.timeout_ns, f"dial tcp {target.ip}:{target.port}: i/o timeout"
        if server.refused or not server.running or target.port != DMS_PORT:
            return (self.cost_ns("dms-dial", server),
                    f"dial tcp {target.ip}:{target.port}: connect: connection refused")
        return None

    # --- OS install

    def path(self, host: SimHost) -> tuple[Link, ...]:
        """The links of a stream from the volume through the controller to this host."""
        rack = self.rack_links.get(host.rack)
        return (self.volume.link, self.controller_link, rack) if rack else (self.volume.link, self.controller_link)

    def receive(self, server: Server, version: str, file: File, op: Operation) -> None:
        """Stream a file into dmsd's image folder."""
        if server.files.get(version) == file:
            self.later(server, op, self.cost_ns("dms-dial", server), op.succeed)
            return
        stream = self.links.transfer(self.path(server.host), float(file.size), cap=self._cap,
                                     name=f"OS.Install {server.host.name}")
        server.pending[op] = stream

        def done(stream: Operation) -> None:
            server.pending.pop(op, None)
            if stream.error is None:
                server.files[version] = file
                op.succeed()

        stream.callbacks.append(done)
        op.on_cancel = lambda: self.links.abort(stream, OSError("context canceled"))

    def activate(self, server: Server, version: str) -> None:
        """Start the install of `<bfb>;<cfg>`. Raises RpcError."""
        bfb, _, cfg = version.partition(";")
        missing = [v for v in (bfb, cfg) if v not in server.files]
        if missing:
            raise rpc_error("NOT_FOUND", f"OS version {missing[0]!r} is not on the target")
        image, config = server.files[bfb].image, server.files[cfg].content
        if image is None or config is None:
            raise rpc_error("INVALID_ARGUMENT", f"{bfb!r} is not a BFB image")
        dpu = self.dpu_of(server, cfg)
        if dpu is None:
            raise rpc_error("FAILED_PRECONDITION", "no DPU found")
        try:
            wanted = dev.install(dpu.device, image, bfcfg.read(config))
        except dev.Refused as refused:
            raise rpc_error("FAILED_PRECONDITION", str(refused)) from refused
        self.hosts.change(dpu, wanted)
        fault = self._struck("install", dpu.name)
        dpu.doomed = (fault.message or "installation failed") if fault is not None else ""
        server.status.pop(dpu, None)

    def dpu_of(self, server: Server, cfg: str) -> SimDpu | None:
        """Which DPU a bf.cfg (`<dpu>-<uid>.cfg`) is for."""
        dpus = server.host.dpus
        if not self.first_dpu_only:
            for dpu in dpus:
                if cfg.startswith(f"{dpu.name}-") or cfg == f"{dpu.name}.cfg":
                    return dpu
        return dpus[0] if dpus else None

    def reboot_status(self, server: Server, version: str) -> tuple[bool, str]:
        """(active, status) of this version's DPU, or of the whole host: active while any install is under way."""
        dpus = server.host.dpus
        if version:
            one = self.dpu_of(server, version.partition(";")[2])
            dpus = (one,) if one is not None else ()
        for dpu in dpus:
            if dpu.device.doing == dev.INSTALL:
                return True, ""
        ends = [server.status[d] for d in dpus if d in server.status]
        return False, FAILURE if FAILURE in ends else SUCCESS

    def _install_ended(self, dpu: SimDpu, why: str) -> None:
        server = self.servers[dpu.host.name]
        server.status[dpu] = FAILURE if why else SUCCESS
        self.wake(server)

    # --- calls that take time

    def later(self, server: Server, op: Operation, delay_ns: int, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn` after the delay, unless the server breaks before; then the operation fails."""
        server.pending[op] = self.env.call_at(delay_ns, self._go_on, server, op, fn, args)

    @staticmethod
    def _go_on(server: Server, op: Operation, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        server.pending.pop(op, None)
        fn(*args)

    def _break(self, server: Server, why: str) -> None:
        pending, server.pending = server.pending, {}
        for op, waits_for in pending.items():
            if isinstance(waits_for, Operation):
                self.links.abort(waits_for, OSError(why))
            else:
                waits_for.cancel()
            op.fail(RpcError("UNAVAILABLE", why))

    def wake(self, server: Server) -> None:
        """Something that `reboot_status` answers changed: whoever waits for it looks at its next turn."""
        waiting, server.waiting = server.waiting, []
        for turn in waiting:
            turn()

    def _touched(self, server: Server) -> None:
        touch(self.readers, server.token)
        self.wake(server)

    # --- shell commands

    def run(self, server: Server, command: Command) -> tuple[str, int]:
        """Carry out a command that ends by itself: (what it prints, ns it takes). Raises ShellError.

        The host network script and bf-slr.sh have their own verbs; DMS may run them for as long as they take.
        """
        host = server.host
        kind = command.kind
        if kind == "uptime":
            return commands.print_uptime(self.hosts.uptime_s(host)), 0
        if kind == "md5sum":
            return self._md5sum(host, command.argument)
        if kind in ("power", "slr-host"):
            return self._reboot(host, command)
        dpu = self._card(host, command.pci)
        answer = commands.ANSWERS.get(kind)
        if answer is not None:
            return answer(dpu.board, dpu.device), 0
        if kind == "reset":
            return self._reset(dpu)
        if kind == "network-delete":
            self.hosts.detach(dpu)
            return "", self.hosts.sample_ns("host-network-delete", dpu)
        if kind == "slr-arm":
            return self._shut_down(dpu)
        raise ShellError(126, f"{kind}: cannot run here")

    def _card(self, host: SimHost, pci: str) -> SimDpu:
        dpu = host.by_pci.get(pci)
        if dpu is None or not dpu.device.powered:
            raise ShellError(1, f"-E- Cannot open Device: {pci}.0. No such file or directory. MFE_CR_ERROR")
        return dpu

    def _reset(self, dpu: SimDpu) -> tuple[str, int]:
        try:
            self.hosts.change(dpu, dev.reset_firmware(dpu.device))
        except dev.Refused as refused:
            raise ShellError(1, str(refused)) from refused
        return "-I- FW was loaded successfully.\n", dpu.ends_ns - self.env.now

    def _shut_down(self, dpu: SimDpu) -> tuple[str, int]:
        self.hosts.change(dpu, dev.shut_down(dpu.device))
        takes = dpu.ends_ns - self.env.now if dpu.device.doing == dev.SHUTDOWN else 0
        if takes > ns(SHUTDOWN_LIMIT_S):
            raise ShellError(2, "timed out waiting for System Off", SHUTDOWN_LIMIT_S)
        return "System Off\n", takes

    def _reboot(self, host: SimHost, command: Command) -> tuple[str, int]:
        fault = self._struck("reboot", host.name)
        if fault is not None:
            raise ShellError(1, fault.message or f"Set Chassis Power Control to {command.argument.title()} failed")
        self.hosts.reboot(host, "host-power-cycle" if command.argument == "cycle" else "host-reboot", commanded=True)
        return f"Chassis Power Control: {command.argument.title()}\n", 0

    def _md5sum(self, host: SimHost, path: str) -> tuple[str, int]:
        takes = ns(self.timing.sample("os-verify", host.name, path))
        try:
            return f"{self.volume.read(path).md5}  {path}\n", takes
        except OSError as error:
            raise ShellError(1, f"md5sum: {str(error).removeprefix('open ')}") from error

    def set_up_network(self, server: Server, command: Command, op: Operation, latency_ns: int) -> None:
        """The host network script: wait for br-dpu and its route, make VFs, bridge VF0. The operation ends with it."""
        host = server.host
        dpu = host.by_pci.get(command.pci)

        def fail(why: str) -> None:
            if dpu is not None:
                self.hosts.detach(dpu)
            op.fail(rpc_error("INTERNAL", f"{commands.HOST_NETWORK_SCRIPT}: {why}: exit status 1"))

        pause = ns(self.timing.sample("host-network-wait", host.name)) // WAIT_TRIES

        def wait(tries: int, there: Callable[[], bool], why: str, then: Callable[[], None]) -> None:
            if there():
                then()
            elif tries == 0:
                fail(why)
            else:
                self.later(server, op, pause, wait, tries - 1, there, why, then)

        def route() -> None:
            wait(WAIT_TRIES, lambda: host.default_route or not host.route_check, "no default route via br-dpu", work)

        def work() -> None:
            if dpu is None:
                fail(f"no PCI device {command.pci}")
                return
            self.later(server, op, self.hosts.sample_ns("host-network-script", dpu), bridge, dpu)

        def bridge(dpu: SimDpu) -> None:
            fault = self._struck("network", dpu.name)
            if fault is not None:
                fail(fault.message or "cannot set sriov_numvfs")
            elif not dpu.device.powered:
                fail(f"no PCI device {command.pci}")
            elif not self.hosts.attach(dpu, command.vfs, command.mtu):
                fail(f"VF 0 of {command.pci}.0 has no interface")
            else:
                op.succeed("")

        self.later(server, op, latency_ns, wait, WAIT_TRIES, lambda: host.br_dpu, "br-dpu not found", route)


_GO_NAMES: Final = {code: "".join(word.title() for word in code.split("_")) for code in (
    "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNKNOWN",
    "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "NOT_FOUND")}


def rpc_error(code: str, message: str) -> RpcError:
    """A gRPC error worded as Go prints it."""
    return RpcError(code, f"rpc error: code = {_GO_NAMES.get(code, code)} desc = {message}")
