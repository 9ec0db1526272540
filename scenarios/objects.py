"""Kubernetes objects as they stand in files: which files, which objects, in which order, what is wrong with them."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from scenarios.base import Manifest, ObjectId
from twin.model import services
from twin.model.kinds import KINDS
from twin.model.mistakes import BadInput, Mistake
from twin.model.rules import ABSENT
from twin.model.schema import has_crd
from twin.model.validation import violations
from twin.model.yamlmarks import Marked, documents

SUFFIXES: Final = (".yaml", ".yml", ".json")
STOCK: Final = Path(__file__).with_name("stock")
"""What a DPF installation brings along: objects that upstream's guides refer to and no manifest of theirs holds."""

IDLE_KINDS: Final = frozenset(k.KIND for k in services.KINDS) - {"DPUDeployment"}
"""Kinds of DPF that are stored and validated, but that no controller here acts on."""


def _by_group() -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for kind in KINDS.values():
        if has_crd(kind):
            groups.setdefault(kind.GROUP, set()).add(kind.KIND)
    return {group: frozenset(kinds) for group, kinds in groups.items()}


_DPF_KINDS: Final = _by_group()
_CORE_KINDS: Final = frozenset((
    "Namespace", "Node", "Pod", "Secret", "ConfigMap", "Event", "Service", "ServiceAccount", "PersistentVolume",
    "PersistentVolumeClaim", "Endpoints", "LimitRange", "ResourceQuota", "ReplicationController", "PodTemplate", "List",
))
_CLUSTER_WIDE: Final = frozenset((
    "Namespace", "Node", "PersistentVolume", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding",
    "StorageClass", "PriorityClass", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "ClusterIssuer",
    "RuntimeClass", "IngressClass", "APIService",
))
_FIRST: Final = {"Namespace": 0, "CustomResourceDefinition": 1, "ServiceAccount": 2, "Secret": 2, "ConfigMap": 2,
                 "DPFOperatorConfig": 3}
