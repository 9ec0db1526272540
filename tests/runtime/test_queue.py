"""The work queue against a naive one, and the figures of client-go's rate limiter."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from twin.model.meta import Key
from twin.runtime.queue import NS, BackOff, WorkQueue

MS = 1_000_000
KEYS = [Key("", name) for name in "abc"]


class NaiveQueue:
    """The rules, as lists that are searched from the front."""

    def __init__(self) -> None:
        self.line: list[tuple[Key, int]] = []
        self.timers: list[tuple[int, int, Key]] = []
        self.asked = 0

    def push(self, key: Key, now: int) -> bool:
        if any(k == key for k, _ in self.line):
            return False
        self.line.append((key, now))
        return True

    def push_after(self, key: Key, now: int, delay: int) -> int:
        pending = [at for at, _, k in self.timers if k == key]
        if pending and pending[0] <= now + delay:
            return pending[0]
        self.timers = [t for t in self.timers if t[2] != key]
        self.asked += 1
        self.timers.append((now + delay, self.asked, key))
        return now + delay

    def mature(self, now: int) -> list[Key]:
        due = sorted(t for t in self.timers if t[0] <= now)
        self.timers = [t for t in self.timers if t[0] > now]
        return [key for at, _, key in due if self.push(key, at)]

    def next_due(self) -> int | None:
        return min((at for at, _, _ in self.timers), default=None)


STEPS = st.lists(st.one_of(
    st.tuples(st.just("push"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("after"), st.sampled_from(KEYS), st.sampled_from([0, 1, 5, 5, 7, 30, 31, 32, 33])),
    st.tuples(st.just("drop"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("wait"), st.just(KEYS[0]), st.integers(0, 10)),
    st.tuples(st.just("pop"), st.just(KEYS[0]), st.just(0))), max_size=40)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_it_does_what_a_naive_queue_does(steps: list[tuple[str, Key, int]]) -> None:
    queue, naive, now = WorkQueue(), NaiveQueue(), 0
    for what, key, number in steps:
        if what == "push":
            assert queue.push(key, now) == naive.push(key, now)
        elif what == "after":
            assert queue.push_after(key, now, number) == naive.push_after(key, now, number)
        elif what == "drop":
            queue.drop_timer(key)
            naive.timers = [t for t in naive.timers if t[2] != key]
        elif what == "wait":
            now += number
            assert list(queue.mature(now)) == naive.mature(now)
        elif naive.line:
            assert queue.pop() == naive.line.pop(0)
        assert list(queue.line) == [k for k, _ in naive.line]
        assert queue.next_due() == naive.next_due()
        soonest = naive.next_due()
        assert soonest is None or queue.soonest <= soonest


def test_a_key_stands_in_line_once_however_often_it_is_pushed() -> None:
    queue = WorkQueue()
    assert [queue.push(KEYS[0], 1), queue.push(KEYS[1], 2), queue.push(KEYS[0], 3)] == [True, True, False]
    assert [queue.pop(), queue.pop()] == [(KEYS[0], 1), (KEYS[1], 2)]


def test_of_several_timers_for_a_key_the_earliest_stays_and_fires_once() -> None:
    queue = WorkQueue()
    assert [queue.push_after(KEYS[0], 0, d) for d in (50, 20, 90)] == [50, 20, 20]
    assert list(queue.mature(19)) == []
    assert list(queue.mature(100)) == [KEYS[0]]
    queue.pop()
    assert list(queue.mature(1000)) == []


def test_an_error_backs_off_from_5_ms_doubling_to_1000_s() -> None:
    queue, delays, now = WorkQueue(), [], 0
    for _ in range(20):
        delays.append(queue.push_failed(KEYS[0], now) - now)
        now += 2000 * NS
        list(queue.mature(now))
        queue.pop()
    assert delays == [min(5 * MS * 2 ** n, 1000 * NS) for n in range(20)]
    assert queue.failures(KEYS[0]) == 20
    queue.forget(KEYS[0])
    assert queue.push_failed(KEYS[0], now) - now == 5 * MS


def test_a_key_that_failed_a_hundred_times_waits_no_longer_than_the_maximum() -> None:
    queue = WorkQueue()
    for n in range(100):
        queue.push_failed(KEYS[0], n * 10_000 * NS)
        list(queue.mature((n + 1) * 10_000 * NS))
        queue.pop()
    at = 10**7 * NS
    assert queue.push_failed(KEYS[0], at) == at + 1000 * NS


def test_all_keys_of_a_controller_share_a_bucket_of_100_errors_and_then_10_a_second() -> None:
    queue = WorkQueue()
    delays = [queue.push_failed(Key("", f"k{n}"), 0) for n in range(130)]
    assert delays[:100] == [5 * MS] * 100
    assert delays[100:] == [100 * MS * n for n in range(1, 31)]


def test_the_bucket_fills_again_at_10_a_second() -> None:
    queue = WorkQueue()
    for n in range(100):
        queue.push_failed(Key("", f"k{n}"), 0)
    later = NS
    delays = [queue.push_failed(Key("", f"l{n}"), later) - later for n in range(11)]
    assert delays == [5 * MS] * 10 + [100 * MS]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(KEYS)), max_size=40))
def test_the_bucket_never_lets_more_than_its_rate_through(errors: list[tuple[int, Key]]) -> None:
    """Against the definition: a token is there when fewer than burst were taken beyond what has flowed in."""
    backoff = BackOff(base_ns=0, bucket_qps=10, bucket_burst=3)
    queue, now, tokens, last = WorkQueue(backoff), 0, 3.0, 0
    for gap_ms, key in errors:
        now += gap_ms * MS
        tokens = min(3.0, tokens + (now - last) * 10 / NS) - 1
        last = now
        queue.drop_timer(key)
        wait = queue.push_failed(key, now) - now
        assert abs(wait - max(0.0, -tokens) * NS / 10) < 10
