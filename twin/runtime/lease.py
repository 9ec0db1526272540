"""Leader election by a Lease, by client-go's rules, without a clock.

One `Elector` per process. Whoever drives it calls `turn` every `retry_s` and asks `may_work` before each effect. A
leader that cannot renew gives up after `renew_s`, before others may take over after `lease_s`; both are measured on
the process's own monotonic clock, so a stopped process that wakes up finds that it leads no more.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from twin.backends.base import AlreadyExists, ApiError, KubeApi, NotFound
from twin.model.core import Lease, LeaseSpec
from twin.model.meta import Key, ObjectMeta, replace


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds. client-go's defaults for controller managers."""

    lease_s: float = 15.0
    """A lease that nobody renewed for so long may be taken."""
    renew_s: float = 10.0
    """A leader that could not renew for so long stops working."""
    retry_s: float = 2.0
    """Time between two tries; client-go waits up to 1.2 times as long again while it does not lead."""

    def __post_init__(self) -> None:
        if not 0 < self.retry_s * 1.2 < self.renew_s < self.lease_s:
            raise ValueError(f"need retry x 1.2 < renew < lease (got {self})")


def micro_time(wall: float) -> str:
    """Seconds since the Unix epoch as a metav1.MicroTime, which must have six digits."""
    whole = int(wall)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((wall - whole) * 1e6):06d}Z"


class Elector:
    """One candidate. `now` is monotonic seconds, `wall` seconds since the Unix epoch."""

    def __init__(self, key: Key, identity: str, rules: Rules = Rules()) -> None:
        self.key = key
        self.identity = identity
        self.rules = rules
        self.leading = False
        self._seen: LeaseSpec | None = None
        self._seen_at = float("-inf")
        self._renewed_at = float("-inf")

    @property
    def holder(self) -> str:
        """Who led when we last looked; '' if nobody."""
        return self._seen.holder_identity if self._seen else ""

    def may_work(self, now: float) -> bool:
        """Do we lead, and is our lease young enough to act on?"""
        return self.leading and now < self._renewed_at + self.rules.renew_s

    def turn(self, kube: KubeApi, now: float, wall: float) -> bool:
        """Try to get or renew the lease; returns `may_work`. Never raises ApiError: a failed try is a failed try."""
        with contextlib.suppress(ApiError):
            self._try(kube, now, wall)
        if self.leading and not self.may_work(now):
            self.leading = False
        return self.may_work(now)

    def release(self, kube: KubeApi, wall: float) -> None:
        """Give the lease back, so that the next leader need not wait. Does nothing unless we hold it."""
        if not self.leading:
            return
        self.leading = False
        try:
            lease = kube.read_live(Lease, self.key)
            if lease.spec.holder_identity == self.identity:
                at = micro_time(wall)
                kube.update(replace(lease, spec=replace(
                    lease.spec, holder_identity="", lease_duration_seconds=1, acquire_time=at, renew_time=at)))
        except ApiError:
            return

    def _try(self, kube: KubeApi, now: float, wall: float) -> None:
        try:
            lease = kube.read_live(Lease, self.key)
        except NotFound:
            self._create(kube, now, wall)
            return
        if lease.spec != self._seen:
            self._seen, self._seen_at = lease.spec, now
        if lease.spec.holder_identity not in ("", self.identity) and now < self._seen_at + self.rules.lease_s:
            self.leading = False
            return
        ours = lease.spec.holder_identity == self.identity
        at = micro_time(wall)
        spec = replace(
            lease.spec, holder_identity=self.identity, lease_duration_seconds=round(self.rules.lease_s), renew_time=at,
            acquire_time=lease.spec.acquire_time if ours else at,
            lease_transitions=lease.spec.lease_transitions + (0 if ours else 1))
        self._won(kube.update(replace(lease, spec=spec)), now)

    def _create(self, kube: KubeApi, now: float, wall: float) -> None:
        at = micro_time(wall)
        meta = ObjectMeta(namespace=self.key.namespace, name=self.key.name)
        spec = LeaseSpec(holder_identity=self.identity, lease_duration_seconds=round(self.rules.lease_s),
                         acquire_time=at, renew_time=at)
        try:
            self._won(kube.create(Lease(metadata=meta, spec=spec)), now)
        except AlreadyExists:
            self.leading = False

    def _won(self, lease: Lease, now: float) -> None:
        """`now` is when the try began: what the server granted later only lasts longer."""
        self.leading = True
        self._seen, self._seen_at, self._renewed_at = lease.spec, now, now
