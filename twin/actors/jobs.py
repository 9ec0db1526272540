"""The Job controller, and what the pods of DPF's Jobs do (customAction and reboot scripts).

Pods carry no tracking finalizer: a Job that ends is judged by its pods as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from twin.actors.actor import Actor
from twin.actors.hosts import Durations
from twin.model.core import Job, Pod, PodSpec, PodStatus
from twin.model.meta import Conditions, Key, ObjectMeta, format_time, replace, set_condition
from twin.runtime.reconcile import DONE, Context, Result, Watch, owner_key, owners

JOB_NAME: Final = "batch.kubernetes.io/job-name"
CONTROLLER_UID: Final = "batch.kubernetes.io/controller-uid"
BACK_OFF_FIRST_S: Final = 10.0
BACK_OFF_MAX_S: Final = 360.0
"""Kubernetes waits so long, doubling, before it replaces a failed pod of a Job."""
DEFAULT_BACKOFF_LIMIT: Final = 6

REBOOT_SCRIPT_SUFFIX: Final = "-reboot-script"


class Jobs(Actor):
    """Runs Jobs of one pod at a time."""

    name = "job"
    watches = (Watch(Job), Watch(Pod, to=owner_key(Job), by=owners))

    def reconcile(self, ctx: Context, key: Key) -> Result:
        job = self.kube.get(Job, key)
        if job is None:
            self.forget(key, "back-off")
            return DONE
        if job.deleting or _ended(job.status.conditions):
            return DONE
        pods = self.kube.list(Pod, key.namespace, {JOB_NAME: key.name})
        own = [p for p in pods if any(r.uid == job.metadata.uid for r in p.metadata.owner_references)]
        succeeded = sum(1 for p in own if p.status.phase == "Succeeded")
        failed = sum(1 for p in own if p.status.phase == "Failed")
        active = len(own) - succeeded - failed
        conditions = job.status.conditions
        limit = DEFAULT_BACKOFF_LIMIT if job.spec.backoff_limit is None else job.spec.backoff_limit
        if succeeded:
            conditions = set_condition(conditions, "Complete", "True", "", "", ctx.now)
        elif failed > limit:
            conditions = set_condition(conditions, "Failed", "True", "BackoffLimitExceeded",
                                       "Job has reached the specified backoff limit", ctx.now)
        elif not active and self._may_start(key, job, failed):
            self.kube.create(_pod(job))
            active = 1
        status = replace(
            job.status, conditions=conditions, start_time=job.status.start_time or format_time(ctx.now),
            completion_time=format_time(ctx.now) if succeeded else "",
            active=active, succeeded=succeeded, failed=failed)
        if status != job.status:
            self.kube.update_status(replace(job, status=status))
        return DONE

    def _may_start(self, key: Key, job: Job, failed: int) -> bool:
        wait = min(BACK_OFF_FIRST_S * 2.0 ** (failed - 1), BACK_OFF_MAX_S) if failed else 0.0
        return self.waited(key, "back-off", (job.metadata.uid, str(failed)), lambda: wait)


def _ended(conditions: Conditions) -> bool:
    return any(c.type in ("Complete", "Failed") and c.status == "True" for c in conditions)


def _pod(job: Job) -> Pod:
    template: dict[str, Any] = dict(job.spec.template)
    meta = template.get("metadata") or {}
    name, uid = job.metadata.name, job.metadata.uid
    return Pod(
        metadata=ObjectMeta(
            generate_name=f"{name}-", namespace=job.metadata.namespace, owner_references=(job.owner_reference(),),
            annotations=dict(meta.get("annotations") or {}),
            labels={**(meta.get("labels") or {}), JOB_NAME: name, CONTROLLER_UID: uid, "job-name": name,
                    "controller-uid": uid}),
        spec=_spec(template.get("spec") or {}),
        status=PodStatus(phase="Pending"))


def _spec(template: dict[str, Any]) -> PodSpec:
    """Only restartPolicy Never is played: what fails is replaced by the Job, not restarted in place."""
    return replace(msgspec.convert(template, PodSpec), restart_policy="Never")


# --- what the pods do


@dataclass(frozen=True, slots=True)
class Work:
    """`do` runs when `operation` (of the timing table) is over; it returns '' or why the pod fails."""

    operation: str
    do: Callable[[], str]
    busy: Callable[[], bool] = lambda: False


def dpf_work(reboot: Callable[[str], None], fails: Callable[..., bool] = lambda operation, *entity: False,
             rebooting: Callable[[str], bool] = lambda host: False) -> Callable[[Pod], Work]:
    """The work of DPF's own Jobs: reboot scripts reboot the host they are named after, all others only take time.

    A script ends when its host is up again (`rebooting` says no more); one that does not wait for that makes the host
    network script fail eleven times while the host boots.

    `fails(operation, *entity)` decides which pods exit with an error (`Timing.fails`).
    """

    def work(pod: Pod) -> Work:
        job = pod.metadata.labels.get(JOB_NAME, "")
        script = job.endswith(REBOOT_SCRIPT_SUFFIX)
        operation = "reboot-script-job" if script else "custom-action-job"

        def do() -> str:
            if fails(operation, pod.metadata.namespace, pod.metadata.name, pod.metadata.uid):
                return "exit status 1"
            if script:
                reboot(job.removesuffix(REBOOT_SCRIPT_SUFFIX))
            return ""

        return Work(operation, do, lambda: script and rebooting(job.removesuffix(REBOOT_SCRIPT_SUFFIX)))

    return work


class JobPod:
    """`twin.actors.pods.Program` of the pods of Jobs: the last container does the work."""

    def __init__(self, durations: Durations, work: Callable[[Pod], Work]) -> None:
        self._durations = durations
        self._work = work

    def takes_s(self, pod: Pod, container: str, attempt: str) -> float | None:
        if any(c["name"] == container for c in pod.spec.init_containers):
            return 0.0
        return self._durations(self._work(pod).operation, pod.metadata.namespace, pod.metadata.name, attempt)

    def finish(self, pod: Pod, container: str) -> str:
        if any(c["name"] == container for c in pod.spec.init_containers):
            return ""
        return self._work(pod).do()

    def busy(self, pod: Pod) -> bool:
        return self._work(pod).busy()

    def can_start(self, pod: Pod) -> bool:
        return True

    def healthy(self, pod: Pod) -> bool:
        return True

    def started(self, pod: Pod) -> None:
        pass

    def stopped(self, node: str) -> None:
        pass


def is_job_pod(pod: Pod) -> bool:
    return JOB_NAME in pod.metadata.labels


