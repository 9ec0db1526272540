"""Lists in pages: every page shows the moment of the first, as long as the store remembers it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twin.backends.base import Gone
from twin.model.meta import Object
from twin.sim.clock import SECOND
from twin.sim.selectors import Test
from twin.sim.status import bad_request

COMPACTION_NS: Final = 300 * SECOND
"""How long the store keeps old versions (kube-apiserver's --etcd-compaction-interval)."""
_EXPIRED: Final = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list.")


@dataclass(frozen=True, slots=True)
class Page:
    """`token` continues the list; '' at its end. `remaining` is None where the server does not count (selectors)."""

    items: Sequence[Object]
    resource_version: str
    token: str = ""
    remaining: int | None = None


class Pages:
    """The lists that were begun at one server."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, int], tuple[int, list[Object]]] = {}

    def page(self, scope: object, objects: list[Object], test: Test, selective: bool, rv: int, limit: int, token: str,
             now: int) -> Page:
        """One page. `objects` are those of now in the order of the store's keys, `rv` its version.

        Raises: Gone when the token's moment is forgotten (its details say how to go on), ApiError 400 for a bad token.
        """
        self._forget(now)
        start = ""
        if token:
            at, start = _read(token)
            if at >= 0:
                kept = self._kept.get((scope, at))
                if kept is None:
                    raise Gone(_EXPIRED, details={"continue": _token(-1, start)})
                rv, objects = at, kept[1]
        rest = [o for o in objects if place(o) >= start]
        found: list[Object] = []
        for n, obj in enumerate(rest):
            if limit and len(found) == limit:
                self._kept.setdefault((scope, rv), (now, objects))
                left = None if selective else len(rest) - n
                return Page(found, str(rv), _token(rv, place(found[-1]) + "\0"), left)
            if test(obj):
                found.append(obj)
        return Page(found, str(rv))

    def _forget(self, now: int) -> None:
        self._kept = {k: v for k, v in self._kept.items() if now - v[0] < COMPACTION_NS}


def place(obj: Object) -> str:
    """Where an object stands among those of its kind: the store's key."""
    return f"{obj.metadata.namespace}/{obj.metadata.name}"


def _token(rv: int, start: str) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": rv, "start": start}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(token: str) -> tuple[int, str]:
    try:
        found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(found["rv"]), str(found["start"])
    except (ValueError, binascii.Error, KeyError, TypeError) as error:
        raise bad_request(f"invalid continue token: continue key is not valid: {error}") from None
