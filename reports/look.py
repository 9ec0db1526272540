"""`dpf-twin get`: a kubectl-shaped look into a finished run at any virtual time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec

from reports.columns import columns, table
from reports.folder import FolderError, RunFolder
from twin.model.kinds import KINDS, from_manifest
from twin.model.meta import Object

DEFAULT_NAMESPACE: Final = "dpf-operator-system"
"""What a list shows without -n or -A. A name without -n is looked for in every namespace."""
SHORT_NAMES: Final = {"no": "Node", "po": "Pod", "ns": "Namespace", "cm": "ConfigMap", "svc": "Service",
                      "ds": "DaemonSet", "ev": "Event", "pdb": "PodDisruptionBudget", "tcp": "TenantControlPlane",
                      "cert": "Certificate", "certs": "Certificate", "cr": "CertificateRequest",
                      "crs": "CertificateRequest"}
OUTPUTS: Final = ("table", "wide", "json", "yaml", "name")
Json = dict[str, Any]


class Answer(NamedTuple):
    """What goes to stdout, what to stderr, and the exit code."""

    out: str
    err: str = ""
    code: int = 0


class QueryError(Exception):
    """The question cannot be understood; the message is one line. Exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to look for. `at_s` None is the end of the run; `cluster` '' the host cluster."""

    kind: str
    name: str = ""
    namespace: str | None = None
    all_namespaces: bool = False
    selector: str = ""
    output: str = "table"
    at_s: float | None = None
    cluster: str = ""


# --- reading the history


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Head(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    metadata: _Meta


class _Line(msgspec.Struct):
    t_s: float
    cluster: str
    op: str
    object: _Head


class _Full(msgspec.Struct):
    object: Json


_head: Final = msgspec.json.Decoder(_Line)
_full: Final = msgspec.json.Decoder(_Full)


def objects_at(folder: RunFolder, at_s: float, wanted: Callable[[str, str], bool], cluster: str = "") -> list[Json]:
    """The objects that existed at `at_s`, by namespace and name. `wanted` is asked with apiVersion and kind.

    Raises: FolderError when objects were not recorded.  QueryError when the run never had such a cluster.
    """
    last: dict[tuple[str, str, str, str], bytes | None] = {}
    asked: dict[tuple[str, str], bool] = {}
    clusters: dict[str, None] = {"": None}
    for head, line in _versions(folder):
        clusters[head.cluster] = None
        if head.t_s > at_s:
            if cluster in clusters:
                break
            continue
        of = head.object
        kind = of.api_version, of.kind
        if kind not in asked:
            asked[kind] = wanted(*kind)
        if asked[kind] and head.cluster == cluster:
            key = (*kind, of.metadata.namespace, of.metadata.name)
            last[key] = None if head.op == "DELETED" else line
    if cluster not in clusters:
        raise QueryError(f"--cluster: no such DPU cluster, the run has {', '.join(c for c in clusters if c) or 'none'} "
                         f"(got {cluster})")
    return [_complete(_full.decode(line).object) for _, line in sorted(last.items()) if line is not None]


def kinds_in(folder: RunFolder) -> dict[str, str]:
    """Kind -> apiVersion of everything the run holds."""
    out: dict[str, str] = {}
    for head, _ in _versions(folder):
        out.setdefault(head.object.kind, head.object.api_version)
    return out


def _versions(folder: RunFolder) -> Iterator[tuple[_Line, bytes]]:
    """Every object version: what says which one it is, and the whole line. Raises FolderError."""
    for line in folder.object_lines():
        try:
            head = _head.decode(line)
        except msgspec.DecodeError as error:
            raise FolderError(f"{folder.path / 'objects'}: damaged: {error}") from error
        yield head, line


def _complete(manifest: Json) -> Json:
    """With `status.phase` said even where it is the CRD's default, which the recorded form leaves out."""
    status = manifest.get("status")
    if isinstance(status, dict) and "phase" not in status and manifest["kind"] in KINDS:
        phase = getattr(getattr(from_manifest(manifest), "status", None), "phase", "")
        if phase:
            status["phase"] = phase
    return manifest


# --- what is asked


def _plural(kind: str) -> str:
    cls = KINDS.get(kind)
    if cls is not None:
        return cls.PLURAL
    return kind.lower() + ("es" if kind.endswith(("s", "x", "ch")) else "s")


def resource_name(api_version: str, kind: str, *, plural: bool = True) -> str:
    """`dpus.provisioning.dpu.nvidia.com`, or the singular; core kinds have no group."""
    group = api_version.rpartition("/")[0]
    name = _plural(kind) if plural else kind.lower()
    return f"{name}.{group}" if group else name


def resolve(folder: RunFolder, word: str) -> tuple[str, str]:
    """(apiVersion, kind) for what a user typed: kind, plural, singular, short name, with or without the group.

    Raises: QueryError.
    """
    word = SHORT_NAMES.get(word.lower(), word)
    found = _named(word, {kind: cls.api_version() for kind, cls in KINDS.items()}) or _named(word, kinds_in(folder))
    if found is None:
        raise QueryError(f'the server doesn\'t have a resource type "{word}"')
    return found


def _named(word: str, kinds: Mapping[str, str]) -> tuple[str, str] | None:
    lower = word.lower()
    for kind, api_version in kinds.items():
        names = (kind.lower(), _plural(kind), resource_name(api_version, kind),
                 resource_name(api_version, kind, plural=False))
        if lower in names:
            return api_version, kind
    return None


_REQUIREMENT = re.compile(r"^(?:(!)\s*([^\s=!,()]+)|([^\s=!,()]+)\s*(?:(==|=|!=)\s*([^\s=!,()]*)"
                          r"|(\s(?:in|notin))\s*\(([^()]*)\))?)$")


