"""How long things take: frozen distributions, a table of operations, and named streams of draws.

A draw is a function of (seed, operation, entity) alone: no generator object, no order of calls. Adding one DPU moves
no other draw, and a changed distribution keeps the luck of every entity (common random numbers). The hash is
BLAKE2b; the rest is float arithmetic and libm, rounded to 1 us (1 ns below 10 ms) so that a last-bit difference
between two libms cannot show. All values are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Final, Literal, Protocol

Basis = Literal["measured", "published", "expert"]

SHARED_VARIANCE: Final = 0.5
"""Of an operation's variance (in normal scores), the part its `shared` factors carry together; the rest is its own."""

_Z95: Final = 1.6448536269514722
_LN2: Final = 0.6931471805599453
_LN20: Final = 2.995732273553991
_SQRT_HALF: Final = 0.7071067811865476
_TO_UNIT: Final = 2.0**-53


# --- normal scores


def normal_score(u: float) -> float:
    """The standard normal quantile of u in (0, 1): Acklam's rational approximation, relative error below 1.2e-9."""
    if u < 0.02425:
        return -_tail(u)
    if u > 0.97575:
        return _tail(1.0 - u)
    q = u - 0.5
    r = q * q
    return ((((((-39.69683028665376 * r + 220.9460984245205) * r - 275.9285104469687) * r + 138.3577518672690) * r
              - 30.66479806614716) * r + 2.506628277459239) * q
            / (((((-54.47609879822406 * r + 161.5858368580409) * r - 155.6989798598866) * r + 66.80131188771972) * r
                - 13.28068155288572) * r + 1.0))


def _tail(p: float) -> float:
    q = math.sqrt(-2.0 * math.log(p))
    return -((((((-0.007784894002430293 * q - 0.3223964580411365) * q - 2.400758277161838) * q - 2.549732539343734) * q
               + 4.374664141464968) * q + 2.938163982698783)
             / ((((0.007784695709041462 * q + 0.3224671290700398) * q + 2.445134137142996) * q + 3.754408661907416) * q
                + 1.0))


def probability(z: float) -> float:
    """The inverse of `normal_score`: P(Z <= z)."""
    return 0.5 * math.erfc(-z * _SQRT_HALF)


# --- distributions: each answers its value at a normal score, and so any quantile


