"""`dpf-twin check`: every kind of file a user writes, validated; known problems flagged before they happen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from api.output import Refused, answer, document, note
from scenarios.base import Manifest, ScenarioFile
from scenarios.check import Finding, check_scenario
from scenarios.check import check as find
from scenarios.load import Loader, Overrides, load_scenario, policies
from scenarios.objects import duplicates, expand, kubectl_order, shown_path, with_stock
from scenarios.rules import Picture
from twin.model.fleet import Fleet
from twin.model.fleet_file import FleetFile
from twin.model.mistakes import BadInput, Mistake
from twin.model.timing_profile import TimingFile, default
from twin.model.yamlmarks import document as one_document
from twin.model.yamlmarks import read, text_of

_KEYS: Final = {
    "scenario": {*ScenarioFile.model_fields} - {*FleetFile.model_fields} - {*TimingFile.model_fields},
    "fleet": {*FleetFile.model_fields} - {"apiVersion", "name", "operator"},
    "timing": {"operations", "limits", "base"},
}


class Files(NamedTuple):
    """Paths sorted by what is in them."""

    scenarios: list[Path]
    fleets: list[Path]
    profiles: list[Path]
    manifests: list[Path]


def check(paths: list[str], fleet: str, variables: Mapping[str, str], named: tuple[str, ...], output: str, *,
          quiet: bool) -> int:
    """Print findings; 1 if there is an error or a warning among them. Raises BadInput: all mistakes of all files."""
    unknown = [n for n in named if n not in policies()]
    if unknown:
        raise Refused("\n".join(f"--policy: unknown policy, there is {', '.join(sorted(policies()))} (got {n})"
                                for n in unknown))
    loader = Loader(Overrides(variables=variables), os.environ)
    loader.variables = {**os.environ, **variables}
    files = _sorted(paths, loader)
    findings: list[Finding] = []
    checked = 0
    for path in files.scenarios:
        try:
            scenario = load_scenario(path, Overrides(variables=variables, policies=named), os.environ)
        except BadInput as error:
            loader.mistakes += error.mistakes
            continue
        findings += check_scenario(scenario, str(path))
        checked += len(scenario.manifests)
        if not quiet:
            for warning in scenario.warnings:
                note(f"{path}: {warning}")
    of_fleets = [f for path in ([Path(fleet)] if fleet else files.fleets) if (f := _fleet(loader, path)) is not None]
    for path in files.profiles:
        _gather(loader, path)
    manifests = kubectl_order(m for path in files.manifests for m in loader.manifests_in(path))
    loader.mistakes += duplicates(manifests)
    if loader.mistakes:
        raise BadInput(list(dict.fromkeys(loader.mistakes)))
    if manifests:
        findings += _of_manifests(manifests, of_fleets, fleet, named, quiet)
    _print(findings, checked + len(manifests), output, quiet)
    return 1 if any(f.severity != "note" for f in findings) else 0


def _of_manifests(manifests: tuple[Manifest, ...], fleets: list[Fleet], fleet: str, named: tuple[str, ...],
                  quiet: bool) -> list[Finding]:
    if not fleets and not quiet:
        note("no fleet given: what depends on hosts and DPUs was not looked at (--fleet FILE)")
    found: list[Finding] = []
    looked_at: list[Fleet | None] = [*fleets] or [None]
    for one in looked_at:
        found += find(Picture(with_stock(manifests), one, fleet or (one.name if one else ""), profile=default(),
                              policies=frozenset(named), whole=len(manifests) > 1))
    return list(dict.fromkeys(found))


def _sorted(paths: list[str], loader: Loader) -> Files:
    """Every file that the paths mean. Mistakes are gathered."""
    files = Files([], [], [], [])
    for name in paths:
        try:
            found = expand(name, Path())
        except BadInput as error:
            loader.mistakes += error.mistakes
            continue
        for path in found:
            _sort(path, files, loader)
    return files


def _sort(path: Path, files: Files, loader: Loader) -> None:
    try:
        content = text_of(read(path, shown_path(path)), shown_path(path))
    except BadInput as error:
        loader.mistakes += error.mistakes
        return
    if "dpf-twin/" not in content:
        files.manifests.append(path)
        return
    try:
        doc = one_document(content, shown_path(path))
    except BadInput:
        files.manifests.append(path)  # whose reading tells what is wrong
        return
    if not str(doc.data.get("apiVersion", "")).startswith("dpf-twin/"):
        files.manifests.append(path)
        return
    score = {what: len(keys & doc.data.keys()) for what, keys in _KEYS.items()}
    best = max(score, key=lambda what: score[what])
    if "timeline" in doc.data or "manifests" in doc.data or "include" in doc.data:
        best = "scenario"
    {"scenario": files.scenarios, "fleet": files.fleets, "timing": files.profiles}[best].append(path)


def _fleet(loader: Loader, path: Path) -> Fleet | None:
    try:
        return loader.fleet(path, Mistake(str(path), "no such file"))
    except BadInput as error:
        loader.mistakes += error.mistakes
        return None


def _gather(loader: Loader, profile: Path) -> None:
    try:
        loader.profile(str(profile), Path(), ())
    except BadInput as error:
        loader.mistakes += error.mistakes


def _print(findings: list[Finding], objects: int, output: str, quiet: bool) -> None:
    if output in ("json", "yaml"):
        rows = [{"rule": f.rule, "severity": f.severity, "file": f.file, "line": f.line, "column": f.column,
                 "object": f.object, "field": f.field, "words": f.words, "got": f.got, "reference": f.reference}
                for f in findings]
        answer(document({"objects": objects, "findings": rows}, output))
        return
    answer("".join(f"{finding}\n" for finding in findings))
    if not quiet:
        count = {s: sum(f.severity == s for f in findings) for s in ("error", "warning", "note")}
        note(f"{objects} objects: " + ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for s, n in count.items()))
