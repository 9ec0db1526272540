"""`live` and its lab: one installation on real API servers, real DMS, real joins; then what was seen of it."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from lab_parts import need_clusters

from api.live import Config, Live
from api.live_check import others
from api.live_folder import write_timing
from api.live_log import Log
from api.live_metrics import Endpoints
from api.rehearse_lab import LabStory
from reports.describe import describe
from reports.diff_runs import diff, history
from reports.folder import read, write
from reports.look import Query, get, kinds_in
from scenarios.load import Loader, load_scenario
from scenarios.result import Run, summarise
from scenarios.run import run as simulate
from twin.backends.base import Settings
from twin.backends.kube import LiveKube, open_cluster
from twin.backends.lab.certificates import authority, issue, kubeconfig
from twin.model.core import Lease, LeaseSpec, Node, Secret
from twin.model.meta import ObjectMeta
from twin.model.provisioning import Bfb, Dpu, DpuCluster, DpuDevice, DpuNode, DpuSet
from twin.runtime.lease import Rules, micro_time

pytestmark = [pytest.mark.slow, pytest.mark.lab]
ROOT = Path(__file__).parents[2]
SPACE = "dpf-operator-system"
SPEED = 300.0
FAST = Settings(cloud_init_s=2.0)
"""The controllers' own 90 s of waiting would be most of the test."""


class Played:
    """The lab after the scenario, still up."""

    def __init__(self, story: LabStory, run: Run, log: StringIO, endpoints: Endpoints, folder: Path) -> None:
        self.story, self.run, self.log, self.endpoints, self.folder = story, run, log, endpoints, folder

    @property
    def live(self) -> Live:
        assert self.story.live is not None
        return self.story.live

    @property
    def kubeconfig(self) -> Path:
        return Path(self.story.lab.status()["kubeconfig"])

    def kubectl(self, *words: str) -> str:
        kubectl = self.story.lab.status()["binaries"]["kubectl"]
        return subprocess.run([kubectl, "--kubeconfig", str(self.kubeconfig), *words], check=True, capture_output=True,
                              text=True).stdout


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    need_clusters()
    scenario = load_scenario(ROOT / "scenarios/library/first-install.yaml")
    log = StringIO()
    story = LabStory(scenario, speed=SPEED, settings=FAST, log=Log(log))
    try:
        story.start()
        assert story.live is not None
        endpoints = Endpoints(story.live, ("127.0.0.1", 0))
        run = story.play()
        folder = write([run], summarise([run]), tmp_path_factory.mktemp("runs") / "lab", report=False)
        write_timing(story.live, run, folder / "timing.yaml", speed=SPEED)
        yield Played(story, run, log, endpoints, folder)
        endpoints.close()
    finally:
        story.close()
        assert story.lab.down() == []


def test_every_dpu_of_the_lab_is_ready_as_kubectl_sees_it(played: Played) -> None:
    assert played.run.pending == []
    listed = played.kubectl("get", "dpu", "-n", SPACE, "--no-headers")
    assert [line.split()[1:3] for line in listed.splitlines()] == [["True", "Ready"]] * 2


def test_the_dpus_joined_a_second_real_api_server_with_certificates_of_their_own(played: Played) -> None:
    clusters = played.story.lab.status()["dpu_clusters"]
    assert [c["name"] for c in clusters] == [f"{SPACE}-dpu-cluster"]
    cluster = open_cluster(Path(clusters[0]["kubeconfig"]), qps=0)
    try:
        kube = LiveKube(cluster, cached=False)
        nodes = {n.metadata.name: n for n in kube.list(Node)}
        assert sorted(nodes) == ["worker1-0000-2b-00", "worker2-0000-2b-00"]
        approved = cluster.connection.request("GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests")
        assert approved.count(b'"type":"Approved"') >= 2
    finally:
        cluster.close()


def test_the_live_run_went_through_the_phases_of_the_simulated_one(played: Played, tmp_path: Path) -> None:
    scenario = load_scenario(ROOT / "scenarios/library/first-install.yaml")
    run = simulate(scenario, keep_trace=True, keep_objects=True)
    sim = read(write([run], summarise([run]), tmp_path / "sim", report=False))
    live = read(played.folder)
    assert history(live).phases == history(sim).phases
    found = diff(sim, live)
    assert found.phases == []
    assert [line for line in found.objects if line.startswith(("DPU ", "DPUDevice ", "DPUNode "))] == []


