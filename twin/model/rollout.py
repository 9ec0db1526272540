"""How many DPUs a roll-out may have unavailable: the arithmetic that the DPUSet controller and its observers share."""

from __future__ import annotations


def max_unavailable(value: int | str | None, total: int) -> int:
    """How many of `total` DPUs may be unavailable: percent rounded up, at least 1, at most all (provisioning.md 5.2).

    Raises: ValueError for text that is not a percentage.
    """
    if value is None:
        value = 1
    if isinstance(value, str):
        digits = value.removesuffix("%")
        if digits == value or not digits.isdecimal():
            raise ValueError(f'invalid value for IntOrString: invalid type: string is not a percentage: "{value}"')
        value = -(-int(digits) * total // 100)
    return min(max(value, 1), total)
