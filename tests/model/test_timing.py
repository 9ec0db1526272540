"""Distributions answer with their own quantiles; draws depend on (seed, operation, entity) and on nothing else."""

import math
import os
import statistics
import subprocess
import sys

import pytest

from twin.model import timing_profile
from twin.model.mistakes import BadInput
from twin.model.timing import (
    Empirical,
    Fixed,
    Gamma,
    LogNormal,
    Operation,
    Profile,
    Timing,
    Triangular,
    Uniform,
    Weibull,
    normal_score,
    probability,
)

Z95 = 1.6448536269514722


def timing(distribution, *, seed=7, fails=0.0, shared=()):
    return Timing(Profile("test", {"op": Operation("op", distribution, fails=fails, shared=shared)}), seed)


@pytest.mark.parametrize("u", [1e-9, 0.001, 0.02, 0.3, 0.5, 0.77, 0.98, 1 - 1e-9])
def test_normal_scores_are_those_of_the_standard_library(u):
    assert normal_score(u) == pytest.approx(statistics.NormalDist().inv_cdf(u), rel=2e-9, abs=1e-9)
    assert probability(normal_score(u)) == pytest.approx(u, rel=1e-7)


@pytest.mark.parametrize(("distribution", "median", "p95"), [
    (Fixed(3.0), 3.0, 3.0),
    (Uniform(10, 20), 15.0, 19.5),
    (Triangular(0, 2, 4), 2.0, 4 - math.sqrt(0.05 * 4 * 2)),
    (LogNormal(780, 1140), 780.0, 1140.0),
    (Weibull(10, 30), 10.0, 30.0),
    (Empirical((1.0, 2.0, 9.0)), 2.0, 2 + 0.9 * 7),
])
def test_a_distribution_answers_with_its_own_quantiles(distribution, median, p95):
    assert distribution.at(0.0) == pytest.approx(median)
    assert distribution.at(Z95) == pytest.approx(p95)


def test_gamma_has_the_mean_and_deviation_it_was_given():
    gamma = Gamma(10, 5)
    values = [gamma.at(normal_score((i + 0.5) / 20_000)) for i in range(20_000)]

    assert statistics.fmean(values) == pytest.approx(10, rel=1e-3)
    assert statistics.pstdev(values) == pytest.approx(5, rel=2e-3)


def test_a_gamma_of_shape_one_is_the_exponential_distribution():
    assert Gamma(4, 4).at(0.0) == pytest.approx(4 * math.log(2), rel=1e-3)


@pytest.mark.parametrize("distribution", [
    Uniform(1, 2), Triangular(1, 2, 5), LogNormal(5, 9), Weibull(5, 9), Gamma(5, 2), Empirical((1.0, 4.0, 4.0, 7.0))])
def test_more_luck_is_never_less_time(distribution):
    values = [distribution.at(z / 10) for z in range(-60, 61)]

    assert values == sorted(values)


def test_an_empirical_distribution_of_one_value_is_that_value():
    assert Empirical((4.5,)).at(-3) == Empirical((4.5,)).at(3) == 4.5


def test_draws_follow_their_distribution():
    t = timing(LogNormal(100, 200))
    values = sorted(t.sample("op", f"dpu-{i}") for i in range(4000))

    assert values[2000] == pytest.approx(100, rel=0.03)
    assert values[3800] == pytest.approx(200, rel=0.05)


def test_the_same_entity_always_draws_the_same_and_another_something_else():
    t = timing(Uniform(0, 1))

    assert t.sample("op", "dpu-1", "3") == t.sample("op", "dpu-1", "3")
    assert t.sample("op", "dpu-1", "3") != t.sample("op", "dpu-1", "4")
    assert t.sample("op", "dpu-1", "3") != t.sample("op", "dpu-13")
    assert t.sample("op", "dpu-1") != timing(Uniform(0, 1), seed=8).sample("op", "dpu-1")


def test_a_draw_does_not_move_when_others_were_drawn_before():
    alone, crowded = timing(LogNormal(5, 9)), timing(LogNormal(5, 9))
    for i in range(100):
        crowded.sample("op", f"other-{i}")

    assert alone.sample("op", "dpu-1") == crowded.sample("op", "dpu-1")


