"""Events are counted, combined and cut off as client-go does it."""

from __future__ import annotations

import pytest

from twin.runtime import events
from twin.runtime.events import COMBINED, Correlator, Told


class Recorder:
    """A correlator whose Events are named after their number."""

    def __init__(self) -> None:
        self.correlator = Correlator()
        self.sent: list[tuple[str, str, int]] = []
        self.names = 0

    def say(self, message: str, at: float = 0.0, *, about: str = "dpu-1", reason: str = "Broken",
            component: str = "dpu") -> Told | None:
        told = self.correlator.correlate(component, about, "Warning", reason, message, at)
        if told is None:
            return None
        if not told.name:
            self.names += 1
            self.correlator.made(told, f"e{self.names}")
        self.sent.append((told.name or f"e{self.names}", told.message, told.times))
        return told


def test_equal_events_are_one_that_counts() -> None:
    r = Recorder()
    for at in (0.0, 5.0, 10.0):
        r.say("a", at)
    assert r.sent == [("e1", "a", 1), ("e1", "a", 2), ("e1", "a", 3)]
    told = r.say("a", 15.0)
    assert told is not None
    assert told.first_s == 0.0


def test_the_tenth_message_of_a_reason_and_all_after_it_share_one_event() -> None:
    r = Recorder()
    for n in range(12):
        r.say(f"m{n}")
    assert r.sent[:9] == [(f"e{n + 1}", f"m{n}", 1) for n in range(9)]
    assert r.sent[9:] == [("e10", f"{COMBINED}m9", 1), ("e10", f"{COMBINED}m10", 2), ("e10", f"{COMBINED}m11", 3)]
    r.say("m0")
    assert r.sent[-1] == ("e1", "m0", 2), "the first nine keep their own"


@pytest.mark.parametrize("other", [{"about": "dpu-2"}, {"reason": "Fixed"}, {"component": "bfb"}], ids=str)
def test_other_objects_reasons_and_components_are_not_similar(other: dict[str, str]) -> None:
    r = Recorder()
    for n in range(9):
        r.say(f"m{n}")
    r.say("m9", **other)  # type: ignore[arg-type]
    assert r.sent[-1] == ("e10", "m9", 1)


def test_after_ten_quiet_minutes_nothing_is_similar_any_more() -> None:
    r = Recorder()
    for n in range(10):
        r.say(f"m{n}")
    r.say("m10", 600.0)
    assert r.sent[-1] == ("e10", f"{COMBINED}m10", 2)
    r.say("m11", 1200.5)
    assert r.sent[-1] == ("e11", "m11", 1)


def test_a_flood_is_cut_off_but_counted() -> None:
    r = Recorder()
    told = [r.say("a", 5.0 * n) for n in range(120)]
    assert [n for n, t in enumerate(told) if t is None][:1] == [25]
    assert [t.times for t in told if t is not None][24:] == [25, 61], "one more in 300 s, with the true count"
    assert r.say("b", 595.0, about="dpu-2") is not None


def test_only_what_was_used_last_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "REMEMBERED", 2)
    r = Recorder()
    for about in ("a", "b", "a", "c"):
        r.say("m", about=about)
    r.say("m", about="a")
    r.say("m", about="b")
    assert r.sent[-2:] == [("e1", "m", 3), ("e4", "m", 1)]
