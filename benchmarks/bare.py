"""Bare SimPy for comparison: the same number of kernel events at the same times, one process per DPU, and nothing else.

The events are spread evenly over the run's virtual time and over its DPUs, so SimPy's heap holds one entry per DPU.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import simpy


def replay_s(events: int, dpus: int, virtual_s: float) -> float:
    """Processor seconds that plain SimPy needs for `events` timeouts spread over `dpus` processes."""
    env = simpy.Environment()
    each = max(1, events // dpus)
    step = virtual_s / each

    def device(offset: float) -> Generator[simpy.Event, Any, Any]:
        yield env.timeout(offset)
        for _ in range(each):
            yield env.timeout(step)

    for n in range(dpus):
        env.process(device(step * n / dpus))
    began = time.process_time()
    env.run()
    return time.process_time() - began