_LAST: Final = 9
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LOOSE_NAMES: Final = frozenset(("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "APIService"))


def expand(pattern: str, folder: Path) -> list[Path]:
    """The files that a path, folder or glob means, in order. A folder means its YAML and JSON files, not those below.

    Raises:
        BadInput: there is none.
    """
    path = folder / pattern
    if os.path.isdir(path):
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise BadInput([Mistake(shown_path(path), f"no manifests: the folder has no {', '.join(SUFFIXES)} file")])
        return found
    if os.path.exists(path) or not glob.has_magic(str(pattern)):
        return [path]
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
    if not found:
        raise BadInput([Mistake(shown_path(path), "no file fits this pattern")])
    return found


def kubectl_order(manifests: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Namespaces, CRDs and configuration first, the rest as they came."""
    return tuple(sorted(manifests, key=lambda m: _FIRST.get(m.id.kind, _LAST)))


def manifests_of(doc: Marked) -> list[Manifest]:
    """The objects of one document; a List is its items.

    Raises:
        BadInput: something that every object has is missing or wrong, or no DPF release has such a kind.
    """
    if isinstance(doc.data, dict) and doc.data.get("kind") == "List" and doc.data.get("apiVersion") == "v1":
        items = doc.data.get("items")
        if not isinstance(items, list):
            raise BadInput([doc.mistake(("items",), "must be a list", items, about="List")])
        return [manifest_at(doc, item, ("items", i)) for i, item in enumerate(items)]
    return [manifest_at(doc, doc.data, ())]


def manifest_at(doc: Marked, data: Any, path: tuple[str | int, ...]) -> Manifest:
    """One object that stands at this path of a document. Raises BadInput as `manifests_of`."""
    if not isinstance(data, dict):
        raise BadInput([doc.mistake(path, "a Kubernetes object was expected", data)])
    version, kind, meta = data.get("apiVersion"), data.get("kind"), data.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    about = "/".join(str(p) for p in (kind, meta.get("namespace"), meta.get("name")) if p)
    wrong = []
    for name, value in (("apiVersion", version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            wrong.append(doc.mistake((*path, name), "required: every Kubernetes object has one", value, about=about))
    wrong += _wrong_metadata(doc, data, path, about)
    if not wrong:
        wrong += _unknown_kind(doc, str(version), str(kind), path, about)
    if wrong:
        raise BadInput(wrong)
    name = meta.get("name") or meta.get("generateName", "") + "*"
    namespace = "" if kind in _CLUSTER_WIDE else meta.get("namespace") or ("default" if namespaced(str(kind)) else "")
    return Manifest(data, ObjectId(_group(str(version)), str(kind), namespace, name), doc, path)


def _wrong_metadata(doc: Marked, data: dict[str, Any], path: tuple[str | int, ...], about: str) -> list[Mistake]:
    meta, at = data.get("metadata"), (*path, "metadata")
    if not isinstance(meta, dict):
        return [doc.mistake(at, "required: every Kubernetes object has it", meta, about=about)]
    wrong = []
    if not meta.get("name") and not meta.get("generateName"):
        wrong.append(doc.mistake((*at, "name"), "required: every Kubernetes object has one", about=about))
    for key in ("name", "namespace"):
        value = meta.get(key)
        if value is not None and not isinstance(value, str):
            wrong.append(doc.mistake((*at, key), "must be a string", value, about=about))
        elif value and data.get("kind") not in _LOOSE_NAMES and not _DNS_NAME.fullmatch(value):
            wrong.append(doc.mistake((*at, key), "must be small letters, digits, - and ., beginning and ending with a "
                                                 "letter or digit", value, about=about))
    for key in ("labels", "annotations"):
        for name, value in (meta.get(key) or {}).items() if isinstance(meta.get(key) or {}, dict) else ():
            if not isinstance(value, str):
                wrong.append(doc.mistake((*at, key, name), "must be a string (quote it)", value, about=about))
        if not isinstance(meta.get(key) or {}, dict):
            wrong.append(doc.mistake((*at, key), "must be a mapping of strings", meta[key], about=about))
    return wrong


def _unknown_kind(doc: Marked, version: str, kind: str, path: tuple[str | int, ...], about: str) -> list[Mistake]:
    group = _group(version)
    known = _DPF_KINDS.get(group, _CORE_KINDS if version == "v1" else None)
    if known is None:
        if group.endswith(".dpu.nvidia.com"):
            rule = f"unknown API group of DPF, it has {', '.join(_DPF_KINDS)}"
            return [doc.mistake((*path, "apiVersion"), rule, version, about=about)]
        return []
    if kind not in known:
        near = difflib.get_close_matches(kind, sorted(known), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return [doc.mistake((*path, "kind"), f"unknown kind in {version}{hint}", kind, about=about)]
    if version != "v1" and version != f"{group}/v1alpha1":
        return [doc.mistake((*path, "apiVersion"), f"DPF has {kind} in {group}/v1alpha1 only", version, about=about)]
    return []


def _group(version: str) -> str:
    return version.rpartition("/")[0]


def namespaced(kind: str) -> bool:
    known = KINDS.get(kind)
    return known.NAMESPACED if known is not None else True


def shown_path(path: Path) -> str:
    return os.path.normpath(path)


def violations_of(manifest: Manifest) -> list[Mistake]:
    """What the schema of the object's kind refuses."""
    kind = KINDS.get(manifest.id.kind)
    if kind is None or manifest.id.group != kind.GROUP or not has_crd(kind):
        return []
    return [manifest.doc.mistake((*manifest.path, *v.path), v.rule, None if v.value is ABSENT else v.value,
                                 about=str(manifest.id), at_key=v.rule == "unknown field")
            for v in violations(kind, dict(manifest.data))]


def with_stock(manifests: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """The manifests behind those objects of a DPF installation that they do not bring themselves."""
    given = {m.id for m in manifests}
    stock = []
    for path in sorted(STOCK.glob("*.yaml")):
        for doc in documents(path.read_text(encoding="utf-8"), f"stock/{path.name}"):
            manifest = manifests_of(doc)[0]
            if manifest.id not in given:
                stock.append(Manifest(manifest.data, manifest.id, doc, stock=True))
    return (*stock, *manifests)


def duplicates(manifests: Sequence[Manifest]) -> list[Mistake]:
    first: dict[ObjectId, Manifest] = {}
    wrong = []
    for m in manifests:
        if m.id.name.endswith("*"):
            continue
        other = first.setdefault(m.id, m)
        if other is not m:
            wrong.append(m.doc.mistake(m.path, f"the same object stands at {other.where} already", about=str(m.id)))
    return wrong