def test_another_distribution_keeps_the_luck_of_an_entity():
    short, long = timing(LogNormal(5, 9)), timing(LogNormal(50, 90))
    for i in range(50):
        assert long.sample("op", f"d{i}") == pytest.approx(10 * short.sample("op", f"d{i}"), abs=1e-5)


def test_these_draws_are_the_same_on_every_machine():
    t = timing(LogNormal(780, 1140), seed=1)

    assert [t.sample("op", f"worker{i}") for i in (1, 2, 3)] == [790.272235, 985.695549, 837.213499]


def test_hash_seeds_do_not_move_draws():
    code = ("from twin.model.timing import *; t = Timing(Profile('p', {'op': Operation('op', Gamma(9, 3))}), 4);"
            "print(t.sample('op', 'a', 'b'), t.fails('op', 'a'), t.uniform('x', 'y'))")
    said = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                           capture_output=True, text=True).stdout for seed in ("0", "1")}

    assert len(said) == 1


def test_failures_come_as_often_as_asked_and_do_not_depend_on_the_duration():
    t = timing(Uniform(0, 1), fails=0.1)
    failing = [i for i in range(5000) if t.fails("op", f"d{i}")]

    assert len(failing) == pytest.approx(500, abs=75)
    assert statistics.fmean(t.sample("op", f"d{i}") for i in failing) == pytest.approx(0.5, abs=0.05)
    assert not any(timing(Uniform(0, 1)).fails("op", f"d{i}") for i in range(100))


def correlation(pairs):
    xs, ys = zip(*pairs, strict=True)
    return statistics.correlation([math.log(x) for x in xs], [math.log(y) for y in ys])


def test_what_shares_a_factor_moves_together_and_keeps_its_distribution():
    t = timing(LogNormal(100, 200), shared=("rack",))
    pairs = [(t.sample("op", f"a{i}", rack=f"r{i}"), t.sample("op", f"b{i}", rack=f"r{i}")) for i in range(2000)]
    apart = [(t.sample("op", f"a{i}", rack=f"r{i}"), t.sample("op", f"b{i}", rack=f"q{i}")) for i in range(2000)]

    assert correlation(pairs) == pytest.approx(0.5, abs=0.06)
    assert correlation(apart) == pytest.approx(0.0, abs=0.06)
    assert sorted(x for x, _ in pairs)[1000] == pytest.approx(100, rel=0.05)


def test_the_fixed_base_is_medians_without_failures_latency_and_client_limits():
    fixed = timing_profile.named("fixed")
    t = Timing(fixed, 1)

    assert t.sample("os-install", "d1") == t.sample("os-install", "d2") == pytest.approx(
        timing_profile.default().operations["os-install"].takes.at(0.0))
    assert t.sample("api-write", "x") == t.sample("watch-lag", "x") == t.limit("client_qps") == 0
    assert t.limit("workers_dpu") == 1
    assert all(o.fails == 0 for o in fixed.operations.values())


def test_every_default_says_where_it_acts_its_basis_and_its_source():
    profile = timing_profile.default()

    assert len(profile.operations) > 50
    for entry in (*profile.operations.values(), *profile.limits.values()):
        assert entry.where, entry.name
        assert entry.source, entry.name
        assert entry.basis in ("measured", "published", "expert")


def file(**data):
    return timing_profile.TimingFile.model_validate({"apiVersion": "dpf-twin/v1", **data})


def test_a_profile_replaces_what_it_names_and_keeps_the_rest():
    joins = timing_profile.measurements("seconds\n30\n10\n# slow day\n50\n", "joins.csv")
    mine = timing_profile.merged(timing_profile.default(), file(name="mine", operations={
        "os-install": {"lognormal_s": {"p50": "13m", "p95": "19m"}, "fails": 0.01, "basis": "measured"},
        "dpu-join": {"empirical_s": "joins.csv", "basis": "measured"}}, limits={"client_qps": 50}), {"dpu-join": joins})

    assert mine.operations["os-install"].takes == LogNormal(780, 1140)
    assert mine.operations["os-install"].fails == 0.01
    assert mine.operations["os-install"].shared == ("rack",), "what an entry does not say stays the base's"
    assert mine.operations["dpu-join"].takes == Empirical((10.0, 30.0, 50.0))
    assert mine.limits["client_qps"].value == 50
    assert mine.operations["host-reboot"] == timing_profile.default().operations["host-reboot"]


