"""Durations and sizes as people write them: `90s`, `2h30m`, `1.5Gi`, `5%`. Pure text in, plain numbers out."""

from __future__ import annotations

import re
from typing import Final

_STEP_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SHORTEST_S: Final = 1e-9
LONGEST_S: Final = 100 * 365 * 86400.0
LARGEST_BYTES: Final = 2**63 - 1
_STEP = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kKMGTPE]i?B?)?")
_SIZE_STEP: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
                     "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40, "PI": 2**50, "EI": 2**60}


def seconds(value: str | int | float) -> float:
    """A duration in seconds: `90s`, `15m`, `2h30m`, `1d`, or a bare number of seconds.

    Raises:
        ValueError: not a duration, negative, shorter than SHORTEST_S or longer than LONGEST_S.
    """
    if isinstance(value, bool):
        raise ValueError("a duration is a number of seconds or text such as 90s, 15m, 2h30m")
    if isinstance(value, int | float):
        return _checked(value)
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return _checked(float(text))
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    total, end = 0.0, 0
    for step in _STEP.finditer(body):
        if step.start() != end:
            break
        total += float(step[1]) * _STEP_S[step[2]]
        end = step.end()
    if not body or end != len(body):
        raise ValueError("a duration is a number of seconds or text such as 90s, 15m, 2h30m")
    return _checked(sign * total)


def _checked(value: int | float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("a duration must be finite")
    if value < 0:
        raise ValueError("a duration must not be negative")
    if 0 < value < SHORTEST_S:
        raise ValueError("a duration must be 0s or at least 1ns")
    if value > LONGEST_S:
        raise ValueError("a duration must not be longer than 100 years")
    return float(value)


def duration(value_s: float) -> str:
    """Seconds as people read them: `2h 5m`, `3m 20s`, `12.3s`, `15ms`. Two units at most."""
    if value_s < 0:
        return "-" + duration(-value_s)
    if value_s < 1:
        return f"{float(f'{value_s * 1e3:.3g}'):.6f}".rstrip("0").rstrip(".") + "ms" if value_s >= 1e-9 else "0s"
    if value_s < 60:
        return f"{value_s:.1f}".rstrip("0").rstrip(".") + "s" if round(value_s, 1) < 60 else "1m"
    last = 3600 if value_s >= 86400 else 60 if value_s >= 3600 else 1
    whole = round(value_s / last) * last
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    first = next(i for i, (n, _) in enumerate(parts) if n)
    return " ".join(f"{n}{unit}" for n, unit in parts[first:first + 2] if n)


def size_bytes(value: str | int | float) -> int:
    """A size in bytes: `1500000000`, `1.5GB`, `1.4Gi`, `200 MiB`. Decimal unless the unit has an i.

    Raises:
        ValueError: not a size, negative, or larger than LARGEST_BYTES.
    """
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        value = float(match[1]) * _SIZE_STEP[(match[2] or "").upper().removesuffix("B")]
    if isinstance(value, bool | str) or not value >= 0:
        raise ValueError("a size is a number of bytes or text such as 1.4Gi, 1500MB, and not negative")
    if value > LARGEST_BYTES:
        raise ValueError("a size must be less than 8Ei")
    return int(value) if match is None else round(value)
