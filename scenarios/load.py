"""From files to a `Scenario`: scenario files with includes, fleets, timing profiles, manifests with variables.

Everything read is kept (`Scenario.inputs`), all mistakes are gathered and raised together as `BadInput`.
Paths are relative to the file that names them.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from scenarios.base import (
    ACTIONS,
    Apply,
    Manifest,
    ObjectName,
    Patch,
    PersonTask,
    Scenario,
    ScenarioFile,
    Step,
    TimelineEntry,
)
from scenarios.objects import (
    IDLE_KINDS,
    duplicates,
    expand,
    kubectl_order,
    manifest_at,
    manifests_of,
    shown_path,
    violations_of,
    with_stock,
)
from scenarios.targets import Known, unknown
from scenarios.variables import fill, fill_text
from twin.model import fleet_file, timing_profile
from twin.model.fleet import Fleet
from twin.model.kinds import KINDS
from twin.model.mistakes import BadInput, Mistake, shown
from twin.model.timing import Profile
from twin.model.units import duration
from twin.model.yamlmarks import Marked, document, documents, mistakes_of, read, rules_of, text_of


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says over the scenario file. None: as the file has it."""

    variables: Mapping[str, str] | None = None
    seed: int | None = None
    replications: int | None = None
    horizon_s: float | None = None
    timing: str | None = None
    policies: tuple[str, ...] = ()


NO_OVERRIDES: Final = Overrides()
_COMMAND_LINE: Final = "command line"
_UNKNOWN_PROFILE: Final = "unknown timing profile: give default, fixed or a file"


def load_scenario(path: Path, overrides: Overrides = NO_OVERRIDES,
                  environment: Mapping[str, str] | None = None) -> Scenario:
    """The scenario of a file, everything it names included.

    Raises:
        BadInput: all mistakes that were found.
    """
    loader = Loader(overrides, environment or {})
    parts = loader.parts(path, ())
    return loader.scenario(parts, str(path))


def load_manifests(manifests: Sequence[str], fleet: str, overrides: Overrides = NO_OVERRIDES,
                   environment: Mapping[str, str] | None = None) -> Scenario:
    """A scenario of manifests applied at 0 s to a fleet, without a scenario file. Raises BadInput."""
    loader = Loader(overrides, environment or {})
    if not os.path.exists(fleet):
        raise BadInput([Mistake(fleet, "no such file: --fleet needs a fleet")])
    name = re.sub(r"[^a-z0-9]+", "-", Path(os.path.abspath(manifests[0])).stem.lower()).strip("-") or "manifests"
    file = ScenarioFile(apiVersion="dpf-twin/v1", name=name[:100], fleet=fleet, manifests=list(manifests))
    doc = document(_yaml(file), _COMMAND_LINE)
    scenario = loader.scenario([Part(file, doc, Path())], "")
    return scenario.with_(inputs={**scenario.inputs, "scenario.yaml": loader.as_scenario(file, scenario).encode()})


def flag_mistakes(**flags: Any) -> list[Mistake]:
    """What is wrong with these flags, by the rules of the scenario field of the same meaning. None: not given."""
    found = []
    for flag, value in flags.items():
        field = ScenarioFile.model_fields["horizon" if flag == "until" else flag]
        try:
            TypeAdapter(None | field.rebuild_annotation()).validate_python(value)
        except ValidationError as error:
            got = duration(value) if flag == "until" else shown(value)
            found += [Mistake(f"--{flag}", rule, got=got) for rule in rules_of(error)]
    return found


def policies() -> Mapping[str, str]:
    """Every named fix of upstream behaviour, with the wart it fixes."""
    from controllers.warts import POLICIES

    return POLICIES


# --- the loader


@dataclass(frozen=True, slots=True)
class Part:
    """One scenario file among those that include each other."""

    file: ScenarioFile
    doc: Marked
    folder: Path

    @property
    def about(self) -> str:
        return f"scenario {self.file.name}"

    def wrong(self, path: Sequence[str | int], rule: str, got: Any = None) -> Mistake:
        return self.doc.mistake(path, rule, got, about=self.about)


