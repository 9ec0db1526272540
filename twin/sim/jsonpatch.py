"""JSON patch (RFC 6902) as a kube-apiserver does it.

It leans on evanphx/json-patch v4, which is laxer than the RFC: `replace` and `copy` accept members that are not there,
and an absent member passes a test for null. So no strict library fits; seen at kube-apiserver v1.34.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from twin.backends.base import Invalid
from twin.sim.status import bad_request

_VALUED: Final = ("add", "replace", "test")


class _Broken(Exception):
    """An operation that cannot be done."""


def patched(document: Any, operations: Any) -> Any:
    """The document after all operations; the argument is not changed.

    Raises: ApiError 400 when it is no patch, Invalid (422, without a reason, as the real server) when it does not fit.
    """
    if not isinstance(operations, Sequence) or isinstance(operations, str) or not all(
            isinstance(o, Mapping) for o in operations):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type "
                          "[]handlers.jsonPatchOp")
    result = copy.deepcopy(document)
    try:
        for operation in operations:
            _do(result, operation)
    except _Broken:
        raise Invalid("the server rejected our request due to an error in our request") from None
    return result


def _do(document: Any, operation: Mapping[str, Any]) -> None:
    verb, path = operation.get("op"), operation.get("path")
    if not isinstance(path, str):
        raise _Broken("no path")
    parent, name = _place(document, path)
    if verb in _VALUED:
        value = copy.deepcopy(operation.get("value"))
        if verb == "add":
            _add(parent, name, value)
        elif verb == "replace":
            _replace(parent, name, value)
        elif _get(parent, name) != value:
            raise _Broken("testing value failed")
    elif verb == "remove":
        _remove(parent, name)
    elif verb in ("move", "copy"):
        source = operation.get("from")
        if not isinstance(source, str):
            raise _Broken("no from")
        giver, given = _place(document, source)
        value = copy.deepcopy(_get(giver, given))
        if verb == "move":
            _remove(giver, given)
        _add(parent, name, value)
    else:
        raise _Broken(f"unexpected kind: {verb}")


def _place(document: Any, pointer: str) -> tuple[Any, str]:
    """The container that a pointer's last token is in, and that token."""
    if not pointer.startswith("/"):
        raise _Broken("not a pointer into the document")
    *parents, name = (token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/"))
    here = document
    for token in parents:
        here = _get(here, token)
    if not isinstance(here, dict | list):
        raise _Broken("doc is missing path")
    return here, name


def _index(where: list[Any], name: str, *, end: int) -> int:
    """A list index: digits, or negative to count from the end. `end`: the first that is too large."""
    try:
        at = int(name)
    except ValueError:
        raise _Broken("not an index") from None
    if not -end <= at < end:
        raise _Broken("index out of bounds")
    return at + end if at < 0 else at


def _get(where: Any, name: str) -> Any:
    if isinstance(where, dict):
        return where.get(name)
    if isinstance(where, list):
        return where[_index(where, name, end=len(where))]
    raise _Broken("doc is missing path")


def _add(where: Any, name: str, value: Any) -> None:
    if isinstance(where, dict):
        where[name] = value
    elif name == "-":
        where.append(value)
    else:
        where.insert(_index(where, name, end=len(where) + 1), value)


def _replace(where: Any, name: str, value: Any) -> None:
    if isinstance(where, dict):
        where[name] = value
    else:
        where[_index(where, name, end=len(where))] = value


def _remove(where: Any, name: str) -> None:
    if isinstance(where, list):
        del where[_index(where, name, end=len(where))]
    elif name in where:
        del where[name]
    else:
        raise _Broken("unable to remove nonexistent key")