@pytest.mark.parametrize(("entry", "rule"), [
    ({}, "exactly one of"),
    ({"fixed_s": 1, "uniform_s": [1, 2]}, "exactly one of"),
    ({"fixed_s": -1}, "must not be negative"),
    ({"fixed_s": "-3m"}, "must not be negative"),
    ({"lognormal_s": {"p50": 5, "p95": 4}}, "p95 must be greater"),
    ({"uniform_s": [3, 1]}, "ascending"),
    ({"fixed_s": 1, "fails": 2}, "less than or equal to 1"),
    ({"fixed_s": 1, "basis": "hope"}, "'measured', 'published' or 'expert'"),
    ({"empirical_s": []}, "at least 1"),
])
def test_an_impossible_entry_is_refused(entry, rule):
    with pytest.raises(ValueError, match=rule):
        file(operations={"os-install": entry})


def rules(**data):
    found = timing_profile.wrong(timing_profile.default(), file(**data), {})
    return [(".".join(path), rule) for path, rule, _ in found]


def test_an_unknown_operation_is_refused_with_the_nearest_name():
    assert rules(operations={"os-instal": {"fixed_s": 1}}) == [
        ("operations.os-instal", "unknown operation, did you mean os-install?")]


@pytest.mark.parametrize("name", timing_profile.PERIODS)
@pytest.mark.parametrize("entry", [{"fixed_s": 0}, {"uniform_s": [0, 10]}])
def test_what_comes_round_cannot_take_no_time(name, entry):
    assert rules(operations={name: entry}) == [
        (f"operations.{name}", "must be longer than 0s: it comes round and round")]


@pytest.mark.parametrize("name", timing_profile.RETIRED)
def test_an_entry_that_is_no_more_is_refused_with_the_reason(name):
    assert name not in timing_profile.default().operations
    assert rules(operations={name: {"fixed_s": 1}}) == [
        (f"operations.{name}", f"unknown operation, {timing_profile.RETIRED[name]}")]


@pytest.mark.parametrize(("limits", "rule"), [
    ({"workers_dpu": 0}, "must be a whole number, at least 1 and at most 1000"),
    ({"workers_default": 1.5}, "must be a whole number, at least 1 and at most 1000"),
    ({"workers_dpu": 1e15}, "must be a whole number, at least 1 and at most 1000"),
    ({"task_retries": 0.5}, "must be a whole number, at least 0"),
    ({"client_burst": 2.5}, "must be a whole number, at least 0"),
    ({"maintenance_max_parallel_share": 60}, "must be at least 0.01 and at most 1"),
    ({"maintenance_max_parallel_share": 0}, "must be at least 0.01 and at most 1"),
    ({"reboot_budget_s": 0}, "must be at least 1"),
    ({"bootstrap_token_s": 0.5}, "must be at least 1"),
    ({"client_qp": 1}, "unknown limit, did you mean client_qps?"),
])
def test_a_limit_is_what_its_unit_allows(limits, rule):
    assert rules(limits=limits) == [(f"limits.{name}", rule) for name in limits]
    assert rules(limits={name: {"value": value} for name, value in limits.items()})[0][1] == rule


def test_limits_at_their_bounds_are_fine():
    assert rules(limits={"workers_dpu": 1.0, "task_retries": 0, "client_qps": 0, "client_burst": 0,
                         "os_stream_bytes_per_s": 0, "maintenance_max_parallel_share": 1, "reboot_budget_s": 1}) == []


@pytest.mark.parametrize("profile", [timing_profile.named(name) for name in timing_profile.BASES])
def test_the_profiles_that_ship_keep_the_rules_of_limits(profile):
    assert [m.name for m in profile.limits.values() if not timing_profile.bound(m.name).allows(m.value)] == []


@pytest.mark.parametrize(("text", "mistake"), [
    ("seconds\n", "m.csv: no measured values"),
    ("seconds\n30\nsoon\n", "m.csv:3:1: a duration is a number of seconds"),
    pytest.param("1\n" + "9" * 140_000, "m.csv:2:1: not CSV: field larger than field limit", id="a large cell"),
    ("1\n-3\n", 'm.csv:2:1: a duration must not be negative (got "-3")'),
])
def test_a_file_of_measurements_that_cannot_be_used_is_refused(text, mistake):
    with pytest.raises(BadInput) as caught:
        timing_profile.measurements(text, "m.csv")
    assert str(caught.value).startswith(mistake)
