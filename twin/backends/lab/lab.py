"""The lab as a whole: everything under one folder, one lock, one `down` that leaves nothing.

Nothing needs to be remembered to clean up: processes carry the folder's mark, namespaces its prefix, and the rest lies
in the folder. So `down` works after a crash, a kill -9, or half an `up`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO

from twin.backends.base import ApiError
from twin.backends.kube import LiveKube, install_crds, open_cluster
from twin.backends.lab import binaries
from twin.backends.lab.binaries import MissingPart
from twin.backends.lab.control_plane import ControlPlane, ControlPlanes, ensure_free
from twin.backends.lab.netns import CardWiring, HostWiring, Namespaces, require_root
from twin.backends.lab.processes import POLL_S, Processes, ProcessFailed
from twin.model.dms_commands import pci_address
from twin.model.fleet import DMS_PORT, Fleet, Host

HOST_CLUSTER: Final = "host"
WIRED_HOSTS: Final = 200  # addresses 10.77.1.x to 10.77.200.x; larger labs go without namespaces
LOCK_S: Final = 2.0
NEEDED_BYTES: Final = 256 << 20  # etcd alone sets aside 64 MiB for each of its first logs
_SIGN: Final = ".dpf-twin-lab"
_STATE: Final = "lab.json"


class LabError(Exception):
    """The lab cannot do this as things are; one line that says what to do. The command line exits with 2."""

    exit_code = 2


def default_folder() -> Path:
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "dpf-twin" / "lab"


def on_loopback(fleet: Fleet, block: int = 1) -> Fleet:
    """The fleet with each host's address replaced by one of its own on loopback: 127.1.0.1, 127.1.0.2, ...

    Labs that run side by side need different blocks.
    """
    return replace(fleet, hosts=tuple(
        replace(host, ip=f"127.{block}.{(i + 1) >> 8}.{(i + 1) & 0xFF}") for i, host in enumerate(fleet.hosts)))


def wiring(hosts: Sequence[Host]) -> list[HostWiring]:
    """How the hosts of a fleet are wired in namespaces."""
    return [HostWiring(h.name, i, tuple(CardWiring(c.name, pci_address(c.pci), c.pf0) for c in h.cards))
            for i, h in enumerate(hosts)]


class Lab:
    """One lab folder."""

    def __init__(self, folder: Path, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder.resolve()
        self.processes = Processes(self.folder)
        self.namespaces = Namespaces(self.folder)
        self._say = say

    # --- up

    def up(self, fleet: Fleet, crds: Sequence[Mapping[str, Any]], *, speed: float = 1.0, netns: bool = True,
           program: Callable[[Lab], Sequence[str]] | None = None) -> dict[str, Any]:
        """Start the host cluster and the wiring, then `program` (emulated hosts and neighbours); returns the status.

        All or nothing: what a failed start leaves behind is removed. Raises: LabError, MissingPart.
        """
        with self._locked():
            state = self.state()
            if state != "absent":
                raise LabError(f"a {state} lab is in {self.folder}: run `dpf-twin lab down` first")
            try:
                self._check(fleet, netns)
                found = binaries.ensure(say=self._say)
                status = self._start(fleet, crds, found, speed, netns, program)
            except (ProcessFailed, ApiError, OSError) as error:
                told = _one_line(error, self.folder)  # before there is room again
                self._clean()
                raise LabError(told) from error
            except BaseException:
                self._clean()
                raise
            return status

    def _check(self, fleet: Fleet, netns: bool) -> None:
        """Everything that can be known before anything is started."""
        if netns:
            require_root()
            if len(fleet.hosts) > WIRED_HOSTS:
                raise LabError(f"{len(fleet.hosts)} hosts: at most {WIRED_HOSTS} have network namespaces; "
                               "use fewer or --no-netns")
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(p.name not in (_SIGN, "lock") for p in self.folder.iterdir()):
            raise LabError(f"{self.folder} is not empty and not a lab: choose another --dir")
        free = shutil.disk_usage(self.folder).free
        if free < NEEDED_BYTES:
            raise LabError(f"{free >> 20} MiB are free in {self.folder}, a lab needs {NEEDED_BYTES >> 20}: free some, "
                           "or choose another --dir")
        (self.folder / _SIGN).touch()
        for host in fleet.hosts:
            ensure_free(DMS_PORT, host.ip)

    def _start(self, fleet: Fleet, crds: Sequence[Mapping[str, Any]], found: Mapping[str, Path], speed: float,
               netns: bool, program: Callable[[Lab], Sequence[str]] | None) -> dict[str, Any]:
        planes = ControlPlanes(self.folder, self.processes, found)
        self._say("starting etcd and kube-apiserver")
        plane = planes.start(HOST_CLUSTER)
        cluster = open_cluster(Path(plane.kubeconfig), qps=0)
        try:
            install_crds(LiveKube(cluster), crds)
        finally:
            cluster.close()
        wired = wiring(fleet.hosts) if netns else []
        if wired:
            self._say(f"wiring {len(wired)} hosts in network namespaces")
            self.namespaces.make(wired)
        hosts = [{"name": h.name, "dms": f"{h.ip}:{DMS_PORT}",
                  "netns": self.namespaces.name(h.name) if netns else "", "dpus": [c.name for c in h.cards]}
                 for h in fleet.hosts]
        self._write({"kubeconfig": plane.kubeconfig, "speed": speed, "hosts": hosts,
                     "binaries": {name: str(path) for name, path in found.items()}})
        if program is not None:
            self.processes.start("hosts", program(self))
        return self.status()

    # --- status

    def state(self) -> str:
        """`absent`, `running`, or `broken`: something of a lab is here, but not all that should run does."""
        told = self._read()
        alive = {r.name for r in self.processes.running()}
        if not told:
            return "broken" if alive or any(self.processes.marked()) or self.namespaces.existing() else "absent"
        return "running" if alive >= set(self.processes.names()) else "broken"

    def status(self) -> dict[str, Any]:
        """What `lab status -o json` prints."""
        told = self._read()
        planes = self.planes()
        return {
            "state": self.state(), "dir": str(self.folder), "kubeconfig": told.get("kubeconfig", ""),
            "dpu_clusters": [{"name": p.name, "kubeconfig": p.kubeconfig} for p in planes if p.name != HOST_CLUSTER],
            "hosts": told.get("hosts", []), "speed": told.get("speed", 1.0),
            "pids": {r.name: r.pid for r in self.processes.running()}, "binaries": told.get("binaries", {}),
        }

    def planes(self) -> list[ControlPlane]:
        """Every control plane here: the host cluster's and those of DPUClusters."""
        known = ControlPlanes(self.folder, self.processes, {})
        return [plane for name in known.names() if (plane := known.get(name)) is not None]

    def control_planes(self) -> ControlPlanes:
        """To start more control planes in a lab that runs (Kamaji's part). Raises: LabError."""
        told = self._read()
        if not told:
            raise LabError(f"no lab in {self.folder}: run `dpf-twin lab up` first")
        return ControlPlanes(self.folder, self.processes, {n: Path(p) for n, p in told["binaries"].items()})

    # --- down

    def down(self) -> list[str]:
        """Remove everything; harmless when there is nothing. Returns what would not go, in words."""
        if not self.folder.exists():
            return self._left()
        with self._locked():
            return self._clean()

    def _clean(self) -> list[str]:
        stubborn = [f"process {pid}" for pid in self.processes.stop_all()]
        self.namespaces.remove()
        for mount in self._mounts():
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
        if (self.folder / _SIGN).exists():  # never a folder that is not ours
            shutil.rmtree(self.folder, ignore_errors=True)
        return stubborn + self._left()

    def _left(self) -> list[str]:
        return [*(f"process {pid}" for pid in self.processes.marked()),
                *(f"network namespace {name}" for name in self.namespaces.existing()),
                *(f"mount {path}" for path in self._mounts())]

    def _mounts(self) -> list[str]:
        """Mounts below the folder, deepest first."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return sorted((p for p in points if Path(p).is_relative_to(self.folder)), reverse=True)

    # --- the folder

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time. Raises: LabError when another one is at work."""
        with self._lock_file():
            try:
                yield
            finally:
                if self.folder.exists() and [p.name for p in self.folder.iterdir()] == ["lock"]:
                    shutil.rmtree(self.folder, ignore_errors=True)  # we made it only to lock it

    def _lock_file(self) -> TextIO:
        """The lock, held until it is closed."""
        path = self.folder / "lock"
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                handle = path.open("w")
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise LabError(_one_line(error, self.folder)) from error
                why = os.strerror(errno.ENOTDIR) if isinstance(error, FileExistsError) else error.strerror or str(error)
                told = f"--dir: must be a folder that can be written: {why.lower()} (got {self.folder})"
                raise LabError(told) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
                    return handle  # else a `down` removed the file that we locked: take the new one
            except BlockingIOError as error:
                # A program that a killed `up` was just starting may hold it for a moment.
                if time.monotonic() > deadline:
                    handle.close()
                    raise LabError(f"another `lab up` or `lab down` is at work in {self.folder}") from error
                time.sleep(POLL_S)
            handle.close()

    def _read(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self.folder / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return told

    def _write(self, told: Mapping[str, Any]) -> None:
        part = self.folder / f".{_STATE}.part"
        part.write_text(json.dumps(told))
        part.rename(self.folder / _STATE)


def _one_line(error: Exception, folder: Path) -> str:
    """What a user can act on. Programs that find no room end with a stack trace as their last words."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or (isinstance(error, ProcessFailed) and any(
            b"no space left on device" in log.read_bytes()[-65536:] for log in (folder / "logs").glob("*.log"))):
        return f"no space left in {folder}: free some, or choose another --dir"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


__all__ = ["HOST_CLUSTER", "Lab", "LabError", "MissingPart", "default_folder", "on_loopback", "wiring"]
