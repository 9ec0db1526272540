"""`dpf-twin crd` and `dpf-twin schema`: what the twin knows about the shape of things, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from api.output import Refused, document

if TYPE_CHECKING:
    from twin.model.timing_profile import Bound

KINDS: Final = ("scenario", "fleet", "timing", "summary")


def crds(words: list[str], output: str) -> str:
    """The CRDs of these kinds (kind or plural, any case), or of all. Raises Refused."""
    from twin.model.kinds import KINDS as ALL
    from twin.model.schema import crd, has_crd

    known = [k for k in ALL.values() if has_crd(k)]
    chosen = []
    for word in words or [k.KIND for k in known]:
        found = [k for k in known if word.lower() in (k.KIND.lower(), k.PLURAL, f"{k.PLURAL}.{k.GROUP}")]
        if not found:
            raise Refused(f"crd: no such kind, there is {', '.join(sorted(k.KIND for k in known))} (got {word})")
        chosen += found
    made = [crd(k) for k in dict.fromkeys(chosen)]
    if output == "json":
        return document({"apiVersion": "v1", "kind": "List", "items": made}, "json")
    if output != "yaml":
        raise Refused(f"-o: must be one of yaml, json (got {output})")
    return "".join("---\n" + document(_plain(c), "yaml") for c in made)


def _plain(value: Any) -> Any:
    """Without shared parts, which YAML would write as anchors and aliases."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def schema(kind: str, output: str) -> str:
    """The JSON Schema of something users write or receive. Raises Refused."""
    if output not in ("json", "yaml"):
        raise Refused(f"-o: must be one of json, yaml (got {output})")
    if kind == "scenario":
        from scenarios.base import ScenarioFile

        found = ScenarioFile.model_json_schema()
    elif kind == "fleet":
        from twin.model.fleet_file import FleetFile

        found = FleetFile.model_json_schema()
    elif kind == "timing":
        found = timing_schema()
    elif kind == "summary":
        from scenarios.result import Summary

        found = Summary.model_json_schema(mode="serialization")
    else:
        raise Refused(f"schema: must be one of {', '.join(KINDS)} (got {kind})")
    return document({"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(found)}, output)


def _number(bound: Bound) -> dict[str, Any]:
    return {"type": "integer" if bound.whole else "number", "minimum": bound.least,
            **({} if bound.most is None else {"maximum": bound.most})}


def timing_schema() -> dict[str, Any]:
    """Of a timing profile, with every operation and limit by name: where it acts, its default and its basis."""
    from twin.model.timing_profile import TimingFile, bound, default

    found = TimingFile.model_json_schema()
    profile = default()
    found["properties"]["operations"] = {
        "type": "object", "additionalProperties": False, "description": "Seconds; entries replace the base's",
        "properties": {o.name: {
            "$ref": "#/$defs/OperationEntry",
            "description": f"{o.where}. Median {o.takes.at(0.0):g} s by default ({o.basis}: {o.source})",
        } for o in profile.operations.values()}}
    found["properties"]["limits"] = {
        "type": "object", "additionalProperties": False,
        "properties": {m.name: {
            "anyOf": [{"$ref": "#/$defs/LimitEntry"}, _number(bound(m.name))],
            "description": f"{m.where}. {m.value:g} {m.unit} by default ({m.basis}: {m.source})",
        } for m in profile.limits.values()}}
    return found
