"""The DPUSet view against the definition: after any history it answers as listing everything anew would."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.provisioning.dpuset_view import DpuSetView, SetDigest, is_unavailable, seeded
from controllers.provisioning.selector import matches
from tests.controllers.stage import SPACE, meta
from twin.model.meta import Condition, Key, Object, replace
from twin.model.names import Label
from twin.model.provisioning import (
    BfbRef,
    Dpu,
    DpuDevice,
    DpuNode,
    DpuSet,
    DpuSetSpec,
    DpuSpec,
    DpuStatus,
    DpuTemplate,
    DpuTemplateSpec,
    LabelSelector,
    TemplateCluster,
)

few = st.sampled_from
spaces = few([SPACE, "other"])
maybe_labels = st.dictionaries(few(["x", "y"]), few(["1", "2"]), max_size=2)


@st.composite
def nodes(draw: Any) -> DpuNode:
    return DpuNode(metadata=meta(draw(few(["n1", "n2", "n3"])), draw(spaces), labels=draw(maybe_labels)))


@st.composite
def devices(draw: Any) -> DpuDevice:
    labels = draw(maybe_labels)
    node = draw(few(["n1", "n2", None]))
    if node is not None:
        labels[Label.DPUNODE_NAME] = node
    return DpuDevice(metadata=meta(draw(few(["d1", "d2", "d3"])), draw(spaces), labels=labels))


@st.composite
def dpus(draw: Any) -> Dpu:
    set_name = draw(few(["s1", "s2", None]))
    labels = {} if set_name is None else {Label.DPUSET_NAME: set_name, Label.DPUSET_NAMESPACE: SPACE}
    ready = draw(few(["True", "False", "Unknown", None]))
    status = None if draw(st.booleans()) and ready is None else DpuStatus(
        phase=draw(few(["", "Pending", "Ready"])),
        conditions=() if ready is None else (Condition(type="Ready", status=ready),))
    return Dpu(
        metadata=meta(draw(few(["d1", "d2", "p"])), draw(spaces), labels=labels,
                      deletion_timestamp=draw(few(["", "2025-05-01T00:00:00Z"]))),
        spec=DpuSpec(dpu_node_name="n1", dpu_device_name=draw(few(["d1", "d2"])), bfb=draw(few(["old", "new"])),
                     dpu_flavor="f"),
        status=status)


@st.composite
def sets(draw: Any) -> DpuSet:
    return DpuSet(metadata=meta(draw(few(["s1", "s2"]))), spec=DpuSetSpec(
        dpu_node_selector=draw(few([None, LabelSelector(match_labels={"x": "1"})])),
        dpu_selector=draw(few([{}, {"y": "1"}])),
        dpu_template=DpuTemplate(spec=DpuTemplateSpec(
            bfb=BfbRef(name=draw(few(["old", "new"]))), dpu_flavor="f",
            cluster=draw(few([None, TemplateCluster(node_labels={"a": "1"})]))))))


kept = st.sets(few(["spec", "status", "labels"]))
changes = st.tuples(st.booleans(), st.one_of(nodes(), devices(), dpus(), dpus(), sets()), kept)


def written(old: Object, new: Object, keep: set[str]) -> Object:
    """The new version as a write leaves it that did not touch these parts: they are the old version's very objects."""
    parts: dict[str, Any] = {part: getattr(old, part) for part in keep & {"spec", "status"} if hasattr(old, part)}
    if "labels" in keep:
        parts["metadata"] = replace(new.metadata, labels=old.metadata.labels)
    return replace(new, **parts)


