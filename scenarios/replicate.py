"""Replications of a scenario: runs that differ only in seed, in one process or several, the same for any number."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from signal import SIG_IGN, SIGINT, signal

from scenarios.base import Scenario
from scenarios.result import Run
from scenarios.run import run
from scenarios.story import Story
from twin.sim.stats import replication_seed
from twin.sim.world import Options


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C. `runs` holds the replications that were finished, in their order."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__(f"{len(runs)} replications were finished")
        self.runs = runs


def replicate(scenario: Scenario, replications: int | None = None, jobs: int = 1, *,
              record: Collection[str] = (), options: Options = Options(),
              progress: Callable[[int, Story], None] | None = None,
              finished: Callable[[Run], None] | None = None) -> list[Run]:
    """Run the scenario with the seeds of its replications (default: as many as it says), `jobs` at a time.

    `record` names what the first replication keeps: `trace`, `objects`; keeping it for all would cost their sum in
    memory. `progress` hears of each slice of virtual time, where the run is in this process; `finished` of each run, in
    the order in which they end.

    Raises:
        Interrupted: Ctrl-C.  BadInput: the API server refuses what is applied at 0 s.
    """
    count = scenario.replications if replications is None else replications
    one = partial(_one, scenario, record=frozenset(record), options=options)
    runs: list[Run] = []

    def end(done: Run) -> None:
        runs.append(done)
        if finished is not None:
            finished(done)

    try:
        if min(jobs, count) > 1:
            _in_processes(one, count, jobs, end)
        else:
            for i in range(count):
                end(one(i, progress=progress))
    except KeyboardInterrupt:
        raise Interrupted(_in_order(runs)) from None
    return _in_order(runs)


def _in_order(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda r: r.replication)


def _one(scenario: Scenario, i: int, *, record: frozenset[str], options: Options,
         progress: Callable[[int, Story], None] | None = None) -> Run:
    kept = record if i == 0 else frozenset()
    show = None if progress is None else lambda story, _: progress(i, story)
    return run(scenario, replication_seed(scenario.seed, i), replication=i, keep_trace="trace" in kept,
               keep_objects="objects" in kept, options=options, progress=show)


def _in_processes(one: Callable[[int], Run], count: int, jobs: int, end: Callable[[Run], None]) -> None:
    """Ctrl-C reaches every process of a terminal; the workers leave it to this one, which ends them."""
    with ProcessPoolExecutor(min(jobs, count), initializer=signal, initargs=(SIGINT, SIG_IGN)) as pool:
        futures: list[Future[Run]] = [pool.submit(one, i) for i in range(count)]
        try:
            for future in as_completed(futures):
                end(future.result())
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
