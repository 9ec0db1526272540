"""`python -m benchmarks.live [DPUS]`: the live backend and runner against a real kube-apiserver and etcd.

A finished installation of N DPUs is made in virtual time and loaded into real API servers, which run on the same cores.
Then: how quickly `live` knows it, what it holds, what it costs while nothing happens, how fast statuses are written and
heard of. Wall time counts here, so an idle machine is needed for figures worth keeping.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.__main__ import Row, show
from benchmarks.fleets import ROOT, TOKEN, fleet

OUT: Final = ROOT / "reports/out/bench-live.json"
DPUS: Final = 10_000
WRITERS: Final = 8
IDLE_S: Final = 40.0
LAG_WRITES: Final = 1_000
LAG_RATE: Final = 100.0  # writes per second
STAMP: Final = "dpf-twin.bench/at"
ROWS: Final = ("cluster", "lab", "lines")


@dataclass(frozen=True)
class Loaded:
    """Real API servers with a finished installation in them."""

    kubeconfig: Path
    folder: Path
    status_per_s: float
    status_cpu_s: float
    """Processor seconds of client, API server and etcd for one status write: what a busy machine does not change."""
    dpus: int


# --- a finished installation in real API servers


@contextmanager
def loaded(dpus: int) -> Iterator[Loaded]:
    from api.lab import neighbour_crds
    from scenarios.run import run
    from twin.backends.kube import LiveKube, install_crds, open_cluster
    from twin.backends.lab import binaries
    from twin.backends.lab.control_plane import ControlPlanes
    from twin.backends.lab.processes import Processes
    from twin.model.kinds import KINDS
    from twin.model.schema import crd, has_crd

    say(f"installing {dpus} DPUs in virtual time")
    clusters = max(1, dpus // 1000)
    result = run(fleet(dpus // 2, 2, clusters=clusters, policies=("allocator-spills-over", TOKEN)))
    ready = [o for o in result.objects[""] if o.KIND == "DPU" and o.status and o.status.phase == "Ready"]
    if len(ready) != dpus:
        sys.exit(f"only {len(ready)} of {dpus} DPUs became Ready in virtual time: {result.pending[:1]}")
    with tempfile.TemporaryDirectory(prefix="dpf-twin-bench-") as name:
        folder = Path(name)
        processes = Processes(folder)
        try:
            # No controller manager: nobody collects what names the simulation's uids as owners.
            planes = ControlPlanes(folder, processes, binaries.ensure(say=say))
            host, tenant = (planes.start(n, controllers=()) for n in ("host", "dpus"))
            cluster = open_cluster(Path(host.kubeconfig), qps=0)
            install_crds(LiveKube(cluster), [crd(k) for k in KINDS.values() if has_crd(k)] + neighbour_crds())
            kubeconfigs = _kubeconfigs(tenant.kubeconfig_text)
            objects = [o for o in result.objects[""] if o.KIND not in ("Event", "Pod", "Certificate")]
            servers = [r.pid for r in processes.running()]
            rate, cost_s = load(Path(host.kubeconfig), objects, kubeconfigs, servers)
            nodes = [o for name, of in result.objects.items() if name for o in of if o.KIND == "Node"]
            load(Path(tenant.kubeconfig), nodes, kubeconfigs, servers)
            cluster.close()
            yield Loaded(Path(host.kubeconfig), folder, rate, cost_s, dpus)
        finally:
            processes.stop_all()


def _kubeconfigs(text: str) -> Iterator[str]:
    """The tenant's kubeconfig as often as asked, each time another text: a client of its own per DPUCluster."""
    count = 0
    while True:
        count += 1
        yield f"# {count}\n{text}"


