"""The reference pages, made from the code they describe: `python -m docs.generate` writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import typer

from docs.tables import one_per_line, records, table

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "docs" / "reference"
HEAD: Final = "<!-- Made by `python -m docs.generate`; edit the code it describes instead. -->\n\n"


# --- commands


def commands() -> str:
    """Verbs and flags."""
    from api.cli import TO_COME, app

    root: Any = typer.main.get_command(app)
    parts = [
        "# Commands and flags", "",
        "`dpf-twin VERB --help` prints the same.",
        "stdout carries the answer only, stderr progress and notes; `-o json` prints exactly one document.",
        "Durations are written `90s`, `15m`, `2h30m`.", "",
        table(("exit code", "means"), EXIT_CODES),
        "A reader of stdout or stderr that goes away (`| head`) does not change the exit code.\n",
        table(("command", "does"), (
            (f"[`dpf-twin {name}`](#{name.replace(' ', '-')})", _first(command)) for name, command in _verbs(root))),
        f"Not in this release: {', '.join(f'`{verb}`' for verb in TO_COME)}.\n",
    ]
    for name, command in _verbs(root):
        parts += [f"## {name}", "", one_per_line(command.help or ""), _usage(name, command), _flags(command)]
    parts += ["## Of the command itself", "", _flags(root)]
    return "\n".join(parts)


EXIT_CODES: Final = (
    ("0", "fine"),
    ("1", "the answer is no: an expectation does not hold, not converged, findings"),
    ("2", "bad input or usage, nothing done; a mistake is one line `FILE:LINE:COL: OBJECT: FIELD: RULE (got VALUE)`"),
    ("3", "a real part is missing or unreachable"),
    ("130", "interrupted; what was finished is kept, and said"),
)


def _verbs(command: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, groups opened. Hidden ones are nobody's business."""
    for name, child in getattr(command, "commands", {}).items():
        if child.hidden:
            continue
        if getattr(child, "commands", None):
            yield from _verbs(child, f"{before}{name} ")
        else:
            yield f"{before}{name}", child


