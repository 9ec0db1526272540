"""Named network namespaces, as `ip netns` keeps them, by plain system calls.

Nothing forks: a process with gRPC threads must not. A thread that enters a namespace stays there, so each namespace's
work has a thread of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

FOLDER: Final = Path("/run/netns")
_NEWNET: Final = 0x40000000
_BIND: Final = 4096
_SHARED: Final = 1 << 20
_DETACH: Final = 2

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def existing() -> list[str]:
    """Names of all namespaces of this machine."""
    return sorted(p.name for p in FOLDER.iterdir()) if FOLDER.is_dir() else []


def create(name: str) -> None:
    """Make a namespace; one that exists is kept. Raises: OSError (not root)."""
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    path = FOLDER / name
    try:
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        if _is_mounted(path):
            return
    try:
        _in_thread(lambda: _make_here(path))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def remove(name: str) -> None:
    """Remove a namespace; its links go when the last process left it. Missing is fine. Raises: OSError."""
    path = FOLDER / name
    if not path.exists():
        return
    while _libc.umount2(os.fsencode(path), _DETACH) == 0:
        pass  # it may have been mounted more than once
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def enter(name: str) -> None:
    """Move the calling thread into a namespace, for good. Raises: OSError."""
    handle = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(handle, _NEWNET), f"enter network namespace {name}")
    finally:
        os.close(handle)


def inside(name: str, work: Callable[[], T]) -> T:
    """Run `work` in a new thread inside a namespace."""

    def run() -> T:
        enter(name)
        return work()

    return _in_thread(run)


def _is_mounted(path: Path) -> bool:
    """Is something mounted exactly here? (`os.path.ismount` does not see a folder bound to itself.)"""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return str(path) in points


def _make_here(path: Path) -> None:
    # Mounts made here shall show in other mount namespaces too, as `ip netns` arranges it.
    if not _is_mounted(FOLDER):
        _check(_libc.mount(os.fsencode(FOLDER), os.fsencode(FOLDER), b"none", _BIND, None), "bind /run/netns")
        _check(_libc.mount(b"", os.fsencode(FOLDER), b"none", _SHARED, None), "share /run/netns")
    _check(_libc.unshare(_NEWNET), "make a network namespace")
    _check(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _BIND, None), f"keep {path}")


def _in_thread(work: Callable[[], T]) -> T:
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