def load(kubeconfig: Path, objects: Sequence[Any], kubeconfigs: Iterator[str],
         servers: Sequence[int]) -> tuple[float, float]:
    """Create objects, then write statuses; returns status writes of DPUs per second, and processor seconds for each."""
    from twin.backends.kube import open_cluster, resource_path
    from twin.backends.kube_http import MERGE_PATCH
    from twin.model.kinds import to_manifest

    cluster = open_cluster(kubeconfig, qps=0)
    manifests = [(type(o), prepared(type(o), to_manifest(o), kubeconfigs)) for o in objects]
    manifests.sort(key=lambda m: m[0].KIND != "Namespace")
    say(f"writing {len(manifests)} objects")

    def create(item: tuple[type[Any], dict[str, Any]]) -> None:
        kind, manifest = item
        path = resource_path(kind, manifest["metadata"].get("namespace", ""))
        _fine(lambda: cluster.connection.request("POST", path, body=msgspec.json.encode(manifest)))

    def status(item: tuple[type[Any], dict[str, Any]]) -> None:
        kind, manifest = item
        meta = manifest["metadata"]
        path = resource_path(kind, meta.get("namespace", ""), meta["name"], "status")
        body = msgspec.json.encode({"status": manifest["status"]})
        cluster.connection.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    with ThreadPoolExecutor(WRITERS) as pool:
        spaces = [m for m in manifests if m[0].KIND == "Namespace"]
        list(pool.map(create, spaces))
        list(pool.map(create, manifests[len(spaces):]))
        told = [m for m in manifests if m[1].get("status") and "." in m[0].GROUP]
        list(pool.map(status, [m for m in told if m[0].KIND != "DPU"]))
        dpus = [m for m in told if m[0].KIND == "DPU"]
        programs = [os.getpid(), *servers]
        began, before = time.monotonic(), sum(map(cpu_s, programs))
        list(pool.map(status, dpus))
        took, spent = time.monotonic() - began, sum(map(cpu_s, programs)) - before
    cluster.close()
    return (len(dpus) / took, spent / len(dpus)) if dpus else (0.0, 0.0)


def prepared(kind: type[Any], manifest: dict[str, Any], kubeconfigs: Iterator[str]) -> dict[str, Any]:
    """As a user would send it; admin kubeconfigs lead to the real API server."""
    import base64

    from twin.model.schema import has_crd
    from twin.model.typed import as_sent

    for name in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"):
        manifest["metadata"].pop(name, None)
    data = manifest.get("data") or {}
    for name, value in data.items() if manifest["kind"] == "Secret" else ():
        if b"kind: Config" in base64.b64decode(value) or b'"Config"' in base64.b64decode(value):
            data[name] = base64.b64encode(next(kubeconfigs).encode()).decode()
    return as_sent(kind, msgspec.json.decode(msgspec.json.encode(manifest))) if has_crd(kind) else manifest


def _fine(do: Callable[[], Any]) -> None:
    from twin.backends.base import AlreadyExists

    try:
        do()
    except AlreadyExists:  # `default` and other things that a server brings itself
        return


# --- what is measured


def informers(kubeconfig: str) -> dict[str, float]:
    """In a process of its own: first sync of all DPUs, memory; then the lag of marked writes until stdin ends."""
    from twin.backends.kube import open_cluster
    from twin.model.provisioning import Dpu

    cluster = open_cluster(Path(kubeconfig), qps=0)
    cluster.version()
    began = time.monotonic()
    cluster.informer(Dpu)
    sync_s = time.monotonic() - began
    lags: list[float] = []

    def heard(old: Any, new: Any) -> None:
        at = new.metadata.annotations.get(STAMP) if new is not None else None
        if at is not None and (old is None or old.metadata.annotations.get(STAMP) != at):
            lags.append(time.monotonic() - float(at))

    cluster.watch(Dpu, heard)
    count = len(cluster.cache.list(Dpu, None, None))
    print("ready", flush=True)
    sys.stdin.read()
    lags.sort()
    found = {"sync_s": sync_s, "count": float(count), "rss_mib": rss_mib(os.getpid()), "heard": float(len(lags)),
             "lag_p50_s": lags[len(lags) // 2], "lag_p99_s": lags[int(len(lags) * 0.99)]}
    cluster.close()
    return found


def mark(target: Loaded) -> None:
    """Write stamps on DPUs at a steady rate. The clock is the machine's, so another process can subtract."""
    from twin.backends.kube import LiveKube, open_cluster
    from twin.model.provisioning import Dpu

    cluster = open_cluster(target.kubeconfig, qps=0)
    kube = LiveKube(cluster)
    keys = [d.key for d in kube.list_live(Dpu)][:LAG_WRITES]
    began = time.monotonic()

    def write(item: tuple[int, Any]) -> None:
        number, key = item
        time.sleep(max(0.0, began + number / LAG_RATE - time.monotonic()))
        kube.patch(Dpu, key, {"metadata": {"annotations": {STAMP: f"{time.monotonic():.6f}"}}})

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, enumerate(keys)))
    time.sleep(1.0)
    cluster.close()


