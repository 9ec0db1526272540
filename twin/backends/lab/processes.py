"""The programs of one lab folder.

Each is started in a session of its own with the folder's mark in its environment. Whoever comes later, even after the
starter was killed, finds every one of them (and its descendants) by that mark; pid files only give them names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "DPF_TWIN_LAB"
POLL_S: Final = 0.02
EXEC_S: Final = 0.1
"""A process that shows no environment for longer has none."""

# The program writes its own pid before it becomes itself, so no moment exists in which it runs unnamed.
_NAMED: Final = 'echo $$ > "$0" && exec "$@"'


class ProcessFailed(Exception):
    """A program of the lab ended, or was not ready in time; the message ends with the last line of its log."""


@dataclass(frozen=True, slots=True)
class Running:
    name: str
    pid: int


class Processes:
    """Start, find and stop the programs of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Start a program under this name; its output goes to `logs/NAME.log`. Returns its pid."""
        for part in ("run", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        variables = dict(env or {})
        (self.folder / "run" / f"{name}.json").write_text(json.dumps({"argv": list(argv), "env": variables}))
        pid_file = self.folder / "run" / f"{name}.pid"
        pid_file.unlink(missing_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _NAMED, str(pid_file), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **variables, MARK: str(self.folder)}, start_new_session=True, cwd=self.folder)
        self._children[child.pid] = self._started[name] = child
        deadline = time.monotonic() + 2.0
        while self.pid(name) is None and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)  # it has not written its pid yet
        return child.pid

    def again(self, name: str) -> int:
        """Start a program that ran before, as it was started then."""
        recipe = json.loads((self.folder / "run" / f"{name}.json").read_text())
        return self.start(name, recipe["argv"], env=recipe["env"])

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def names(self) -> list[str]:
        """Every program this folder was asked to run, alive or not."""
        return sorted(p.stem for p in (self.folder / "run").glob("*.json"))

    def pid(self, name: str) -> int | None:
        """The pid of a named program that is alive, else None."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if self._marked(pid) else None

    def running(self) -> list[Running]:
        return [Running(name, pid) for name in self.names() if (pid := self.pid(name)) is not None]

    def stop(self, name: str, *, with_signal: int = signal.SIGTERM, grace_s: float = 10.0) -> None:
        """End a program: the signal, then SIGKILL after the grace. Missing is fine."""
        pid = self.pid(name)
        if pid is None:
            return
        _signal(pid, with_signal)
        if not self._gone([pid], grace_s):
            _signal(pid, signal.SIGKILL)
            self._gone([pid], grace_s)

    def forget(self, name: str) -> None:
        """No longer count this program among ours."""
        for suffix in ("json", "pid"):
            (self.folder / "run" / f"{name}.{suffix}").unlink(missing_ok=True)

    def stop_all(self, *, grace_s: float = 10.0) -> list[int]:
        """Kill everything that carries the mark, descendants too. Returns the pids that would not die."""
        deadline = time.monotonic() + grace_s
        while pids := list(self.marked()):
            for pid in pids:
                _signal(pid, signal.SIGKILL)
            if not self._gone(pids, max(0.0, deadline - time.monotonic())):
                return list(self.marked())
        return []

    def marked(self) -> Iterator[int]:
        """Every live process with this folder's mark, ourselves excepted."""
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid() and self._marked(int(entry)):
                yield int(entry)

    def await_ready(self, name: str, ready: Callable[[], bool], *, deadline_s: float) -> None:
        """Poll until `ready()`; raises ProcessFailed if the program ends first or the time is over."""
        deadline = time.monotonic() + deadline_s
        while not ready():
            if not self._starting(name):
                raise ProcessFailed(f"{name} ended: {self.last_line(name)}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{name} is not ready after {deadline_s:.0f} s: {self.last_line(name)}")
            time.sleep(POLL_S)

    def last_line(self, name: str) -> str:
        """The last line of a program's log that says something."""
        try:
            with self.log(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        except OSError:
            lines = []
        told = [line for line in lines if line]
        return told[-1] if told else "its log is empty"

    def _starting(self, name: str) -> bool:
        """Alive, or so new that it has not written its pid yet."""
        child = self._started.get(name)
        return self.pid(name) is not None or (child is not None and child.poll() is None)

    def _marked(self, pid: int) -> bool:
        child = self._children.get(pid)
        if child is not None and child.poll() is not None:  # reaps our own dead
            del self._children[pid]
            return False
        try:
            environment = _environment(pid)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX" and f"{MARK}={self.folder}".encode() in environment.split(b"\0")

    def _gone(self, pids: Sequence[int], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while any(self._marked(pid) for pid in pids):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True


def _environment(pid: int) -> bytes:
    """The environment of a process. For a moment of its exec it shows none: then look again.

    Raises: OSError when it has ended, or is the kernel's.
    """
    deadline = time.monotonic() + EXEC_S
    while not (environment := Path(f"/proc/{pid}/environ").read_bytes()) and time.monotonic() < deadline:
        os.readlink(f"/proc/{pid}/exe")
        time.sleep(0.001)
    return environment


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
