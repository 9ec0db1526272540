"""The same schedule on bare SimPy: as many events at the same times, in one process per DPU, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import simpy


def replay_s(events: int, dpus: int, virtual_s: float) -> float:
    """Wall seconds that plain SimPy needs for `events` timeouts spread over `dpus` processes."""
    env = simpy.Environment()
    each = max(1, events // dpus)
    step = virtual_s / each

    def device(offset: float) -> Iterator[Any]:
        yield env.timeout(offset)
        for _ in range(each):
            yield env.timeout(step)

    for n in range(dpus):
        env.process(device(step * n / dpus))
    began = time.process_time()
    env.run()
    return time.process_time() - began