def informer_rows(target: Loaded) -> list[Row]:
    case = subprocess.Popen([sys.executable, "-m", "benchmarks.live", "--case", str(target.kubeconfig)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert case.stdout is not None
    if case.stdout.readline().strip() != "ready":
        sys.exit("the informers did not start")
    mark(target)
    said, _ = case.communicate("")
    found = json.loads(said)
    if found["count"] != target.dpus or found["heard"] < min(LAG_WRITES, target.dpus):
        sys.exit(f"the informers saw {found['count']:.0f} DPUs and {found['heard']:.0f} writes")
    return [
        Row(f"first sync of {target.dpus} DPUs", found["sync_s"], "s", 5.0),
        Row("memory of a process with them", found["rss_mib"], "MiB", 1024.0),
        Row("watch lag p99 at 100 writes/s, from before the write", found["lag_p99_s"] * 1000, "ms", 200.0),
        Row("watch lag p50", found["lag_p50_s"] * 1000, "ms"),
    ]


def idle_rows(target: Loaded) -> list[Row]:
    """The whole of `live`, all controllers and informers, over a fleet where nothing happens."""
    volume = target.folder / "bfb"
    volume.mkdir(exist_ok=True)
    log = (target.folder / "live.log").open("w")
    began = time.monotonic()
    live = subprocess.Popen(
        [sys.executable, "-m", "api.cli", "live", "--kubeconfig", str(target.kubeconfig), "--yes", "--volume",
         str(volume), "--log-format", "json", "--listen", "127.0.0.1:0"], cwd=ROOT, stderr=log,
        stdin=subprocess.DEVNULL)
    try:
        while "leading" not in (target.folder / "live.log").read_text():
            if live.poll() is not None or time.monotonic() - began > 120:
                sys.exit("live did not start: " + (target.folder / "live.log").read_text()[-500:])
            time.sleep(0.1)
        ready_s = time.monotonic() - began
        settle(live.pid)
        before, at = cpu_s(live.pid), time.monotonic()
        time.sleep(IDLE_S)
        share = 100 * (cpu_s(live.pid) - before) / (time.monotonic() - at)
        memory = rss_mib(live.pid)
        if live.poll() is not None:
            sys.exit("live ended: " + (target.folder / "live.log").read_text()[-500:])
    finally:
        live.terminate()
        live.wait(60)
        log.close()
    return [
        Row(f"idle processor share of live, {target.dpus} Ready DPUs", share, "% of a core", 20.0),
        Row("memory of live, all kinds and its trace", memory, "MiB", 1024.0),
        Row("live from start to leading", ready_s, "s"),
    ]


def settle(pid: int, *, within_s: float = 900.0) -> None:
    """Wait until the first pass over everything is done: two windows of 10 s that cost about the same, below half a
    core."""
    deadline, last = time.monotonic() + within_s, float("inf")
    while time.monotonic() < deadline:
        before = cpu_s(pid)
        time.sleep(10.0)
        spent = cpu_s(pid) - before
        if spent < 5.0 and abs(spent - last) < 0.5:
            return
        last = spent


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """The most this process ever held."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def lab_rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="dpf-twin-bench-") as name:
        words = ["--dir", f"{name}/lab", "-q"]
        tool = [sys.executable, "-m", "api.cli", "lab"]
        took = {}
        try:
            for verb, extra in (("up", ["--hosts", "2", *([] if os.geteuid() == 0 else ["--no-netns"])]), ("down", [])):
                began = time.monotonic()
                done = subprocess.run([*tool, verb, *words, *extra], cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"lab {verb}: {done.stderr}")
                took[verb] = time.monotonic() - began
        finally:
            subprocess.run([*tool, "down", *words], cwd=ROOT, capture_output=True)
    return [Row("lab up of two hosts, once built", took["up"], "s", 20.0), Row("lab down", took["down"], "s")]


# --- how much of the path is shared


SHARED: Final = tuple(str(ROOT / p) for p in ("controllers/", "twin/model/", "twin/runtime/queue.py",
                                              "twin/runtime/reconcile.py", "twin/runtime/memory.py"))


class Lines:
    """Which source lines ran: (file, line) by tracing every thread.

    In a lab emulated hosts use the model too, in threads of their own; with `workers` only the workers of these
    controllers count there. Background tasks are in the controllers' own files, which always count.
    """

    def __init__(self, workers: frozenset[str] = frozenset()) -> None:
        self.ran: set[tuple[str, int]] = set()
        self._workers = workers

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(SHARED):
            return None
        ours = not self._workers or threading.current_thread().name.rpartition("-")[0] in self._workers
        return self._line if ours or file.startswith(SHARED[0]) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.ran.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    @contextmanager
    def traced(self) -> Iterator[None]:
        threading.settrace(self)
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]


def line_rows() -> list[Row]:
    """Lines of controllers, model and queue that an installation on the lab runs, and the library in virtual time too.

    What is left is what only real bytes need: the image's header, the authority's certificate.
    """
    from api.rehearse_lab import LabStory
    from controllers import CONTROLLERS
    from scenarios.load import load_scenario
    from scenarios.run import run
    from twin.backends.base import Settings

    library = ROOT / "scenarios/library"
    live, simulated = Lines(frozenset(c.name for c in CONTROLLERS)), Lines()
    story = LabStory(load_scenario(library / "first-install.yaml"), speed=300.0, settings=Settings(cloud_init_s=2.0))
    try:
        with live.traced():
            story.start()
            result = story.play()
    finally:
        story.close()
    if result.pending:
        sys.exit(f"the lab's installation did not finish: {result.pending[0]}")
    with simulated.traced():
        for path in sorted(library.glob("*.yaml")):
            run(load_scenario(path))
    both = live.ran & simulated.ran
    return [Row("lines of the live controllers' path that ran in simulation too", 100 * len(both) / len(live.ran), "%",
                95.0, least=True), Row("lines of that path", float(len(live.ran)), "")]


# --- the table


def cluster_rows(dpus: int) -> list[Row]:
    with loaded(dpus) as target:
        return [Row("status writes, 8 writers, etcd and API servers on the same cores", target.status_per_s, "1/s",
                    300.0, least=True),
                Row("processor time of a status write, all programs", target.status_cpu_s * 1000, "ms"),
                *informer_rows(target), *idle_rows(target)]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("rows", nargs="*", metavar="row", help=f"some of {', '.join(ROWS)}; default all")
    parser.add_argument("--dpus", type=int, default=DPUS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(informers(asked.case)))
        return
    wanted = asked.rows or ROWS
    if wrong := [w for w in wanted if w not in ROWS]:
        parser.error(f"unknown row {wrong[0]}")
    measure = {"cluster": lambda: cluster_rows(asked.dpus), "lab": lab_rows, "lines": line_rows}
    show([row for name in wanted for row in measure[name]()], OUT)


if __name__ == "__main__":
    main()
