"""The BFB volume and its image servers, well and in trouble."""

from __future__ import annotations

import pytest

from tests.sim.hardware import BFB, Rig
from twin.backends.base import Operation
from twin.model.device import Image
from twin.model.provisioning import BfbVersions
from twin.sim.runner import Meter
from twin.sim.volume import File, SimVolume

TEMP = "/bfb/bfb-uid"


def get(rig: Rig, name: str = "bf-bundle-3.0.0-135.bfb") -> Operation:
    return rig.files.download(f"{rig.url}/{name}", BFB, TEMP)


def test_a_download_takes_its_size_over_the_narrowest_link_and_ends_in_one_rename() -> None:
    rig = Rig()
    op = get(rig)
    assert (rig.files.exists(TEMP), rig.files.exists(BFB)) == (True, False)
    rig.wait(op)
    assert (rig.files.exists(TEMP), rig.files.exists(BFB)) == (False, True)
    server = rig.fleet.image_servers[0]
    narrowest = min(server.bandwidth_bytes_per_s, rig.fleet.network.controller_bytes_per_s,
                    rig.fleet.volume.bandwidth_bytes_per_s)
    assert rig.env.now_s == pytest.approx(1_500_000_000 / narrowest)


def test_versions_follow_the_image() -> None:
    rig = Rig()
    rig.wait(get(rig))
    assert rig.files.versions(BFB) == {"bsp": "5.0.0.135", "doca": "3.0.0", "uefi": "5.0.0-135",
                                       "atf": "v2.2(release):5.0.0-135"}


@pytest.mark.parametrize(("trouble", "message"), [
    ("unknown", "no such host"), ("down", "connection refused"), ("404", "http status code: 404"),
    ("503", "http status code: 503"), ("nfs", "input/output error")])
def test_a_download_that_cannot_start_fails_and_leaves_nothing(trouble: str, message: str) -> None:
    rig = Rig()
    name = rig.fleet.image_servers[0].name
    url = f"{rig.url}/a.bfb"
    if trouble == "unknown":
        url = "gopher://elsewhere.example.net/a.bfb"
    elif trouble == "down":
        rig.volume.server_down(name, True)
    elif trouble == "nfs":
        rig.volume.outage(True)
    else:
        rig.volume.servers[name].status = int(trouble)
    with pytest.raises(OSError, match=message):
        rig.wait(rig.files.download(url, BFB, TEMP))
    assert rig.volume.files == {}


@pytest.mark.parametrize("trouble", ["server", "nfs"])
def test_a_download_under_way_breaks_with_its_server_or_the_volume(trouble: str) -> None:
    rig = Rig()
    op = get(rig)
    rig.seconds(1)
    if trouble == "server":
        rig.volume.server_down(rig.fleet.image_servers[0].name, True)
    else:
        rig.volume.outage(True)
    assert isinstance(op.error, OSError)
    assert BFB not in rig.volume.files
    assert rig.volume.link.flows == 0


def test_a_checked_download_pays_for_every_byte_once_and_for_the_waits_between() -> None:
    plain, checked = Rig(), Rig()
    plain.wait(get(plain))
    name = checked.fleet.image_servers[0].name
    op = checked.files.download(f"{checked.url}/bf-bundle-3.0.0-135.bfb", BFB, TEMP, checked=True)
    for _ in range(2):
        checked.seconds(2)
        checked.volume.server_down(name, True)
        assert 0 < checked.volume.files[TEMP].size < 1_500_000_000
        checked.volume.server_down(name, False)
    checked.wait(op)
    assert checked.env.now_s == pytest.approx(plain.env.now_s + 1.0 + 2.0, abs=1e-6)
    assert checked.files.exists(BFB)


def test_a_checked_download_gives_up_after_nine_refusals() -> None:
    rig = Rig()
    rig.volume.server_down(rig.fleet.image_servers[0].name, True)
    op = rig.files.download(f"{rig.url}/a.bfb", BFB, TEMP, checked=True)
    with pytest.raises(OSError, match="connection refused"):
        rig.wait(op)
    assert rig.env.now_s == 1 + 2 + 4 + 8 + 16 + 30 + 30 + 30


