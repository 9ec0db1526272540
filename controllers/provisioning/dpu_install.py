"""OS Installing: BFB and bf.cfg through DMS onto the card (provisioning.md 2.2 phase 6, 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

from controllers.provisioning import dpu_tasks
from controllers.provisioning.dpu_pass import Pass, dms_target, fatal
from controllers.provisioning.dpu_tasks import OS_INSTALL, TaskFailed, deadline_exceeded, within
from controllers.provisioning.install_files import bf_cfg_name, bf_cfg_path, render_bf_cfg
from twin.backends.base import DmsTarget, Operation, RpcError, Unavailable
from twin.model import dms_commands as commands
from twin.model.meta import Key
from twin.model.names import DOMAIN, Label, dms_pod
from twin.model.provisioning import Bfb, Dpu, DpuNode, DpuStatus, Phase
from twin.runtime.backends import Backends
from twin.runtime.memory import TaskBody

NO_DUPLICATE: Final = "no-duplicate-os-install"
"""Policy: a restarted controller waits for the install it finds under way instead of starting a second one.

An API server that is away after OS.Activate was called does not fail the attempt either."""

END_ON_DELETION: Final = "deletion-ends-os-install"
"""Policy: a deleted DPU starts no further attempt and does not need its BFB to leave the phase."""

ACTIVATED: Final = DOMAIN + "os-activate-started"
"""Annotation on a DPU under the policy `no-duplicate-os-install`: `calling/<epoch seconds>`, then `called/...`."""

AWAY_S: Final = 5.0
"""Under that policy, a write that found no API server is tried again after so long."""

CALLING: Final = "calling"
CALLED: Final = "called"


def os_installing(p: Pass) -> DpuStatus:
    """Start the install, wait for it, start it again; nothing else ends this phase.

    upstream: bfb-gone-wedges-install. The BFB is looked up before the task and before any deletion.
    upstream: deletion-waits-for-install. A deleted DPU leaves only when the task has ended, retries included.
    """
    if p.dpu.deleting and END_ON_DELETION in p.b.policies:
        if dpu_tasks.running(p, OS_INSTALL):
            return p.status
        return p.to(Phase.DELETING)
    bfb = p.find(Bfb, p.beside(p.dpu.spec.bfb), "BFBNotFound", "GetBFBError")
    try:
        if not dpu_tasks.attempt(p, OS_INSTALL, lambda attempt: install(p.b, p.dpu, bfb, attempt)):
            return p.status
    except TaskFailed as error:
        raise fatal("InstallationFailed", str(error)) from error
    return p.passed(Phase.CHECKING_HOST_REBOOT_REQUIRED)


def install(b: Backends, dpu: Dpu, bfb: Bfb, attempt: int) -> TaskBody:
    """One attempt, counted from 0, with the BFB as it was at the start: it may go meanwhile (provisioning.md 4.1).

    Raises what makes it fail: ApiError, RpcError, OSError, ValueError.
    """
    target = dms_target(b, b.background, dpu)
    budget_end: float | None = None
    if attempt == 0 and NO_DUPLICATE in b.policies:
        budget_end = yield from _under_way(b, dpu, target)
    if budget_end is None:
        yield b.dms.os_install(target, _bfb_name(dpu), dpu.status.bfb_file if dpu.status else "")
        yield from _send_bf_cfg(b, dpu, target)
        yield from _verify(b, dpu)
        budget_end = b.clock.now() + b.settings.activate_budget_s
        _mark(b, dpu, CALLING)
        activation = b.dms.os_activate(target, _os_version(dpu))
        yield from _written(b, lambda: _mark(b, dpu, CALLED))
        yield within(b.clock, activation, b.settings.activate_budget_s)
    yield from _until_rebooted(b, dpu, target, budget_end)
    yield b.clock.sleep(b.settings.cloud_init_s)
    yield from _written(b, lambda: _label(b, dpu, bfb))


def _bfb_name(dpu: Dpu) -> str:
    return (dpu.status.bfb_file if dpu.status else "").rpartition("/")[2]


def _os_version(dpu: Dpu) -> str:
    """What OS.Activate is asked for: both files."""
    return f"{_bfb_name(dpu)};{bf_cfg_name(dpu)}"


def _send_bf_cfg(b: Backends, dpu: Dpu, target: DmsTarget) -> TaskBody:
    """Render bf.cfg with a new bootstrap token, replace the file on the volume, stream it."""
    content = render_bf_cfg(b, dpu)
    path = bf_cfg_path(dpu)
    b.volume.remove(path)
    b.volume.write(path, content)
    yield b.dms.os_install(target, bf_cfg_name(dpu), path)


def _verify(b: Backends, dpu: Dpu) -> TaskBody:
    """md5sum of the BFB in the DMS pod; hosts outside Kubernetes have no pod. A failure ends the attempt."""
    node = b.background.get(DpuNode, Key(dpu.metadata.namespace, dpu.spec.dpu_node_name))
    if node is not None and node.status is not None and node.status.kube_node_ref is not None and dpu.status:
        pod = Key(b.settings.namespace, dms_pod(dpu.spec.dpu_node_name))
        yield b.agent.execute(pod, commands.checksum(dpu.status.bfb_file))


def _until_rebooted(b: Backends, dpu: Dpu, target: DmsTarget, budget_end: float) -> TaskBody:
    """Poll RebootStatus until the card's Arm is up again. Raises RpcError when it is not, or not in time."""
    left = budget_end - b.clock.now()
    if left <= 0:
        raise deadline_exceeded()
    _, status = yield b.dms.reboot_ended(target, _os_version(dpu), b.settings.reboot_status_poll_s, left)
    if status != "SUCCESS":
        raise RpcError("UNKNOWN", f"DPU reboot failed, status: {status}")


