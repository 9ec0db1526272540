"""A case recorded, played and compared; once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tests.golden import compare, recording, views
from tests.golden.compare import Sequences
from tests.golden.differences import LIMITS, NO_LIMIT, Limit
from tests.golden.recording import Recording
from tests.golden.stage import Play
from tests.golden.views import History, Subject


@dataclass(frozen=True)
class Case:
    """`recorded` and `ours` are sequences in normal form, ours with the workers' names that fit best."""

    recording: Recording
    limit: Limit
    play: Play
    seen: dict[Subject, History]
    done: dict[Subject, History]
    recorded: Sequences
    ours: Sequences
    left: list[str]
    used: dict[str, int]


@cache
def played(name: str) -> Case:
    """Raises Stuck when our world never comes into the situation of a step."""
    tape = recording.load(name)
    limit = LIMITS.get(name, NO_LIMIT)
    play = Play(tape, limit).run()
    seen = views.recorded(c for c in tape.changes if c.t_s <= play.end_s)
    done = views.played(play.trace.versions)
    theirs, mine = compare.Normal(name, "recorded"), compare.Normal(name, "ours")
    recorded, ours = theirs.sequences(seen, limit), mine.sequences(done, limit)
    left, named = compare.best(recorded, ours, play.world.fleet.host)
    used = {rule: theirs.used.get(rule, 0) + mine.used.get(rule, 0) for rule in theirs.used | mine.used}
    return Case(tape, limit, play, seen, done, recorded, named, left, used)
