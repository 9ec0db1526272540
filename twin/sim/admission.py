"""Admission: what stands between a write and the store, in Kubernetes' order.

A write that arrives as JSON: prune unknown fields (or refuse them: Strict), default, mutating webhooks, metadata and
schema, CEL rules, validating webhooks. Errors carry the code, reason and message of a real server's Status.
A write of one of our controllers arrives typed: `admit_typed` checks only what changed and typed data can break.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from twin.backends.base import ApiError, Forbidden, Invalid
from twin.model import fielderror as fe
from twin.model import typed, validation
from twin.model.fielderror import FieldError
from twin.model.gojson import OBJECT_META, DecodeError, roundtrip
from twin.model.kinds import from_manifest, to_manifest
from twin.model.meta import Object
from twin.model.objectmeta import core_errors, core_object_errors, metadata_errors, typed_metadata_errors
from twin.model.schema import has_crd
from twin.runtime.webhook import Denied, Lister, Webhook

Json = dict[str, Any]
T = TypeVar("T", bound=Object)

CREATE: Final = "CREATE"
UPDATE: Final = "UPDATE"
DELETE: Final = "DELETE"


@dataclass(slots=True)
class Webhooks:
    """The installed webhooks and whether their server answers. `down` is what dialling it says, '' when it answers."""

    hooks: Sequence[Webhook]
    url: str = "https://dpf-provisioning-webhook-service.dpf-operator-system.svc:443"
    down: str = ""
    _kinds: frozenset[type[Object]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._kinds = frozenset(hook.kind for hook in self.hooks)

    def watches(self, kind: type[Object]) -> bool:
        """Is there a webhook for this kind?"""
        return kind in self._kinds

    def call(self, kind: type[Object], operation: str, mutating: bool, obj: Json, old: Json | None,
             reader: Lister | None) -> Json:
        """Pass the object through the matching webhooks. Raises: ApiError as the server turns their answers into."""
        for hook in self.hooks:
            if hook.kind is not kind or hook.mutating is not mutating or operation not in hook.operations:
                continue
            if self.down:
                raise ApiError(
                    f'Internal error occurred: failed calling webhook "{hook.name}": failed to call webhook: '
                    f'Post "{self.url}{hook.path}?timeout=10s": {self.down}')
            try:
                obj = hook.decide(operation, copy.deepcopy(obj), old, reader or _NOTHING)
            except Denied as no:
                raise _denial(hook, no) from None
        return obj


class _Nothing:
    def list(self, kind: Any, namespace: str | None = None) -> Sequence[Any]:
        return ()


_NOTHING: Final = _Nothing()


def _denial(hook: Webhook, no: Denied) -> ApiError:
    text = f'admission webhook "{hook.name}" denied the request: {no}'
    if no.code == 422:
        return Invalid(text)
    if no.code == 403:
        return Forbidden(text)
    return ApiError(text, code=no.code, reason=no.reason)


def admit(
    kind: type[Object], new: Json, old: Json | None, *, operation: str, subresource: str = "",
    webhooks: Webhooks | None = None, reader: Lister | None = None, field_validation: str = "Ignore",
    nulls: bool = False,
) -> Json:
    """The object as it is to be stored (minus what the server itself sets). `new` is not changed.

    `subresource` is '' or 'status': a plain write keeps the stored status, a status write the stored rest.
    `nulls`: what a server-side apply leaves null meets the schema of a custom resource; elsewhere null is absent.
    Raises: ApiError (400 strict decoding, webhook answers), Invalid, Forbidden.
    """
    if operation == DELETE:
        if webhooks is not None:
            webhooks.call(kind, DELETE, False, new, new, reader)
        return new
    custom = has_crd(kind)
    meta = _decode_metadata(kind, new.get("metadata"))
    obj = _decode(kind, new, field_validation, nulls) if custom else copy.deepcopy(new)
    if meta is not None:
        obj["metadata"] = {**{k: v for k, v in obj["metadata"].items() if k not in OBJECT_META.fields}, **meta}
    obj = _mutate(kind, obj, old, operation, subresource, webhooks, reader)
    _keep_other_half(kind, obj, old, subresource)
    if custom:
        validation.fill_defaults(kind, obj)
    errors = object_errors(kind, obj, old)
    if errors:
        raise invalid(kind, obj.get("metadata", {}).get("name", ""), errors)
    if webhooks is not None and not subresource:
        webhooks.call(kind, operation, False, obj, old, reader)
    return obj


def _decode_metadata(kind: type[Object], meta: Any) -> Json | None:
    """As Go reads it. A number as a label value and the like cannot be decoded, then nothing else is looked at."""
    try:
        return None if meta is None else roundtrip(OBJECT_META, meta, "ObjectMeta")
    except DecodeError as error:
        raise _cannot_be_handled(kind, str(error)) from None


def _cannot_be_handled(kind: type[Object], why: str) -> ApiError:
    return ApiError(f'{kind.KIND} in version "{kind.VERSION}" cannot be handled as a {kind.KIND}: {why}',
                    code=400, reason="BadRequest")


def warnings(kind: type[Object], new: Json) -> list[str]:
    """What a server warns of at fieldValidation=Warn: the fields that it drops."""
    return [f'unknown field "{fe.path_text(path)}"' for path in validation.prune(kind, new)[1]] if has_crd(kind) else []


def _decode(kind: type[Object], new: Json, field_validation: str, nulls: bool) -> Json:
    obj, unknown = validation.prune(kind, new, nulls=nulls)
    if unknown and field_validation == "Strict":
        fields = ", ".join(f'unknown field "{fe.path_text(path)}"' for path in unknown)
        raise _cannot_be_handled(kind, f"strict decoding error: {fields}")
    validation.fill_defaults(kind, obj)
    return obj


def _mutate(kind: type[Object], obj: Json, old: Json | None, operation: str, subresource: str,
            webhooks: Webhooks | None, reader: Lister | None) -> Json:
    if webhooks is None or subresource:
        return obj
    return webhooks.call(kind, operation, True, obj, old, reader)


def _keep_other_half(kind: type[Object], obj: Json, old: Json | None, subresource: str) -> None:
    """With a status subresource a plain write does not touch status, and a status write nothing else."""
    if not kind.HAS_STATUS:
        return
    if subresource == "status" and old is not None:
        meta = {**old.get("metadata", {})}
        if "resourceVersion" in obj.get("metadata", {}):
            meta["resourceVersion"] = obj["metadata"]["resourceVersion"]
        status = obj.get("status")
        obj.clear()
        obj.update({**copy.deepcopy(old), "metadata": meta})
        _put(obj, "status", status)
    elif has_crd(kind):  # core kinds take an initial status on create, which our actors use
        _put(obj, "status", copy.deepcopy(old.get("status")) if old is not None else None)


def _put(obj: Json, name: str, value: Any) -> None:
    if value is None:
        obj.pop(name, None)
    else:
        obj[name] = value


def object_errors(kind: type[Object], obj: Json, old: Json | None) -> list[FieldError]:
    """Everything the server has against this object before it asks the validating webhooks."""
    errors = metadata_errors(kind, obj, old)
    if not has_crd(kind):
        return errors + core_errors(kind, obj)
    errors += validation.schema_errors(kind, obj, old)
    if validation.has_rules(kind):
        errors += [fe.UNCHECKED] if fe.blocks_rules(errors) else validation.rule_errors(kind, obj, old)
    return errors


def invalid(kind: type[Object], name: str, errors: Sequence[FieldError]) -> Invalid:
    """The 422 of a real server, with the causes in its details."""
    group_kind = f"{kind.KIND}.{kind.GROUP}" if kind.GROUP else kind.KIND
    return Invalid(f'{group_kind} "{name}" is invalid: {fe.aggregate(errors)}', details={
        "name": name, "group": kind.GROUP, "kind": kind.KIND,
        "causes": [{"reason": fe.CAUSES[e.kind], "message": e.body, "field": fe.path_text(e.path)} for e in errors],
    })


# --- typed writes


def admit_typed(kind: type[Object], new: Object, old: Object | None, subresource: str = "") -> None:
    """Check a controller's write: only what is not identical to `old`, only rules that typed data can break.

    `old` is None at CREATE (after `typed.with_defaults`). A status write looks at status only, any other write at
    everything but status. Raises: Invalid.
    """
    if subresource == "status" and old is not None:
        errors = typed.status_errors(kind, new.status, old.status)  # type: ignore[attr-defined]
    else:
        errors = typed_metadata_errors(kind, new, old)
        errors += typed.body_errors(kind, new, old) if has_crd(kind) else core_object_errors(new, old)
    if errors:
        raise invalid(kind, new.metadata.name, _in_server_order(kind, errors))


def admit_object(
    kind: type[Object], new: T, old: T | None, *, webhooks: Webhooks | None = None, reader: Lister | None = None,
) -> T:
    """A controller's write through everything: defaults at CREATE, the quick check, or the long way if a webhook looks.

    Returns the object to store. Raises: ApiError, Invalid, Forbidden.
    """
    if webhooks is None or not webhooks.watches(kind):
        if old is None:
            new = typed.with_defaults(new)
        admit_typed(kind, new, old)
        return new
    before = None if old is None else typed.as_sent(kind, to_manifest(old), stored=True)
    sent = typed.as_sent(kind, to_manifest(new))
    obj = admit(kind, sent, before, operation=CREATE if old is None else UPDATE, webhooks=webhooks, reader=reader)
    return cast(T, from_manifest(obj))


def _in_server_order(kind: type[Object], errors: list[FieldError]) -> list[FieldError]:
    """Rules come after the schema, and not at all if the schema found something grave."""
    plain = [e for e in errors if e.kind != fe.RULE]
    if not has_crd(kind) or not validation.has_rules(kind):
        return plain
    return [*plain, fe.UNCHECKED] if fe.blocks_rules(plain) else [*plain, *(e for e in errors if e.kind == fe.RULE)]