class Loader:
    """Reads files once, remembers their bytes, gathers mistakes."""

    def __init__(self, overrides: Overrides = NO_OVERRIDES, environment: Mapping[str, str] | None = None) -> None:
        self.overrides = overrides
        self.environment = environment or {}
        self.mistakes: list[Mistake] = []
        self.read: dict[str, bytes] = {}  # by absolute path
        self.used: dict[str, str] = {}
        self.variables: Mapping[str, str] = {}

    def text(self, path: Path) -> str:
        content = read(path, shown_path(path))
        self.read[os.path.abspath(path)] = content
        return text_of(content, shown_path(path))

    # --- scenario files

    def parts(self, path: Path, above: tuple[str, ...]) -> list[Part]:
        """This scenario file behind all it includes. Raises BadInput."""
        here = os.path.abspath(path)
        doc = document(self.text(path), shown_path(path))
        about = f"scenario {doc.data['name']}" if isinstance(doc.data.get("name"), str) else "scenario"
        if doc.data.get("apiVersion") != "dpf-twin/v1":
            raise BadInput([doc.mistake(("apiVersion",), "a scenario begins with apiVersion: dpf-twin/v1",
                                        doc.data.get("apiVersion"), about=about)])
        try:
            file = ScenarioFile.model_validate(doc.data)
        except ValidationError as error:
            raise BadInput(mistakes_of(error, doc, about)) from None
        part = Part(file, doc, path.parent)
        found: list[Part] = []
        includes = [file.include] if isinstance(file.include, str) else file.include
        for i, name in enumerate(includes):
            at = ("include",) if isinstance(file.include, str) else ("include", i)
            below = part.folder / name
            if os.path.abspath(below) in (*above, here):
                raise BadInput([part.wrong(at, "files include each other in a circle", name)])
            if not os.path.exists(below):
                raise BadInput([part.wrong(at, "no such file", name)])
            found += self.parts(below, (*above, here))
        return [*found, part]

    def scenario(self, parts: Sequence[Part], source: str) -> Scenario:
        """Parts made into one: lists one after the other, single values from the last part that sets them."""
        self.variables = self._variables(parts)
        last = parts[-1].file
        fleet = self._try(lambda: self._fleet(parts))
        profile = self._try(lambda: self._profile(parts))
        manifests = self._manifests(parts)
        steps = sorted((s for p in parts for s in self._steps(p)), key=lambda s: s.at_s)
        if fleet is not None:
            applied = [*manifests, *(m for s in steps if isinstance(s.action, Apply) for m in s.action.manifests)]
            self._check_targets(parts, Known(fleet, None if self.mistakes else applied))
        names = self._policies(parts)
        self._check_expectations(parts)
        self.mistakes += duplicates(manifests)
        given = self.overrides
        self.mistakes += flag_mistakes(seed=given.seed, replications=given.replications, until=given.horizon_s)
        horizon_s = _first(self.overrides.horizon_s, _set(parts, "horizon", last.horizon))
        if self.mistakes or fleet is None or profile is None:
            raise BadInput(list(dict.fromkeys(self.mistakes)))
        return Scenario(
            name=last.name, description=last.description, fleet=fleet, manifests=with_stock(manifests),
            timeline=tuple(steps), profile=profile, policies=names,
            horizon_s=horizon_s,
            seed=_first(self.overrides.seed, _set(parts, "seed", last.seed)),
            replications=_first(self.overrides.replications, _set(parts, "replications", last.replications)),
            expect=tuple(e for p in parts for e in p.file.expect), variables=self.used,
            inputs=self.inputs(), warnings=_warnings(manifests, steps, horizon_s), source=source,
        )

    def _try(self, make: Any) -> Any:
        try:
            return make()
        except BadInput as error:
            self.mistakes += error.mistakes
            return None

    def _variables(self, parts: Sequence[Part]) -> dict[str, str]:
        """Environment, then scenario, then command line: the later wins."""
        written = {k: _text(v) for p in parts for k, v in p.file.variables.items()}
        return {**self.environment, **written, **(self.overrides.variables or {})}

    # --- fleet and timing

    def _fleet(self, parts: Sequence[Part]) -> Fleet:
        part = next((p for p in reversed(parts) if p.file.fleet is not None), None)
        if part is None:
            raise BadInput([parts[-1].wrong((), "fleet: required field is missing: a file, or a fleet in place")])
        if not isinstance(part.file.fleet, str):
            return fleet_file.load(part.doc, ("fleet",))
        path = part.folder / part.file.fleet
        return self.fleet(path, part.wrong(("fleet",), "no such file", part.file.fleet))

    def fleet(self, path: Path, absent: Mistake | None = None) -> Fleet:
        """The fleet of a file. Raises BadInput."""
        if absent is not None and not os.path.exists(path):
            raise BadInput([absent])
        return fleet_file.load(document(self.text(path), shown_path(path)))

    def _profile(self, parts: Sequence[Part]) -> Profile:
        if self.overrides.timing is not None:
            return self.profile(self.overrides.timing, Path(), ())
        part = next((p for p in reversed(parts) if "timing" in p.file.model_fields_set), None)
        if part is None:
            return timing_profile.default()
        given = part.file.timing
        if not isinstance(given, str):
            return self._merged(given, part.doc, ("timing",), part.folder, part.about, ())
        return self.profile(given, part.folder, (), part.wrong(("timing",), _UNKNOWN_PROFILE, given))

    def profile(self, name: str, folder: Path, above: tuple[str, ...], absent: Mistake | None = None) -> Profile:
        """A profile by name or file, its bases first; `absent` is what to say when there is none. Raises BadInput."""
        if name in timing_profile.BASES:
            return timing_profile.named(name)
        path = folder / name
        here = os.path.abspath(path)
        if not os.path.exists(path):
            raise BadInput([absent or Mistake(shown_path(path), _UNKNOWN_PROFILE, got=shown(name))])
        if here in above:
            raise BadInput([Mistake(shown_path(path), "timing profiles are based on each other in a circle")])
        doc = document(self.text(path), shown_path(path))
        about = f"timing {doc.data.get('name', '')}".rstrip()
        try:
            file = timing_profile.TimingFile.model_validate(doc.data)
        except ValidationError as error:
            raise BadInput(mistakes_of(error, doc, about)) from None
        return self._merged(file, doc, (), path.parent, about, (*above, here))

    def _merged(self, file: timing_profile.TimingFile, doc: Marked, at: tuple[str, ...], folder: Path, about: str,
                above: tuple[str, ...]) -> Profile:
        """The profile that stands at this path of a document, over its base. Raises BadInput."""
        base = self.profile(file.base, folder, above, doc.mistake((*at, "base"), _UNKNOWN_PROFILE, file.base,
                                                                  about=about))
        found: list[Mistake] = []
        measured = {}
        for name, entry in file.operations.items():
            if isinstance(entry.empirical_s, str):
                place = (*at, "operations", name, "empirical_s")
                try:
                    measured[name] = self._measured(folder / entry.empirical_s, doc.mistake(
                        place, "no such file", entry.empirical_s, about=about))
                except BadInput as error:
                    found += error.mistakes
                    measured[name] = [1.0]  # so that the rest is looked at, too
        found += [doc.mistake((*at, *path), rule, got, about=about, at_key=got is None)
                  for path, rule, got in timing_profile.wrong(base, file, measured)]
        if found:
            raise BadInput(found)
        return timing_profile.merged(base, file, measured)

    def _measured(self, path: Path, absent: Mistake) -> list[float]:
        if not os.path.exists(path):
            raise BadInput([absent])
        return timing_profile.measurements(self.text(path), shown_path(path))

    # --- manifests

    def _manifests(self, parts: Sequence[Part]) -> tuple[Manifest, ...]:
        found: list[Manifest] = []
        for part in parts:
            given = part.file.manifests
            for i, name in enumerate([given] if isinstance(given, str) else given):
                at = ("manifests",) if isinstance(given, str) else ("manifests", i)
                found += self._from(part, at, name)
        return kubectl_order(found)

    def _from(self, part: Part, at: tuple[str | int, ...], name: str) -> list[Manifest]:
        path = part.folder / name
        absent = not glob.has_magic(name) and not os.path.exists(path) and part.doc.file != _COMMAND_LINE
        if absent or "\0" in name:  # glob would stumble over a zero byte
            self.mistakes.append(part.wrong(at, "no such file or folder", name))
            return []
        return self.manifests(name, part.folder)

    def manifests(self, pattern: str, folder: Path = Path()) -> list[Manifest]:
        """The objects of all files that a path, folder or glob means; mistakes are gathered."""
        found: list[Manifest] = []
        for path in self._try(lambda: expand(pattern, folder)) or ():
            found += self.manifests_in(path)
        return found

    def manifests_in(self, path: Path) -> list[Manifest]:
        """The objects of one file, as far as it can be read; mistakes are gathered."""
        found: list[Manifest] = []
        docs = self._try(lambda: self._documents(path)) or []
        for doc in docs:
            if isinstance(doc.data, dict) and str(doc.data.get("apiVersion", "")).startswith("dpf-twin/"):
                self.mistakes.append(doc.mistake((), "a scenario, fleet or timing profile is not a manifest"))
                continue
            for manifest in self._try(lambda doc=doc: manifests_of(doc)) or ():
                self.mistakes += violations_of(manifest)
                found.append(manifest)
        return found

    def _documents(self, path: Path) -> list[Marked]:
        filled = fill(self.text(path), self.variables, shown_path(path))
        self.used.update({n: self.variables[n] for n in filled.used})
        return documents(filled.text, shown_path(path), filled.place)

    # --- timeline, policies, expectations

    def _steps(self, part: Part) -> list[Step]:
        steps = []
        for i, entry in enumerate(part.file.timeline):
            what = next(n for n in ACTIONS if getattr(entry, n) is not None)
            action = self._action(part, entry, what, i)
            line, column = part.doc.mark(("timeline", i))
            steps.append(Step(entry.at, what, action, entry.for_, f"{part.doc.file}:{line}:{column}"))
        return steps

    def _action(self, part: Part, entry: TimelineEntry, what: str, i: int) -> Any:
        action = getattr(entry, what)
        at = ("timeline", i, what)
        if what == "apply":
            if isinstance(action, dict):
                before = len(self.mistakes)
                data = self._filled(part, at, action)
                whole = len(self.mistakes) == before
                made = (self._try(lambda: [manifest_at(part.doc, data, at)]) or []) if whole else []
                self.mistakes += [m for manifest in made for m in violations_of(manifest)]
            else:
                names = [action] if isinstance(action, str) else action
                made = [m for name in names for m in self._from(part, at, name)]
            self.mistakes += duplicates(made)
            return Apply(kubectl_order(made))
        if isinstance(action, ObjectName | PersonTask) and action.kind:
            self._check_kind(part, action, at)
        if isinstance(action, Patch) and action.merge is not None:
            return action.model_copy(update={"merge": self._filled(part, (*at, "merge"), action.merge)})
        return action

    def _filled(self, part: Part, at: tuple[str | int, ...], value: Any) -> Any:
        """Data of the scenario file itself, with variables filled in as in manifests; mistakes are gathered."""
        if isinstance(value, dict):
            return {k: self._filled(part, (*at, k), v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._filled(part, (*at, i), v) for i, v in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        try:
            filled = fill_text(value, self.variables)
        except BadInput as error:
            self.mistakes += [part.wrong(at, m.rule) for m in error.mistakes]
            return value
        self.used.update({n: self.variables[n] for n in filled.used})
        return filled.text

    def _check_kind(self, part: Part, action: ObjectName | PersonTask, at: tuple[str | int, ...]) -> None:
        if action.kind not in KINDS and not getattr(action, "apiVersion", ""):
            near = difflib.get_close_matches(action.kind, sorted(KINDS), n=1)
            other = "give its apiVersion too" if isinstance(action, ObjectName) else "nobody here can look after it"
            hint = f"did you mean {near[0]}?" if near else other
            self.mistakes.append(part.wrong((*at, "kind"), f"unknown kind, {hint}", action.kind))

    def _check_targets(self, parts: Sequence[Part], known: Known) -> None:
        for part in parts:
            for i, entry in enumerate(part.file.timeline):
                self.mistakes += [part.wrong(("timeline", i, *path), rule, got)
                                  for path, rule, got in unknown(entry, known)]

    def _policies(self, parts: Sequence[Part]) -> tuple[str, ...]:
        known = policies()
        for part in parts:
            for i, name in enumerate(part.file.policies):
                if name not in known:
                    self.mistakes.append(part.wrong(("policies", i), _unknown_policy(name, known), name))
        for name in self.overrides.policies:
            if name not in known:
                self.mistakes.append(Mistake("--policy", _unknown_policy(name, known), got=shown(name)))
        return tuple(dict.fromkeys([*(n for p in parts for n in p.file.policies), *self.overrides.policies]))

    def _check_expectations(self, parts: Sequence[Part]) -> None:
        for part in parts:
            for i, text in enumerate(part.file.expect):
                wrong = cel_mistake(text)
                if wrong:
                    self.mistakes.append(part.wrong(("expect", i), wrong, text))

    def inputs(self) -> dict[str, bytes]:
        """What was read, by path below the deepest folder that holds all of it; variables.yaml: what was filled in."""
        found = {self._below_top(p): self.read[p] for p in sorted(self.read)}
        if self.used:
            found["variables.yaml"] = yaml.safe_dump(dict(sorted(self.used.items()))).encode()
        return found

    def as_scenario(self, file: ScenarioFile, loaded: Scenario) -> str:
        """A scenario file that, beside the other inputs, says what the command line said."""
        manifests = dict.fromkeys(self._below_top(os.path.abspath(m.doc.file)) for m in loaded.manifests if not m.stock)
        return _yaml(file.model_copy(update={
            "fleet": self._below_top(os.path.abspath(str(file.fleet))), "manifests": list(manifests),
            "variables": dict(self.used)}))

    def _below_top(self, path: str) -> str:
        top = os.path.commonpath([os.path.dirname(p) for p in self.read])
        return os.path.relpath(path, top).replace(os.sep, "/")


def cel_mistake(expression: str) -> str:
    """'' if this is a CEL expression over what a run knows, else what is wrong with it, in one line."""
    from scenarios.expect import unknown

    try:
        return unknown(expression)
    except ValueError as error:
        match = re.search(r"ERROR: <input>:1:(\d+): (.*)", str(error))
        what = f": column {match[1]}: {match[2].partition(' expecting')[0]}" if match else ""
        return f"not a CEL expression{what}"


def _warnings(manifests: Sequence[Manifest], steps: Sequence[Step], horizon_s: float) -> tuple[str, ...]:
    """One sentence for each kind that nothing here acts on, and for what the horizon cuts off."""
    applied = [*manifests, *(m for s in steps if isinstance(s.action, Apply) for m in s.action.manifests)]
    count: dict[str, int] = {}
    for m in applied:
        if m.id.kind not in KINDS or m.id.kind in IDLE_KINDS:
            count[m.id.kind] = count.get(m.id.kind, 0) + 1
    late = [s.where for s in steps if s.at_s >= horizon_s]
    return (*(f"{kind}: {n} stored, no controller acts on this kind" for kind, n in sorted(count.items())),
            *(f"{where}: never happens, it is at or behind the horizon of {duration(horizon_s)}" for where in late))


def _unknown_policy(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return "unknown policy" + (f", did you mean {near[0]}?" if near else f", there is {', '.join(sorted(known))}")


def _yaml(file: ScenarioFile) -> str:
    return yaml.safe_dump(file.model_dump(mode="json", exclude_defaults=True) | {"apiVersion": file.apiVersion},
                          sort_keys=False)


def _set(parts: Sequence[Part], field: str, default: Any) -> Any:
    part = next((p for p in reversed(parts) if field in p.file.model_fields_set), None)
    return default if part is None else getattr(part.file, field)


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _text(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
