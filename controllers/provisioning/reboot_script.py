"""nodeRebootMethod script: a user's Job reboots the host (provisioning.md 3.4)."""

from __future__ import annotations

import json
from typing import Any

from controllers.provisioning.dpu_pass import Pass, Unmet, fatal, not_found
from twin.backends.base import ApiError, NotFound
from twin.model.core import ConfigMap, Job, JobSpec
from twin.model.meta import Key, ObjectMeta, condition, condition_status
from twin.model.provisioning import Dpu, DpuStatus

TEMPLATE_KEY = "pod-template"


def job_key(dpu: Dpu) -> Key:
    return Key(dpu.metadata.namespace, f"{dpu.spec.dpu_node_name}-reboot-script")


def run(p: Pass, config: str, after: str) -> DpuStatus:
    """First pass: start the Job. Later passes: look how it does; on success remove it and go on.

    upstream: rebooted-condition-means-asked. A condition left by an earlier failure passes for the started Job.
    """
    key = job_key(p.dpu)
    if condition(p.status.conditions, p.condition) is None:
        _start(p, config, key)
    job = p.find(Job, key, "JobNotFound", "FailedToFetchJob")
    conditions = job.status.conditions
    if condition_status(conditions, "Failed") == "True":
        raise fatal("RebootFailed", "the custom reboot script failed")
    if condition_status(conditions, "Complete") != "True":
        raise Unmet("WaitingForScriptToRebootNode", "", waiting=True)
    if not job.deleting:
        try:
            p.kube.delete(Job, key, propagation="Foreground")
        except NotFound:
            pass
        except ApiError as error:
            raise Unmet("FailedToDeleteJob", str(error)) from error
    return p.passed(after)


def _start(p: Pass, config: str, key: Key) -> None:
    """Always raises Unmet: what comes next is seen by the next pass."""
    try:
        if p.kube.get(Job, key) is not None:
            p.kube.delete(Job, key)
    except NotFound:
        pass
    except ApiError as error:
        raise Unmet("FailedToDeleteJob", str(error)) from error
    try:
        p.kube.create(Job(metadata=ObjectMeta(namespace=key.namespace, name=key.name),
                          spec=JobSpec(backoff_limit=0, template=_template(p, config))))
    except (ApiError, ValueError) as error:
        raise Unmet("FailedToCreateScriptJob", str(error)) from error
    raise Unmet("WaitingForScriptToRebootNode", "", waiting=True)


def _template(p: Pass, config: str) -> dict[str, Any]:
    """The PodTemplateSpec, which is JSON. Raises ValueError."""
    found = p.kube.get(ConfigMap, Key(p.key.namespace, config))
    if found is None:
        raise ValueError(not_found(ConfigMap, config))
    if TEMPLATE_KEY not in found.data:
        raise ValueError(f"ConfigMap {found.key} has no key {TEMPLATE_KEY}")
    template = json.loads(found.data[TEMPLATE_KEY])
    if not isinstance(template, dict):
        raise ValueError(f"ConfigMap {found.key}: {TEMPLATE_KEY} is no PodTemplateSpec")
    return template
