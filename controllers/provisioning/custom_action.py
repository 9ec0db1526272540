"""nodeEffect customAction: a user's Pod, from a ConfigMap, run as a Job (provisioning.md 6)."""

from __future__ import annotations

from typing import Any, Final

import yaml

from controllers.provisioning.dpu_pass import Pass, Unmet, fatal, not_found
from twin.backends.base import ApiError
from twin.model.core import ConfigMap, Job, JobSpec
from twin.model.meta import Key, ObjectMeta, condition_status, parse_time
from twin.model.provisioning import Dpu

LIMIT_S: Final = 600.0
"""A Job whose conditions do not say Complete is given up this long after its start."""


def job_key(dpu: Dpu, config: str) -> Key:
    """Lower-case `custom-action-<config>-<dpu>-<creation in ms, hexadecimal>`, each part at most 15 characters."""
    created = dpu.metadata.creation_timestamp
    stamp = f"{int(parse_time(created) * 1000) if created else 0:x}"
    return Key(dpu.metadata.namespace, f"custom-action-{config[:15]}-{dpu.metadata.name[:15]}-{stamp[:15]}".lower())


def run(p: Pass, config: str) -> None:
    """Start the Job, or look how it does. Returns when it is complete; raises Unmet before that."""
    key = job_key(p.dpu, config)
    try:
        job = p.kube.get(Job, key)
    except ApiError as error:
        raise Unmet("FailedToGetJob", str(error)) from error
    if job is None:
        try:
            p.kube.create(Job(metadata=ObjectMeta(namespace=key.namespace, name=key.name),
                              spec=JobSpec(backoff_limit=0, template=_template(p, config))))
        except (ApiError, ValueError) as error:
            raise Unmet("FailedToCreateJob", str(error)) from error
        raise Unmet("JobIsStarted", f"job {key} is started", waiting=True)
    conditions = job.status.conditions
    if condition_status(conditions, "Complete") == "True":
        return
    if condition_status(conditions, "Failed") == "True":
        raise fatal("FailedToProcessJobConditions", f"job {key} failed")
    # upstream: custom-action-no-timeout. A Job without any condition is waited for without end.
    if conditions and job.status.start_time and p.ctx.reached(parse_time(job.status.start_time) + LIMIT_S):
        raise fatal("FailedToProcessJobConditions", f"job {key} timed out")
    raise Unmet("JobIsNotFinished", f"job {key} is not finished", waiting=True)


def clean_up(p: Pass, config: str) -> None:
    """Delete the Job if it is there. Raises ApiError."""
    key = job_key(p.dpu, config)
    job = p.kube.get(Job, key)
    if job is not None and not job.deleting:
        p.kube.delete(Job, key)


def _template(p: Pass, config: str) -> dict[str, Any]:
    """The Pod under the first data key whose name contains "yaml". Raises ValueError."""
    found = p.kube.get(ConfigMap, Key(p.key.namespace, config))
    if found is None:
        raise ValueError(not_found(ConfigMap, config))
    for name in sorted(found.data):
        if "yaml" not in name:
            continue
        try:
            pod = yaml.safe_load(found.data[name])
        except yaml.YAMLError as error:
            raise ValueError(f"ConfigMap {found.key}: {name} is no YAML: {error}") from error
        if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
            raise ValueError(f"ConfigMap {found.key}: {name} holds no Pod")
        meta = pod.get("metadata") or {}
        return {"metadata": {k: meta[k] for k in ("labels", "annotations") if k in meta}, "spec": pod["spec"]}
    raise ValueError(f"ConfigMap {found.key} has no key that contains yaml")
