"""Order statistics: against the definitions, published ranks, and brute force."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.sim.stats import (
    Range,
    estimate,
    interval_ranks,
    median_range,
    quantile,
    replication_seed,
    replications_for_bound,
)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=60), st.integers(1, 100))
def test_a_quantile_is_the_smallest_value_with_that_share_at_or_below_it(values: list[int], percent: int) -> None:
    ordered = sorted(values)
    expected = next(v for v in ordered if 100 * sum(o <= v for o in ordered) >= percent * len(ordered))

    assert quantile(ordered, percent / 100) == expected


def test_a_rank_does_not_jump_for_the_rounding_of_a_float() -> None:
    assert quantile(list(range(1, 101)), 0.07) == 7  # 0.07 * 100 is 7.000000000000001
    assert quantile(list(range(1, 21)), 0.95) == 19


@pytest.mark.parametrize(("ordered", "q"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_quantile_of_nothing_or_out_of_range_is_refused(ordered: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="a quantile needs a sample"):
        quantile(ordered, q)


def test_ranks_agree_with_published_ones() -> None:
    assert interval_ranks(200, 0.95) == (184, 197)
    assert interval_ranks(1000, 0.95) == (936, 964)


@pytest.mark.parametrize(("n", "q"), [(6, 0.5), (25, 0.5), (40, 0.9), (80, 0.95)])
def test_each_side_of_an_interval_carries_at_most_half_the_risk_and_is_the_tightest(n: int, q: float) -> None:
    def below(rank: int) -> float:
        """P(fewer than `rank` of n values lie below the quantile)."""
        return sum(math.comb(n, k) * q**k * (1 - q)**(n - k) for k in range(rank))

    low, high = interval_ranks(n, q)

    assert low is not None
    assert high is not None
    assert below(low) <= 0.025 < below(low + 1)
    assert 1 - below(high) <= 0.025 < 1 - below(high - 1)


def test_too_few_runs_have_no_upper_side() -> None:
    assert interval_ranks(71, 0.95)[1] is None
    assert interval_ranks(72, 0.95)[1] == 72
    assert interval_ranks(5, 0.5) == (None, None)


def test_an_interval_covers_the_true_quantile_about_as_often_as_it_says() -> None:
    rng = Random("coverage")
    hits = 0
    for _ in range(400):
        found = estimate([rng.expovariate(1.0) for _ in range(40)], 0.5)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= math.log(2) <= found.high

    assert hits >= 372  # at least 95 % in truth; 93 % leaves room for chance


def test_one_replication_has_no_interval() -> None:
    assert estimate([3.0], 0.95) == (3.0, None, None, 1)


def test_the_maximum_bounds_p95_from_59_runs_on() -> None:
    assert [replications_for_bound(q) for q in (0.9, 0.95, 0.99)] == [29, 59, 299]
    assert 0.95**59 <= 0.05 < 0.95**58


def test_a_dpu_that_never_got_there_counts_as_later_than_all() -> None:
    found = estimate([1.0, 2.0, math.inf], 0.5)

    assert found.value == 2.0
    assert estimate([1.0, 2.0, math.inf], 0.95).value == math.inf


def test_the_median_of_an_even_number_is_a_value_that_was_seen() -> None:
    assert median_range([4, 1, 3, 2]) == Range(2, 1, 4)


def test_replications_replay_alone_with_a_seed_of_their_own() -> None:
    assert [replication_seed(7, i) for i in range(3)] == [7, 8, 9]
