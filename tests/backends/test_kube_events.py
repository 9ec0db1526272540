"""The live Event recorder, before a server that may be away, refuse or have forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from twin.backends import kube_events
from twin.backends.base import ApiError, Forbidden, NotFound, Unavailable
from twin.backends.kube_events import Recorder
from twin.model.core import Event
from twin.model.meta import Key, ObjectMeta
from twin.model.provisioning import Dpu, DpuSpec

DPU = Dpu(metadata=ObjectMeta(name="d", namespace="ns", uid="u"),
          spec=DpuSpec(dpu_node_name="n", dpu_device_name="d", bfb="b"))


class Server:
    """Stores Events; the first answers are `trouble`."""

    def __init__(self) -> None:
        self.trouble: list[ApiError] = []
        self.stored: dict[Key, dict[str, object]] = {}
        self.asked = 0
        self.changed = threading.Condition()

    def create(self, event: Event) -> Event:
        self._answer(event.key, {"count": event.count, "message": event.message})
        return event

    def patch(self, key: Key, merge: dict[str, object]) -> object:
        if key not in self.stored:
            raise NotFound("gone")
        self._answer(key, {"count": merge["count"], "message": merge["message"]})
        return None

    def _answer(self, key: Key, event: dict[str, object]) -> None:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
            if self.trouble:
                raise self.trouble.pop(0)
            self.stored[key] = event

    def until(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked >= count, 60)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def recorder(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(kube_events, "TRY_S", 0.001)
    recorder = Recorder(server.create, server.patch, "test")
    yield recorder
    recorder.close()


def say(recorder: Recorder, message: str = "m") -> None:
    recorder.record(DPU, "Normal", "Reason", message)


def test_a_server_that_does_not_answer_is_asked_again(server: Server, recorder: Recorder) -> None:
    server.trouble = [Unavailable("no"), Unavailable("no")]
    say(recorder)
    server.until(3)
    recorder.close(60.0)
    assert list(server.stored.values()) == [{"count": 1, "message": "m"}]


def test_after_twelve_times_the_event_is_given_up_and_the_next_one_is_sent(server: Server, recorder: Recorder) -> None:
    server.trouble = [Unavailable("no")] * 12
    say(recorder, "lost")
    say(recorder, "kept")
    server.until(13)
    recorder.close(60.0)
    assert list(server.stored.values()) == [{"count": 1, "message": "kept"}]


def test_what_the_server_refuses_is_gone_at_once(server: Server, recorder: Recorder) -> None:
    server.trouble = [Forbidden("the namespace is being terminated")]
    say(recorder)
    server.until(1)
    recorder.close(60.0)
    assert (server.asked, server.stored) == (1, {})


def test_an_event_that_the_server_has_forgotten_is_made_anew_and_counts_on(server: Server, recorder: Recorder) -> None:
    say(recorder)
    server.until(1)
    say(recorder)
    server.until(2)
    server.stored.clear()
    say(recorder)
    server.until(3)
    recorder.close(60.0)
    assert list(server.stored.values()) == [{"count": 3, "message": "m"}]


def test_closing_gives_up_what_waits_for_a_server_that_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_events, "TRY_S", 3600.0)
    recorder = Recorder(server.create, server.patch, "test")
    server.trouble = [Unavailable("no")]
    say(recorder)
    server.until(1)
    recorder.close(60.0)
    assert not recorder._thread.is_alive()
    assert server.stored == {}
