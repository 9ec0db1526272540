"""What a kube-apiserver answers when it says no: the exceptions, and the Status body of any of them."""

from __future__ import annotations

from typing import Any, cast

from twin.backends.base import AlreadyExists, ApiError, Conflict, Invalid, NotFound
from twin.model.meta import Key, Object, Unstructured

Resource = type[Object] | str
"""What one table of the store holds: a typed kind, or 'kind.group' of a kind we have no class for."""


def resource_parts(resource: Resource) -> tuple[str, str, str]:
    """(kind, group, plural)."""
    if isinstance(resource, str):
        kind, _, group = resource.partition(".")
        return kind, group, f"{kind.lower()}s"
    return resource.KIND, resource.GROUP, resource.PLURAL


def plural(resource: Resource) -> str:
    """The name a Status message uses: `dpus.provisioning.dpu.nvidia.com`."""
    _, group, many = resource_parts(resource)
    return f"{many}.{group}" if group else many


def resource_of(obj: Object) -> Resource:
    cls = type(obj)
    return cls if cls is not Unstructured else _of_unstructured(cast(Unstructured, obj))


def _of_unstructured(obj: Unstructured) -> str:
    return f"{obj.kind}.{obj.group_version.rpartition('/')[0]}"


def kind_name(resource: Resource) -> str:
    return resource.partition(".")[0] if isinstance(resource, str) else resource.KIND


def _details(resource: Resource, name: str) -> dict[str, Any]:
    _, group, many = resource_parts(resource)
    return {"name": name, "group": group, "kind": many} if group else {"name": name, "kind": many}


def not_found(resource: Resource, key: Key) -> NotFound:
    return NotFound(f'{plural(resource)} "{key.name}" not found', details=_details(resource, key.name))


def already_exists(resource: Resource, name: str, *, deleting: bool = False) -> AlreadyExists:
    told = f'{plural(resource)} "{name}" already exists'
    return AlreadyExists(f"object is being deleted: {told}" if deleting else told, details=_details(resource, name))


def conflict(resource: Resource, key: Key, why: str = "the object has been modified; please apply your changes to the "
             "latest version and try again") -> Conflict:
    return Conflict(f'Operation cannot be fulfilled on {plural(resource)} "{key.name}": {why}',
                    details=_details(resource, key.name))


def delete_conflict(resource: Resource, key: Key, why: str) -> Conflict:
    """A precondition of a deletion does not hold. The server names the kind here, not the resource."""
    kind, group, _ = resource_parts(resource)
    what = f"{kind}.{group}" if group else kind
    details = {"name": key.name, "group": group, "kind": kind} if group else {"name": key.name, "kind": kind}
    return Conflict(f'Operation cannot be fulfilled on {what} "{key.name}": {why}', details=details)


def no_version(resource: Resource, key: Key) -> Invalid:
    """Custom resources are never replaced blindly."""
    text = "Invalid value: 0: must be specified for an update"
    return Invalid(f'{plural(resource)} "{key.name}" is invalid: metadata.resourceVersion: {text}', details={
        **_details(resource, key.name),
        "causes": [{"reason": "FieldValueInvalid", "message": text, "field": "metadata.resourceVersion"}]})


def bad_request(message: str) -> ApiError:
    return ApiError(message, code=400, reason="BadRequest")


def too_large_version(asked: int, current: int) -> ApiError:
    """A resourceVersion that the server has not reached."""
    return ApiError(f"Timeout: Too large resource version: {asked}, current: {current}", code=504, reason="Timeout",
                    details={"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                             "retryAfterSeconds": 1})


def status_body(error: ApiError) -> dict[str, Any]:
    """The metav1.Status a server sends for this error. `continue` among the details belongs in its metadata."""
    details = {k: v for k, v in error.details.items() if k != "continue"}
    body: dict[str, Any] = {
        "kind": "Status", "apiVersion": "v1",
        "metadata": {"continue": error.details["continue"]} if "continue" in error.details else {},
        "status": "Failure", "message": str(error)}
    if error.reason:
        body["reason"] = error.reason
    if details or error.code == 422:
        body["details"] = details
    body["code"] = error.code
    return body