def _label(b: Backends, dpu: Dpu, bfb: Bfb) -> None:
    """The labels that the DPU-cluster Node is to carry go into the DPU's spec."""
    version = bfb.spec.url.rpartition("/")[2].rpartition(".")[0] if bfb.spec is not None else ""
    labels = {Label.DOCA_BFB_VERSION: version, Label.HOST: dpu.spec.dpu_node_name}
    b.background.patch(Dpu, dpu.key, {"spec": {"cluster": {"nodeLabels": labels}}})


# --- policy no-duplicate-os-install


def _mark(b: Backends, dpu: Dpu, state: str) -> None:
    """Leave word, around the call of OS.Activate, for the process that comes after this one."""
    if NO_DUPLICATE in b.policies:
        b.background.patch(Dpu, dpu.key, {"metadata": {"annotations": {ACTIVATED: f"{state}/{b.clock.now():.3f}"}}})


def _written(b: Backends, write: Callable[[], None]) -> TaskBody:
    """Write something after OS.Activate was called.

    As upstream has it, an API server that is away just then fails the attempt, and the next one installs anew. Under
    the policy the write is tried until the API server is back.
    """
    while True:
        try:
            write()
            return
        except Unavailable:
            if NO_DUPLICATE not in b.policies:
                raise
        yield b.clock.sleep(AWAY_S)


def _under_way(b: Backends, dpu: Dpu, target: DmsTarget) -> Generator[Operation, Any, float | None]:
    """The end of the budget of an OS.Activate that an earlier process called; None: there is none to wait for.

    Asked at a process's first attempt only: its own failed attempts are over. A crash around the call itself leaves
    open whether it was made: then DMS is asked, which speaks for the whole host and so only for a host's single DPU.
    """
    current = b.background.get(Dpu, dpu.key)
    mark = current.metadata.annotations.get(ACTIVATED) if current is not None else None
    if mark is None:
        return None
    state, _, since = mark.partition("/")
    end = float(since) + b.settings.activate_budget_s
    if end <= b.clock.now():
        return None
    if state == CALLING:
        of_host = b.background.list(Dpu, dpu.metadata.namespace, {Label.DPUNODE_NAME: dpu.spec.dpu_node_name})
        active = (yield b.dms.reboot_status(target))[0] if len(of_host) == 1 else False
        return end if active else None
    return end
