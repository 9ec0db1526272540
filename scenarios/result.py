"""What a run gives back: `Run` (one scenario, one seed, one trace) and `Summary` (what scripts rely on).

`Run` holds facts, `Summary` is computed from runs that differ only in seed. Neither writes anything.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from scenarios.measure import Provisioning, Unavailability, completions, shared, unavailability, waiting
from twin.model.meta import Object
from twin.model.provisioning import PHASES, Phase
from twin.model.units import duration
from twin.sim.stats import estimate, median_range, quantile
from twin.sim.trace import DPU_REBOOTS, HOST_REBOOTS, PhaseRow, Place, SpanRow, Trace
from twin.version import VERSION

Basis = Literal["measured", "published", "expert"]


@dataclass(frozen=True, slots=True)
class ReconcileRow:
    """One controller's passes in a run: how many, the worker's busy time, how long keys queued, how many failed."""

    controller: str
    count: int
    busy_s: float
    queue_wait_s_p50: float
    queue_wait_s_p95: float
    errors: int


class Expectation(BaseModel):
    """A CEL expression of the scenario, whether it holds, and the value it compared (JSON text if it is not plain)."""

    model_config = ConfigDict(frozen=True)
    expr: str
    holds: bool
    value: Any = None

    @property
    def row(self) -> tuple[str, str]:
        """Expression and value for a table, each in one line: `true` as CEL has it."""
        value = "" if self.value is None else str(self.value)
        return (" ".join(self.expr.split()), value.lower() if isinstance(self.value, bool) else " ".join(value.split()))


@dataclass(kw_only=True)
class Run:
    """One scenario, one seed, one trace. Times are seconds of virtual time since the start of the run."""

    scenario: str
    seed: int
    trace: Trace
    replication: int = 0
    version: str = VERSION
    policies: tuple[str, ...] = ()
    command: str = ""
    """The command line that reproduces this run."""
    epoch_s: float = 0.0
    """Unix time of virtual second 0: what timestamps in objects count from."""
    virtual_s: float
    """End of observation: the horizon, or when everything had settled."""
    wall_s: float = 0.0
    events: int = 0
    """Events of the simulation kernel."""
    converged: bool = True
    cut: bool = False
    """Somebody ended the observation before it was over."""
    pending: list[str] = field(default_factory=list)
    """What has not reached what was asked, in words."""
    warnings: list[str] = field(default_factory=list)
    known_issues: list[str] = field(default_factory=list)
    """Upstream behaviours of the known-issues table that this run met, in words."""
    reconciles: list[ReconcileRow] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    phase_basis: Mapping[str, Basis] = field(default_factory=dict)
    """The weakest basis among the operations that make up a phase."""
    objects: Mapping[str, Sequence[Object]] = field(default_factory=dict)
    """Final objects, by cluster."""
    cards: Sequence[Mapping[str, Any]] = ()
    """What the hardware of each DPU ended as: firmware, image, Arm, network of its host."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """How often a DPU's newest condition that said no had this reason."""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    """What was read, by relative path."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the run cost: reconciles_run, reconciles_skipped, writes, deliveries."""

    @property
    def settled_s(self) -> float:
        """When the last thing happened: from here to `virtual_s` all was quiet."""
        return min(self.trace.last_s, self.virtual_s)

    def phases(self) -> list[PhaseRow]:
        """Every stay in a phase. A run is finished, so what is asked of its trace is worked out once."""
        return self._phases

    @cached_property
    def _phases(self) -> list[PhaseRow]:
        return self.trace.phases(self.virtual_s)

    def outages(self) -> list[SpanRow]:
        return self.trace.outages(self.virtual_s)

    def waits(self) -> list[SpanRow]:
        return self.trace.waits(self.virtual_s)

    def completions(self) -> dict[str, Provisioning]:
        return completions(self.trace, self.virtual_s)

    def unavailability(self) -> Unavailability:
        return self._unavailability

    @cached_property
    def _unavailability(self) -> Unavailability:
        return unavailability(self.outages(), self.trace.places)

    def place(self, dpu: str) -> Place:
        return self.trace.places.get(dpu, Place())