def test_tables_and_get_at_work_on_a_live_run(played: Played) -> None:
    folder = read(played.folder)
    answer = get(folder, Query(kind="dpu", all_namespaces=True))
    assert answer.out.count("Ready") >= 2
    before = get(folder, Query(kind="dpu", all_namespaces=True, at_s=0.001))
    assert "Ready  " not in before.out
    assert {row.phase for row in played.run.phases()} >= {"OS Installing", "Rebooting", "DPU Cluster Config", "Ready"}
    assert any(r.controller == "dpu" and r.count > 10 for r in played.run.reconciles)
    assert played.run.trace.records > 100


def test_the_nodes_of_dpu_clusters_are_part_of_the_history(played: Played) -> None:
    folder = read(played.folder)
    where = Query(kind="node", cluster=f"{SPACE}/dpu-cluster")
    names = [line.split()[0] for line in get(folder, where).out.splitlines()[1:]]
    assert names == ["worker1-0000-2b-00", "worker2-0000-2b-00"]
    joined = min(r.start_s for r in played.run.phases() if r.phase == "DPU Cluster Config")
    assert get(folder, replace(where, at_s=joined / 2)).out == "", "nobody had joined"
    told = describe(folder, replace(where, name=names[0])).out
    assert "KubeletReady" in told or "Ready" in told
    assert describe(folder, replace(where, name=names[0], at_s=joined / 2)).code == 1


def test_what_was_measured_calibrates_rehearsals(played: Played) -> None:
    profile = Loader().profile(str(played.folder / "timing.yaml"), Path(), ())
    for operation in ("api-write", "os-install", "dpu-join"):
        assert profile.operations[operation].basis == "measured"
    assert 0 < profile.operations["api-write"].takes.at(0.0) < 1
    assert profile.operations["os-install"].takes.at(0.0) > 60, "in the hardware's own seconds"


