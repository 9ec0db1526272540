"""One simulated host as a DMS server on a real wire asks it (`twin.backends.lab.dms_emulator.Personality`).

Everything runs in the paced world's thread; callers block as long as the host takes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from twin.backends.base import DmsTarget, Operation, RpcError
from twin.model import dms_commands as commands
from twin.model.device import Image
from twin.model.fleet import DMS_PORT
from twin.model.meta import Key
from twin.sim.dms import DmsClient, SimDms
from twin.sim.paced import PacedWorld
from twin.sim.runner import Meter
from twin.sim.volume import File


class ReceivedFile(Protocol):
    """A file that came in over the wire."""

    @property
    def version(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def md5(self) -> str: ...

    @property
    def content(self) -> bytes: ...

    @property
    def path(self) -> Path | None: ...


ImageOf = Callable[[ReceivedFile], "Image | None"]
"""Which image a received file is; None: it is no BFB."""

_EXIT_CODE = re.compile(r"exit code (\d+)$")


class HostPersonality:
    """The side of DMS that a host shows, over the simulated DMS of the same host."""

    def __init__(self, world: PacedWorld, dms: SimDms, host: str, image_of: ImageOf,
                 volume: Path | None = None) -> None:
        self._world = world
        self._dms = dms
        self._server = dms.servers[host]
        self._image_of = image_of
        self._volume = volume  # where /bfb is mounted, for commands that look at real files
        self._target = DmsTarget(self._server.host.ip, DMS_PORT, Key("", ""))

    def run(self, command: str) -> str:
        printed = str(self._wait(lambda client: client.command(self._target, command)))
        if command == commands.UPTIME:
            # Whoever asks compares it with a clock of its own, which runs no faster.
            return commands.print_uptime(commands.uptime_s(printed) / self._world.speed)
        return printed

    def set_mode(self, mode: str) -> None:
        self._world.call(lambda: self._client().set_mode(self._target, mode))

    def offered(self, version: str) -> None:
        if not version.endswith((".bfb", ".cfg")):
            raise RpcError("INCOMPATIBLE", f"OS version {version!r} must end in .bfb or .cfg")

    def received(self, file: ReceivedFile) -> None:
        """The bytes are here; the simulated links say how long a file of the image's nominal size would have taken."""
        if file.version.endswith(".cfg"):
            kept = File(file.md5, file.size, content=file.content)
        else:
            image = self._image_of(file)
            kept = File(file.md5, image.size if image else file.size, image)

        def receive() -> Operation:
            op = Operation("OS.Install")
            self._dms.receive(self._server, file.version, kept, op)
            return op

        self._world.wait(receive)

    def activate(self, version: str) -> None:
        self._wait(lambda client: client.os_activate(self._target, version))

    def reboot_status(self) -> tuple[bool, str]:
        answer = self._wait(lambda client: client.reboot_status(self._target))
        assert isinstance(answer, tuple)
        return answer

    def execute(self, pod: Key, command: Sequence[str]) -> tuple[int, str] | None:
        """A command in the DMS pod: (exit code, stdout); None when its container does not run."""
        if self._volume is not None and len(command) == 2 and command[0] == "md5sum" and self._server.running:
            return self._md5sum(self._volume, command[1])
        try:
            return 0, str(self._wait(lambda client: client.execute(pod, command)))
        except RpcError as error:
            code = _EXIT_CODE.search(str(error))
            return (int(code[1]), "") if code else None

    def _md5sum(self, volume: Path, path: str) -> tuple[int, str]:
        """Of the real file: the simulated volume holds none of the lab's."""
        try:
            with (volume / PurePosixPath(path).relative_to("/bfb")).open("rb") as file:
                return 0, f"{hashlib.file_digest(file, 'md5').hexdigest()}  {path}\n"
        except (OSError, ValueError):
            return 1, ""

    def _wait(self, start: Callable[[DmsClient], Operation]) -> object:
        return self._world.wait(lambda: start(self._client()))

    def _client(self) -> DmsClient:
        return self._dms.client(Meter(f"wire {self._server.host.name}"))