def test_a_slow_server_takes_that_many_times_as_long() -> None:
    quick, slow = Rig(), Rig()
    bandwidth = quick.fleet.image_servers[0].bandwidth_bytes_per_s
    rest = min(quick.fleet.network.controller_bytes_per_s, quick.fleet.volume.bandwidth_bytes_per_s)
    slow.volume.server_slow(slow.fleet.image_servers[0].name, 50)
    slow.wait(get(slow))
    assert slow.env.now_s == pytest.approx(1_500_000_000 / min(bandwidth / 50, rest))


def test_wrong_content_is_no_image_and_says_so_when_it_is_parsed() -> None:
    rig = Rig()
    rig.volume.servers[rig.fleet.image_servers[0].name].instead = "garbage"
    rig.wait(get(rig))
    with pytest.raises(ValueError, match="not a BFB image"):
        rig.files.versions(BFB)


def test_another_file_instead_has_the_other_files_versions() -> None:
    rig = Rig()
    rig.volume.servers[rig.fleet.image_servers[0].name].instead = "bf-bundle-2.9.1-40.bfb"
    rig.wait(get(rig))
    assert rig.files.versions(BFB)["doca"] == "2.9.1"


def test_a_bsp_below_two_cannot_be_parsed() -> None:
    rig = Rig()
    image = Image("old", 1, BfbVersions(bsp="1.9.0.1", doca="", uefi="", atf=""), "")
    rig.volume.put(BFB, File("old", 1, image))
    with pytest.raises(ValueError, match="invalid BSP version"):
        rig.files.versions(BFB)


def test_every_verb_fails_while_the_volume_is_down_and_works_again_after() -> None:
    rig = Rig()
    rig.files.write("/bfb/a.cfg", b"x")
    rig.volume.outage(True)
    for verb in (lambda: rig.files.exists("/bfb/a.cfg"), lambda: rig.files.remove("/bfb/a.cfg"),
                 lambda: rig.files.write("/bfb/b.cfg", b""), lambda: rig.files.versions(BFB)):
        with pytest.raises(OSError, match="input/output error"):
            verb()
    rig.volume.outage(False)
    assert rig.files.exists("/bfb/a.cfg")
    assert not rig.files.exists("/bfb/b.cfg")


def test_removing_what_is_not_there_is_fine() -> None:
    Rig().files.remove("/bfb/none")


def test_files_differ_when_their_bytes_do() -> None:
    rig = Rig()
    rig.files.write("/bfb/a.cfg", b"x")
    one = rig.volume.read("/bfb/a.cfg")
    rig.files.write("/bfb/a.cfg", b"y")
    assert rig.volume.read("/bfb/a.cfg") != one
    assert rig.volume.read("/bfb/a.cfg").md5 != one.md5
    with pytest.raises(FileNotFoundError, match="no such file"):
        rig.volume.read("/bfb/none")


