"""Timing profiles as users write them: names, files and mappings become a complete `Profile`.

A profile file replaces entries of its base; `default` is `timing_default.yaml`, `fixed` is its medians.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from twin.model import timing, units
from twin.model.edge import Edge, Seconds
from twin.model.mistakes import BadInput, Mistake, shown
from twin.model.timing import Basis, Distribution, Limit, Operation, Profile

BASES = ("default", "fixed")

PERIODS = ("requeue", "reboot-status-poll", "join-retry", "dms-startup-probe", "drain-retry", "nfd-period", "heartbeat",
           "leader-retry")
"""Operations that come round: none of them may take no time."""

LOWEST = -8.0
"""A normal score below all that are drawn."""

RETIRED = {
    "webhook": "it is part of api-write",
    "delete-requeue": "the operator's own deletions are not modelled",
}
"""Entries of earlier profiles that had no effect, and why."""

class Quantiles(Edge):
    """Median and 95th percentile, in seconds."""

    p50: Annotated[Seconds, Field(gt=0)]
    p95: Annotated[Seconds, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Quantiles:
        if self.p95 <= self.p50:
            raise ValueError(f"p95 must be greater than p50 (got p50 {self.p50:g}, p95 {self.p95:g})")
        return self


class Moments(Edge):
    """Mean and standard deviation, in seconds."""

    mean: Annotated[Seconds, Field(gt=0)]
    sd: Annotated[Seconds, Field(gt=0)]

    @model_validator(mode="after")
    def _near(self) -> Moments:
        if not self.mean / 100 <= self.sd <= self.mean * 100:
            raise ValueError("sd must be between a hundredth of mean and a hundred times mean "
                             f"(got mean {self.mean:g}, sd {self.sd:g})")
        return self


def _usable(value: float) -> float:
    if 0 < value < 1e-6:
        raise ValueError("must be 0 or at least 0.000001")
    return value


LimitValue = Annotated[float, Field(ge=0, le=1e15), AfterValidator(_usable)]


class OperationEntry(Edge):
    """How long one operation takes (exactly one distribution), how often it fails, and why we think so."""

    fixed_s: Seconds | None = None
    uniform_s: tuple[Seconds, Seconds] | None = None
    triangular_s: tuple[Seconds, Seconds, Seconds] | None = None
    lognormal_s: Quantiles | None = None
    gamma_s: Moments | None = None
    weibull_s: Quantiles | None = None
    empirical_s: Annotated[
        Annotated[list[Seconds], Field(min_length=1), Tag("values")] | Annotated[str, Tag("file")],
        Discriminator(lambda given: "file" if isinstance(given, str) else "values")] | None = Field(
            default=None, description="Measured values, or a CSV file with one value in the first column of each line")
    fails: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Probability that one attempt fails; the base's when absent")
    shared: list[str] | None = Field(
        default=None, description="Factors that move together, e.g. [rack]: they carry half of the variance")
    basis: Basis = "expert"
    source: str = ""
    where: str = Field(default="", description="Where it acts; the base's text when empty")
    latency: bool | None = Field(default=None, description="API or wire latency: zero in the base `fixed`")

    @model_validator(mode="after")
    def _one_distribution(self) -> OperationEntry:
        given = [n for n in DISTRIBUTIONS if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(DISTRIBUTIONS)} (got {', '.join(given) or 'none'})")
        for name in ("uniform_s", "triangular_s"):
            values = getattr(self, name)
            if values is not None and list(values) != sorted(values):
                raise ValueError(f"{name} must be in ascending order (got {list(values)})")
        return self


DISTRIBUTIONS = ("fixed_s", "uniform_s", "triangular_s", "lognormal_s", "gamma_s", "weibull_s", "empirical_s")


class LimitEntry(Edge):
    """A rate, a count or a share."""

    value: LimitValue
    unit: str = ""
    basis: Basis = "expert"
    source: str = ""
    where: str = ""
    latency: bool | None = None


_ENTRY_OR_NUMBER = Discriminator(lambda given: "entry" if isinstance(given, dict | LimitEntry) else "number")


class TimingFile(Edge):
    """A timing profile: one entry per operation that differs from its base."""

    apiVersion: Literal["dpf-twin/v1"] = "dpf-twin/v1"
    name: str = "custom"
    base: str = Field(default="default", description="default, fixed, or a file")
    operations: dict[str, OperationEntry] = {}
    limits: dict[str, Annotated[Annotated[LimitEntry, Tag("entry")] | Annotated[LimitValue, Tag("number")],
                                _ENTRY_OR_NUMBER]] = {}


def distribution(entry: OperationEntry, measured: Sequence[float] = ()) -> Distribution:
    """The frozen distribution of an entry; `measured`: the values of the file that it names, if it names one."""
    if entry.fixed_s is not None:
        return timing.Fixed(entry.fixed_s)
    if entry.uniform_s is not None:
        return timing.Uniform(*entry.uniform_s)
    if entry.triangular_s is not None:
        return timing.Triangular(*entry.triangular_s)
    if entry.lognormal_s is not None:
        return timing.LogNormal(entry.lognormal_s.p50, entry.lognormal_s.p95)
    if entry.gamma_s is not None:
        return timing.Gamma(entry.gamma_s.mean, entry.gamma_s.sd)
    if entry.weibull_s is not None:
        return timing.Weibull(entry.weibull_s.p50, entry.weibull_s.p95)
    values = entry.empirical_s
    return timing.Empirical(tuple(sorted(measured if isinstance(values, str) else values or ())))


def measurements(text: str, file: str) -> list[float]:
    """The first column of a CSV file, in seconds; a heading, empty lines and those that begin with # are skipped.

    Raises:
        BadInput: no values, or one that is no duration.
    """
    values: list[float] = []
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in rows:
            if not row or not row[0].strip() or row[0].lstrip().startswith("#"):
                continue
            try:
                values.append(units.seconds(row[0]))
            except ValueError as error:
                if rows.line_num > 1:  # the first line may be a heading
                    raise BadInput([Mistake(file, str(error), rows.line_num, 1, got=shown(row[0]))]) from None
    except csv.Error as error:
        raise BadInput([Mistake(file, f"not CSV: {error}", rows.line_num, 1)]) from None
    if not values:
        raise BadInput([Mistake(file, "no measured values")])
    return values


class Bound(NamedTuple):
    """What a limit may be."""

    least: float = 0
    most: float | None = None
    whole: bool = False

    def __str__(self) -> str:
        what = "a whole number, " if self.whole else ""
        return f"must be {what}at least {self.least:g}" + (f" and at most {self.most:g}" if self.most else "")

    def allows(self, value: float) -> bool:
        return (value >= self.least and (self.most is None or value <= self.most)
                and (not self.whole or value == int(value)))


BOUNDS: Mapping[str, Bound] = {
    "workers": Bound(1, 1000, whole=True),
    "requests": Bound(whole=True),
    "retries": Bound(whole=True),
    "share of nodes": Bound(0.01, 1),  # becomes whole percents
    "s": Bound(1),
}
"""By the unit of the default profile's limits; others may be anything from 0."""


