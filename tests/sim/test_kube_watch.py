"""Lists in pages, watches with their history, and selectors."""

from __future__ import annotations

import pytest

from tests.sim.api import SPACE, Api, config, key
from twin.backends.base import ApiError, Gone
from twin.model.core import ConfigMap, Pod, PodSpec, PodStatus
from twin.model.meta import ObjectMeta, replace
from twin.model.provisioning import Dpu
from twin.sim.selectors import field_selector, label_selector
from twin.sim.status import status_body
from twin.sim.watch import INITIAL_EVENTS_END, ApiWatch


def seen(watch: ApiWatch) -> list[tuple[str, str, int]]:
    return [(e.type, e.object.metadata.name, e.resource_version) for e in watch.take()]


# --- watches


def test_a_watch_from_a_list_sees_each_later_change_once_and_in_order() -> None:
    api = Api(lag_ns=5)
    a = api.create(config("a"))
    page = api.server.list_page(ConfigMap)
    b = api.create(config("b"))
    a2 = api.update(replace(a, data={"x": "1"}))
    api.delete(b)
    watch = api.server.watch(ConfigMap, page.resource_version)
    api.run()
    rv = int(page.resource_version)
    assert seen(watch) == [("ADDED", "b", rv + 1), ("MODIFIED", "a", rv + 2), ("DELETED", "b", rv + 3)]
    api.delete(a2)
    assert seen(watch) == []
    api.run()
    assert seen(watch) == [("DELETED", "a", rv + 4)]


def test_a_watch_from_nowhere_begins_with_what_there_is() -> None:
    api = Api()
    api.create(config("b"))
    api.create(config("a"))
    watch = api.server.watch(ConfigMap, initial_events=True)
    *objects, mark = watch.take()
    assert [(e.type, e.object.metadata.name) for e in objects] == [("ADDED", "a"), ("ADDED", "b")]
    assert (mark.type, mark.resource_version) == ("BOOKMARK", api.server.resource_version)
    assert mark.object.metadata.annotations == {INITIAL_EVENTS_END: "true"}


def test_events_come_after_the_lag_and_in_order_of_versions_whenever_writes_are_metered() -> None:
    api = Api(lag_ns=100)
    watch = api.server.watch(ConfigMap)
    api.server.create(config("late"), "me", 50)
    api.server.create(config("early"), "me", 10)
    api.env.run(149)
    assert seen(watch) == []
    api.env.run(151)
    assert [name for _, name, _ in seen(watch)] == ["late", "early"]


def test_a_version_that_is_forgotten_is_gone_and_one_not_reached_times_out() -> None:
    api = Api(window=(3, 10**18))
    first = api.server.list_page(ConfigMap).resource_version
    obj = api.create(config("a"))
    for n in range(4):
        obj = api.update(replace(obj, data={"n": str(n)}))
    with pytest.raises(Gone) as gone:
        api.server.watch(ConfigMap, first)
    assert (gone.value.code, gone.value.reason) == (410, "Expired")
    assert str(gone.value) == f"too old resource version: {first} ({int(first) + 2})"
    assert len(api.server.watch(ConfigMap, str(int(first) + 2))._history.since(int(first) + 2)) == 3
    with pytest.raises(ApiError) as ahead:
        api.server.watch(ConfigMap, "999")
    assert status_body(ahead.value)["message"] == "Timeout: Too large resource version: 999, current: 7"
    assert (ahead.value.code, ahead.value.reason) == (504, "Timeout")
    with pytest.raises(ApiError, match='resourceVersion: Invalid value: "abc": strconv'):
        api.server.watch(ConfigMap, "abc")


def test_changes_older_than_the_window_are_forgotten() -> None:
    api = Api(window=(1000, 60 * 10**9))
    first = api.server.list_page(ConfigMap).resource_version
    api.create(config("a"))
    api.run(61)
    api.create(config("b"))
    with pytest.raises(Gone):
        api.server.watch(ConfigMap, first)


def test_through_a_selector_objects_come_and_go_as_they_begin_and_cease_to_match() -> None:
    api = Api()
    obj = api.create(config("a", labels={"rack": "1"}))
    watch = api.server.watch(ConfigMap, api.server.list_page(ConfigMap).resource_version, labels="rack=2")
    obj = api.update(replace(obj, metadata=replace(obj.metadata, labels={"rack": "2"})))
    obj = api.update(replace(obj, data={"x": "1"}))
    obj = api.update(replace(obj, metadata=replace(obj.metadata, labels={})))
    api.delete(obj)
    api.run()
    events = watch.take()
    assert [e.type for e in events] == ["ADDED", "MODIFIED", "DELETED"]
    assert events[2].object.metadata.labels == {"rack": "2"}
    assert events[2].resource_version == int(obj.metadata.resource_version)


def test_coalescing_merges_what_was_not_taken_and_keeps_the_last_state() -> None:
    api = Api()
    kept = api.create(config("kept"))
    watch = api.server.watch(ConfigMap, api.server.list_page(ConfigMap).resource_version, coalesce=True)
    for n in range(5):
        kept = api.update(replace(kept, data={"n": str(n)}))
    fleeting = api.create(config("fleeting"))
    api.delete(fleeting)
    api.run()
    (event,) = watch.take()
    assert (event.type, event.object) == ("MODIFIED", kept)
    api.delete(kept)
    again = api.create(config("kept"))
    api.run()
    assert [(e.type, e.object.metadata.uid) for e in watch.take()] == [
        ("DELETED", kept.metadata.uid), ("ADDED", again.metadata.uid)]