# --- tables: columns of the Parquet files and rows to fill them


def _phase_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    for r in run.phases():
        rack, host, cluster = run.place(r.dpu)
        yield run.replication, rack, host, r.dpu, cluster, r.phase, r.start_s, r.end_s, r.outcome, r.attempt


def _outage_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    for r in run.outages():
        rack, host, _ = run.place(r.dpu)
        yield run.replication, rack, host, r.dpu, r.start_s, r.end_s, r.label


def _wait_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    return ((run.replication, r.dpu, r.start_s, r.end_s, r.label) for r in run.waits())


def _write_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    return ((run.replication, w.t_s, w.controller, w.verb, w.kind, w.namespace, w.name, w.resource_version, w.outcome)
            for w in run.trace.writes())


def _reconcile_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    return ((run.replication, *astuple(r)) for r in run.reconciles)


class Table(NamedTuple):
    """`columns` are `name: type`, where the type is int, float or str."""

    columns: dict[str, type]
    rows: Callable[[Run], Iterator[tuple[Any, ...]]]


TABLES: Final[dict[str, Table]] = {
    "phases": Table({"replication": int, "rack": str, "host": str, "dpu": str, "cluster": str, "phase": str,
                     "start_s": float, "end_s": float, "outcome": str, "attempt": int}, _phase_rows),
    "outages": Table({"replication": int, "rack": str, "host": str, "dpu": str, "start_s": float, "end_s": float,
                      "cause": str}, _outage_rows),
    "waits": Table({"replication": int, "dpu": str, "start_s": float, "end_s": float, "constraint": str}, _wait_rows),
    "writes": Table({"replication": int, "at_s": float, "controller": str, "verb": str, "kind": str, "namespace": str,
                     "name": str, "resource_version": str, "outcome": str}, _write_rows),
    "reconciles": Table({"replication": int, "controller": str, "count": int, "busy_s": float,
                         "queue_wait_s_p50": float, "queue_wait_s_p95": float, "errors": int}, _reconcile_rows),
}