class Distribution(Protocol):
    """`at(z)` is the value, in seconds, at the normal score z; `at(0)` is the median. It never falls as z grows."""

    def at(self, z: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    value: float

    def at(self, z: float) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    low: float
    high: float

    def at(self, z: float) -> float:
        return self.low + (self.high - self.low) * probability(z)


@dataclass(frozen=True, slots=True)
class Triangular:
    low: float
    mode: float
    high: float

    def at(self, z: float) -> float:
        width = self.high - self.low
        if width == 0:
            return self.low
        u = probability(z)
        if u * width <= self.mode - self.low:
            return self.low + math.sqrt(u * width * (self.mode - self.low))
        return self.high - math.sqrt((1.0 - u) * width * (self.high - self.mode))


@dataclass(frozen=True)
class LogNormal:
    """Given by its median and its 95th percentile."""

    p50: float
    p95: float

    @cached_property
    def _line(self) -> tuple[float, float]:
        return math.log(self.p50), math.log(self.p95 / self.p50) / _Z95

    def at(self, z: float) -> float:
        mu, sigma = self._line
        return math.exp(mu + sigma * z)


@dataclass(frozen=True)
class Weibull:
    """Given by its median and its 95th percentile."""

    p50: float
    p95: float

    @cached_property
    def _line(self) -> tuple[float, float]:
        inverse_shape = math.log(self.p95 / self.p50) / math.log(_LN20 / _LN2)
        return inverse_shape, self.p50 / math.pow(_LN2, inverse_shape)

    def at(self, z: float) -> float:
        inverse_shape, scale = self._line
        return scale * math.pow(-math.log(probability(-z)), inverse_shape)


@dataclass(frozen=True)
class Gamma:
    """Given by its mean and standard deviation. Drawn from a table of its quantiles at 321 normal scores (-8 to 8)."""

    mean: float
    sd: float

    @cached_property
    def _table(self) -> tuple[float, ...]:
        shape, scale = (self.mean / self.sd) ** 2, self.sd * self.sd / self.mean
        return tuple(scale * _gamma_quantile(shape, probability(0.05 * i - 8.0)) for i in range(321))

    def at(self, z: float) -> float:
        place = min(max((z + 8.0) * 20.0, 0.0), 319.999999)
        i = int(place)
        low, high = self._table[i], self._table[i + 1]
        return low + (high - low) * (place - i)


def _gamma_cdf(shape: float, x: float) -> float:
    """The regularised lower incomplete gamma function: series for small x, continued fraction (Lentz) for large."""
    if x <= 0:
        return 0.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1.0 / shape
        n = shape
        while term > total * 1e-16:
            n += 1
            term *= x / n
            total += term
        return total * front
    b = x + 1.0 - shape
    c, d = 1e300, 1.0 / b
    h = d
    for i in range(1, 10_000):
        a = -i * (i - shape)
        b += 2.0
        d = 1.0 / (a * d + b)
        c = b + a / c
        h *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return 1.0 - front * h


def _gamma_quantile(shape: float, u: float) -> float:
    low, high = 0.0, shape + 10.0 * math.sqrt(shape) + 50.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if _gamma_cdf(shape, middle) < u:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * high:
            break
    return 0.5 * (low + high)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Measured values in ascending order; linear between them."""

    values: tuple[float, ...]

    def at(self, z: float) -> float:
        place = probability(z) * (len(self.values) - 1)
        i = min(int(place), len(self.values) - 2)
        if i < 0:
            return self.values[0]
        return self.values[i] + (self.values[i + 1] - self.values[i]) * (place - i)


# --- operations, limits, profiles


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that takes time. `fails` is the probability that one attempt fails; `where` says where it acts.

    `latency` marks the API and wire latencies that the `fixed` base sets to zero.
    """

    name: str
    takes: Distribution
    fails: float = 0.0
    shared: tuple[str, ...] = ()
    basis: Basis = "expert"
    source: str = ""
    where: str = ""
    latency: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """One rate, count or share that bounds work. 0 means no limit where `where` says so."""

    name: str
    value: float
    unit: str
    basis: Basis = "expert"
    source: str = ""
    where: str = ""
    latency: bool = False


@dataclass(frozen=True)
class Profile:
    """A complete table: every operation and limit there is."""

    name: str
    operations: Mapping[str, Operation]
    limits: Mapping[str, Limit] = field(default_factory=dict)

    def fixed(self) -> Profile:
        """Medians, no failures, no API latency, no client limit: the base for closed forms."""
        operations = {
            o.name: replace(o, takes=Fixed(0.0 if o.latency else _rounded(o.takes.at(0.0))), fails=0.0, shared=())
            for o in self.operations.values()
        }
        limits = {m.name: replace(m, value=0.0) if m.latency else m for m in self.limits.values()}
        return Profile("fixed", operations, limits)


def _rounded(value: float) -> float:
    return round(value, 6) if value >= 0.01 else round(value, 9)


class Timing:
    """A profile and a seed: what a run asks how long things take.

    The same arguments give the same answer for ever: an operation that is tried again passes its attempt, one that
    happens again passes a count or a uid, as one more part of `entity`.
    """

    def __init__(self, profile: Profile, seed: int | str) -> None:
        self.profile = profile
        self.seed = seed
        self._operations = dict(profile.operations)
        self._draws = {o.name: (f"{seed}\0{o.name}\0", o.takes.at, bool(o.shared))
                       for o in profile.operations.values() if type(o.takes) is not Fixed}
        self._fixed = {o.name: o.takes.value for o in profile.operations.values() if type(o.takes) is Fixed}
        self._factor: dict[tuple[str, str, str], float] = {}

    def sample(self, operation: str, *entity: str, **factors: str) -> float:
        """Seconds that this entity's operation takes. `factors` (rack="r1") name what it shares its luck with."""
        if operation in self._fixed:
            return self._fixed[operation]
        prefix, at, shared = self._draws[operation]
        z = normal_score(_unit(prefix + "\0".join(entity)))
        if shared and factors:
            z = self._mixed(self._operations[operation], z, factors)
        return _rounded(at(z))

    def fails(self, operation: str, *entity: str) -> bool:
        """Does this entity's operation fail (independent of how long it takes)?"""
        fails = self._operations[operation].fails
        return fails > 0.0 and _unit(f"{self.seed}\1fails\0{operation}\0" + "\0".join(entity)) < fails

    def uniform(self, purpose: str, *entity: str) -> float:
        """A number in (0, 1) for a choice that is not a duration: which DPU first, which jitter."""
        return _unit(f"{self.seed}\1{purpose}\0" + "\0".join(entity))

    def median(self, operation: str) -> float:
        return _rounded(self._operations[operation].takes.at(0.0))

    def basis(self, operation: str) -> Basis:
        return self._operations[operation].basis

    def limit(self, name: str) -> float:
        return self.profile.limits[name].value

    def _mixed(self, spec: Operation, z: float, factors: Mapping[str, str]) -> float:
        """One normal score from the entity's own and its factors'; again standard normal, so the marginal is kept."""
        named = [f for f in spec.shared if f in factors]
        if not named:
            return z
        total = sum(self._factor_score(spec.name, f, factors[f]) for f in named)
        return math.sqrt(1.0 - SHARED_VARIANCE) * z + math.sqrt(SHARED_VARIANCE / len(named)) * total

    def _factor_score(self, operation: str, factor: str, value: str) -> float:
        score = self._factor.get((operation, factor, value))
        if score is None:
            score = normal_score(_unit(f"{self.seed}\1shared\0{operation}\0{factor}\0{value}"))
            self._factor[operation, factor, value] = score
        return score


def _unit(stream: str) -> float:
    """A number in the open interval (0, 1), uniform, from the name of a stream: 53 bits of BLAKE2b."""
    digest = blake2b(stream.encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) * _TO_UNIT
