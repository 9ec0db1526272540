"""A scenario: what a user writes (`ScenarioFile`) and what a run gets (`Scenario`, everything loaded and checked)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from twin.model.edge import Edge, Seconds
from twin.model.faults import MOMENTS, Fault, Targets
from twin.model.fleet import Fleet
from twin.model.fleet_file import FleetFile
from twin.model.timing import Profile
from twin.model.timing_profile import TimingFile
from twin.model.yamlmarks import Marked

DEFAULT_HORIZON_S = 48 * 3600.0


def _shape(value: Any) -> str:
    return "name" if isinstance(value, str) else "list" if isinstance(value, list | tuple) else "inline"


_BY_SHAPE = Discriminator(_shape)
"""Tells a name from a list from a thing in place, so that a mistake in one is not told as three."""

_NAME_OR_THING = Discriminator(lambda value: "name" if isinstance(value, str) else "inline")

Names = Annotated[Annotated[str, Tag("name")] | Annotated[list[str], Tag("list")], Discriminator(
    lambda value: "name" if isinstance(value, str) else "list")]


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError("must be text, a number, true or false")
    return value


# --- the timeline


class ObjectName(Edge):
    """One object. `apiVersion` is needed only for kinds that the twin does not know."""

    kind: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    namespace: str = Field(default="", description="Empty: `default` for namespaced kinds")
    apiVersion: str = ""
    cluster: str = Field(default="", description="Empty: the host cluster; else namespace/name of a DPUCluster")


class Patch(ObjectName):
    """A change of one object: a JSON merge patch (RFC 7396) or a JSON patch (RFC 6902)."""

    merge: dict[str, Any] | None = None
    json_patch: list[dict[str, Any]] | None = None
    status: bool = Field(default=False, description="Patch the status subresource")

    @model_validator(mode="after")
    def _one_patch(self) -> Patch:
        if (self.merge is None) == (self.json_patch is None):
            raise ValueError("give exactly one of merge, json_patch")
        return self


class Delete(ObjectName):
    """Delete one object as kubectl does, without waiting."""

    propagation: Literal["Background", "Foreground", "Orphan"] = "Background"


class Scale(Edge):
    """From now on the first `hosts` hosts of the fleet are in service, the others are not (their Nodes are removed)."""

    hosts: Annotated[int, Field(ge=0)]


class Cordon(Edge):
    """Nodes are cordoned; with `for`, uncordoned again at the end."""

    node: Targets


class PersonTask(Edge):
    """A person acts `after` (default: the timing profile's operator-response) they see something.

    Either an annotation: wherever objects of the kind carry it (as true, if it has a truth value), it is set to
    `value`, or removed if that is null. Or hosts are rebooted by hand. With `for` the person goes home at the end;
    without, an annotation is looked after until the run ends.
    """

    kind: str = ""
    namespace: str = "*"
    name: Targets = ("*",)
    annotation: str = ""
    value: str | None = None
    reboot: Targets | None = None
    after: Seconds | None = None

    @model_validator(mode="after")
    def _one_task(self) -> PersonTask:
        if bool(self.annotation) == (self.reboot is not None):
            raise ValueError("give exactly one of annotation, reboot")
        if self.annotation and not self.kind:
            raise ValueError("annotation needs the kind of object that carries it")
        return self


ACTIONS = ("patch", "apply", "delete", "scale", "cordon", "operator", "restart", "fault")


class TimelineEntry(Edge):
    """Something that happens: `at` seconds after the start, exactly one action, `for` how long where that has sense."""

    at: Seconds
    for_: Annotated[Seconds | None, Field(alias="for", gt=0)] = None
    patch: Patch | None = None
    apply: Annotated[Annotated[str, Tag("name")] | Annotated[list[str], Tag("list")] | Annotated[
        dict[str, Any], Tag("inline")], _BY_SHAPE] | None = Field(
        default=None, description="Files, folders, globs, or one object in place")
    delete: Delete | None = None
    scale: Scale | None = None
    cordon: Cordon | None = None
    operator: PersonTask | None = None
    restart: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="A controller, a process, or a pattern")
    fault: Fault | None = None

    @model_validator(mode="after")
    def _one_action(self) -> TimelineEntry:
        given = [n for n in ACTIONS if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(ACTIONS)} (got {', '.join(given) or 'none'})")
        if self.for_ is not None:
            if given[0] not in ("fault", "cordon", "operator"):
                raise ValueError(f"{given[0]} happens at a moment: for has no meaning")
            if self.fault is not None and self.fault.kind in MOMENTS:
                raise ValueError(f"{self.fault.kind} happens at a moment: for has no meaning")
        return self


class ScenarioFile(Edge):
    """A story: a fleet, what is applied at the start, what happens later, and what is expected."""

    apiVersion: Literal["dpf-twin/v1"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=100)]
    description: str = ""
    include: Names = Field(
        default=[], description="Other scenario files: their lists come first, their single values give way")
    fleet: Annotated[Annotated[str, Tag("name")] | Annotated[FleetFile, Tag("inline")], _NAME_OR_THING] | None = Field(
        default=None, description="A file, or a fleet in place")
    manifests: Names = Field(default=[], description="Files, folders, globs; applied at 0 s in kubectl order")
    variables: dict[str, Annotated[str | int | float | bool, BeforeValidator(_scalar)]] = Field(
        default={}, description="For $NAME and ${NAME} in manifests")
    timeline: list[TimelineEntry] = []
    timing: Annotated[Annotated[str, Tag("name")] | Annotated[TimingFile, Tag("inline")], _NAME_OR_THING] = Field(
        default="default", description="default, fixed, a file, or a profile in place")
    policies: list[str] = Field(default=[], description="Named fixes of upstream behaviour")
    horizon: Annotated[Seconds, Field(gt=0)] = DEFAULT_HORIZON_S
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    replications: Annotated[int, Field(ge=1, le=100_000)] = 1
    expect: list[str] = Field(default=[], description="CEL over the summary and the final state")


# --- what a run gets


class ObjectId(NamedTuple):
    """What makes an object one: group, kind, namespace, name."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(p for p in (self.kind, self.namespace, self.name) if p)


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """One object to apply, and where it stands. `path` leads to it in the document (items of a List).

    `stock`: not the user's; DPF's own installation brings it along.
    """

    data: Mapping[str, Any]
    id: ObjectId
    doc: Marked
    path: tuple[str | int, ...] = ()
    stock: bool = False

    @property
    def where(self) -> str:
        """FILE:LINE:COL."""
        line, column = self.doc.mark(self.path)
        return f"{self.doc.file}:{line}:{column}"


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """Objects to apply together, in kubectl order."""

    manifests: tuple[Manifest, ...]


Action = Apply | Patch | Delete | Scale | Cordon | PersonTask | str | Any
"""What a step does. A string is the name of a controller to restart; any other record is one of `twin.model.faults`."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An entry of the timeline. `for_s` None: for ever, or a moment. `what` is its key: patch, apply, ..., fault."""

    at_s: float
    what: str
    action: Action
    for_s: float | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything a run needs, loaded and checked. Change a part with `with_(...)`."""

    name: str
    fleet: Fleet
    description: str = ""
    manifests: tuple[Manifest, ...] = ()
    timeline: tuple[Step, ...] = ()
    profile: Profile
    policies: tuple[str, ...] = ()
    horizon_s: float = DEFAULT_HORIZON_S
    seed: int = 1
    replications: int = 1
    expect: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """The variables that manifests named, with their values."""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    """What was read, by a name relative to the common folder: written out, it loads again."""
    warnings: tuple[str, ...] = ()
    source: str = ""
    """The scenario file as the user gave it, '' if there was none."""

    def with_(self, **changes: Any) -> Scenario:
        return replace(self, **changes)