def bound(limit: str) -> Bound:
    """What this limit of the default profile may be."""
    return BOUNDS.get(default().limits[limit].unit, Bound())


def wrong(base: Profile, file: TimingFile, measured: Mapping[str, Sequence[float]],
          ) -> Iterator[tuple[tuple[str, ...], str, float | None]]:
    """What the file cannot say over this base: (path, rule, value)."""
    for name, entry in file.operations.items():
        if name not in base.operations:
            why = f", {RETIRED[name]}" if name in RETIRED else _nearest(name, base.operations)
            yield ("operations", name), f"unknown operation{why}", None
        elif name in PERIODS and distribution(entry, measured.get(name, ())).at(LOWEST) < 1e-9:
            yield ("operations", name), "must be longer than 0s: it comes round and round", None
    for name, given in file.limits.items():
        value, below = (given.value, ("value",)) if isinstance(given, LimitEntry) else (given, ())
        if name not in base.limits:
            yield ("limits", name), f"unknown limit{_nearest(name, base.limits)}", None
        elif not bound(name).allows(value):
            yield ("limits", name, *below), str(bound(name)), int(value) if value.is_integer() else value


def merged(base: Profile, file: TimingFile, measured: Mapping[str, Sequence[float]] = MappingProxyType({})) -> Profile:
    """The base with the entries of a file over it that has nothing `wrong`; `measured`: the values of operations whose
    entries name a file of them."""
    operations, limits = dict(base.operations), dict(base.limits)
    for name, entry in file.operations.items():
        old = operations.get(name, Operation(name, timing.Fixed(0)))
        operations[name] = Operation(
            name, distribution(entry, measured.get(name, ())), basis=entry.basis, source=entry.source,
            where=entry.where or old.where,
            fails=old.fails if entry.fails is None else entry.fails,
            shared=old.shared if entry.shared is None else tuple(entry.shared),
            latency=old.latency if entry.latency is None else entry.latency,
        )
    for name, given in file.limits.items():
        new = given if isinstance(given, LimitEntry) else LimitEntry(value=given)
        known = limits.get(name, Limit(name, 0, ""))
        limits[name] = Limit(name, new.value, new.unit or known.unit, new.basis, new.source, new.where or known.where,
                             known.latency if new.latency is None else new.latency)
    return Profile(file.name, operations, limits)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


@lru_cache(maxsize=1)
def default() -> Profile:
    """The profile that ships with the twin."""
    path = Path(__file__).with_name("timing_default.yaml")
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return merged(Profile("", {}), TimingFile.model_validate(data))


def named(name: str) -> Profile:
    """`default` or `fixed`.

    Raises:
        ValueError: another name.
    """
    if name == "default":
        return default()
    if name == "fixed":
        return default().fixed()
    raise ValueError(f"unknown timing profile {name!r}: give default, fixed or a file")
