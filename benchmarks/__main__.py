"""`python -m benchmarks [name...]`: each case runs in a process of its own, on one core, after a warm-up of imports.

Seconds are processor seconds of the run itself (scenario loaded, nothing written), the best of three up to 1,000 DPUs
and a single run above. Processor time still grows when neighbours fight for caches and hyperthreads: the row
`calibration` is a fixed loop timed in between, and tells a slow machine from slow code.

Settings beside upstream's defaults, and why: `bootstrap-token-lasts-a-day`, because behind one worker the join tokens
of a thousand DPUs expire before their DPUs boot (a finding of the twin, but then nothing converges); with several
DPUClusters `allocator-spills-over`, because v25.4's allocator stops at the first; node effect `noEffect`;
maxUnavailable 5 %. The update begins at 24 h, when the first install (18 h for 10,000) has settled; its row is that
run minus the first install's.

`against bare SimPy` compares with plain SimPy working off the same number of kernel events at the same times: one
generator process per DPU that yields timeouts, spread evenly over the virtual time of the run, and nothing else.
`that plays the polls, too` has it yield one more for each pass that the twin passed over by arithmetic: SimPy cannot.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bare import replay_s
from benchmarks.fleets import ROOT, TOKEN, fleet

OUT = ROOT / "reports/out/bench.json"
SPILL = ("allocator-spills-over", TOKEN)


@dataclass(frozen=True)
class Row:
    """One line of the table. `must` and `aim` bound `value` from above (`least`: from below); None: for information."""

    name: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    least: bool = False

    @property
    def verdict(self) -> str:
        if self.must is None:
            return ""
        return "  ok" if (self.value >= self.must if self.least else self.value <= self.must) else "  MISSED"

    def document(self) -> dict[str, Any]:
        found = dict(self.__dict__)
        return found if self.least else {k: v for k, v in found.items() if k != "least"}


def measured(scenario: Any) -> dict[str, float]:
    """Run once; processor seconds, so that a busy machine does not count."""
    from scenarios.run import run

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dpus = len(scenario.fleet.cards)
    cpu_s, calibration_s = float("inf"), float("inf")
    for _ in range(3 if dpus <= 1000 else 1):
        began = time.process_time()
        result = run(scenario)
        cpu_s = min(cpu_s, time.process_time() - began)
        calibration_s = min(calibration_s, fixed_loop_s())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passes = sum(r.count for r in result.reconciles)
    skipped = passes - int(result.figures.get("reconciles_run", 0))
    return {
        "cpu_s": cpu_s, "dpus": dpus, "converged": float(result.converged), "virtual_s": result.virtual_s,
        "events": result.events, "records": result.trace.records, "reconciles": passes,
        "reconciles_run": result.figures.get("reconciles_run", 0), "writes": result.figures.get("writes", 0),
        "deliveries": result.figures.get("deliveries", 0), "peak_mib": after / 1024,
        "bytes_per_dpu": (after - before) * 1024 / dpus, "calibration_s": calibration_s,
        "bare_s": replay_s(result.events, dpus, result.virtual_s),
        "polling_s": replay_s(result.events + skipped, dpus, result.virtual_s),
    }


def fixed_loop_s() -> float:
    """Processor seconds of 3 million additions: what this machine is worth just now."""
    began, total = time.process_time(), 0
    for i in range(3_000_000):
        total += i & 3
    return time.process_time() - began


def install(hosts: int, per_host: int, **options: Any) -> dict[str, float]:
    return measured(fleet(hosts, per_host, **options))


CASES: dict[str, Any] = {
    "install-100": lambda: install(100, 1),
    "install-1000": lambda: install(1000, 1),
    "install-10000": lambda: install(5000, 2, clusters=10, policies=SPILL),
    "update-10000": lambda: install(5000, 2, clusters=10, policies=SPILL, update=True),
}


def in_own_process(case: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--case", case], capture_output=True, text=True,
                          check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"benchmark {case} failed:\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if not answer["converged"]:
        sys.exit(f"benchmark {case} did not converge: its time means nothing")
    return answer


def command_s(*arguments: str) -> float:
    """The quickest of three runs of the command after one that compiled and cached its modules, wall seconds."""
    tool = Path(sys.executable).with_name("dpf-twin")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    took = []
    for _ in range(4):
        began = time.perf_counter()
        subprocess.run([str(tool), *arguments], capture_output=True, check=True, cwd=ROOT, env=environment)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def table(names: list[str]) -> list[Row]:
    found = {name: in_own_process(name) for name in CASES if not names or name in names}
    rows: list[Row] = []
    bounds = {"install-1000": (2.0, 1.0), "install-10000": (20.0, 8.0)}
    for name, r in found.items():
        if name in bounds:
            rows.append(Row(f"{name} first install", r["cpu_s"], "s", *bounds[name]))
    if "install-10000" in found:
        rows.append(Row("install-10000 memory", found["install-10000"]["peak_mib"], "MiB", 1024.0))
    if "update-10000" in found and "install-10000" in found:
        rows.append(Row("update-10000 rolling BFB update at 5 %, after the install",
                        found["update-10000"]["cpu_s"] - found["install-10000"]["cpu_s"], "s", 30.0, 10.0))
    if "install-100" in found and "install-10000" in found:
        small, large = found["install-100"], found["install-10000"]
        ratio = (large["cpu_s"] / large["dpus"]) / (small["cpu_s"] / small["dpus"])
        rows.append(Row("cost per DPU, 10,000 against 100", ratio, "x", 1.3, 1.15))
    for name, r in found.items():
        rows += [
            Row(f"{name} against bare SimPy with as many events", r["cpu_s"] / r["bare_s"], "x", 8.0, 5.0),
            Row(f"{name} against bare SimPy that plays the polls, too", r["cpu_s"] / r["polling_s"], "x"),
            Row(f"{name} reconciles run", r["reconciles_run"], ""),
            Row(f"{name} reconciles skipped", r["reconciles"] - r["reconciles_run"], ""),
            Row(f"{name} writes", r["writes"], ""),
            Row(f"{name} watch deliveries", r["deliveries"], ""),
            Row(f"{name} kernel events per second", r["events"] / r["cpu_s"], "1/s"),
            Row(f"{name} bytes per DPU", r["bytes_per_dpu"], "B"),
            Row(f"{name} speed against real time", r["virtual_s"] / r["cpu_s"], "x"),
            Row(f"{name} calibration", r["calibration_s"], "s"),
        ]
    if not names or "command" in names:
        four = "scenarios/library/rolling-bfb-update.yaml"
        rows += [
            Row("dpf-twin --version", command_s("--version"), "s", 0.3),
            Row("rehearse 4 DPUs, --no-report", command_s("rehearse", four, "--no-report"), "s", 0.8),
            Row("rehearse 4 DPUs with report and figures", command_s("rehearse", four), "s", 3.0),
        ]
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(CASES[sys.argv[2]]()))
        return
    show(table(sys.argv[1:]), OUT)


def show(rows: list[Row], out: Path) -> None:
    """Print the table, write the same as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([r.document() for r in rows], indent=1) + "\n")
    width = max(len(r.name) for r in rows)
    print(f"{'':{width}}  {'value':>12}  {'must':>8}  {'aim':>8}")
    for r in rows:
        bounds = "  ".join(f"{b:>8g}" if b is not None else f"{'-':>8}" for b in (r.must, r.aim))
        print(f"{r.name:{width}}  {r.value:>12,.2f}  {bounds}  {r.unit}{r.verdict}")


if __name__ == "__main__":
    main()
