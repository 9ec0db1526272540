"""What a write changes in the server's own text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.backends.kube_merge import full_manifest, overlay
from twin.model.meta import ObjectMeta
from twin.model.provisioning import Dpu, DpuSpec, DpuStatus

JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(0, 3), st.sampled_from(["a", "b"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)),
    max_leaves=8)
OBJECT = st.dictionaries(st.sampled_from("pqr"), JSON, max_size=3)


@given(base=OBJECT, new=OBJECT)
def test_what_is_modelled_whole_becomes_what_was_given(base: Any, new: Any) -> None:
    assert overlay(base, base, new) == new


@given(base=OBJECT)
def test_without_a_difference_nothing_changes(base: Any) -> None:
    stored = {**base, "unknown": {"kept": 1}}
    assert overlay(stored, base, base) == stored


@pytest.mark.parametrize(("stored", "base", "new", "after"), [
    ({"a": 1, "u": 1}, {"a": 1}, {"a": 2}, {"a": 2, "u": 1}),
    ({"a": 1, "u": 1}, {"a": 1}, {}, {"u": 1}),
    ({"part": {"u": 1}}, {}, {"part": {"a": 1}}, {"part": {"u": 1, "a": 1}}),
    ({"l": [{"type": "A", "u": 1}, {"type": "B", "u": 2}]}, {"l": [{"type": "A"}, {"type": "B"}]},
     {"l": [{"type": "B", "x": 1}, {"type": "A"}]}, {"l": [{"type": "B", "u": 2, "x": 1}, {"type": "A", "u": 1}]}),
    ({"l": [{"type": "A", "u": 1}]}, {"l": [{"type": "A"}]}, {"l": [{"type": "C"}]}, {"l": [{"type": "C"}]}),
    ({"l": [{"n": 1, "u": 1}, {"n": 2, "u": 2}]}, {"l": [{"n": 1}, {"n": 2}]}, {"l": [{"n": 2}]},
     {"l": [{"n": 2, "u": 2}]}),
], ids=["a field", "a field that goes", "a part that seemed absent", "list elements move and change",
        "another element", "an element that goes"])
def test_fields_that_are_not_modelled_stay_with_their_element(stored: Any, base: Any, new: Any, after: Any) -> None:
    assert overlay(stored, base, new) == after


def test_a_default_that_was_decoded_and_one_that_was_constructed_look_the_same() -> None:
    import msgspec
    spec = DpuSpec(dpu_node_name="n", dpu_device_name="d", bfb="b")
    made = Dpu(metadata=ObjectMeta(name="x"), spec=spec, status=DpuStatus())
    read = msgspec.json.decode(b'{"metadata":{"name":"x"},"spec":{"dpuNodeName":"n","dpuDeviceName":"d","bfb":"b"},'
                               b'"status":{"phase":"Initializing"}}', type=Dpu)
    assert full_manifest(made)["status"] == full_manifest(read)["status"] == {"phase": "Initializing"}
