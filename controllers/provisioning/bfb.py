"""BFB: from a URL to a file on the shared volume (provisioning.md 4.1).

The image is downloaded by the controller process itself, in a background task; a restart starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from twin.backends.base import ApiError, BfbVolume, KubeApi
from twin.model.meta import Key, replace, strip_finalizer
from twin.model.names import Finalizer, bfb_file
from twin.model.provisioning import Bfb, BfbSpec, BfbStatus, BfbVersions
from twin.runtime.backends import Backends
from twin.runtime.memory import Memory, TaskBody
from twin.runtime.reconcile import DONE, Context, Result, Watch

UNIQUE_FILE_NAME: Final = "bfb-unique-file-name"
CHECKED_DOWNLOADS: Final = "checked-downloads"


@dataclass(frozen=True)
class BfbReconciler:
    """One pass: the phase's handler gives the next status; a changed status is written, an unchanged one polled."""

    kube: KubeApi
    volume: BfbVolume
    memory: Memory
    policies: frozenset[str]
    poll_s: float

    name: ClassVar[str] = "bfb"
    watches: ClassVar[tuple[Watch, ...]] = (Watch(Bfb),)

    @classmethod
    def make(cls, backends: Backends) -> BfbReconciler:
        return cls(backends.kube, backends.volume, backends.memory, backends.policies, backends.settings.requeue_s)

    def reconcile(self, ctx: Context, key: Key) -> Result:
        bfb = self.kube.get(Bfb, key)
        if bfb is None:
            return DONE
        if Finalizer.BFB not in bfb.metadata.finalizers:
            return self._protect(bfb)
        status = bfb.status or BfbStatus()
        handler = PHASES.get(status.phase or "Initializing")
        if handler is None:
            return Result(error=f"unsupported phase {status.phase}")
        step = handler(self, bfb, status)
        if step is None:
            return DONE
        if step != status:
            try:
                self.kube.update_status(replace(bfb, status=step))
            except ApiError as error:
                return Result(error=f"failed to update BFB status {error}")
            return DONE
        return DONE if step.phase == "Error" else Result(requeue_after_s=self.poll_s)

    def _protect(self, bfb: Bfb) -> Result:
        if bfb.deleting:
            return DONE
        meta = replace(bfb.metadata, finalizers=(*bfb.metadata.finalizers, Finalizer.BFB))
        try:
            self.kube.update(replace(bfb, metadata=meta))
        except ApiError as error:
            return Result(error=f"failed to add BFB finalizer {error}")
        return DONE

    # --- phases: the next status, or None when the object is gone

    def _initializing(self, bfb: Bfb, status: BfbStatus) -> BfbStatus | None:
        if bfb.deleting:
            return replace(status, phase="Deleting")
        spec = bfb.spec or BfbSpec()
        name = spec.file_name or bfb_file(bfb.metadata.namespace, bfb.metadata.name)
        if UNIQUE_FILE_NAME in self.policies:
            users = self._users(f"/bfb/{name}", but=bfb)
            if users and _age(users[0]) < _age(bfb):
                self.kube.event(bfb, "Warning", "FailedDownload",
                                f"spec.fileName '{name}' is already used by BFB '{users[0].metadata.name}'")
                return replace(status, phase="Error")
        return replace(status, phase="Downloading", file_name=name, versions=status.versions or BfbVersions())

    def _downloading(self, bfb: Bfb, status: BfbStatus) -> BfbStatus | None:
        token = task_token(bfb.key)
        if bfb.deleting:
            if self.memory.task(token) is not None:
                self.memory.cancel(token)
            return replace(status, phase="Deleting")
        path, temp = paths(bfb, status)
        task = self.memory.task(token)
        try:
            present = self.volume.exists(path)
        except OSError:
            return replace(status, phase="Error")
        if task is not None and not task.finished:
            return status
        if task is not None and task.error:
            self.kube.event(bfb, "Warning", "FailedDownload", f"Download BFB: ({bfb.key}) failed")
            self.memory.forget(token)
            return replace(status, phase="Error")
        if present:
            # upstream: bfb-shared-file-name. Whoever put the file there, it is taken for this BFB's.
            return self._downloaded(bfb, status, path)
        # upstream: download-unchecked
        checked = CHECKED_DOWNLOADS in self.policies
        self.memory.start(token, _download(self.volume, (bfb.spec or BfbSpec()).url, path, temp, checked))
        return status

    def _downloaded(self, bfb: Bfb, status: BfbStatus, path: str) -> BfbStatus:
        try:
            found = self.volume.versions(path)
        except (ValueError, OSError) as error:
            # upstream: bfb-unreadable-version-loop
            self.kube.event(bfb, "Warning", "FailedGetBFBVersion",
                            f"Failed getting BFB: ({bfb.key}) versions, err: {error}")
            return status
        # upstream: bfb-versions-immutable. Announced before the write, which a changed version makes fail for ever.
        self.kube.event(bfb, "Normal", "SuccessfulDownload", f"Download BFB: ({bfb.key}) successful")
        if self.memory.task(task_token(bfb.key)) is not None:
            self.memory.forget(task_token(bfb.key))
        return replace(status, phase="Ready", versions=_versions(found))

    def _ready(self, bfb: Bfb, status: BfbStatus) -> BfbStatus | None:
        if bfb.deleting:
            return replace(status, phase="Deleting")
        try:
            present = self.volume.exists(paths(bfb, status)[0])
        except OSError:
            return status
        return status if present else replace(status, phase="Downloading")

    def _error(self, bfb: Bfb, status: BfbStatus) -> BfbStatus | None:
        return replace(status, phase="Deleting") if bfb.deleting else status

    def _deleting(self, bfb: Bfb, status: BfbStatus) -> BfbStatus | None:
        image, temp = paths(bfb, status)
        try:
            # upstream: bfb-delete-removes-shared-file
            if not (UNIQUE_FILE_NAME in self.policies and self._users(image, but=bfb)):
                self.volume.remove(image)
            self.volume.remove(temp)
        except OSError as error:
            self.kube.event(bfb, "Warning", "FailedDelete", f"Delete BFB: ({bfb.key}) failed, err: {error}")
            return status
        self.kube.update(replace(bfb, metadata=strip_finalizer(bfb.metadata, Finalizer.BFB)))
        return None

    # --- inside

    def _users(self, image: str, but: Bfb) -> list[Bfb]:
        """The other BFBs of this file, oldest first."""
        found = [b for b in self.kube.list(Bfb) if b.key != but.key and paths(b, b.status or BfbStatus())[0] == image]
        return sorted(found, key=_age)