def test_metrics_have_upstreams_names(played: Played) -> None:
    def fetch(path: str) -> str:
        with urllib.request.urlopen(f"http://{played.endpoints.address}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    text = fetch("/metrics")
    for name in ("controller_runtime_reconcile_total", "controller_runtime_reconcile_errors_total",
                 "controller_runtime_reconcile_time_seconds_bucket", "controller_runtime_max_concurrent_reconciles",
                 "controller_runtime_active_workers", "workqueue_depth", "workqueue_adds_total",
                 "workqueue_queue_duration_seconds_bucket", "workqueue_work_duration_seconds_bucket",
                 "workqueue_retries_total", "workqueue_unfinished_work_seconds",
                 "workqueue_longest_running_processor_seconds", "rest_client_requests_total",
                 "leader_election_master_status"):
        assert f"{name}{{" in text, name
    assert fetch("/healthz") == fetch("/readyz") == "ok"


# --- beside a running installation


def test_a_shadow_decides_and_touches_nothing(played: Played) -> None:
    """A DPU is deleted while nobody else works: the shadow says what it would do, and every version stays."""
    played.live.stop()
    eventually(lambda: all(thread.name != "live" for thread in threading.enumerate()), within_s=60.0)
    played.kubectl("delete", "dpu", "worker1-0000-2b-00", "-n", SPACE, "--wait=false")
    before, said = versions(played), len(played.log.getvalue())
    shadow = Live(Config(kubeconfig=played.kubeconfig, settings=FAST, volume=played.story.lab.folder / "bfb",
                         lead=False, shadow=True, identity="shadow"), Log(played.log))
    shadow.prepare()
    thread = threading.Thread(target=shadow.run, daemon=True)
    thread.start()
    would = f'would controller=dpu verb="update status of" object="DPU {SPACE}/worker1-0000-2b-00"'
    eventually(lambda: any(would in line and "Deleting" in line for line in played.log.getvalue()[said:].splitlines()))
    shadow.stop()
    thread.join(30)
    shadow.close()
    assert shadow.failure is None
    assert sum(r.run for m in shadow.managers.values() for r in m.runners) > 5
    mine = [c for c in played.kubectl("get", "events", "-A", "-o", "name").splitlines() if "shadow" in c]
    assert (versions(played), mine) == (before, [])


def versions(played: Played) -> list[str]:
    kube = LiveKube(played.live.lease_cluster, cached=False)
    return [f"{kind.KIND} {o.key}@{o.metadata.resource_version}"
            for kind in (Bfb, DpuSet, DpuDevice, DpuNode, Dpu, DpuCluster) for o in kube.list(kind)]


# --- secrets


def planted(played: Played) -> set[str]:
    """What must not show: of every Secret of all clusters keys, tokens and kubeconfigs, whole and by their lines, as
    text and as base64; and a Secret that somebody applied with kubectl.
    """
    found: set[str] = set()
    for path in [played.kubeconfig, *(Path(c["kubeconfig"]) for c in played.story.lab.status()["dpu_clusters"])]:
        cluster = open_cluster(path, qps=0)
        for secret in LiveKube(cluster, cached=False).list(Secret):
            for name, value in secret.data.items():
                if name in ("tls.key", "token-secret", "admin.conf", "super-admin.conf", "password"):
                    found |= {value, *private(base64.b64decode(value).decode())}
        cluster.close()
    return found


def private(text: str) -> Iterator[str]:
    """A value whole, the lines of a key, and the keys inside a kubeconfig."""
    yield text
    if "PRIVATE KEY" in text:
        yield from (line for line in text.splitlines() if len(line) >= 32 and "-----" not in line)
    if "client-key-data: " in text:
        coded = text.partition("client-key-data: ")[2].split()[0]
        yield coded
        yield from private(base64.b64decode(coded).decode())


def shown(played: Played, folder: Path) -> Iterator[tuple[str, str]]:
    """Everything that a run puts before people: (where, text)."""
    import zstandard
    from pyarrow import parquet

    yield "log", played.log.getvalue()
    with urllib.request.urlopen(f"http://{played.endpoints.address}/metrics", timeout=30) as answer:
        yield "metrics", answer.read().decode()
    for path in (p for p in sorted(folder.rglob("*")) if p.is_file()):
        if path.suffix == ".zst":
            with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
                yield path.name, reader.read().decode()
        elif path.suffix == ".parquet":
            yield path.name, str(parquet.read_table(path).to_pylist())
        else:
            yield path.name, path.read_bytes().decode(errors="replace")
    kept = read(folder)
    for kind in kinds_in(kept):
        for cluster in ("", f"{SPACE}/dpu-cluster"):
            query = Query(kind=kind, all_namespaces=True, cluster=cluster)
            yield f"describe {kind} {cluster}", describe(kept, query).out
            yield f"get {kind} {cluster}", get(kept, replace(query, output="yaml")).out


def test_no_secret_shows_in_any_log_report_table_metric_or_answer(played: Played, tmp_path: Path) -> None:
    played.kubectl("create", "secret", "generic", "mine", "-n", SPACE, "--from-literal=password=correct-horse-battery")
    folder = write([played.run], summarise([played.run]), tmp_path / "full")
    write_timing(played.live, played.run, folder / "timing.yaml")
    values = planted(played)
    assert {"correct-horse-battery", base64.b64encode(b"correct-horse-battery").decode()} <= values
    assert len(values) >= 20
    told = dict(shown(played, folder))
    assert {where for where, text in told.items() if text} >= {
        "log", "metrics", "report.md", "summary.json", "trace.jsonl.zst", "history.jsonl.zst", "phases.parquet",
        "writes.parquet", "timeline.pftrace", "timing.yaml", "describe DPU ", f"describe Node {SPACE}/dpu-cluster"}
    assert [(where, value[:8]) for where, text in told.items() for value in values if value in text] == []


# --- others at work


def test_another_controllers_lease_is_noticed(played: Played) -> None:
    kube = LiveKube(played.live.lease_cluster, cached=False)
    assert others(played.live) == ""
    lease = kube.create(Lease(metadata=ObjectMeta(namespace=SPACE, name="provisioning.dpu.nvidia.com"), spec=LeaseSpec(
        holder_identity="dpf-provisioning-controller-manager-0", lease_duration_seconds=15,
        renew_time=micro_time(time.time()))))
    try:
        assert "dpf-provisioning-controller-manager-0 holds the lease" in others(played.live)
    finally:
        kube.delete(Lease, lease.key)


def test_of_two_processes_one_leads_and_the_other_takes_over(played: Played) -> None:
    rules = Rules(lease_s=3.0, renew_s=2.0, retry_s=0.3)
    processes = [Live(Config(
        kubeconfig=played.kubeconfig, controllers=(), settings=FAST, volume=played.story.lab.folder / "bfb",
        identity=name, rules=rules), Log(quiet=True)) for name in ("one", "two")]
    for each in processes:
        each.observe = lambda: None  # type: ignore[method-assign]
    threads = [threading.Thread(target=each.run, daemon=True) for each in processes]
    for thread in threads:
        thread.start()
    eventually(lambda: any(p.may_work() for p in processes))
    leader, other = sorted(processes, key=lambda p: not p.may_work())
    kube = LiveKube(leader.lease_cluster, cached=False)
    for _ in range(3):  # the other one tries as often as the leader renews
        renewed = kube.read_live(Lease, leader.elector.key).spec.renew_time
        eventually(lambda renewed=renewed: (  # type: ignore[misc]
            kube.read_live(Lease, leader.elector.key).spec.renew_time != renewed))
    assert (leader.may_work(), other.may_work()) == (True, False)
    leader.stop()
    eventually(other.may_work)
    other.stop()
    for thread, each in zip(threads, processes, strict=True):
        thread.join(10)
        each.close()
        assert each.failure is None


# --- mistakes, on the command line


def dpf_twin(*words: str, **env: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "api.cli", *words], capture_output=True, text=True, cwd=ROOT,
                          stdin=subprocess.DEVNULL, env={**os.environ, **env}, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def test_each_mistake_is_one_line(played: Played, tmp_path: Path) -> None:
    volume = ("--volume", str(tmp_path))
    good = str(played.kubeconfig)
    expired = tmp_path / "expired"
    ca_folder = played.story.lab.folder / "clusters" / "host"
    from twin.backends.lab.certificates import Pair
    ca = Pair((ca_folder / "ca.crt").read_text(), (ca_folder / "ca.key").read_text())
    server = played.live.lease_cluster.connection.server
    expired.write_text(kubeconfig("x", server, ca.certificate, "u", issue(ca, "u", expired=True)))
    wrong_ca = tmp_path / "wrong-ca"
    wrong_ca.write_text(kubeconfig("x", server, authority("other").certificate, "u", issue(ca, "u")))
    nobody = tmp_path / "nobody"
    nobody.write_text(kubeconfig("x", server, ca.certificate, "nobody", issue(ca, "nobody")))
    gone = tmp_path / "gone"
    gone.write_text(kubeconfig("x", "https://127.0.0.1:1", ca.certificate, "u", issue(ca, "u")))
    empty = tmp_path / "empty"
    empty.write_text("{}")
    for words, code, says in (
        (("live",), 2, "give --kubeconfig FILE or --lab"),
        (("live", "--kubeconfig", str(tmp_path / "none"), *volume), 2, "no such file or directory"),
        (("live", "--kubeconfig", str(empty), *volume), 2, "invalid configuration"),
        (("live", "--kubeconfig", good, "--context", "nope", *volume), 2, "has no context 'nope'"),
        (("live", "--kubeconfig", good, "--volume", str(tmp_path / "none")), 2, "is no folder"),
        (("live", "--kubeconfig", good, "--controllers", "dpuu", *volume), 2, "must be some of node, dpunode"),
        (("live", "--kubeconfig", good, "--actors", "kubelet", *volume), 2,
         "--actors: must be some of maintenance-operator, cert-manager (got kubelet)"),
        (("live", "--kubeconfig", good, "--record", "objects", *volume), 2, "--record goes with --out"),
        (("live", "--kubeconfig", good, "--out", str(ca_folder), *volume), 2, "is not a run folder"),
        (("live", "--lab", "--dir", str(played.story.lab.folder), "--actors", "cert-manager"), 2,
         "--lab has every neighbour already"),
        (("live", "--kubeconfig", good, "--policy", "nope", *volume), 2, "--policy: must be one of"),
        (("live", "--kubeconfig", good, "--listen", "nope", *volume, "--yes"), 2, "must be ADDRESS:PORT"),
        (("live", "--kubeconfig", str(expired), *volume), 2, "the server does not know us"),
        (("live", "--kubeconfig", str(wrong_ca), *volume), 3, "certificate signed by unknown authority"),
        (("live", "--kubeconfig", str(gone), *volume), 3, "connection refused"),
        (("live", "--kubeconfig", str(nobody), *volume), 2, "no permission to"),
        (("live", "--kubeconfig", good, *volume), 2, "this is no terminal: give --yes"),
        (("live", "--lab", "--dir", str(tmp_path / "nolab")), 3, "is absent: run `dpf-twin lab up`"),
        (("lab", "up", "--dir", str(tmp_path), "--hosts", "1"), 2, "is not empty and not a lab"),
        (("lab", "up", "--speed", "0"), 2, "--speed: must be greater than 0"),
    ):
        got, said = dpf_twin(*words, KUBECONFIG="")
        last = said.splitlines()[-1] if said else ""
        assert (got, says in last) == (code, True), (words, got, said)


def test_a_dpu_cluster_that_does_not_answer_at_the_end_is_a_warning(played: Played) -> None:
    played.story.lab.processes.stop(f"{SPACE}-dpu-cluster-apiserver", with_signal=signal.SIGKILL)
    run = played.story.result()
    assert len(run.objects[f"{SPACE}/dpu-cluster"]) == 2
    assert [w.partition(" at the end of the run: ")[0] for w in run.warnings] == [
        f"DPUCluster {SPACE}/dpu-cluster: its Nodes are as last heard, nobody answers"]


def eventually(true: Callable[[], bool], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.02)