class _Sleeper:
    """A runner that is told which key is stale."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stale(self, key: str) -> None:
        self.told.append(key)


@pytest.mark.parametrize("change", ["write", "remove", "outage"])
def test_a_pass_that_looked_at_a_file_is_stale_when_it_changes(change: str) -> None:
    rig = Rig()
    rig.files.write("/bfb/a.cfg", b"x")
    rig.meter.reads.clear()
    rig.files.exists("/bfb/a.cfg")
    sleeper = _Sleeper()
    for readers, token in rig.meter.reads:
        readers.setdefault(token, {})[(sleeper, "key")] = None
    other = rig.volume.client(Meter("other"))
    other.write("/bfb/b.cfg", b"x")
    assert sleeper.told == []
    if change == "write":
        other.write("/bfb/a.cfg", b"y")
    elif change == "remove":
        other.remove("/bfb/a.cfg")
    else:
        rig.volume.outage(True)
    assert sleeper.told == ["key"]


def test_a_download_that_is_given_up_frees_its_links() -> None:
    rig = Rig()
    op = get(rig)
    rig.seconds(1)
    op.cancel()
    rig.seconds(100)
    assert BFB not in rig.volume.files
    assert rig.volume.link.flows == 0


# --- a full volume


GB = 1_000_000_000


def small(size_bytes: int) -> Rig:
    rig = Rig()
    rig.volume = SimVolume(rig.env, rig.links, rig.fleet.image_servers, bandwidth_bytes_per_s=1e9,
                           size_bytes=size_bytes)
    rig.files = rig.volume.client(rig.meter)
    return rig


def fetch(rig: Rig, name: str) -> Operation:
    return rig.files.download(f"{rig.url}/{name}.bfb", f"/bfb/{name}.bfb", f"/bfb/bfb-{name}")


def ended(rig: Rig, op: Operation) -> None:
    while not op.finished:
        rig.env.step()


def test_a_download_fails_when_the_volume_is_full_and_its_part_stays() -> None:
    rig = small(GB)
    op = fetch(rig, "a")
    with pytest.raises(OSError, match=r"^write /bfb/bfb-a: no space left on device$"):
        rig.wait(op)
    rate = min(1e9, rig.fleet.image_servers[0].bandwidth_bytes_per_s)
    assert rig.env.now_s == pytest.approx(GB / rate)
    assert {path: file.size for path, file in rig.volume.files.items()} == {"/bfb/bfb-a": pytest.approx(GB, abs=1)}
    assert rig.volume.link.flows == 0


def test_a_file_that_fills_the_volume_to_its_last_byte_fits() -> None:
    rig = small(3 * GB)
    for op in (fetch(rig, "a"), fetch(rig, "b")):
        rig.wait(op)
    assert list(rig.volume.files) == ["/bfb/a.bfb", "/bfb/b.bfb"]


def test_downloads_at_once_fail_together_when_the_room_is_taken() -> None:
    rig = small(2 * GB)
    ops = [fetch(rig, "a"), fetch(rig, "b")]
    rig.seconds(60)
    assert [str(op.error) for op in ops] == [f"write /bfb/bfb-{n}: no space left on device" for n in "ab"]
    assert [file.size for file in rig.volume.files.values()] == [pytest.approx(GB, abs=1)] * 2


def test_the_moment_follows_the_pace_of_the_server() -> None:
    steady, uneven = small(GB), small(GB)
    ops = [fetch(rig, "a") for rig in (steady, uneven)]
    ended(steady, ops[0])
    uneven.seconds(0.1)
    uneven.volume.server_slow("any", 1000)
    uneven.seconds(100)
    assert not ops[1].finished
    uneven.volume.server_slow("any", 1.0)
    ended(uneven, ops[1])
    assert uneven.volume.space.room() == pytest.approx(0, abs=1)
    assert uneven.env.now_s == pytest.approx(100 + steady.env.now_s - 0.1, rel=1e-3)


def test_what_is_removed_makes_room_for_a_download_under_way() -> None:
    rig = small(2 * GB)
    rig.wait(fetch(rig, "a"))
    op = fetch(rig, "b")
    rig.files.remove("/bfb/a.bfb")
    rig.wait(op)
    assert list(rig.volume.files) == ["/bfb/b.bfb"]


def test_a_new_download_frees_what_an_earlier_one_left_and_a_deletion_all() -> None:
    rig = small(GB)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            rig.wait(fetch(rig, "a"))
    assert rig.volume.space.used == pytest.approx(GB, abs=1)
    rig.files.remove("/bfb/bfb-a")
    assert rig.volume.space.used == 0


def test_a_small_file_needs_room_too() -> None:
    rig = small(10)
    rig.files.write("/bfb/a.cfg", b"12345678")
    rig.files.write("/bfb/a.cfg", b"1234567890")
    with pytest.raises(OSError, match=r"^write /bfb/b\.cfg: no space left on device$"):
        rig.files.write("/bfb/b.cfg", b"1")
    assert list(rig.volume.files) == ["/bfb/a.cfg"]


def test_a_checked_download_does_not_try_again_when_the_volume_is_full() -> None:
    rig = small(GB)
    op = rig.files.download(f"{rig.url}/a.bfb", "/bfb/a.bfb", TEMP, checked=True)
    with pytest.raises(OSError, match="no space left"):
        rig.wait(op)