Handler = Callable[[BfbReconciler, Bfb, BfbStatus], BfbStatus | None]

PHASES: Final[Mapping[str, Handler]] = {
    "Initializing": BfbReconciler._initializing,
    "Downloading": BfbReconciler._downloading,
    "Ready": BfbReconciler._ready,
    "Error": BfbReconciler._error,
    "Deleting": BfbReconciler._deleting,
}


def task_token(key: Key) -> tuple[str, Key]:
    """What the download of this BFB is called in the process memory."""
    return ("BfbDownload", key)


def paths(bfb: Bfb, status: BfbStatus) -> tuple[str, str]:
    """The image on the volume and the file it is downloaded to first."""
    name = status.file_name or (bfb.spec or BfbSpec()).file_name or bfb_file(bfb.metadata.namespace, bfb.metadata.name)
    return f"/bfb/{name}", f"/bfb/bfb-{bfb.metadata.uid}"


def _age(bfb: Bfb) -> tuple[str, Key]:
    return (bfb.metadata.creation_timestamp, bfb.key)


def _download(volume: BfbVolume, url: str, path: str, temp: str, checked: bool) -> TaskBody:
    op = volume.download(url, path, temp, checked=checked)
    try:
        yield op
    finally:
        # The download is this process's own work: it ends with the task, and with the process.
        op.cancel()


def _versions(found: Mapping[str, str]) -> BfbVersions:
    return BfbVersions(bsp=found.get("bsp", ""), doca=found.get("doca", ""), uefi=found.get("uefi", ""),
                       atf=found.get("atf", ""))
