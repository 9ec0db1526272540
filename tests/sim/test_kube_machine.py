"""The API server as a state machine: whatever is done in whatever order, these rules hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tests.sim.api import SPACE, Api, config, key
from twin.backends.base import AlreadyExists, Conflict, NotFound
from twin.model.core import ConfigMap
from twin.model.meta import Key, Object, replace
from twin.sim.garbage import FOREGROUND, ORPHAN
from twin.sim.watch import ApiWatch

NAMES = st.sampled_from("abcdef")
DATA = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
FINALIZERS = st.sampled_from([(), (), ("example.com/a",), ("example.com/a", "example.com/b")])


class Server(RuleBasedStateMachine):
    """The model: per name what is stored (data, finalizers, is it being deleted), and who owns whom."""

    read = Bundle("read")
    lists = Bundle("lists")

    def __init__(self) -> None:
        super().__init__()
        self.api = Api(lag_ns=10, gc_ns=20)
        self.model: dict[str, dict[str, Any]] = {}
        self.rv = self.api.server.resource_version
        self.told: list[int] = []
        self.watches: list[tuple[ApiWatch, dict[Key, Object]]] = []
        self.api.server.observers.setdefault(ConfigMap, []).append(self._observe)

    @initialize()
    def watch_from_the_start(self) -> None:
        self._watch({}, str(self.api.server.list_page(ConfigMap).resource_version), False)

    def _observe(self, old: Object | None, new: Object | None, at_ns: int) -> None:
        obj = new or old
        assert obj is not None
        self.told.append(int(obj.metadata.resource_version))
        if new is None:  # the collector removes without being asked here
            self.model.pop(obj.metadata.name, None)
        elif (known := self.model.get(obj.metadata.name)) is not None:
            known["finalizers"], known["deleting"] = new.metadata.finalizers, new.deleting

    def _watch(self, known: dict[Key, Object], since: str, coalesce: bool) -> None:
        self.watches.append((self.api.server.watch(ConfigMap, since, coalesce=coalesce), known))

    # --- what clients do

    @rule(target=read, name=NAMES, data=DATA, finalizers=FINALIZERS, owner=st.one_of(st.none(), st.integers(0, 3)),
          block=st.booleans())
    def create(self, name: str, data: dict[str, str], finalizers: tuple[str, ...], owner: int | None,
               block: bool) -> Any:
        stored = list(self.api.server.table(ConfigMap).values())
        refs = (stored[owner % len(stored)].owner_reference(block=block),) if stored and owner is not None else ()
        before = self.api.server.resource_version
        wanted = config(name, data, finalizers=finalizers, owner_references=refs)
        if name in self.model:
            with pytest.raises(AlreadyExists):
                self.api.create(wanted)
            assert self.api.server.resource_version == before
            return self.api.server.get(ConfigMap, key(name))
        made = self.api.create(wanted)
        assert made.metadata.resource_version == str(before + 1)
        self.model[name] = {"data": data, "finalizers": finalizers, "deleting": False}
        return made

    @rule(target=read, name=NAMES)
    def get(self, name: str) -> Any:
        try:
            found = self.api.server.get(ConfigMap, key(name))
        except NotFound:
            assert name not in self.model
            return None
        assert found.data == self.model[name]["data"]
        return found

    @rule(target=read, old=read, data=DATA, keep=st.booleans())
    def update(self, old: ConfigMap | None, data: dict[str, str], keep: bool) -> Any:
        """A read object with other data, and perhaps without its finalizers: current or stale."""
        if old is None:
            return None
        name = old.metadata.name
        stored = self.api.server.find(ConfigMap, key(name))
        finalizers = old.metadata.finalizers if keep else tuple(
            f for f in old.metadata.finalizers if f in (FOREGROUND, ORPHAN))
        wanted = replace(old, data=data, metadata=replace(old.metadata, finalizers=finalizers))
        if stored is None or stored.metadata.resource_version != old.metadata.resource_version:
            with pytest.raises((Conflict, NotFound)):
                self.api.update(wanted)
            return old
        self.model[name]["data"] = data
        return self.api.update(wanted)

    @rule(target=read, name=NAMES, value=st.sampled_from(["1", "2", None]), way=st.sampled_from(["merge", "json"]))
    def patch(self, name: str, value: str | None, way: str) -> Any:
        server = self.api.server
        if name not in self.model:
            with pytest.raises(NotFound):
                server.patch(ConfigMap, key(name), {}, "me", self.api.env.now)
            return None
        expected = {**self.model[name]["data"], "x": value}
        if value is None:
            del expected["x"]
        self.model[name]["data"] = expected
        if way == "merge":
            done: Any = server.patch(ConfigMap, key(name), {"data": {"x": value}}, "me", self.api.env.now)
        else:
            done = server.json_patch(ConfigMap, key(name), [{"op": "add", "path": "/data", "value": expected}], "me",
                                     self.api.env.now)
        assert done.data == expected
        return done

    @rule(name=NAMES, propagation=st.sampled_from(["Background", "Foreground", "Orphan"]), stale=st.booleans())
    def delete(self, name: str, propagation: str, stale: bool) -> None:
        obj = config(name)
        if name not in self.model:
            with pytest.raises(NotFound):
                self.api.delete(obj)
            return
        if stale:
            with pytest.raises(Conflict):
                self.api.delete(obj, uid="another")
            return
        others = [f for f in self.model[name]["finalizers"] if f not in (FOREGROUND, ORPHAN)]
        self.api.delete(obj, propagation=propagation)
        assert (self.api.now(obj) is None) is (not others and propagation == "Background")

    @rule(which=st.integers(0, 3), propagation=st.sampled_from(["Background", "Foreground"]))
    def delete_one_there_is(self, which: int, propagation: str) -> None:
        names = list(self.model)
        if names:
            self.delete(names[which % len(names)], propagation, False)

    @rule(target=lists)
    def list(self) -> tuple[str, dict[Key, Object]]:
        page = self.api.server.list_page(ConfigMap)
        return page.resource_version, {o.key: o for o in page.items}

    @rule(listed=consumes(lists), coalesce=st.booleans())
    def watch(self, listed: tuple[str, dict[Key, Object]], coalesce: bool) -> None:
        self._watch(dict(listed[1]), listed[0], coalesce)

    @rule(ns=st.sampled_from([1, 15, 100]))
    def wait(self, ns: int) -> None:
        self.api.env.run(self.api.env.now + ns)

    # --- what holds

    @invariant()
    def versions_only_grow_and_each_belongs_to_one_change(self) -> None:
        assert self.told == sorted(set(self.told))
        assert self.api.server.resource_version >= self.rv
        self.rv = self.api.server.resource_version

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        stored = self.api.server.table(ConfigMap)
        assert {k.name: o.data for k, o in stored.items()} == {n: m["data"] for n, m in self.model.items()}  # type: ignore[attr-defined]
        assert all(k.namespace == SPACE for k in stored)
        assert all(o.metadata.finalizers for o in stored.values() if o.deleting)

    def teardown(self) -> None:
        self.api.run()
        stored = self.api.server.table(ConfigMap)
        uids = {o.metadata.uid: o for o in stored.values()}
        for obj in stored.values():
            refs = obj.metadata.owner_references
            assert obj.deleting or not refs or any(r.uid in uids for r in refs), "a dependent outlived its owners"
            assert ORPHAN not in obj.metadata.finalizers
            if FOREGROUND in obj.metadata.finalizers:
                assert any(r.uid == obj.metadata.uid and r.block_owner_deletion
                           for o in stored.values() for r in o.metadata.owner_references)
        for watch, known in self.watches:
            self._replay(watch, known)
            assert known == stored

    def _replay(self, watch: ApiWatch, known: dict[Key, Object]) -> None:
        """The events, applied to the list the watch began from, give the store."""
        last = 0
        for event in watch.take():
            assert event.resource_version > last
            last = event.resource_version
            assert (event.object.key in known) is (event.type != "ADDED")
            if event.type == "DELETED":
                del known[event.object.key]
            else:
                known[event.object.key] = event.object


TestServer = pytest.mark.slow(Server.TestCase)
TestServer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestQuickly(Server.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=6, stateful_step_count=15, deadline=None, derandomize=True)
