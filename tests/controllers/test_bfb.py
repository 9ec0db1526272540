"""BFB: the phases of provisioning.md 4.1, their events, and what goes wrong with shared files."""

from __future__ import annotations

import pytest

from tests.controllers.stage import SPACE, URL, Stage, meta
from twin.model.meta import Key
from twin.model.names import Finalizer
from twin.model.provisioning import Bfb, BfbSpec
from twin.sim.volume import File

DEFAULT_FILE = f"{SPACE}-b.bfb"
SERVERS = [
    {"name": "bfb", "url": "http://bfb.example.com/", "bandwidth_bytes_per_s": "100MB", "files": {
        "old.bfb": {"size_bytes": 500_000_000, "content": "old",
                    "versions": {"bsp": "4.9.1.1", "doca": "2.9.1", "uefi": "u", "atf": "a"}},
        "new.bfb": {"size_bytes": 1_000_000_000, "content": "new",
                    "versions": {"bsp": "4.10.0.1", "doca": "2.10.0", "uefi": "u", "atf": "a"}},
    }},
]


def stage(**more: object) -> Stage:
    return Stage("bfb", servers=SERVERS, **more)  # type: ignore[arg-type]


def bfb(name: str = "b", url: str = "http://bfb.example.com/old.bfb", file_name: str | None = None) -> Bfb:
    return Bfb(metadata=meta(name), spec=BfbSpec(url=url, file_name=file_name))


def phase(s: Stage, name: str = "b") -> str:
    found = s.the(Bfb, name).status
    return found.phase if found is not None else ""


def test_a_bfb_is_protected_downloaded_and_ready_at_the_first_poll_after_its_download() -> None:
    s = stage()
    s.create(bfb())
    s.run(1)
    found = s.the(Bfb, "b")
    assert found.metadata.finalizers == (Finalizer.BFB,)
    assert found.status is not None
    assert (found.status.phase, found.status.file_name) == ("Downloading", DEFAULT_FILE)
    s.run(3.5)  # 500 MB at 100 MB/s take 5 s; the poll that sees it is the second
    assert phase(s) == "Downloading"
    s.run(6)
    found = s.the(Bfb, "b")
    assert found.status is not None
    assert found.status.phase == "Ready"
    assert found.status.versions is not None
    assert (found.status.versions.bsp, found.status.versions.doca) == ("4.9.1.1", "2.9.1")
    assert list(s.world.volume.files) == [f"/bfb/{DEFAULT_FILE}"]
    assert s.events() == [("Normal", "SuccessfulDownload", f"Download BFB: ({SPACE}/b) successful", 1)]


def test_the_first_pass_adds_the_finalizer_the_second_begins_the_download() -> None:
    s = stage()
    s.create(bfb(file_name="my.bfb"))
    s.run(20)
    assert s.writes("bfb") == ["update BFB/b", "status BFB/b", "status BFB/b"]
    assert s.the(Bfb, "b").status.file_name == "my.bfb"  # type: ignore[union-attr]


def test_a_ready_bfb_costs_no_writes() -> None:
    s = stage()
    s.create(bfb())
    s.run(30)
    before = s.writes("bfb")
    s.run(600)
    assert s.writes("bfb") == before
    s.runner("bfb").settle()
    assert s.runner("bfb").stats.skipped > 100


def test_a_file_that_vanishes_is_downloaded_again() -> None:
    s = stage()
    s.create(bfb())
    s.run(30)
    s.world.volume.put(f"/bfb/{DEFAULT_FILE}", None)
    s.run(5)
    assert phase(s) == "Downloading"
    s.run(15)
    assert phase(s) == "Ready"
    assert s.events()[0][3] == 2


@pytest.mark.parametrize(("url", "trouble"), [
    ("http://bfb.example.com/none.bfb", "404"),
    ("http://elsewhere.example.com/old.bfb", "no such host"),
])
def test_a_failed_download_is_an_event_and_an_error_for_good(url: str, trouble: str) -> None:
    s = stage()
    s.create(bfb(url=url))
    s.run(20)
    assert phase(s) == "Error", trouble
    assert s.events() == [("Warning", "FailedDownload", f"Download BFB: ({SPACE}/b) failed", 1)]
    before = s.runner("bfb").stats.run
    s.run(300)
    assert (phase(s), s.runner("bfb").stats.run) == ("Error", before), "nothing polls a BFB in Error"


def test_a_download_that_breaks_off_ends_in_error() -> None:
    s = stage()
    s.create(bfb())
    s.run(2)
    s.world.volume.server_down("bfb", True)
    s.run(6)
    assert phase(s) == "Error"


def test_an_unreachable_volume_is_an_error_while_downloading_but_not_when_ready() -> None:
    s = stage()
    s.create(bfb())
    s.run(30)
    s.world.volume.outage(True)
    s.run(30)
    assert phase(s) == "Ready"
    s.create(bfb("c"))
    s.run(1)
    assert phase(s, "c") == "Error"
    assert s.events("c") == []


