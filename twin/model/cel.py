"""CEL rules of CRDs: compiled once, evaluated on JSON-like values, answered in the API server's words."""

from __future__ import annotations

import importlib.util
import logging
import sys
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

from twin.model.rules import Cel


@cache
def native() -> Any:
    """The interpreter of the `cel` package (`compile`, `evaluate`, `Context`), loaded on first use.

    The package's `__init__` also loads its command line, 0.15 s of terminal libraries we never use, so the extension
    module is loaded by itself. A later `import cel` finds and shares it. It also logs what it raises; without a
    handler of its own that would reach stderr.
    """
    logging.getLogger("cel").addHandler(logging.NullHandler())
    package = importlib.util.find_spec("cel")
    if package is None:
        raise ModuleNotFoundError("common-expression-language is not installed", name="cel")
    if "cel.cel" not in sys.modules:
        spec = PathFinder.find_spec("cel.cel", package.submodule_search_locations)
        if spec is None or spec.loader is None:
            import cel

            return cel
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["cel.cel"] = module
    return sys.modules["cel.cel"]


@cache
def _program(rule: str) -> Any:
    return native().compile(rule)


@cache
def is_equality(rule: str) -> bool:
    """By far the most common rule, answered without the interpreter."""
    return rule.replace(" ", "") == "self==oldSelf"


def broken(rule: Cel, value: Any, old: Any) -> str:
    """'' if the rule holds, else what the API server says: the rule's message, or why it cannot be evaluated.

    `old` is the value before; it is only looked at by transition rules, which need one.
    """
    if is_equality(rule.rule):
        return "" if value == old else rule.message
    try:
        holds = _program(rule.rule).execute({"self": value, "oldSelf": old})
    except KeyError as error:
        return f"no such key: {error.args[0]} evaluating rule: {rule.message}"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{error} evaluating rule: {rule.message}"
    return "" if holds is True else rule.message
