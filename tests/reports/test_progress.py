"""The progress line: what it says, and when it keeps silent."""

from __future__ import annotations

import io

import pytest

from reports import progress
from reports.progress import Progress, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_says_time_speed_and_phases_in_their_order() -> None:
    text = line(7200.0, ["Ready", "OS Installing", "Ready", "Pending"], 2.0, horizon_s=172_800.0)

    assert text == "2h of 2d · 3,600x real time · 4 DPUs: Pending 1, OS Installing 1, Ready 2"


def test_a_narrow_terminal_keeps_the_fullest_phases() -> None:
    phases = ["Ready"] * 9 + ["OS Installing"] * 3 + ["Pending"]

    for width in range(20, 120):
        assert len(line(60.0, phases, 1.0, width=width)) <= width
    assert line(60.0, phases, 1.0, width=50) == "1m · 60x real time · 13 DPUs: Ready 9, ..."


def test_nothing_has_happened_yet() -> None:
    assert line(0.0, [], 0.0) == "0s · starting · 0 DPUs"


def test_without_a_terminal_nothing_is_written() -> None:
    out = io.StringIO()
    with Progress(stream=out) as shown:
        shown.update(1.0, ["Ready"])

    assert out.getvalue() == ""
    assert not shown.due


def test_no_progress_means_silence_on_a_terminal_too() -> None:
    out = Terminal()
    with Progress(stream=out, enabled=False) as shown:
        shown.update(1.0, ["Ready"])

    assert out.getvalue() == ""


def test_phases_are_not_even_counted_while_the_line_is_not_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 1e9)

    def never() -> object:
        raise AssertionError("consumed")
        yield

    with Progress(stream=Terminal()) as shown:
        shown.update(1.0, never())  # type: ignore[arg-type]


def test_a_terminal_sees_the_line_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress(stream=out, label="first-install") as shown:
        shown.update(3600.0, ["Ready", "Ready"])
        seen = out.getvalue()

    assert "first-install" in seen
    assert "2 DPUs: Ready 2" in seen
    assert out.getvalue().endswith(("\x1b[2K", "\x1b[?25h", "\r"))
