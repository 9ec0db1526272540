"""How upstream's reconcile engine keeps time, measured the same way in the recordings and in our plays.

Times of a recording carry its machine's load: what is closer than 0.3 s happened at once (golden README).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from math import log2
from statistics import median
from typing import Final, NamedTuple

import pytest

from tests.golden import recording
from tests.golden.differences import LIMITS
from tests.golden.playing import Case, played
from tests.golden.recording import ABSENT, WHY_ABSENT
from tests.golden.views import History, Subject

pytestmark = [pytest.mark.shared, pytest.mark.skipif(ABSENT, reason=WHY_ABSENT)]

POLL_S: Final = 5.0
AT_ONCE_S: Final = 0.3
FIRST_BACK_OFF_S: Final = 0.005
ATTEMPTS: Final = 11

SOME: Final = ("b-noeffect-2nodes", "e6-cluster-full", "f5-bfb-missing", "e7-cluster-states", "d6-node-labels")

both = pytest.mark.parametrize("side", ["recorded", "ours"])


class Look(NamedTuple):
    """One pass over one object. `again`: it ended in "look again in 5 s". `error`: it failed."""

    t_s: float
    again: bool
    error: bool


def looks(case: Case, side: str) -> dict[tuple[str, str], list[Look]]:
    """The passes of each (controller, name)."""
    found: dict[tuple[str, str], list[Look]] = {}
    if side == "ours":
        for look in case.play.looked:
            found.setdefault((look.controller, look.key.name), []).append(
                Look(look.t_s, look.requeue_s == POLL_S, bool(look.error)))
        return found
    for (controller, name), lines in groupby(
            sorted(recording.passes(case.recording.name), key=lambda p: (p.controller, p.name)),
            key=lambda p: (p.controller, p.name)):
        passes: list[Look] = []
        for line in lines:
            if line.what == "reconcile":
                passes.append(Look(line.t_s, False, False))
            elif passes:
                passes[-1] = passes[-1]._replace(
                    again=passes[-1].again or line.what == "requeue 5s",
                    error=passes[-1].error or line.what.startswith("error"))
        found[controller, name] = passes
    return found


def histories(case: Case, side: str) -> dict[Subject, History]:
    return case.seen if side == "recorded" else case.done


@both
@pytest.mark.parametrize("name", SOME)
def test_an_unchanged_object_is_looked_at_after_five_seconds_and_never_later(name: str, side: str) -> None:
    gaps = [b.t_s - a.t_s for (controller, _), passes in looks(played(name), side).items()
            if controller in ("dpu", "bfb") for a, b in pairwise(passes) if a.again]
    assert max(gaps) < POLL_S + AT_ONCE_S
    assert median(g for g in gaps if g > POLL_S - 0.1) == pytest.approx(POLL_S, abs=0.02)


@both
def test_an_event_does_not_put_off_a_poll_that_is_pending(side: str) -> None:
    """The earliest timer stays (2.0), whatever passes come in between."""
    kept = 0
    for name in ("e6-cluster-full", "d6-node-labels"):
        for (controller, _), passes in looks(played(name), side).items():
            due: float | None = None
            for look in passes if controller == "dpu" else ():
                if due is not None:
                    assert look.t_s < due + AT_ONCE_S
                    if look.t_s > due - AT_ONCE_S:
                        due = None
                    elif look.again and look.t_s > due - POLL_S + AT_ONCE_S:
                        kept += 1
                if look.again and due is None:
                    due = look.t_s + POLL_S
    assert kept, "no event came while a poll was pending"


@both
@pytest.mark.parametrize(("name", "controller", "of"), [
    ("a7-bfb-without-spec", "bfb", "bf-nospec"),
    ("e7-cluster-states", "dpucluster", "c2-nosecret"),
    ("e7-cluster-states", "dpucluster", "c3-nokey"),
])
def test_errors_back_off_from_five_milliseconds_doubling(name: str, controller: str, of: str, side: str) -> None:
    failed = [p.t_s for p in looks(played(name), side)[controller, of] if p.error]
    gaps = [gap for gap in (b - a for a, b in pairwise(failed)) if gap > AT_ONCE_S]
    doublings = [round(log2(gap / FIRST_BACK_OFF_S)) for gap in gaps]
    assert len(doublings) >= 4
    assert doublings == list(range(doublings[0], doublings[0] + len(doublings)))
    for gap, n in zip(gaps, doublings, strict=True):
        assert gap == pytest.approx(FIRST_BACK_OFF_S * 2**n, rel=0.05, abs=0.06 if side == "recorded" else 0.02)


@both
@pytest.mark.parametrize(("name", "since", "until"), [
    ("f3-os-install-fails", "phase=OS Installing", "cond OSInstalled=False/InstallationFailed"),
    ("f9-reboot-fails", "phase=Rebooting", "cond Rebooted=False/RebootFailed"),
])
def test_a_task_that_fails_is_given_up_at_its_eleventh_attempt(name: str, since: str, until: str, side: str) -> None:
    """Attempts start at polls: the eleventh failure is seen at the 10th poll of the phase, or at the 11th."""
    case = played(name)
    dpu = next(h for s, h in histories(case, side).items() if s.kind == "DPU")
    began = next(w.t_s for w in dpu.writes if any(f"{k}={v}" == since for k, v in w.facts))
    ended = next(w.t_s for w in dpu.writes if any(f"{k}={v}".startswith(until) for k, v in w.facts))
    assert (ATTEMPTS - 1) * POLL_S - AT_ONCE_S < ended - began < ATTEMPTS * POLL_S + POLL_S + AT_ONCE_S


def test_as_many_installs_are_started_as_recorded() -> None:
    """f3: eleven that fail, and one of the DPU that is made again."""
    calls = (recording.FOLDER / "f3-os-install-fails" / "calls.jsonl").read_text().count("OS.Activate")
    assert calls == ATTEMPTS + 1
    assert played("f3-os-install-fails").play.trace.device_changes["installing"] == calls


@both
@pytest.mark.parametrize("name", ["d1-rolling-max1", "d3-ondelete", "d8-rolling-revert", "e4-dpu-deleted-by-hand"])
def test_a_dpu_is_made_again_as_soon_as_it_has_gone(name: str, side: str) -> None:
    gaps = [b.t_s - a.t_s for s, h in histories(played(name), side).items() if s.kind == "DPU"
            for a, b in pairwise(h.writes) if (a.op, b.op) == ("-", "+")]
    assert gaps
    assert max(gaps) < AT_ONCE_S


@both
def test_the_next_deletion_of_a_roll_out_follows_the_ready_condition_at_once(side: str) -> None:
    dpus = [h for s, h in histories(played("d1-rolling-max1"), side).items() if s.kind == "DPU"]
    ready = sorted(_times(dpus, lambda k, v: k == "cond Ready" and v.startswith("True/")))
    deletions = sorted(_times(dpus, lambda k, v: (k, v) == ("deleting", "yes")))
    assert len(deletions) == 4
    for t_s in deletions[1:]:
        assert 0 <= t_s - max(r for r in ready if r <= t_s) < AT_ONCE_S


def _times(found: list[History], fits: Callable[[str, str], bool]) -> Iterator[float]:
    return (w.t_s for h in found for w in h.writes if any(fits(k, v) for k, v in w.facts))


@both
def test_phases_that_wait_for_nothing_pass_at_once(side: str) -> None:
    """Initializing to Initialize Interface, a status write each: every write's own event leads to the next."""
    for subject, history in histories(played("b-noeffect-2nodes"), side).items():
        if subject.kind == "DPU":
            first = history.writes[0].t_s
            there = next(w.t_s for w in history.writes if ("phase", "Initialize Interface") in w.facts)
            assert there - first < 0.5