def selects(selector: str) -> Callable[[Mapping[str, str]], bool]:
    """A label selector as kubectl takes it (`a=b,c!=d,e,!f,g in (x,y),h notin (z)`) as a predicate on labels.

    Raises: QueryError.
    """
    tests = [_requirement(part.strip()) for part in re.split(r",(?![^()]*\))", selector) if part.strip()]
    return lambda labels: all(test(labels) for test in tests)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    match = _REQUIREMENT.match(text)
    if match is None:
        raise QueryError(f'unable to parse requirement "{text}"')
    absent, missing, key, operator, value, among, values = match.groups()
    if absent:
        return lambda labels: missing not in labels
    if operator in ("=", "=="):
        return lambda labels: labels.get(key) == value
    if operator == "!=":
        return lambda labels: labels.get(key) != value
    if among:
        of = {v.strip() for v in values.split(",")}
        inside = among.strip() == "in"
        return lambda labels: (labels.get(key) in of) if inside else (labels.get(key) not in of)
    return lambda labels: key in labels


def check_query(query: Query) -> Query:
    """The query with KIND/NAME taken apart. Raises: QueryError."""
    if query.output not in OUTPUTS:
        raise QueryError(f'unable to match a printer suitable for the output format "{query.output}", '
                         f"allowed formats are: {','.join(OUTPUTS[1:])}")
    kind, slash, name = query.kind.partition("/")
    if slash and (query.name or not kind or not name):
        raise QueryError("there is no need to specify a resource type as a separate argument when passing arguments "
                         "in resource/name form")
    if name or query.name:
        if query.selector:
            raise QueryError("name cannot be provided when a selector is specified")
        if query.all_namespaces:
            raise QueryError("a resource cannot be retrieved by name across all namespaces")
    return replace(query, kind=kind, name=name or query.name)


def at_seconds(folder: RunFolder, at_s: float | None) -> float:
    """Raises: QueryError when the run ended before."""
    if at_s is None:
        return folder.virtual_s
    if at_s > folder.virtual_s:
        raise QueryError(f"--at is after the end of the run ({folder.virtual_s:g}s)")
    return at_s


# --- get


def get(folder: RunFolder, query: Query) -> Answer:
    """What `kubectl get` would have said at that time.

    Raises:
        FolderError: objects were not recorded.  QueryError: bad usage.
    """
    query = check_query(query)
    at_s = at_seconds(folder, query.at_s)
    resolved = [resolve(folder, word) for word in query.kind.split(",")]
    chosen = objects_at(folder, at_s, lambda a, k: (a, k) in resolved, query.cluster)
    chosen = list(matching(chosen, query))
    if query.name and not chosen:
        return Answer("", f'Error from server (NotFound): {resource_name(*resolved[0])} "{query.name}" not found\n', 1)
    if query.output in ("json", "yaml"):
        return Answer(_document(chosen, query))
    if not chosen:
        where = "" if query.all_namespaces or not _namespaced(resolved) else f" in {_namespace(query)} namespace"
        return Answer("", f"No resources found{where}.\n" if where else "No resources found\n")
    if query.output == "name":
        return Answer("".join(resource_name(o["apiVersion"], o["kind"], plural=False) + f"/{o['metadata']['name']}\n"
                              for o in chosen))
    now = folder.epoch_s + at_s
    of_kinds = [[o for o in chosen if (o["apiVersion"], o["kind"]) == kind] for kind in resolved]
    shown = [_table(objects, query, now, len(resolved) > 1) for objects in of_kinds if objects]
    return Answer("\n".join(shown))


def _namespaced(resolved: Sequence[tuple[str, str]]) -> bool:
    return any(KINDS.get(kind, Object).NAMESPACED for _, kind in resolved)


def _namespace(query: Query) -> str:
    return query.namespace or DEFAULT_NAMESPACE


def matching(objects: Sequence[Json], query: Query) -> Iterator[Json]:
    """Those of the right name, namespace and labels. A name without a namespace is looked for everywhere."""
    labels = selects(query.selector)
    for obj in objects:
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        if query.name and meta["name"] != query.name:
            continue
        everywhere = query.all_namespaces or (query.name and query.namespace is None)
        if namespace and not everywhere and namespace != _namespace(query):
            continue
        if labels(meta.get("labels", {})):
            yield obj


def _document(objects: Sequence[Json], query: Query) -> str:
    if query.name and len(objects) == 1:
        document: Any = objects[0]
    else:
        document = {"apiVersion": "v1", "items": list(objects), "kind": "List", "metadata": {"resourceVersion": ""}}
    if query.output == "json":
        return json.dumps(document, indent=4, sort_keys=True) + "\n"
    import yaml

    return str(yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=True,
                         default_flow_style=False))


def _table(objects: Sequence[Json], query: Query, now: float, prefixed: bool) -> str:
    first = objects[0]
    shown = columns(first["kind"], wide=query.output == "wide")
    prefix = resource_name(first["apiVersion"], first["kind"], plural=False) + "/" if prefixed else ""
    named = "" if first["kind"] == "Event" else "Name"
    headings = [*(["Namespace"] if query.all_namespaces and first["metadata"].get("namespace") else []),
                *([named] if named else []), *(c.heading for c in shown)]
    rows = [[*([o["metadata"].get("namespace", "")] if headings[0] == "Namespace" else []),
             *([prefix + o["metadata"]["name"]] if named else []), *(c.cell(o, now) for c in shown)] for o in objects]
    return table(headings, rows)
