"""The contract of an admission webhook: a pure function that the API server calls before it stores a write.

`decide` gets the object as JSON-like mapping (after pruning and defaulting), the stored one (None at CREATE) and a
reader. It returns the object (changed or not) or raises `Denied`. What it raises is what the user sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from twin.model.meta import Object

T = TypeVar("T", bound=Object)
Json = dict[str, Any]


class Denied(Exception):
    """The webhook said no, with the code and reason of its answer. An empty reason stays out of the Status."""

    def __init__(self, message: str, code: int = 403, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Lister(Protocol):
    """What a webhook may read."""

    def list(self, kind: type[T], namespace: str | None = None) -> Sequence[T]: ...


Decide = Callable[[str, Json, "Json | None", Lister], Json]
"""(operation, object, stored object, reader) -> object. At DELETE the object is the stored one."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """One entry of a webhook configuration. failurePolicy is Fail and the time-out 10 s, as DPF installs them."""

    name: str
    path: str
    kind: type[Object]
    operations: tuple[str, ...]
    mutating: bool
    decide: Decide
