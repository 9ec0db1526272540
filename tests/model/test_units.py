"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.model.units import duration, seconds, size_bytes


@pytest.mark.parametrize(("text", "value"), [
    ("90s", 90), ("15m", 900), ("2h30m", 9000), ("1d", 86400), ("1.5h", 5400), ("250ms", 0.25), ("0s", 0), (12, 12),
    (0.5, 0.5), ("12", 12), ("1e3", 1000), (" 5m ", 300), ("1h0m5s", 3605)])
def test_a_duration_is_read_as_seconds(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", [
    "", "m", "5 m", "5x", "2h30", "h2", "1h-2m", True, "nan", float("nan"), "1..5s", 10**400])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"duration"):
        seconds(text)


@pytest.mark.parametrize("text", ["0.1ns", 1e-10, "1e-300"])
def test_a_duration_below_a_nanosecond_is_refused(text):
    with pytest.raises(ValueError, match="must be 0s or at least 1ns"):
        seconds(text)


@pytest.mark.parametrize("text", ["-5m", -1, "-0.5"])
def test_a_negative_duration_is_refused(text):
    with pytest.raises(ValueError, match="must not be negative"):
        seconds(text)


@pytest.mark.parametrize(("value", "text"), [
    (0, "0s"), (0.0153, "15.3ms"), (12.34, "12.3s"), (59.99, "1m"), (60, "1m"), (200, "3m 20s"), (7500, "2h 5m"),
    (86400 * 2 + 3600, "2d 1h"), (3600, "1h"), (-90, "-1m 30s")])
def test_seconds_are_shown_with_two_units_at_most(value, text):
    assert duration(value) == text


@given(st.floats(min_value=0, max_value=1e7))
def test_a_duration_that_was_shown_reads_back_within_its_last_unit(value):
    last_unit_s = 1800 if value > 86400 else 31 if value > 3600 else 0.51

    assert seconds(duration(value).replace(" ", "")) == pytest.approx(value, abs=max(0.006 * value, last_unit_s))


@pytest.mark.parametrize(("text", "value"), [
    ("1500", 1500), (1500, 1500), ("1.5GB", 1_500_000_000), ("1.4Gi", round(1.4 * 2**30)), ("200 MiB", 200 * 2**20),
    ("10k", 10_000), ("1B", 1)])
def test_a_size_is_read_as_bytes(text, value):
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["-1", "1.5 GX", "", "Gi", -3, True, float("inf"), float("nan"), 2**63, "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        size_bytes(text)
