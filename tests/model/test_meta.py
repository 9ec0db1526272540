"""Times as Kubernetes writes them."""

from __future__ import annotations

import random
import time

from twin.model.meta import format_time, parse_time


def test_a_time_is_written_in_whole_seconds_of_utc() -> None:
    rng = random.Random(7)
    for now in (0, 59.9, 60, 1_700_000_000.999, -1.0, *(rng.uniform(-1e9, 4e9) for _ in range(2000))):
        assert format_time(now) == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(now)))
        assert parse_time(format_time(now)) == int(now)
