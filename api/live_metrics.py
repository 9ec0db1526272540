"""`/metrics` with the names of controller-runtime, client-go's workqueue and rest client; `/healthz`, `/readyz`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from twin.runtime.live import LiveRunner

if TYPE_CHECKING:
    from api.live import Live
    from twin.backends.wrap import Call
    from twin.model.meta import Key
    from twin.runtime.reconcile import Result

WORKQUEUE_S: Final = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1000)
RECONCILE_S: Final = (.005, .01, .025, .05, .1, .15, .2, .25, .3, .35, .4, .45, .5, .6, .7, .8, .9, 1, 1.25, 1.5, 1.75,
                      2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30, 40, 50, 60)
OPERATION_S: Final = (.001, .005, .025, .1, .5, 1, 5, 15, 60, 180, 600, 1800)

Read = Callable[[LiveRunner], float]
UNFINISHED: Final = "How long in seconds work is in progress that was not observed by work_duration"
LONGEST: Final = "How long in seconds has the longest running processor for workqueue been running"
UNCHANGED: Final = "Polls answered without a pass: nothing they read had changed"
GAUGES: Final[tuple[tuple[str, str, Read], ...]] = (
    ("workqueue_depth", "Current depth of workqueue", lambda r: r.depth),
    ("workqueue_unfinished_work_seconds", UNFINISHED, lambda r: r.unfinished_s),
    ("workqueue_longest_running_processor_seconds", LONGEST, lambda r: r.longest_s),
)
COUNTERS: Final[tuple[tuple[str, str, Read], ...]] = (
    ("workqueue_adds", "Total number of adds handled by workqueue", lambda r: r.adds),
    ("workqueue_retries", "Total number of retries handled by workqueue", lambda r: r.retries),
    ("dpf_twin_polls_unchanged", UNCHANGED, lambda r: r.skipped),
)


class Metrics:
    """One registry per process."""

    def __init__(self, process: Live) -> None:
        self.registry = CollectorRegistry()
        self._process = process
        make: dict[str, Any] = {"registry": self.registry}
        self.reconcile = Histogram("controller_runtime_reconcile_time_seconds",
                                   "Length of time per reconciliation per controller", ["controller"],
                                   buckets=RECONCILE_S, **make)
        self.reconciles = Counter("controller_runtime_reconcile", "Total number of reconciliations per controller",
                                  ["controller", "result"], **make)
        self.errors = Counter("controller_runtime_reconcile_errors",
                              "Total number of reconciliation errors per controller", ["controller"], **make)
        self.terminal = Counter("controller_runtime_terminal_reconcile_errors",
                                "Total number of terminal reconciliation errors per controller", ["controller"], **make)
        self.queued = Histogram("workqueue_queue_duration_seconds",
                                "How long in seconds an item stays in workqueue before being requested",
                                ["name", "controller"], buckets=WORKQUEUE_S, **make)
        self.worked = Histogram("workqueue_work_duration_seconds",
                                "How long in seconds processing an item from workqueue takes.",
                                ["name", "controller"], buckets=WORKQUEUE_S, **make)
        self.requests = Counter("rest_client_requests",
                                "Number of HTTP requests, partitioned by status code, method, and host.",
                                ["code", "method", "host"], **make)
        self.latency = Histogram("rest_client_request_duration_seconds", "Request latency in seconds.",
                                 ["verb", "host"], **make)
        self.operations = Histogram("dpf_twin_operation_duration_seconds",
                                    "How long verbs of DMS, hosts and the BFB volume took", ["verb", "outcome"],
                                    buckets=OPERATION_S, **make)
        for runner in (r for m in process.managers.values() for r in m.runners):
            for result in ("success", "error", "requeue", "requeue_after"):
                self.reconciles.labels(runner.name, result)
            self.errors.labels(runner.name)
            self.terminal.labels(runner.name)
        self.registry.register(self)
        process.observers.append(self._passed)
        process.requests.append(self._requested)
        process.calls.append(self._called)

    def collect(self) -> Iterator[Metric]:
        """What is read off the process when somebody asks."""
        runners = [r for m in self._process.managers.values() for r in m.runners]
        for name, text, value in GAUGES:
            family = GaugeMetricFamily(name, text, labels=["name", "controller"])
            for runner in runners:
                family.add_metric([runner.name, runner.name], value(runner))
            yield family
        for name, text, count in COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["name", "controller"])
            for runner in runners:
                counter.add_metric([runner.name, runner.name], count(runner))
            yield counter
        workers = GaugeMetricFamily("controller_runtime_max_concurrent_reconciles",
                                    "Maximum number of concurrent reconciles per controller", labels=["controller"])
        active = GaugeMetricFamily("controller_runtime_active_workers",
                                   "Number of currently used workers per controller", labels=["controller"])
        for runner in runners:
            workers.add_metric([runner.name], runner.workers)
            active.add_metric([runner.name], runner.active)
        yield workers
        yield active
        leads = GaugeMetricFamily("leader_election_master_status",
                                  "Gauge of if the reporting system is master of the relevant lease, 0 indicates "
                                  "backup, 1 indicates master.", labels=["name"])
        leads.add_metric([self._process.elector.key.name], float(self._process.elector.leading))
        yield leads

    def _passed(self, controller: str, key: Key, wait_s: float, took_s: float, outcome: Result | Exception) -> None:
        from twin.runtime.reconcile import Terminal
        self.reconcile.labels(controller).observe(took_s)
        self.queued.labels(controller, controller).observe(wait_s)
        self.worked.labels(controller, controller).observe(took_s)
        if isinstance(outcome, Exception) or outcome.error:
            self.errors.labels(controller).inc()
            if isinstance(outcome, Terminal):
                self.terminal.labels(controller).inc()
            result = "error"
        else:
            result = "requeue_after" if outcome.requeue_after_s is not None else "success"
        self.reconciles.labels(controller, result).inc()

    def _requested(self, verb: str, path: str, seconds: float, code: int) -> None:
        host = self._process.lease_cluster.connection.server.partition("://")[2]
        self.requests.labels(str(code) if code else "<error>", verb, host).inc()
        self.latency.labels(verb, host).observe(seconds)

    def _called(self, call: Call) -> None:
        if not call.kind:
            self.operations.labels(call.verb, call.outcome or "ok").observe(call.seconds)


class Endpoints:
    """The HTTP server. With `required` False a taken port is answered by taking a free one."""

    def __init__(self, process: Live, address: tuple[str, int], *, required: bool = True) -> None:
        metrics = Metrics(process)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    self._answer(*(200, b"ok") if process.failure is None else (500, b"failed"))
                elif path == "/readyz":
                    self._answer(*(200, b"ok") if process.ready else (503, b"not ready"))
                else:
                    self._answer(404, b"not found")

            def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        try:
            self._server = ThreadingHTTPServer(address, Handler)
        except OSError:
            if required:
                raise
            self._server = ThreadingHTTPServer((address[0], 0), Handler)
        self._server.daemon_threads = True
        host, port = self._server.server_address[:2]
        self.address = f"{host!s}:{port}"
        threading.Thread(target=lambda: self._server.serve_forever(0.1), name="endpoints", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
