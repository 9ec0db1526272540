"""The admission webhooks of BFB, DPUSet and DPUFlavor (provisioning.md 1.8, 4.1, 9.2), warts included.

Pure functions of (operation, object, stored object, reader). No webhook exists for DPU, DPUNode, DPUDevice, DPUCluster.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from twin.model.gojson import BOOL, MAP, STRING, DecodeError, Field, IntOrString, List, Scalar, Struct, roundtrip
from twin.model.meta import Object
from twin.model.parts import quantity
from twin.model.provisioning import Bfb, Dpu, DpuFlavor, DpuSet
from twin.runtime.webhook import Denied, Json, Lister, Webhook

POWER_CYCLE: Final = "provisioning.dpu.nvidia.com/host-power-cycle-required"
PANIC: Final = "panic: runtime error: invalid memory address or nil pointer dereference [recovered]"
POINTER: Final = "0xc000000000"  # upstream: webhook-prints-a-pointer. Any address will do.

# --- DPUSet as upstream's Go type

_TAINT: Final = Struct("Taint", "v1.Taint", {
    "key": Field(STRING, True), "value": Field(STRING), "effect": Field(Scalar(str, "v1.TaintEffect"), True),
    "timeAdded": Field(STRING),
})
_NODE_EFFECT: Final = Struct("NodeEffect", "v1alpha1.NodeEffect", {
    "taint": Field(_TAINT), "noEffect": Field(BOOL), "customLabel": Field(MAP), "drain": Field(BOOL),
    "customAction": Field(STRING, pointer=True), "hold": Field(BOOL),
})
_REQUIREMENT: Final = Struct("LabelSelectorRequirement", "v1.LabelSelectorRequirement", {
    "key": Field(STRING, True), "operator": Field(Scalar(str, "v1.LabelSelectorOperator"), True),
    "values": Field(List(STRING, "[]string")),
})
_SELECTOR: Final = Struct("LabelSelector", "v1.LabelSelector", {
    "matchLabels": Field(MAP), "matchExpressions": Field(List(_REQUIREMENT, "[]v1.LabelSelectorRequirement")),
})
_STRATEGY: Final = Struct("DPUSetStrategy", "v1alpha1.DPUSetStrategy", {
    "type": Field(Scalar(str, "v1alpha1.StrategyType")),
    "rollingUpdate": Field(Struct("RollingUpdateDPU", "v1alpha1.RollingUpdateDPU", {
        "maxUnavailable": Field(IntOrString(), pointer=True),
    })),
})
_TEMPLATE_SPEC: Final = Struct("DPUTemplateSpec", "v1alpha1.DPUTemplateSpec", {
    "bfb": Field(Struct("BFBReference", "v1alpha1.BFBReference", {"name": Field(STRING)}), True),
    "nodeEffect": Field(_NODE_EFFECT),
    "cluster": Field(Struct("ClusterSpec", "v1alpha1.ClusterSpec", {"nodeLabels": Field(MAP)})),
    "dpuFlavor": Field(STRING, True),
})
_DPUSET_SPEC: Final = Struct("DPUSetSpec", "v1alpha1.DPUSetSpec", {
    "strategy": Field(_STRATEGY),
    "dpuNodeSelector": Field(_SELECTOR),
    "dpuSelector": Field(MAP),
    "dpuTemplate": Field(Struct("DPUTemplate", "v1alpha1.DPUTemplate", {
        "annotations": Field(MAP), "spec": Field(_TEMPLATE_SPEC, True),
    }), True),
})
_DPUSET: Final = Struct("DPUSet", "v1alpha1.DPUSet", {"spec": Field(_DPUSET_SPEC, True)})


def default_dpuset(operation: str, obj: Json, old: Json | None, reader: Lister) -> Json:
    """strategy absent: OnDelete; RollingUpdate without parameters: maxUnavailable 1; nodeEffect absent: noEffect.

    The CRD's default (drain) has been filled in before wherever `dpuTemplate.spec` is present (provisioning.md 1.8).
    """
    try:
        spec = roundtrip(_DPUSET, {"spec": obj.get("spec")})["spec"]
    except DecodeError as error:
        raise Denied(str(error), code=400) from None
    strategy = spec.get("strategy")
    if strategy is None:
        spec["strategy"] = {"type": "OnDelete"}
    elif strategy.get("type") == "RollingUpdate" and "rollingUpdate" not in strategy:
        strategy["rollingUpdate"] = {"maxUnavailable": 1}
    spec["dpuTemplate"]["spec"].setdefault("nodeEffect", {"noEffect": True})
    return {**obj, "spec": spec}


def validate_dpuset(operation: str, obj: Json, old: Json | None, reader: Lister) -> Json:
    """maxUnavailable in range; at CREATE the power-cycle annotation is a boolean. Both in one 422."""
    spec = obj.get("spec", {})
    errors = _strategy_errors(spec.get("strategy") or {})
    if operation == "CREATE":
        errors += _annotation_errors(spec.get("dpuTemplate", {}).get("annotations") or {})
    if errors:
        name = obj.get("metadata", {}).get("name", "")
        text = errors[0] if len(errors) == 1 else f"[{', '.join(errors)}]"
        raise Denied(f'DPUSet.provisioning.dpu.nvidia.com "{name}" is invalid: {text}', 422, "Invalid")
    return obj


def _strategy_errors(strategy: Json) -> list[str]:
    if strategy.get("type") != "RollingUpdate":
        return []
    value = (strategy.get("rollingUpdate") or {}).get("maxUnavailable")
    if value is None:
        raise Denied(PANIC, code=500)  # upstream: empty-rolling-update-panics
    problem = _out_of_range(value)
    if not problem:
        return []
    dump = f'v1alpha1.DPUSetStrategy{{Type:"RollingUpdate", RollingUpdate:(*v1alpha1.RollingUpdateDPU)({POINTER})}}'
    return [f"spec.strategy: Invalid value: {dump}: {problem}"]


def _out_of_range(value: int | str) -> str:
    """What is wrong with this maxUnavailable; '' if nothing. An int has no upper limit."""
    if isinstance(value, int):
        return "" if value > 0 else "the value range of maxUnavailable must be greater 0"
    if not value.endswith("%"):
        return "invalid value for IntOrString: invalid type: string is not a percentage"
    number = value[:-1]
    if not number.lstrip("+-").isdecimal() or len(number) - len(number.lstrip("+-")) > 1:
        return (f'invalid value for IntOrString: invalid value "{value}": '
                f'strconv.Atoi: parsing "{number}": invalid syntax')
    if not 0 < int(number) <= 100:
        return "the value range of maxUnavailable must be greater than 0% and less than or equal to 100%"
    return ""


_GO_BOOLS: Final = ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")


def _annotation_errors(annotations: Json) -> list[str]:
    value = annotations.get(POWER_CYCLE)
    if value is None or value in _GO_BOOLS:
        return []
    # upstream: annotation-error-misplaced
    path = f"spec.dpu_template.annotations.{POWER_CYCLE}"
    return [f'{path}: Invalid value: "": invalid value "{value}" for "{POWER_CYCLE}"']


# --- BFB


def validate_bfb(operation: str, obj: Json, old: Json | None, reader: Lister) -> Json:
    """Deletion is refused while a DPUSet of any namespace names the BFB."""
    if operation != "DELETE":
        return obj
    meta = obj.get("metadata", {})
    sets = [s.metadata.name for s in reader.list(DpuSet) if s.spec.dpu_template.spec.bfb.name == meta.get("name")]
    _refuse_while_named("DPUSet", sets)
    # upstream: bfb-guard-compares-dpu-name
    _refuse_while_named("DPU", [d.metadata.name for d in reader.list(Dpu) if d.metadata.name == meta.get("name")])
    return obj


def _refuse_while_named(kind: str, names: list[str]) -> None:
    if names:
        raise Denied(f"being referred to by {kind}(s) [{' '.join(names)}], you must delete the {kind}(s) first",
                     403, "Forbidden")


# --- DPUFlavor


def validate_dpuflavor(operation: str, obj: Json, old: Json | None, reader: Lister) -> Json:
    """CREATE: one nvconfig element for all devices, reserved resources within the DPU's. DELETE: nobody names it."""
    if operation == "DELETE":
        _unused(obj.get("metadata", {}), reader)
    elif operation == "CREATE":
        spec = obj.get("spec") or {}
        _nvconfig(spec.get("nvconfig") or [])
        _resources(spec.get("dpuResources"), spec.get("systemReservedResources"))
    return obj