def test_a_bfb_whose_versions_cannot_be_read_stays_downloading_with_an_event_each_poll() -> None:
    s = stage()
    s.world.volume.put(f"/bfb/{DEFAULT_FILE}", File("garbage", 1))
    s.create(bfb())
    s.run(52)
    assert phase(s) == "Downloading"
    (type_, reason, message, count), = s.events()
    assert (type_, reason) == ("Warning", "FailedGetBFBVersion")
    assert message.startswith(f"Failed getting BFB: ({SPACE}/b) versions, err: ")
    assert count == 10


def test_two_bfbs_of_one_file_name_the_second_is_ready_with_the_first_ones_content() -> None:
    s = stage()
    s.create(bfb("a", file_name="same.bfb"))
    s.run(20)
    s.create(bfb("b", url="http://bfb.example.com/new.bfb", file_name="same.bfb"))
    s.run(1)
    assert phase(s, "b") == "Ready"
    assert s.the(Bfb, "b").status.versions.doca == "2.9.1"  # type: ignore[union-attr]


def test_deleting_one_of_two_takes_the_file_and_other_versions_lock_the_second_in_downloading() -> None:
    s = stage()
    s.create(bfb("a", file_name="same.bfb"))
    s.run(20)
    s.create(bfb("b", url="http://bfb.example.com/new.bfb", file_name="same.bfb"))
    s.run(1)
    s.delete(Bfb, "a")
    s.run(60)
    assert s.get(Bfb, "a") is None
    assert phase(s, "b") == "Downloading"
    assert "BSP version is immutable" in s.error_of("bfb", f"{SPACE}/b")
    assert s.events("b")[0][3] > 5, "announced again with each retry"


def test_with_bfb_unique_file_name_the_second_is_refused_and_its_deletion_spares_the_file() -> None:
    s = stage(policies=("bfb-unique-file-name",))
    s.create(bfb("a", file_name="same.bfb"))
    s.run(20)
    s.create(bfb("b", url="http://bfb.example.com/new.bfb", file_name="same.bfb"))
    s.run(1)
    assert phase(s, "b") == "Error"
    assert s.events("b")[0][2] == "spec.fileName 'same.bfb' is already used by BFB 'a'"
    s.delete(Bfb, "b")
    s.run(10)
    assert s.names(Bfb) == ["a"]
    assert phase(s, "a") == "Ready"
    assert list(s.world.volume.files) == ["/bfb/same.bfb"]


@pytest.mark.parametrize("after_s", [0.1, 2.0, 30.0])
def test_a_deleted_bfb_goes_with_its_files_whatever_it_was_doing(after_s: float) -> None:
    s = stage()
    s.create(bfb())
    s.run(after_s)
    s.delete(Bfb, "b")
    s.run(60)
    assert s.names(Bfb) == []
    assert dict(s.world.volume.files) == {}


def test_a_volume_outage_holds_a_deletion_back() -> None:
    s = stage()
    s.create(bfb())
    s.run(30)
    s.world.volume.outage(True)
    s.delete(Bfb, "b")
    s.run(30)
    assert phase(s) == "Deleting"
    assert s.events()[-1][1] == "FailedDelete"
    s.world.volume.outage(False)
    s.run(6)
    assert s.names(Bfb) == []


def test_a_bfb_without_spec_never_gets_its_finalizer_and_says_nothing() -> None:
    s = stage()
    s.world.host_cluster.create_manifest(
        {"apiVersion": "provisioning.dpu.nvidia.com/v1alpha1", "kind": "BFB",
         "metadata": {"name": "b", "namespace": SPACE}}, "test", s.world.env.now)
    s.run(12)
    found = s.the(Bfb, "b")
    assert found.metadata.finalizers == ()
    assert phase(s) == "Initializing"
    assert s.error_of("bfb", f"{SPACE}/b").startswith(
        'failed to add BFB finalizer BFB.provisioning.dpu.nvidia.com "b" is invalid: spec.url: Invalid value: ""')
    s.delete(Bfb, "b")
    assert s.names(Bfb) == []


def test_a_restart_of_the_controller_starts_the_download_over() -> None:
    s = stage()
    s.create(bfb())
    s.run(3)
    manager = s.world.managers["provisioning"]
    manager.stop()
    manager.start()
    s.run(4.5)
    assert f"/bfb/{DEFAULT_FILE}" not in s.world.volume.files, "the first download ended with its process"
    s.run(10)
    assert phase(s) == "Ready"


def test_the_default_url_server_serves_any_file() -> None:
    s = Stage("bfb")
    s.create(bfb(url=URL))
    s.run(60)
    assert phase(s) == "Ready"
    assert s.the(Bfb, "b").key == Key(SPACE, "b")
