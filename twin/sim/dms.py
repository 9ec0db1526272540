"""DMS as controllers call it: gNOI, gNMI and pod exec, and what the calls cost (provisioning.md 3).

One `SimDms` knows all servers; each controller speaks through a client of its own, which charges that controller's
meter for calls that block its worker. A call that fails to connect costs the connect time-out if nothing answers (host
down, black hole) and one dial if the port is closed (no dmsd). Costs are drawn once per host, so that an unchanged
pass costs the same each time; durations of work are drawn anew each time it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from twin.backends.base import DmsTarget, Operation, RpcError
from twin.model import device as dev
from twin.model import dms_commands as commands
from twin.model.dms_commands import Command, ShellError
from twin.model.meta import Key
from twin.sim.clock import SECOND, ns
from twin.sim.dms_servers import DmsServers, Server, rpc_error
from twin.sim.runner import Meter

_CHANGES: Final = ("reset", "power", "network", "network-delete", "slr-arm", "slr-host")


class SimDms(DmsServers):
    """All DMS servers, and clients for them."""

    def client(self, meter: Meter) -> DmsClient:
        return DmsClient(self, meter)


class DmsClient:
    """`twin.backends.base.Dms` and `HostAgent` for one controller."""

    def __init__(self, dms: SimDms, meter: Meter) -> None:
        self._dms = dms
        self._meter = meter

    # --- calls that hold the worker

    def dial(self, target: DmsTarget) -> None:
        server = self._reached(target, RpcError)
        self._meter.charge_ns(self._dms.cost_ns("dms-dial", server))

    def get(self, target: DmsTarget, command: str) -> str:
        server = self._connect(target)
        dms, meter = self._dms, self._meter
        meter.charge_ns(dms.cost_ns("dms-get", server))
        if server.errors:
            self._trouble(server, command)
        try:
            parsed = commands.parse(command)
            self._note_reads(server, parsed)
            if parsed.kind == "network":
                raise ShellError(126, "the host network script outlasts the call")
            if parsed.kind not in _CHANGES:
                text, takes = dms.run(server, parsed)
            else:
                meter.before(f"dms {parsed.kind}")
                text, takes = dms.run(server, parsed)
                meter.after(f"dms {parsed.kind}")
        except ShellError as error:
            meter.charge_ns(ns(error.takes_s))
            raise _failed(error) from error
        if takes:
            meter.charge_ns(min(takes, commands.EXEC_TIMEOUT_S * SECOND))
        if takes > commands.EXEC_TIMEOUT_S * SECOND:
            raise rpc_error("DEADLINE_EXCEEDED", f"command timed out after {commands.EXEC_TIMEOUT_S}s")
        return text

    def set_mode(self, target: DmsTarget, mode: str) -> None:
        server = self._connect(target)
        dms = self._dms
        self._meter.charge_ns(dms.cost_ns("dms-set", server))
        if server.errors:
            self._trouble(server, "/nvidia/mode/config/mode")
        self._meter.before("dms set-mode")
        for dpu in server.host.dpus[:1 if dms.first_dpu_only else None]:
            self._meter.read(dms.hosts.readers, dpu.token)
            try:
                dms.hosts.change(dpu, dev.set_mode(dpu.device, mode.lower()))
            except dev.Refused as refused:
                raise rpc_error("INVALID_ARGUMENT", str(refused)) from refused
        self._meter.after("dms set-mode")

    # --- calls of background tasks

    def command(self, target: DmsTarget, command: str) -> Operation:
        op = Operation("dms-command")
        server = self._open(target, op, command)
        if server is None:
            return op
        dms = self._dms
        latency = dms.cost_ns("dms-get", server)
        try:
            parsed = commands.parse(command)
        except ShellError as error:
            dms.later(server, op, latency, op.fail, _failed(error))
            return op
        self._meter.before(f"dms {parsed.kind}")
        if parsed.kind == "network":
            dms.set_up_network(server, parsed, op, latency)
        else:
            self._start(server, parsed, op, latency, _failed)
        self._meter.after(f"dms {parsed.kind}")
        return op

    def os_install(self, target: DmsTarget, version: str, path: str) -> Operation:
        op = Operation("OS.Install")
        try:
            file = self._dms.volume.read(path)
        except OSError as error:
            self._dms.env.call_at(0, op.fail, error)
            return op
        server = self._open(target, op, version)
        if server is not None:
            self._meter.before("OS.Install")
            self._dms.receive(server, version, file, op)
            self._meter.after("OS.Install")
        return op

    def os_activate(self, target: DmsTarget, version: str) -> Operation:
        op = Operation("OS.Activate")
        server = self._open(target, op, version)
        if server is None:
            return op
        dms = self._dms

        def activate() -> None:
            try:
                dms.activate(server, version)
            except RpcError as error:
                op.fail(error)
            else:
                op.succeed()

        self._meter.before("OS.Activate")
        dms.later(server, op, dms.cost_ns("dms-dial", server), activate)
        self._meter.after("OS.Activate")
        return op

    def reboot_status(self, target: DmsTarget, version: str = "") -> Operation:
        """`version`, the one that was activated, asks about its DPU alone where a host has several."""
        op = Operation("System.RebootStatus")
        server = self._open(target, op, "")
        if server is not None:
            dms = self._dms
            dms.later(server, op, dms.cost_ns("dms-dial", server),
                      lambda: op.succeed(dms.reboot_status(server, version)))
        return op

    def reboot_ended(self, target: DmsTarget, version: str = "", every_s: float = 3.0,
                     budget_s: float | None = None) -> Operation:
        """`reboot_status` every `every_s` until it is inactive or fails, or the budget is spent.

        The same answer at the same time as a ticker's calls, but only the last one is made. The value is
        `(False, status)`.
        """
        dms = self._dms
        whole = Operation("System.RebootStatus")
        server = dms.by_ip.get(target.ip)
        start, period = dms.env.now, ns(every_s)

        def turn() -> None:
            """Something changed: look at the next turn of the poll."""
            since = dms.env.now - start
            wait = -since % period if since else period
            dms.env.call_late(wait, look)

        def look() -> None:
            if whole.finished:
                return
            op = self.reboot_status(target, version)
            if op.finished:
                judge(op)
            else:
                op.callbacks.append(judge)

        def judge(op: Operation) -> None:
            if whole.finished:
                return
            if op.error is not None:
                whole.fail(op.error)
            elif op.value[0]:
                watch()
            else:
                whole.succeed(op.value)

        def watch() -> None:
            if server is not None:
                server.waiting.append(turn)

        if budget_s is not None:
            budget = dms.env.call_at(ns(budget_s), whole.fail,
                                     rpc_error("DEADLINE_EXCEEDED", "context deadline exceeded"))
            whole.on_cancel = budget.cancel
            whole.callbacks.append(lambda _: budget.cancel())
        if server is None or not dms.reboot_status(server, version)[0] or dms.unreached(server, target):
            turn()
        else:
            watch()
        return whole

    # --- HostAgent

    def execute(self, pod: Key, command: Sequence[str]) -> Operation:
        op = Operation("exec")
        dms = self._dms
        server = dms.servers.get(pod.name.removesuffix("-dms"))
        if server is None:
            return self._fail(op, 0, RpcError("NOT_FOUND", f'pods "{pod.name}" not found'))
        if not server.host.up:
            return self._fail(op, dms.timeout_ns, RpcError(
                "UNAVAILABLE", f"error dialing backend: dial tcp {server.host.ip}:10250: i/o timeout"))
        latency = dms.cost_ns("dms-exec", server)
        if not server.running:
            return self._fail(op, latency, RpcError(
                "NOT_FOUND", 'unable to upgrade connection: container not found ("dms")'))
        parsed = commands.parse_words(tuple(command))
        if not isinstance(parsed, Command):
            return self._fail(op, latency, _exited(ShellError(*parsed)))
        self._meter.before(f"exec {parsed.kind}")
        self._start(server, parsed, op, latency, _exited)
        self._meter.after(f"exec {parsed.kind}")
        return op

    # --- inside

    def _connect(self, target: DmsTarget) -> Server:
        """Credentials and connection, for calls that hold the worker. Raises RpcError."""
        unusable = self._dms.credentials(target.identity)
        if unusable:
            raise RpcError("FAILED_PRECONDITION", unusable)
        return self._reached(target, _dialing)

    def _reached(self, target: DmsTarget, failed: Callable[[str, str], RpcError]) -> Server:
        """The server at this address, when a connection comes about. Raises what `failed` makes of (code, why)."""
        dms = self._dms
        server = dms.by_ip.get(target.ip)
        self._meter.reads.append((dms.readers, server.token if server is not None else ("dms", target.ip)))
        unreached = dms.unreached(server, target)
        if unreached is not None or server is None:
            cost, why = unreached or (0, "")
            self._meter.charge_ns(cost)
            raise failed("UNAVAILABLE", why)
        return server

    def _open(self, target: DmsTarget, op: Operation, command: str) -> Server | None:
        """Credentials and connection, for background tasks: None when the operation will fail instead."""
        dms = self._dms
        unusable = dms.credentials(target.identity)
        if unusable:
            self._fail(op, 0, RpcError("FAILED_PRECONDITION", unusable))
            return None
        server = dms.by_ip.get(target.ip)
        unreached = dms.unreached(server, target)
        if unreached is not None or server is None:
            cost, why = unreached or (0, "")
            self._fail(op, cost, _dialing("UNAVAILABLE", why))
            return None
        if server.errors:
            try:
                self._trouble(server, command)
            except RpcError as error:
                dms.later(server, op, dms.cost_ns("dms-dial", server), op.fail, error)
                return None
        return server

    def _fail(self, op: Operation, delay_ns: int, error: Exception) -> Operation:
        self._dms.env.call_at(delay_ns, op.fail, error)
        return op

    @staticmethod
    def _trouble(server: Server, command: str) -> None:
        for code, message, part in reversed(server.errors):
            if part in command:
                raise rpc_error(code, message)

    def _start(self, server: Server, command: Command, op: Operation, latency_ns: int,
               failed: Callable[[ShellError], RpcError]) -> None:
        """Run a command after `latency_ns`; the operation ends when the command does."""
        self._dms.later(server, op, latency_ns, self._run, server, command, op, failed)

    def _run(self, server: Server, command: Command, op: Operation, failed: Callable[[ShellError], RpcError]) -> None:
        dms = self._dms
        try:
            text, takes = dms.run(server, command)
        except ShellError as error:
            dms.later(server, op, ns(error.takes_s), op.fail, failed(error))
        else:
            dms.later(server, op, takes, op.succeed, text)

    def _note_reads(self, server: Server, command: Command) -> None:
        readers = self._dms.hosts.readers
        if command.kind == "uptime":
            self._meter.reads.append((readers, ("uptime", server.host.name)))
            return
        dpu = server.host.by_pci.get(command.pci)
        if dpu is not None:
            self._meter.reads.append((readers, dpu.token))


def _dialing(code: str, why: str) -> RpcError:
    return rpc_error(code, f'connection error: desc = "transport: Error while dialing: {why}"')


def _failed(error: ShellError) -> RpcError:
    return rpc_error("INTERNAL", f"exit status {error.code}: {error}")


def _exited(error: ShellError) -> RpcError:
    return RpcError("UNKNOWN", f"command terminated with exit code {error.code}")