@both
def test_a_ready_bfb_moves_its_dpu_at_the_dpus_next_poll(side: str) -> None:
    found = histories(played("f5-bfb-missing"), side)
    ready = next(w.t_s for s, h in found.items() if s.kind == "BFB" for w in h.writes if ("phase", "Ready") in w.facts)
    moved = next(w.t_s for s, h in found.items() if s.kind == "DPU" for w in h.writes
                 if ("phase", "Node Effect") in w.facts)
    assert 0 < moved - ready < POLL_S + AT_ONCE_S
    dpu = next(p for (c, _), p in looks(played("f5-bfb-missing"), side).items() if c == "dpu")
    assert any(look.again and moved - look.t_s == pytest.approx(POLL_S, abs=AT_ONCE_S) for look in dpu)


@both
def test_more_room_in_a_dpucluster_frees_a_waiting_dpu_at_once(side: str) -> None:
    found = histories(played("e6-cluster-full"), side)
    room = next(w.t_s for s, h in found.items() if s.name == "dpucluster-1" for w in h.writes
                if ("spec.maxNodes", "2") in w.facts)
    last = max(_times([h for s, h in found.items() if s.kind == "DPU"], lambda k, v: k == "spec.cluster"))
    assert 0 <= last - room < AT_ONCE_S


@both
def test_a_deleted_dpuset_is_gone_at_once_and_its_dpus_are_deleted_after_it(side: str) -> None:
    found = histories(played("e3-dpuset-deleted"), side)
    dpuset = next(h for s, h in found.items() if s.name == "dpuset-1")
    asked = next(w.t_s for w in dpuset.writes if ("deleting", "yes") in w.facts)
    gone = next(w.t_s for w in dpuset.writes if w.op == "-")
    assert gone - asked < AT_ONCE_S
    deleted = list(_times([h for s, h in found.items() if s.kind == "DPU"], lambda k, v: (k, v) == ("deleting", "yes")))
    assert len(deleted) == 2
    assert all(0 <= t_s - gone < AT_ONCE_S for t_s in deleted)


@both
@pytest.mark.parametrize("name", ["d1-rolling-max1", "d8-rolling-revert", "f14-unsupported-dpumode-and-two-sets"])
def test_no_more_than_25_events_of_an_object_are_recorded_at_once(name: str, side: str) -> None:
    """A client drops the rest (one more in 5 min). Recorded in d1: exactly 25, then one creation is not announced."""
    written: dict[str, int] = {}
    for subject, history in histories(played(name), side).items():
        if subject.kind == "Event":
            about = subject.name.partition(" ")[0]
            written[about] = written.get(about, 0) + len(history.writes)
    assert max(written.values()) <= 25
    if (name, side) == ("d1-rolling-max1", "recorded"):
        assert written["DPUSet/dpuset-1"] == 25


def test_limited_cases_are_not_used_for_what_they_cannot_show() -> None:
    assert not {n for n in SOME if LIMITS.get(n) and LIMITS[n].kinds}
