"""CEL rules of CRDs: compiled once, evaluated on JSON-like values, answered in the API server's words."""

from __future__ import annotations

from functools import cache
from typing import Any

from twin.model.rules import Cel


@cache
def _program(rule: str) -> Any:
    import cel  # loads on use: a native library

    return cel.compile(rule)


def broken(rule: Cel, value: Any, old: Any) -> str:
    """'' if the rule holds, else what the API server says: the rule's message, or why it cannot be evaluated.

    `old` is the value before; it is only looked at by transition rules, which need one.
    """
    if rule.rule.replace(" ", "") == "self==oldSelf":
        return "" if value == old else rule.message
    try:
        holds = _program(rule.rule).execute({"self": value, "oldSelf": old})
    except KeyError as error:
        return f"no such key: {error.args[0]} evaluating rule: {rule.message}"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{error} evaluating rule: {rule.message}"
    return "" if holds is True else rule.message