def test_bookmarks_tell_once_a_minute_how_far_a_watch_is_and_end_with_it() -> None:
    api = Api()
    watch = api.server.watch(ConfigMap, bookmarks=True)
    api.create(config("a"))
    api.run(121)
    events = watch.take()
    assert [e.type for e in events] == ["ADDED", "BOOKMARK", "BOOKMARK"]
    assert events[-1].resource_version == api.server.resource_version
    watch.stop()
    api.create(config("b"))
    api.run(300)
    assert watch.take() == []


# --- lists


def test_pages_show_the_moment_of_the_first_page() -> None:
    api = Api()
    for name in "dacb":
        api.create(config(name))
    first = api.server.list_page(ConfigMap, limit=3)
    assert ([o.metadata.name for o in first.items], first.remaining) == (["a", "b", "c"], 1)
    api.delete(config("d"))
    api.create(config("e"))
    second = api.server.list_page(ConfigMap, limit=3, token=first.token)
    assert ([o.metadata.name for o in second.items], second.token) == (["d"], "")
    assert second.resource_version == first.resource_version


def test_a_list_of_exactly_one_page_has_no_second() -> None:
    api = Api()
    api.create(config("a"))
    page = api.server.list_page(ConfigMap, limit=1)
    assert (len(page.items), page.token, page.remaining) == (1, "", None)


def test_a_token_is_gone_after_five_minutes_and_the_answer_says_how_to_go_on_without_consistency() -> None:
    api = Api()
    for name in "abc":
        api.create(config(name))
    first = api.server.list_page(ConfigMap, limit=1)
    api.run(301)
    api.delete(config("b"))
    with pytest.raises(Gone, match="The provided continue parameter is too old") as gone:
        api.server.list_page(ConfigMap, limit=1, token=first.token)
    token = status_body(gone.value)["metadata"]["continue"]
    assert [o.metadata.name for o in api.server.list_page(ConfigMap, limit=5, token=token).items] == ["c"]


def test_a_token_nobody_gave_is_a_bad_request() -> None:
    with pytest.raises(ApiError, match="invalid continue token: continue key is not valid") as refused:
        Api().server.list_page(ConfigMap, limit=1, token="xx")
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")


def test_selected_pages_do_not_count_what_remains() -> None:
    api = Api()
    for name in "abc":
        api.create(config(name, labels={"x": "1"}))
    page = api.server.list_page(ConfigMap, limit=1, labels="x")
    assert (page.remaining, bool(page.token)) == (None, True)


# --- selectors


@pytest.mark.parametrize(("text", "matches"), [
    ("", True), ("a=1", True), ("a==1", True), ("a!=1", False), ("b!=1", True), ("a", True), ("b", False),
    ("!b", True), ("! a", False), ("a in (1, 2)", True), ("a in (2)", False), ("a notin (2,3)", True),
    ("b notin (2)", True), ("a=1,b", False), ("a=1,!b,c=", True), ("example.com/x=y", True), (" a = 1 ", True),
])
def test_a_label_selector_selects(text: str, matches: bool) -> None:
    assert label_selector(text)({"a": "1", "c": "", "example.com/x": "y"}) is matches


@pytest.mark.parametrize("text", ["a in (", "a=b c", "=", "a b", "a=1,,b", "-a", "a=_"])
def test_what_is_no_label_selector_is_a_bad_request(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        label_selector(text)
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")


def test_fields_select_by_name_and_what_the_kind_allows() -> None:
    pod = Pod(metadata=ObjectMeta(name="p", namespace="n"), spec=PodSpec(node_name="h1"),
              status=PodStatus(phase="Running"))
    for text, matches in (("metadata.name=p", True), ("metadata.namespace!=n", False), ("spec.nodeName=h1", True),
                          ("status.phase!=Running", False), ("spec.nodeName=h1,status.phase==Running", True),
                          ("spec.restartPolicy=Always", True)):
        assert field_selector(Pod, text)(pod) is matches


@pytest.mark.parametrize(("kind", "text", "message"), [
    (ConfigMap, "spec.x=y", '"spec.x" is not a known field selector: only "metadata.name", "metadata.namespace"'),
    (Dpu, "spec.x=y", "field label not supported: spec.x"),
    (ConfigMap, "metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
])
def test_other_fields_are_refused_in_the_servers_words(kind: type[ConfigMap], text: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        field_selector(kind, text)
    assert str(refused.value) == message


def test_a_collection_is_deleted_as_far_as_it_matches() -> None:
    api = Api()
    for name in "abc":
        api.create(config(name, labels={"x": name}))
    other = api.create(config("a", namespace="two", labels={"x": "a"}))
    gone = api.server.delete_collection(ConfigMap, "me", 0, namespace=SPACE, labels="x in (a,b)")
    assert [o.metadata.name for o in gone] == ["a", "b"]
    assert list(api.server.table(ConfigMap)) == [key("c"), other.key]
