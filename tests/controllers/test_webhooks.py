"""The webhooks of BFB, DPUSet and DPUFlavor, called as the API server calls them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from controllers.provisioning.webhooks import (
    PANIC,
    POWER_CYCLE,
    WEBHOOKS,
    default_dpuset,
    quantity_text,
    validate_bfb,
    validate_dpuflavor,
    validate_dpuset,
)
from twin.model.meta import ObjectMeta
from twin.model.provisioning import BfbRef, Dpu, DpuSet, DpuSetSpec, DpuSpec, DpuTemplate, DpuTemplateSpec
from twin.runtime.webhook import Denied

Json = dict[str, Any]


class Store:
    """A reader over a few objects."""

    def __init__(self, *objects: Any) -> None:
        self.objects = objects

    def list(self, kind: Any, namespace: str | None = None) -> list[Any]:
        return [o for o in self.objects
                if isinstance(o, kind) and namespace in (None, o.metadata.namespace)]


def dpuset(name: str, namespace: str = "n", bfb: str = "b", flavor: str = "f") -> DpuSet:
    spec = DpuTemplateSpec(bfb=BfbRef(name=bfb), dpu_flavor=flavor)
    return DpuSet(metadata=ObjectMeta(name=name, namespace=namespace), spec=DpuSetSpec(
        dpu_template=DpuTemplate(spec=spec)))


def dpu(name: str, flavor: str = "f") -> Dpu:
    return Dpu(metadata=ObjectMeta(name=name, namespace="n"),
               spec=DpuSpec(dpu_node_name="n", dpu_device_name="d", bfb="b", dpu_flavor=flavor))


def rolling(value: Any) -> Json:
    return {"metadata": {"name": "a"}, "spec": {"strategy": {
        "type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": value}}}}


def refusal(call: Any) -> Denied:
    with pytest.raises(Denied) as denied:
        call()
    return denied.value


# --- DPUSet: defaults


def default(spec: Json) -> Json:
    out: Json = default_dpuset("CREATE", {"spec": spec}, None, Store())["spec"]
    return out


def test_without_a_template_the_webhooks_own_node_effect_wins() -> None:
    assert default({}) == {"strategy": {"type": "OnDelete"}, "dpuTemplate": {"spec": {
        "bfb": {}, "dpuFlavor": "", "nodeEffect": {"noEffect": True}}}}


def test_a_node_effect_that_the_crd_filled_in_stays() -> None:
    spec = {"dpuTemplate": {"spec": {"bfb": {"name": "b"}, "dpuFlavor": "f", "nodeEffect": {"drain": True}}}}
    assert default(spec)["dpuTemplate"] == spec["dpuTemplate"]


def test_a_rolling_update_without_parameters_takes_one_at_a_time() -> None:
    assert default({"strategy": {"type": "RollingUpdate"}})["strategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert default({"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}})["strategy"]["rollingUpdate"] == {}
    assert "rollingUpdate" not in default({"strategy": {"type": "OnDelete"}})["strategy"]


@pytest.mark.parametrize(("spec", "message"), [
    ({"strategy": {"rollingUpdate": {"maxUnavailable": 1.5}}},
     "number 1.5 into Go struct field RollingUpdateDPU.spec.strategy.rollingUpdate.maxUnavailable of type int32"),
    ({"dpuSelector": {"a": 1}}, "number into Go struct field DPUSetSpec.spec.dpuSelector of type string"),
    ({"dpuTemplate": {"spec": {"bfb": "x"}}},
     "string into Go struct field DPUTemplateSpec.spec.dpuTemplate.spec.bfb of type v1alpha1.BFBReference"),
    ({"dpuTemplate": {"spec": {"nodeEffect": {"drain": "yes"}}}},
     "string into Go struct field NodeEffect.spec.dpuTemplate.spec.nodeEffect.drain of type bool"),
])
def test_what_go_cannot_decode_is_refused_before_the_schema_is_looked_at(spec: Json, message: str) -> None:
    no = refusal(lambda: default(spec))
    assert (no.code, no.reason, str(no)) == (400, "", f"json: cannot unmarshal {message}")


def test_empty_fields_come_back_as_go_writes_them() -> None:
    out = default({"dpuSelector": {}, "dpuTemplate": {"annotations": {}, "spec": {
        "bfb": {"name": ""}, "nodeEffect": {"customAction": "", "drain": None}, "cluster": {"nodeLabels": {}}}}})
    assert out == {"strategy": {"type": "OnDelete"}, "dpuTemplate": {"spec": {
        "bfb": {}, "dpuFlavor": "", "nodeEffect": {"customAction": ""}, "cluster": {}}}}


# --- DPUSet: validation


@pytest.mark.parametrize("value", [1, 100000, "1%", "100%", "+5%"])
def test_a_budget_above_nothing_is_accepted(value: Any) -> None:
    assert validate_dpuset("CREATE", rolling(value), None, Store())


@pytest.mark.parametrize(("value", "text"), [
    (0, "the value range of maxUnavailable must be greater 0"),
    (-1, "the value range of maxUnavailable must be greater 0"),
    ("0%", "must be greater than 0% and less than or equal to 100%"),
    ("101%", "must be greater than 0% and less than or equal to 100%"),
    ("50", "invalid value for IntOrString: invalid type: string is not a percentage"),
    ("", "invalid value for IntOrString: invalid type: string is not a percentage"),
    ("0.5%", 'invalid value for IntOrString: invalid value "0.5%": strconv.Atoi: parsing "0.5": invalid syntax'),
    ("%", 'invalid value for IntOrString: invalid value "%": strconv.Atoi: parsing "": invalid syntax'),
])
def test_a_budget_of_nothing_or_nonsense_is_refused(value: Any, text: str) -> None:
    no = refusal(lambda: validate_dpuset("UPDATE", rolling(value), None, Store()))
    assert (no.code, no.reason) == (422, "Invalid")
    assert str(no).startswith('DPUSet.provisioning.dpu.nvidia.com "a" is invalid: spec.strategy: Invalid value: ')
    assert str(no).endswith(text)


def test_a_rolling_update_without_value_makes_the_webhook_panic() -> None:
    no = refusal(lambda: validate_dpuset("UPDATE", rolling(None), None, Store()))
    assert (no.code, no.reason, str(no)) == (500, "", PANIC)


def test_ondelete_is_not_looked_at() -> None:
    obj = {"spec": {"strategy": {"type": "OnDelete", "rollingUpdate": {"maxUnavailable": 0}}}}
    assert validate_dpuset("CREATE", obj, None, Store()) is obj


def test_the_power_cycle_annotation_is_checked_at_creation_only_and_told_with_the_budget() -> None:
    obj = rolling(0)
    obj["spec"]["dpuTemplate"] = {"annotations": {POWER_CYCLE: "maybe"}}
    no = str(refusal(lambda: validate_dpuset("CREATE", obj, None, Store())))
    assert f'spec.dpu_template.annotations.{POWER_CYCLE}: Invalid value: "": invalid value "maybe" for' in no
    assert "greater 0, spec.dpu_template" in no
    assert POWER_CYCLE not in str(refusal(lambda: validate_dpuset("UPDATE", obj, None, Store())))


# --- deletion guards


def delete(name: str) -> Json:
    return {"metadata": {"name": name, "namespace": "n"}}


def test_a_bfb_is_kept_by_a_dpuset_of_any_namespace() -> None:
    no = refusal(lambda: validate_bfb("DELETE", delete("b"), None, Store(dpuset("x", "other"), dpuset("y", bfb="c"))))
    assert (no.code, str(no)) == (
        403, "being referred to by DPUSet(s) [x], you must delete the DPUSet(s) first")


def test_a_dpu_that_uses_a_bfb_does_not_keep_it_but_one_of_its_name_does() -> None:
    assert validate_bfb("DELETE", delete("b"), None, Store(dpu("d")))
    no = refusal(lambda: validate_bfb("DELETE", delete("d"), None, Store(dpu("d"))))
    assert "being referred to by DPU(s) [d]" in str(no)


def test_a_flavor_is_kept_by_dpusets_and_dpus_of_its_namespace() -> None:
    assert validate_dpuflavor("DELETE", delete("f"), None, Store(dpuset("x", "other")))
    store = Store(dpuset("x"), dpuset("z"), dpu("d"))
    assert "DPUSet(s) [x z]" in str(refusal(lambda: validate_dpuflavor("DELETE", delete("f"), None, store)))
    assert "DPU(s) [d]" in str(refusal(lambda: validate_dpuflavor("DELETE", delete("f"), None, Store(dpu("d")))))


# --- DPUFlavor


def flavor(**spec: Any) -> Denied:
    return refusal(lambda: validate_dpuflavor("CREATE", {"spec": spec}, None, Store()))


def test_one_nvconfig_for_all_devices() -> None:
    assert validate_dpuflavor("CREATE", {"spec": {"nvconfig": [{"parameters": []}]}}, None, Store())
    assert flavor(nvconfig=[{}, {}]).code == 403
    assert str(flavor(nvconfig=[{"device": "p0"}])) == 'nvconfig[*].device must be "*"'


def test_reserved_resources_fit_into_what_the_dpu_has() -> None:
    good = {"dpuResources": {"cpu": 16, "memory": "32Gi"}, "systemReservedResources": {"cpu": "1500m"}}
    assert validate_dpuflavor("CREATE", {"spec": good}, None, Store())
    no = flavor(dpuResources={"cpu": "1", "memory": "8Gi"}, systemReservedResources={"cpu": "1500m", "memory": "9Gi"})
    assert (no.code, no.reason) == (400, "BadRequest")
    assert str(no).endswith("Additional resources needed in spec.dpuResources: [memory: 1Gi cpu: 500m]")
    assert "must not be specified if spec.dpuResources are not specified" in str(flavor(systemReservedResources={}))


@pytest.mark.parametrize(("value", "form", "text"), [
    (Decimal(2**30), "BinarySI", "1Gi"), (Decimal(2**30 + 1), "BinarySI", "1073741825"),
    (Decimal(1500), "DecimalSI", "1500"), (Decimal(2000), "DecimalSI", "2k"), (Decimal("0.25"), "DecimalSI", "250m"),
])
def test_a_quantity_is_written_with_the_largest_suffix_that_fits(value: Decimal, form: str, text: str) -> None:
    assert quantity_text(value, form) == text


def test_kinds_without_rules_of_their_own_have_no_webhook() -> None:
    assert [hook.name for hook in WEBHOOKS] == ["mdpuset.kb.io", "vdpuset.kb.io", "vbfb.kb.io", "vdpuflavor.kb.io"]
    assert WEBHOOKS[0].path == "/mutate-provisioning-dpu-nvidia-com-v1alpha1-dpuset"