def _unused(meta: Json, reader: Lister) -> None:
    namespace, name = meta.get("namespace"), meta.get("name")
    _refuse_while_named("DPUSet", [s.metadata.name for s in reader.list(DpuSet, namespace)
                                   if s.spec.dpu_template.spec.dpu_flavor == name])
    _refuse_while_named("DPU", [d.metadata.name for d in reader.list(Dpu, namespace) if d.spec.dpu_flavor == name])


def _nvconfig(elements: list[Json]) -> None:
    if len(elements) > 1:
        raise Denied("there must be at most one element in nvconfig, "
                     "and the element applies to all devices on a host", 403, "Forbidden")
    if elements and elements[0].get("device", "*") != "*":
        raise Denied('nvconfig[*].device must be "*"', 403, "Forbidden")


def _resources(total: Json | None, reserved: Json | None) -> None:
    if reserved is None:
        return
    if total is None:
        raise _misconfigured(
            "spec.systemReservedResources must not be specified if spec.dpuResources are not specified")
    needed = []
    for name in sorted(reserved, reverse=True):  # Upstream's order is Go's, random.
        want, form = quantity(reserved[name])
        have = quantity(total[name])[0] if name in total else Decimal(0)
        if want > have:
            needed.append(f"{name}: {quantity_text(want - have, form)}")
    if needed:
        raise _misconfigured(
            "reserved resource specified in spec.systemReservedResources exceed the ones defined in spec.dpuResources: "
            f"Additional resources needed in spec.dpuResources: [{' '.join(needed)}]")


