"""The Markdown report of a rehearsal: a pure function, the same text for the same runs (no wall time in it)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from reports.palette import BASIS_MARKS
from scenarios.result import QuantileValue, Run, Summary
from twin.model.units import duration
from twin.version import DPF_RELEASE

CAPTIONS: Final = {
    "completion": "How many DPUs are Ready, over time. Dotted lines: something was asked. Grey bands: faults.",
    "phases-by-rack": "Each row is a DPU, each colour a phase. Racks are kept together.",
    "unavailable": "How many DPUs are out of service at once, against what the DPUSets allow.",
    "waits": "What each DPU waited for between being asked and Ready, Error left out. Grey is work.",
    "phase-durations": "How long each phase took. The time axis is logarithmic.",
}
_QUANTILES: Final = {"p50": "half of the DPUs", "p90": "9 of 10 DPUs", "p95": "19 of 20 DPUs", "last": "all DPUs",
                     "last_p90": "all DPUs, in 9 of 10 runs", "last_p95": "all DPUs, in 19 of 20 runs"}


def report(runs: Sequence[Run], summary: Summary, figures: Sequence[str]) -> str:
    """The report. `figures` names the SVG files beside it, without suffix."""
    parts = [_head(runs[0], summary), _completion(summary), _expectations(summary), _pictures(figures),
             _binding(summary), _phases(summary), _unavailable(summary), _worst(summary),
             _list("Not done", summary.pending), _list("Known issues met", _distinct(r.known_issues for r in runs)),
             _list("Warnings", summary.warnings), _controllers(runs[0]), _foot(summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _distinct(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(text for one in lists for text in one))


def _head(run: Run, summary: Summary) -> str:
    dpus = summary.dpus
    verdict = "It converged." if summary.converged else "It did not converge."
    policies = f"Policies: {', '.join(summary.policies)}." if summary.policies else \
        "No policies: upstream's behaviour as it is."
    runs = f"{summary.replications} replications, seeds {summary.seed} and on" if summary.replications > 1 \
        else f"seed {summary.seed}"
    after_s = summary.settled_s if summary.converged else summary.virtual_s
    lines = [f"# {summary.scenario}", "",
             f"{dpus.ready} of {dpus.total} DPUs are Ready after {duration(after_s)} of virtual time"
             + (f", {dpus.error} in Error" if dpus.error else "") + ".", verdict, policies, "",
             f"dpf-twin {summary.version}, DPF {DPF_RELEASE}, {runs}."]
    if run.command:
        lines += ["This reproduces it:", "", "```", run.command, "```"]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[int] = ()) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    body = [[_cell(c) for c in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *body])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _seconds(value: float | None) -> str:
    return "not within the run" if value is None else duration(value)


def _completion(summary: Summary) -> str:
    if not summary.completion_s:
        return "## Completion\n\nNothing was asked of any DPU."
    several = summary.replications > 1
    header = ["Ready", "after", *(["95 % interval", "range"] if several else [])]
    rows = [[_QUANTILES.get(name, name), _seconds(q.value), *([_interval(q), _range(q)] if several else [])]
            for name, q in summary.completion_s.items()]
    n = next(iter(summary.completion_s.values())).n
    note = (f"Medians over {n} replications, with order-statistic intervals." if several
            else f"One run, {n} DPUs: no interval.")
    return ("## Completion\n\nTime from being asked to Ready, for each DPU's last provisioning.\n"
            f"{note}\n{_basis_note(summary)}\n\n" + _table(header, rows, right=range(1, len(header))))


def _basis_note(summary: Summary) -> str:
    used = sorted({p.basis for p in summary.phase_s.values() if p.basis})
    return f"It rests on durations with basis {', '.join(used)}." if used else "No phase has a basis mark."


def _interval(q: QuantileValue) -> str:
    if q.low is None and q.high is None:
        return "too few runs"
    low, high = (duration(v) if v is not None else "?" for v in (q.low, q.high))
    return f"{low} to {high}"


def _range(q: QuantileValue) -> str:
    return "no run got there" if q.min is None or q.max is None else f"{duration(q.min)} to {duration(q.max)}"


def _expectations(summary: Summary) -> str:
    if not summary.expectations:
        return ""
    told = [("holds" if e.holds else "**does not hold**", *e.row) for e in summary.expectations]
    rows = [(holds, f"`{expr}`", value) for holds, expr, value in told]
    return "## Expectations\n\n" + _table(["", "expression", "value"], rows)


def _pictures(figures: Sequence[str]) -> str:
    if not figures:
        return ""
    return "## Figures\n\n" + "\n\n".join(f"![{CAPTIONS[name]}]({name}.svg)\n\n*{CAPTIONS[name]}*" for name in figures)


def _binding(summary: Summary) -> str:
    if not summary.binding:
        return "## What binds\n\nNo DPU waited for any constraint."
    rows = [[b.constraint, f"{b.share:.1%}", duration(b.s)] for b in summary.binding[:12]]
    rest = len(summary.binding) - 12
    work = 1 - sum(b.share for b in summary.binding)
    text = ("## What binds\n\nShare of all DPU-time between being asked and Ready that went into waiting.\n"
            "Time in Error is left out.\n"
            f"The rest, {max(work, 0.0):.1%}, is work.\n\n"
            + _table(["constraint", "share", "DPU-time"], rows, right=(1, 2)))
    return text + (f"\n\n{rest} smaller ones are in `summary.json`." if rest > 0 else "")


def _phases(summary: Summary) -> str:
    if not summary.phase_s:
        return ""
    rows = [[f"{phase} {BASIS_MARKS.get(p.basis or '', '')}".strip(), p.n, duration(p.p50), duration(p.p90),
             duration(p.max)] for phase, p in summary.phase_s.items()]
    return ("## Phases\n\nBasis of the durations behind a phase: [M] measured, [P] published, [E] expert.\n\n"
            + _table(["phase", "n", "P50", "P90", "longest"], rows, right=(1, 2, 3, 4)))


def _unavailable(summary: Summary) -> str:
    u, r = summary.unavailable, summary.reboots
    return (f"## Unavailability\n\nAt most {u.max} DPUs were out of service at once, at most {u.max_per_rack} in one "
            f"rack.\nIn sum {duration(u.dpu_s)} of DPU-time.\n{r.host} host reboots, {r.dpu} DPU reboots.")


def _worst(summary: Summary) -> str:
    return _list("Slowest DPUs", [f"{w.object}: {w.words}."
                                  + (f" (replication {w.replication})" if summary.replications > 1 else "")
                                  for w in summary.worst])


def _list(title: str, lines: Sequence[str]) -> str:
    shown = [f"- {line}" for line in lines[:50]]
    if len(lines) > 50:
        shown.append(f"- and {len(lines) - 50} more, in `summary.json`")
    return f"## {title}\n\n" + "\n".join(shown) if shown else ""


def _controllers(run: Run) -> str:
    if not run.reconciles:
        return ""
    busiest = sorted(run.reconciles, key=lambda r: (-r.busy_s, r.controller))
    rows = [[r.controller, r.count, f"{r.busy_s / run.virtual_s:.1%}" if run.virtual_s else "",
             duration(r.queue_wait_s_p50), duration(r.queue_wait_s_p95), r.errors] for r in busiest]
    return "## Controllers\n\nBusy is the time of one worker.\n\n" + _table(
        ["controller", "passes", "busy", "queue wait P50", "P95", "errors"], rows, right=(1, 2, 3, 4, 5))


def _foot(summary: Summary) -> str:
    return (f"---\n\nDigest of the trace: `{summary.digest}`.\n"
            f"{summary.events} kernel events, {summary.reconciles} reconciles.\n"
            "Open `timeline.pftrace` in ui.perfetto.dev; `dpf-twin get dpu -A --run . --at 2h` looks into the run.")
