"""Timing profiles as users write them: names, files and mappings become a complete `Profile`.

A profile file replaces entries of its base; `default` is `timing_default.yaml`, `fixed` is its medians.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from twin.model import timing, units
from twin.model.edge import Edge, Seconds
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


def distribution(entry: OperationEntry, folder: Path) -> Distribution:
    """The frozen distribution of an entry; an empirical file is read relative to `folder`.

    Raises:
        ValueError, OSError: the file of measured values cannot be used.
    """
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
    return timing.Empirical(tuple(sorted(_measured(folder / values) if isinstance(values, str) else values or [])))


def _measured(path: Path) -> list[float]:
    values = []
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            if not row or not row[0].strip() or row[0].lstrip().startswith("#"):
                continue
            try:
                values.append(units.seconds(row[0]))
            except ValueError as error:
                if number > 1:  # the first line may be a heading
                    raise ValueError(f"{path}:{number}: {error} (got {row[0]!r})") from None
    if not values:
        raise ValueError(f"{path}: no measured values")
    return values


def merged(base: Profile, file: TimingFile, folder: Path) -> Profile:
    """The base with the file's entries over it.

    Raises:
        ValueError: an operation or limit the base does not know; the message names the nearest one.
    """
    operations, limits = dict(base.operations), dict(base.limits)
    for name, entry in file.operations.items():
        old = operations.get(name) if base.operations else Operation(name, timing.Fixed(0))
        if old is None:
            why = f", {RETIRED[name]}" if name in RETIRED else _nearest(name, operations)
            raise ValueError(f"operations.{name}: unknown operation{why}")
        operations[name] = Operation(
            name, distribution(entry, folder), basis=entry.basis, source=entry.source, where=entry.where or old.where,
            fails=old.fails if entry.fails is None else entry.fails,
            shared=old.shared if entry.shared is None else tuple(entry.shared),
            latency=old.latency if entry.latency is None else entry.latency,
        )
        if name in PERIODS and operations[name].takes.at(LOWEST) < 1e-9:
            raise ValueError(f"operations.{name}: must be longer than 0s: it comes round and round")
    for name, given in file.limits.items():
        bound = given if isinstance(given, LimitEntry) else LimitEntry(value=given)
        known = limits.get(name) if base.limits else Limit(name, 0, "")
        if known is None:
            raise ValueError(f"limits.{name}: unknown limit{_nearest(name, limits)}")
        limits[name] = Limit(name, bound.value, bound.unit or known.unit, bound.basis, bound.source,
                             bound.where or known.where, known.latency if bound.latency is None else bound.latency)
    return Profile(file.name, operations, limits)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


@lru_cache(maxsize=1)
def default() -> Profile:
    """The profile that ships with the twin."""
    path = Path(__file__).with_name("timing_default.yaml")
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return merged(Profile("", {}), TimingFile.model_validate(data), path.parent)


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