def defined(store: dict[Any, Object], key: Key) -> dict[str, Any] | None:
    """What a pass over this DPUSet finds by listing everything (provisioning.md 5.1, 5.2)."""
    dpuset = store.get((DpuSet, key))
    if not isinstance(dpuset, DpuSet):
        return None
    spec, template = dpuset.spec, dpuset.spec.dpu_template.spec
    everything = list(store.values())
    chosen = [n.metadata.name for n in everything if isinstance(n, DpuNode) and n.metadata.namespace == SPACE
              and matches(spec.dpu_node_selector, n.metadata.labels)]
    selected = {d.metadata.name for d in everything if isinstance(d, DpuDevice) and d.metadata.namespace == SPACE
                and d.metadata.labels.get(Label.DPUNODE_NAME) in chosen
                and all(d.metadata.labels.get(k) == v for k, v in spec.dpu_selector.items())}
    owned: dict[str, Dpu] = {}
    for d in sorted((o for o in everything if isinstance(o, Dpu)), key=lambda o: o.key):
        if d.metadata.labels.get(Label.DPUSET_NAME) == key.name:
            owned[d.spec.dpu_device_name] = d
    outdated = {n for n, d in owned.items() if d.spec.bfb != template.bfb.name}
    wanted = template.cluster.node_labels if template.cluster is not None else {}
    return {
        "nodes": set(chosen), "selected": selected, "owned": {n: d.key for n, d in owned.items()},
        "missing": selected - set(owned), "unselected": set(owned) - selected,
        "phases": dict(Counter((d.status.phase if d.status else "") or "Initializing" for d in owned.values())),
        "unavailable": sum(map(is_unavailable, owned.values())),
        "outdated_unavailable": {n for n in outdated if is_unavailable(owned[n])},
        "outdated_available": {n for n in outdated if not is_unavailable(owned[n])},
        "unlabelled": {n for n in owned if wanted},
    }


def answered(digest: SetDigest | None) -> dict[str, Any] | None:
    if digest is None:
        return None
    ranked = ("missing", "unselected", "outdated_unavailable", "outdated_available", "unlabelled")
    for name in ranked:
        found = getattr(digest, name)
        assert found == sorted(found)
        assert len(found) == len(set(found))
    return {
        "nodes": set(digest.nodes), "selected": set(digest.selected),
        "owned": {n: d.key for n, d in digest.owned.items()},
        "phases": digest.phases, "unavailable": digest.unavailable,
        **{name: {device for _, device in getattr(digest, name)} for name in ranked},
    }


@settings(max_examples=80, deadline=None)
@given(st.lists(changes, max_size=40))
def test_the_view_answers_as_listing_everything_would_and_tells_when_an_answer_changes(
        history: list[tuple[bool, Object, set[str]]]) -> None:
    view, store = DpuSetView(), dict[Any, Object]()
    keys = [Key(SPACE, "s1"), Key(SPACE, "s2")]
    before = {key: defined(store, key) for key in keys}
    for gone, obj, keep in history:
        at = (type(obj), obj.key)
        old = store.get(at)
        new = None if gone else obj if old is None else written(old, obj, keep)
        if old is None and new is None:
            continue
        if new is None:
            del store[at]
        else:
            store[at] = new
        told = list(view.observe(old, new))
        for key in keys:
            now = defined(store, key)
            assert answered(view.digest(key)) == now
            if now != before[key] and not _only_a_selected_node(before[key], now):
                assert key in told
            before[key] = now


def _only_a_selected_node(was: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    """The DPU standing for a device was replaced by its twin of equal looks: no pass could tell."""
    return was is not None and now is not None and {**was, "owned": 0} == {**now, "owned": 0}


def test_the_same_seed_gives_the_same_class_and_order() -> None:
    assert seeded(7) is seeded(7)
    assert seeded(7) is not seeded(8)

    def order(seed: int) -> list[str]:
        view = seeded(seed)()
        view.observe(None, DpuSet(metadata=meta("s1")))
        view.observe(None, DpuNode(metadata=meta("n")))
        for i in range(20):
            view.observe(None, DpuDevice(metadata=meta(f"d{i}", labels={Label.DPUNODE_NAME: "n"})))
        digest = view.digest(Key(SPACE, "s1"))
        assert digest is not None
        return [name for _, name in digest.missing]

    assert order(7) == order(7)
    assert order(7) != order(8)
    assert sorted(order(7)) == sorted(order(8))