def _misconfigured(text: str) -> Denied:
    return Denied(f"resources are misconfigured: {text}", 400, "BadRequest")


_BINARY: Final = (("Ei", 2**60), ("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
_DECIMAL: Final = (("E", 10**18), ("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))


def quantity_text(value: Decimal, form: str) -> str:
    """A positive quantity in Kubernetes' canonical form: the largest suffix that leaves an integer."""
    if value != value.to_integral_value():
        return f"{int(value * 1000)}m"
    for suffix, size in _BINARY if form == "BinarySI" else _DECIMAL:
        if value % size == 0:
            return f"{int(value // size)}{suffix}"
    return str(int(value))


# --- the configuration


def _path(verb: str, kind: type[Object]) -> str:
    return f"/{verb}-provisioning-dpu-nvidia-com-v1alpha1-{kind.KIND.lower()}"


def _validating(kind: type[Object], operations: tuple[str, ...], decide: Any) -> Webhook:
    return Webhook(f"v{kind.KIND.lower()}.kb.io", _path("validate", kind), kind, operations, False, decide)


WEBHOOKS: Final = (
    Webhook("mdpuset.kb.io", _path("mutate", DpuSet), DpuSet, ("CREATE", "UPDATE"), True, default_dpuset),
    _validating(DpuSet, ("CREATE", "UPDATE"), validate_dpuset),
    _validating(Bfb, ("CREATE", "UPDATE", "DELETE"), validate_bfb),
    _validating(DpuFlavor, ("CREATE", "UPDATE", "DELETE"), validate_dpuflavor),
)
