"""What is wrong now, and until when: faults of one kind on one target may overlap."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

Heal = Callable[[], None]


class Troubles:
    """Every trouble holds a value on its target. The latest begun that still lasts rules; when none does, all is well.

    Targets are told what rules when that changes. With `every` nothing rules: they are told all values that last,
    oldest first.
    """

    def __init__(self) -> None:
        self._lasting: dict[Hashable, dict[object, Any]] = {}

    def begin(self, what: Hashable, value: Any, healthy: Any, put: Callable[[Any], object], *,
              every: bool = False) -> Heal:
        """Hold the value from now on, until what is returned is called."""
        lasting, me = self._lasting.setdefault(what, {}), object()

        def rules() -> Any:
            values = tuple(lasting.values())
            return values if every else values[-1] if values else healthy

        def change(do: Callable[[], object]) -> None:
            before = rules()
            do()
            if rules() != before:
                put(rules())

        change(lambda: lasting.update({me: value}))
        return lambda: change(lambda: lasting.pop(me, None))