# --- the summary


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantileValue(_Part):
    """`value` is null when that part of the sample never got there. `low` and `high` exist only with an interval.

    `min` and `max` exist with several replications; a run that never got there has no part in them.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None
    n: int

    @model_serializer(mode="wrap")
    def _without_missing_interval(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None or k == "value"}


class DpuCounts(_Part):
    total: int
    ready: int
    error: int
    by_phase: dict[str, int]


class PhaseDuration(_Part):
    n: int
    p50: float
    p90: float
    max: float
    basis: Basis | None = None


class UnavailableSummary(_Part):
    max: int
    max_per_rack: int
    dpu_s: float


class Reboots(_Part):
    host: int
    dpu: int


class Binding(_Part):
    constraint: str
    share: float
    s: float


class Worst(_Part):
    object: str
    s: float | None
    words: str
    replication: int = 0


class Summary(_Part):
    """What a set of replications says. Scripts may rely on these keys; more may come.

    `completion_s`: for each DPU, the time from its (re)provisioning being asked to Ready; of a DPU provisioned several
    times, the last one. `p50`, `p90`, `p95` are quantiles over the DPUs of a run, `last` is the run's completion: its
    slowest DPU. With several replications the value is the median over replications and `low`/`high` are its 95 %
    order-statistic interval, `min`/`max` the range; `last_p90` and `last_p95` are then quantiles of the run's
    completion over replications. `n` is the number of DPUs with one replication, else of replications.

    `virtual_s` is the end of observation, `settled_s` the time of the last record of the trace: a run is over when
    nothing has happened for a while. Both are the latest of all replications.

    `dpus` are those of the replication that ends with the fewest Ready, `unavailable.max` and `max_per_rack` the
    largest of all replications, `unavailable.dpu_s` and `reboots` medians. `phase_s` and `binding` pool all
    replications. `binding[].share` is the part of all DPU-time between asked and Ready, without stays in Error, that
    was spent waiting for that constraint; time that waits for several is shared equally, the rest is work. `digest`
    with several replications is the SHA-256 of their digests, one a line.
    """

    scenario: str
    version: str
    seed: int
    replications: int
    policies: list[str]
    digest: str
    virtual_s: float
    settled_s: float
    wall_s: float
    events: int
    converged: bool
    pending: list[str]
    completion_s: dict[str, QuantileValue]
    dpus: DpuCounts
    phase_s: dict[str, PhaseDuration]
    unavailable: UnavailableSummary
    reboots: Reboots
    binding: list[Binding]
    worst: list[Worst] = Field(max_length=3)
    reconciles: int
    expectations: list[Expectation]
    warnings: list[str]


def summarise(runs: Sequence[Run]) -> Summary:
    """The summary of replications of one scenario. Raises ValueError without a run."""
    if not runs:
        raise ValueError("a summary needs at least one run")
    first = runs[0]
    outages = [run.unavailability() for run in runs]
    done = [run.completions() for run in runs]
    waits = [waiting(run.trace, run.virtual_s) for run in runs]
    return Summary(
        scenario=first.scenario, version=first.version, seed=first.seed, replications=len(runs),
        policies=list(first.policies), digest=_digest(runs), virtual_s=max(r.virtual_s for r in runs),
        settled_s=max(r.settled_s for r in runs), wall_s=math.fsum(r.wall_s for r in runs),
        events=sum(r.events for r in runs), converged=all(r.converged for r in runs),
        pending=_distinct(r.pending for r in runs),
        completion_s=_completion([sorted(p.completion_s for p in of.values()) for of in done]),
        dpus=min((_counts(r) for r in runs), key=lambda c: c.ready), phase_s=_phase_s(runs),
        unavailable=UnavailableSummary(
            max=max(o.max for o in outages), max_per_rack=max(o.max_per_rack for o in outages),
            dpu_s=median_range([o.dpu_s for o in outages]).median),
        reboots=Reboots(host=_reboots(runs, HOST_REBOOTS), dpu=_reboots(runs, DPU_REBOOTS)),
        binding=_binding(waits), worst=_worst(runs, done),
        reconciles=sum(row.count for r in runs for row in r.reconciles),
        expectations=_expectations(runs), warnings=_distinct(r.warnings for r in runs))


def _digest(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].trace.digest
    return hashlib.sha256("".join(r.trace.digest + "\n" for r in runs).encode()).hexdigest()


def _distinct(lists: Iterator[list[str]] | Any) -> list[str]:
    return list(dict.fromkeys(text for one in lists for text in one))


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _over(values: Sequence[float], q: float) -> QuantileValue:
    """The quantile of one value from each replication."""
    found, there = estimate(values, q), [v for v in values if not math.isinf(v)]
    return QuantileValue(value=_finite(found.value), low=_finite(found.low), high=_finite(found.high), n=found.n,
                         min=min(there, default=None), max=max(there, default=None))


def _completion(samples: Sequence[Sequence[float]]) -> dict[str, QuantileValue]:
    """`samples` holds the ascending completions of each run; runs that asked nothing of any DPU say nothing."""
    samples = [s for s in samples if s]
    if not samples:
        return {}
    levels = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "last": 1.0}
    if len(samples) == 1:
        only = samples[0]
        return {name: QuantileValue(value=_finite(quantile(only, q)), n=len(only)) for name, q in levels.items()}
    out = {name: _over([quantile(s, q) for s in samples], 0.5) for name, q in levels.items()}
    for name, q in (("last_p90", 0.9), ("last_p95", 0.95)):
        out[name] = _over([s[-1] for s in samples], q)
    return out


def _counts(run: Run) -> DpuCounts:
    found = Counter(run.trace.phase_now().values())
    by_phase = {p: found[p] for p in PHASES if found[p]} | {p: n for p, n in sorted(found.items()) if p not in PHASES}
    return DpuCounts(total=found.total(), ready=found[Phase.READY], error=found[Phase.ERROR], by_phase=by_phase)


def _phase_s(runs: Sequence[Run]) -> dict[str, PhaseDuration]:
    """Stays that are over, of the phases on the way to Ready (how long a DPU stays Ready is nobody's question)."""
    samples: dict[str, list[float]] = {}
    for run in runs:
        for row in run.phases():
            if row.outcome != "open" and row.phase not in (Phase.READY, Phase.ERROR):
                samples.setdefault(row.phase, []).append(row.end_s - row.start_s)
    ordered = [p for p in PHASES if p in samples] + sorted(p for p in samples if p not in PHASES)
    out = {}
    for phase in ordered:
        values = sorted(samples[phase])
        out[phase] = PhaseDuration(n=len(values), p50=quantile(values, 0.5), p90=quantile(values, 0.9), max=values[-1],
                                   basis=runs[0].phase_basis.get(phase))
    return out


def _reboots(runs: Sequence[Run], what: Sequence[str]) -> int:
    return int(median_range([sum(r.trace.device_changes.get(w, 0) for w in what) for r in runs]).median)


def _binding(waits: Sequence[tuple[dict[str, dict[str, float]], float]]) -> list[Binding]:
    seconds: dict[str, list[float]] = {}
    for of_dpus, _ in waits:
        for of in of_dpus.values():
            for constraint, s in of.items():
                seconds.setdefault(constraint, []).append(s)
    total = math.fsum(t for _, t in waits)
    rows = [Binding(constraint=c, s=math.fsum(s), share=math.fsum(s) / total) for c, s in seconds.items()]
    return sorted(rows, key=lambda b: (-b.s, b.constraint))


def _expectations(runs: Sequence[Run]) -> list[Expectation]:
    """Each expectation once: it holds when it holds in every run, and shows the first run where it does not."""
    return [next((e for e in same if not e.holds), same[0])
            for same in zip(*(r.expectations for r in runs), strict=True)]


def _worst(runs: Sequence[Run], done: Sequence[dict[str, Provisioning]]) -> list[Worst]:
    """The three DPUs that took longest, each in its worst run; those never Ready come first."""
    ranked = sorted(((-p.completion_s, p.asked_s, i, p) for i, of in enumerate(done) for p in of.values()),
                    key=lambda r: (*r[:3], r[3].dpu))
    distinct: dict[str, tuple[int, Provisioning]] = {}
    for _, _, i, p in ranked:
        distinct.setdefault(p.dpu, (i, p))
        if len(distinct) == 3:
            break
    return [Worst(object=f"DPU {p.dpu}", s=_finite(p.completion_s), replication=runs[i].replication,
                  words=_words(runs[i], p)) for i, p in distinct.values()]


def _words(run: Run, p: Provisioning) -> str:
    until_s = run.virtual_s if p.ready_s is None else p.ready_s
    stays = [r for r in run.phases() if r.dpu == p.dpu]
    if p.ready_s is None:
        asked = duration(run.virtual_s - p.asked_s)
        now = stays[-1] if stays and stays[-1].outcome == "open" else None
        if now is None:
            text = f"not Ready {asked} after it was asked: no DPU object"
        elif now.phase == Phase.READY:
            text = f"asked {asked} before the end, still Ready with what it had"
        else:
            text = f"not Ready {asked} after it was asked: {now.phase} for {duration(now.end_s - now.start_s)}"
    else:
        text = f"Ready after {duration(p.completion_s)}"
        within = [(min(r.end_s, until_s) - max(r.start_s, p.asked_s), r.phase) for r in stays if r.phase != Phase.READY]
        longest_s, phase = max(within, key=lambda stay: stay[0], default=(0.0, ""))
        if longest_s > 0:
            text += f"; longest phase {phase}, {duration(longest_s)}"
    waits = shared([w for w in run.waits() if w.dpu == p.dpu], [(p.asked_s, until_s)])
    if waits:
        constraint, s = max(waits.items(), key=lambda item: item[1])
        text += f"; waited {duration(s)} for {constraint}"
    return text + (f"; provisioning number {p.attempt}" if p.attempt > 1 else "")
