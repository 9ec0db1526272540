"""Statistics of replications: quantiles with intervals that need no distribution, medians and ranges.

A rollout ends, so it is a terminating simulation: replications are independent, and nothing has to warm up.
A quantile is an order statistic (the smallest value with at least q of the sample at or below it), never an average of
two, so it is a value that was seen. Values that never came (a DPU not Ready at the horizon) are `math.inf`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

CONFIDENCE: Final = 0.95


class Quantile(NamedTuple):
    """A quantile of `n` values. `low` and `high` bound it with 95 % confidence; None when n is too small to say."""

    value: float
    low: float | None
    high: float | None
    n: int


class Range(NamedTuple):
    median: float
    min: float
    max: float


def replication_seed(seed: int, replication: int) -> int:
    """Replication 0 has the scenario's own seed; each replication replays alone with `--seed` and this number."""
    return seed + replication


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of an ascending sample. Raises ValueError when the sample is empty or q is not in (0, 1]."""
    if not ordered or not 0 < q <= 1:
        raise ValueError(f"a quantile needs a sample and 0 < q <= 1 (got n={len(ordered)}, q={q})")
    # 0.95 * 20 is 19.000000000000004 in some products of floats: a rank must not jump for that
    return ordered[max(0, math.ceil(q * len(ordered) - 1e-9) - 1)]


def interval_ranks(n: int, q: float, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the order statistics that bound the q-quantile, each side with half of the risk.

    The number of values below the quantile is binomial(n, q), whatever the distribution. None where n values do not
    reach: the upper side for P95 needs 72 of them.
    """
    risk = (1 - confidence) / 2
    low: int | None = None
    high: int | None = None
    below = 0.0  # P(B <= k)
    for k in range(n + 1):
        below += _binomial(n, k, q)
        if below <= risk:
            low = k + 1
        if high is None and below >= 1 - risk and k < n:
            high = k + 1
    return low, high


def _binomial(n: int, k: int, q: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(q) + (n - k) * math.log1p(-q)
    return math.exp(log)


def estimate(values: Sequence[float], q: float) -> Quantile:
    """The q-quantile over replications with its interval. One replication has no interval."""
    ordered = sorted(values)
    low, high = interval_ranks(len(ordered), q) if len(ordered) > 1 else (None, None)
    return Quantile(quantile(ordered, q), None if low is None else ordered[low - 1],
                    None if high is None else ordered[high - 1], len(ordered))


def replications_for_bound(q: float, confidence: float = CONFIDENCE) -> int:
    """How many replications until their maximum bounds the q-quantile from above: 29 for P90, 59 for P95."""
    return math.ceil(math.log(1 - confidence) / math.log(q))


def median_range(values: Sequence[float]) -> Range:
    """The median (an order statistic) and the extremes. Raises ValueError when there are no values."""
    ordered = sorted(values)
    return Range(quantile(ordered, 0.5), ordered[0], ordered[-1])