def _first(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _usage(name: str, command: Any) -> str:
    words = [p.metavar if p.required or p.metavar.startswith("[") else f"[{p.metavar}]"
             for p in command.params if p.param_type_name == "argument"]
    return f"```sh\n{' '.join(['dpf-twin', name, *words, '[FLAGS]'])}\n```\n"


def _flags(command: Any) -> str:
    rows = [(", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts)), f"`{p.metavar}`" if p.metavar else "",
             getattr(p, "help", None) or "", _flag_default(p))
            for p in command.params if p.param_type_name == "option" and p.name != "help"]
    return table(("flag", "takes", "says", "default"), rows)


def _flag_default(option: Any) -> str:
    value = option.default
    return f"`{value}`" if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else ""


# --- what users write and receive


def scenario() -> str:
    from scenarios.base import ScenarioFile

    whole = ScenarioFile.model_json_schema()
    faults, fleet = _fault_records(), _fleet_records()
    schema = whole | {"$defs": {n: d for n, d in whole["$defs"].items()
                                if n not in faults and n not in fleet and n not in _timing_records()}}
    text = "# Scenario files\n\n" + one_per_line(ScenarioFile.__doc__ or "") + (
        "`dpf-twin schema scenario` prints the JSON Schema.\n"
        "Its fleet is described in [fleet files](fleet.md), its faults in [faults](faults.md), its timing in "
        "[timing](timing.md).\n")
    return _linked(records(schema, text), faults, fleet)


def fleet() -> str:
    from twin.model.fleet_file import FleetFile

    return records(FleetFile.model_json_schema(), "# Fleet files\n\n" + one_per_line(FleetFile.__doc__ or "") + (
        "`dpf-twin schema fleet` prints the JSON Schema.\n"))


def summary() -> str:
    from scenarios.result import TABLES, Summary

    text = "# Summary and tables\n\n" + one_per_line(Summary.__doc__ or "") + (
        "`dpf-twin rehearse -o json` prints it, the run folder keeps it as `summary.json`.\n"
        "`dpf-twin schema summary` prints the JSON Schema.\n")
    words = {int: "whole number", float: "number", str: "text"}
    head = "\n## Tables of the run folder\n\nParquet, one file a table; times are seconds of virtual time.\n\n"
    tables = head + table(
        ("table", "columns"),
        ((f"`{name}.parquet`", ", ".join(f"`{c}` ({words[t]})" for c, t in of.columns.items()))
         for name, of in TABLES.items()))
    schema, whole = Summary.model_json_schema(mode="serialization"), Summary.model_json_schema()
    written = {name: part if "properties" in part else whole["$defs"][name] for name, part in schema["$defs"].items()}
    return records(schema | {"$defs": written}, text) + tables


def _fault_records() -> frozenset[str]:
    from twin.model.faults import FAULTS

    return frozenset(f.__name__ for f in FAULTS)


def _fleet_records() -> frozenset[str]:
    from twin.model.fleet_file import FleetFile

    return frozenset((*FleetFile.model_json_schema()["$defs"], "FleetFile"))


def _timing_records() -> frozenset[str]:
    from twin.model.timing_profile import TimingFile

    return frozenset((*TimingFile.model_json_schema()["$defs"], "TimingFile"))


def _linked(text: str, faults: frozenset[str], fleet: frozenset[str]) -> str:
    """Links to records that other pages describe."""
    every = " or ".join(f"[{n}](#{n.lower()})" for n in _fault_order())
    text = text.replace(every, "a [fault](faults.md)")
    for name in sorted(faults | fleet):
        text = text.replace(f"[{name}](#{name.lower()})", f"[{name}](fleet.md)")
    return text.replace("[TimingFile](#timingfile)", "[TimingFile](timing.md)")


def _fault_order() -> list[str]:
    from twin.model.faults import FAULTS

    return [f.__name__ for f in FAULTS]


# --- faults


def faults() -> str:
    """A row per kind, with the fields that say where and how badly."""
    from twin.model.faults import FAULTS, MOMENTS, kind_name

    rows = []
    for fault in FAULTS:
        given = []
        for name, field in fault.model_fields.items():
            if name != "kind":
                given.append(f"`{name}`" + ("" if field.is_required() else f" ({_shown(field.default)})"))
        name = kind_name(fault)
        rows.append((f"`{name}`", " ".join((fault.__doc__ or "").split()), ", ".join(given),
                     "a moment" if name in MOMENTS else "`for`"))
    return (
        "# Faults\n\n"
        "A fault is an entry of a scenario's timeline: `{at: 5h, fault: {kind: rack-power, rack: r1}, for: 10m}`.\n"
        "It begins at `at` and heals after `for`; without `for` it lasts until the run ends.\n"
        "What faults that overlap set lasts until the last of them has ended.\n"
        "A fault that is a moment takes no `for`.\n"
        "Hosts, racks, DPUs, servers and clusters are a name, a pattern such as `worker1*`, or a list of them.\n"
        "A value in brackets is the default.\n\n" + table(("kind", "what happens", "fields", "lasts"), rows))


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "all"
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- timing


def timing() -> str:
    """Every default with its unit, where it acts, its basis and its source."""
    from twin.model.timing_profile import TimingFile, default

    profile = default()
    operations = [(f"`{o.name}`", _takes(o.takes), o.where + _extras(o), o.basis, o.source)
                  for o in profile.operations.values()]
    limits = [(f"`{m.name}`", f"{m.value:,g} {m.unit}", m.where, m.basis, m.source) for m in profile.limits.values()]
    return (
        "# Timing profiles and their defaults\n\n" + one_per_line(TimingFile.__doc__ or "")
        + "`dpf-twin schema timing` prints the JSON Schema with all names.\n"
        "All durations are seconds of virtual time.\n"
        "[Your own timing profile](../guides/timing.md) shows how to replace them.\n\n"
        "Basis: `measured` was seen in a recorded run, `published` stands in upstream's code or documents, `expert` is "
        "our judgement.\n"
        f"Of {len(profile.operations)} operations {_count(profile, 'measured')} are measured, "
        f"{_count(profile, 'published')} published and {_count(profile, 'expert')} expert.\n\n"
        "## Operations\n\n" + table(("operation", "takes (s)", "where it acts", "basis", "source"), operations)
        + "\n## Limits\n\n" + table(("limit", "value", "where it acts", "basis", "source"), limits)
        + "\n## Records\n\n" + records(TimingFile.model_json_schema()))


def _takes(takes: Any) -> str:
    name = type(takes).__name__
    if name == "Fixed":
        return f"{takes.value:g}"
    if name == "LogNormal":
        return f"log-normal, median {takes.p50:g}, p95 {takes.p95:g}"
    if name == "Triangular":
        return f"triangular, {takes.low:g} to {takes.high:g}, mode {takes.mode:g}"
    return f"{name.lower()}, median {takes.at(0.0):g}"


def _extras(operation: Any) -> str:
    parts = [f"; shared by {', '.join(operation.shared)}"] if operation.shared else []
    parts += [f"; fails {operation.fails:.0%}"] if operation.fails else []
    parts += ["; latency"] if operation.latency else []
    return "".join(parts)


def _count(profile: Any, basis: str) -> int:
    return sum(o.basis == basis for o in profile.operations.values())


# --- metrics


def metrics() -> str:
    """What `/metrics` of a live process serves. A process without controllers names everything too."""
    from api.live_metrics import Metrics

    elector = SimpleNamespace(key=SimpleNamespace(name=""), leading=False)
    process: Any = SimpleNamespace(managers={}, observers=[], requests=[], calls=[], elector=elector)
    rows = [(f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation)
            for family in sorted(Metrics(process).registry.collect(), key=lambda f: f.name)]
    return (
        "# Metrics of a live process\n\n"
        "`dpf-twin live --listen ADDRESS:PORT` serves them at `/metrics`, with `/healthz` and `/readyz` beside it.\n"
        "Names are those of controller-runtime, its work queue and its REST client; `dpf_twin_` marks ours.\n\n"
        + table(("metric", "type", "says"), rows))


# --- policies and warts, checks, stories


def policies() -> str:
    from controllers.warts import POLICIES, WARTS

    return (
        "# Policies and upstream's behaviours\n\n"
        "Upstream's behaviour is the default, whether or not its users like it.\n"
        "A policy is a named fix: `policies: [NAME]` in a scenario or `--policy NAME` switches it on.\n"
        "Sources are sections of the fact sheets of DPF v25.4 that the model was written from.\n\n"
        f"## Policies ({len(POLICIES)})\n\n"
        + table(("policy", "fixes"), ((f"`{p}`", ", ".join(f"[`{w.id}`](#behaviours)" for w in WARTS if w.policy == p))
                                      for p in sorted(POLICIES)))
        + f"\n## Behaviours\n\nThe table has {len(WARTS)} of them; the code marks each place with `# upstream: ID`.\n\n"
        + table(("id", "what upstream does", "source", "upstream's issue", "policy"),
                ((f"`{w.id}`", w.what, w.source, w.issue, f"`{w.policy}`" if w.policy else "") for w in WARTS)))


def checks() -> str:
    from scenarios.check import RULES

    return (
        "# Rules of `check`\n\n"
        "`dpf-twin check` flags what is known to go wrong before anything runs.\n"
        "An error will not work; a warning works, or may, but not as one would think; a note is worth knowing.\n"
        "A number is upstream's issue, a section that of the fact sheets.\n\n"
        + table(("rule", "finds", "severity", "needs a fleet", "reference"),
                ((f"`{r.id}`", r.title, r.severity, "yes" if r.needs_fleet else "", r.reference)
                 for r in RULES.values())))


def library() -> str:
    """The head of every story: Covers, Scenario, Expect."""
    rows = []
    for path in sorted((ROOT / "scenarios" / "library").glob("*.yaml")):
        told = dict.fromkeys(("Covers", "Scenario", "Expect"), "")
        last = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            word, _, rest = line.removeprefix("#").strip().partition(": ")
            if word in told and rest:
                last, told[word] = word, rest
            elif last:
                told[last] += " " + line.removeprefix("#").strip()
        rows.append((f"[{path.stem}](../../scenarios/library/{path.name})", *told.values()))
    return (
        "# The library of stories\n\n"
        "Each file is one story with its own expectations: "
        "`dpf-twin rehearse scenarios/library/NAME.yaml` plays it and exits with 0 if they hold.\n\n"
        + table(("story", "covers", "what happens", "what to expect"), rows))


PAGES: Final[dict[str, Callable[[], str]]] = {
    "commands": commands, "scenario": scenario, "fleet": fleet, "timing": timing, "faults": faults,
    "policies": policies, "checks": checks, "summary": summary, "library": library, "metrics": metrics,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path, text = FOLDER / f"{name}.md", HEAD + page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
