"""Jobs, their pods and what those do."""

from __future__ import annotations

from typing import Any

import pytest
from neighbours import SPACE, Town

from twin.actors.jobs import JobPod, Jobs, dpf_work, is_job_pod
from twin.actors.kubelet import NodeRegistration
from twin.actors.pods import PodLife
from twin.actors.scheduler import Scheduler
from twin.model.core import Job, JobSpec, Pod
from twin.model.meta import ObjectMeta, condition, replace

TEMPLATE = {"metadata": {"labels": {"app": "mine"}},
            "spec": {"containers": [{"name": "work", "image": "i"}], "restartPolicy": "Never"}}


class Story:
    """A town with a Job controller; `failing` pods exit with an error; `rebooted` hosts were rebooted by scripts."""

    def __init__(self, *hosts: str, failures: int = 0) -> None:
        self.failures = failures
        self.rebooted: list[str] = []
        self.t = t = Town(*hosts)
        t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
        t.add(lambda k: Scheduler(k, t.clock, t.durations, t.verbs(k)))
        program = JobPod(t.durations, dpf_work(self.reboot, self.fails))
        t.add(lambda k: PodLife(k, t.clock, t.durations, t.machines, t.verbs(k),
                                lambda p: program if is_job_pod(p) else None))
        t.add(lambda k: Jobs(k, t.clock, t.durations))
        t.run(1)

    def fails(self, operation: str, *entity: str) -> bool:
        self.failures -= 1
        return self.failures >= 0

    def reboot(self, host: str) -> None:
        self.rebooted.append(host)
        if host in self.t.machines.all:
            self.t.switch(host, up=False)

    def job(self, name: str, **spec: Any) -> None:
        self.t.create(Job(metadata=ObjectMeta(namespace=SPACE, name=name), spec=JobSpec(template=TEMPLATE, **spec)))

    def status(self, name: str) -> tuple[list[str], int, int, int]:
        s = self.t.get(Job, name).status
        return [c.type for c in s.conditions if c.status == "True"], s.active, s.succeeded, s.failed


def test_a_job_runs_one_pod_and_is_complete() -> None:
    s = Story("h1")
    s.job("custom-action-x")

    s.t.run(6)
    assert s.status("custom-action-x") == ([], 1, 0, 0)
    pod = s.t.all(Pod)[0]
    assert pod.metadata.name.startswith("custom-action-x-")
    assert pod.metadata.labels["app"] == "mine"
    assert (pod.metadata.owner_references[0].kind, pod.spec.restart_policy) == ("Job", "Never")
    s.t.run(30)

    assert s.status("custom-action-x") == (["Complete"], 0, 1, 0)
    assert s.t.get(Job, "custom-action-x").status.completion_time
    assert s.t.all(Pod)[0].status.phase == "Succeeded"


def test_without_retries_one_failed_pod_fails_the_job() -> None:
    s = Story("h1", failures=1)
    s.job("custom-action-x", backoff_limit=0)

    s.t.run(1000)

    assert s.status("custom-action-x") == (["Failed"], 0, 0, 1)
    failed = condition(s.t.get(Job, "custom-action-x").status.conditions, "Failed")
    assert failed is not None
    assert (failed.reason, failed.message) == ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert len(s.t.all(Pod)) == 1


def test_retries_back_off_from_10_s_doubling() -> None:
    s = Story("h1", failures=100)
    s.job("custom-action-x")
    start = s.t.now_s

    s.t.run(3000)

    # Golden case a2: seven pods; here each takes 35 s from its creation to its failure.
    made = [w[0] - start for w in s.t.writes("Pod") if w[1] == "create"]
    assert made == [0, 45, 100, 175, 290, 485, 840]
    assert s.status("custom-action-x")[0] == ["Failed"]


def test_a_retry_may_succeed() -> None:
    s = Story("h1", failures=2)
    s.job("custom-action-x")

    s.t.run(600)

    assert s.status("custom-action-x") == (["Complete"], 0, 1, 2)


def test_a_reboot_script_reboots_the_host_it_is_named_after() -> None:
    s = Story("h1", "h2")
    s.job("h2-reboot-script", backoff_limit=0)

    s.t.run(60)

    assert s.rebooted == ["h2"]
    assert s.status("h2-reboot-script")[0] == ["Complete"]


def test_a_failing_reboot_script_reboots_nothing() -> None:
    s = Story("h1", failures=1)
    s.job("h1-reboot-script", backoff_limit=0)

    s.t.run(60)

    assert s.rebooted == []
    assert s.status("h1-reboot-script")[0] == ["Failed"]


def test_a_job_pod_whose_host_reboots_has_failed() -> None:
    s = Story("h1")
    s.job("custom-action-x", backoff_limit=0)
    s.t.run(20)

    s.t.reboot("h1", 300)
    s.t.run(10)

    assert s.status("custom-action-x") == (["Failed"], 0, 0, 1)


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_deleted_job_takes_its_pods_along_and_makes_no_more(propagation: str) -> None:
    s = Story("h1")
    s.job("custom-action-x")
    s.t.run(10)

    job = s.t.get(Job, "custom-action-x")
    s.t.server.delete(Job, job.key, "test", s.t.env.now, propagation=propagation)
    s.t.run(60)

    assert s.t.all(Pod) == []
    assert s.t.all(Job) == []


def test_an_ended_job_is_left_alone() -> None:
    s = Story("h1")
    s.job("custom-action-x")
    s.t.run(100)
    before = len(s.t.writes())

    pod = s.t.all(Pod)[0]
    s.t.update(pod, metadata=replace(pod.metadata, labels={**pod.metadata.labels, "more": "1"}))
    s.t.run(10_000)

    assert len(s.t.writes()) == before
