"""The lab's image servers, downloaded from by the live volume through the environment's proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twin.backends.base import Operation
from twin.backends.bfb import LiveVolume
from twin.backends.lab.image_server import GARBAGE, ImageProxy
from twin.model import bfb_image, fleet_file

URL = "http://bfb.example.com/bf-bundle-3.0.0-135.bfb"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageProxy]:
    fleet = fleet_file.from_data({
        "apiVersion": "dpf-twin/v1", "name": "f", "generate": {"racks": 1, "hosts_per_rack": 1},
        "image_servers": [{"name": "bfb", "url": "http://bfb.example.com/", "bandwidth_bytes_per_s": 1.25e9}]})
    proxy = ImageProxy(fleet, speed=10_000)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    yield proxy
    proxy.close()


@pytest.fixture(name="volume")
def _volume(tmp_path: Path) -> Iterator[LiveVolume]:
    volume = LiveVolume(tmp_path)
    yield volume
    volume.close()


def fetched(volume: LiveVolume, url: str) -> Operation:
    op = volume.download(url, "/bfb/a.bfb", "/bfb/temp")
    deadline = time.monotonic() + 90
    while not op.finished:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return op


def test_a_scenarios_url_delivers_an_image_with_the_versions_of_its_name(volume: LiveVolume, proxy: ImageProxy) -> None:
    assert fetched(volume, URL).error is None
    assert volume.versions("/bfb/a.bfb")["doca"] == "3.0.0"
    with (volume.folder / "a.bfb").open("rb") as file:
        bfb_image.check(file)
        assert bfb_image.firmware_of(file)


def test_troubles_show_as_upstream_words_them(volume: LiveVolume, proxy: ImageProxy) -> None:
    proxy.status["bfb"] = 503
    assert str(fetched(volume, URL).error) == f"failed to download {URL}, http status code: 503"
    proxy.status.clear()
    proxy.instead["bfb"] = GARBAGE
    assert fetched(volume, URL).error is None
    with pytest.raises(ValueError, match=r"BFB image|header"):
        volume.versions("/bfb/a.bfb")
    proxy.instead.clear()
    proxy.down["bfb"] = None
    assert fetched(volume, URL).error is not None


def test_a_download_takes_the_time_of_the_nominal_file(volume: LiveVolume, proxy: ImageProxy) -> None:
    proxy._paced = lambda server: 3000.0  # at 10,000 times the speed
    started = time.monotonic()
    assert fetched(volume, URL).error is None
    assert time.monotonic() - started >= 0.3


@pytest.mark.slow
def test_a_slow_server_takes_so_many_times_as_long_and_another_file_comes_under_the_asked_name(
        volume: LiveVolume, proxy: ImageProxy) -> None:
    proxy._paced = lambda server: 100.0
    proxy.slow["bfb"] = 30.0
    started = time.monotonic()
    assert fetched(volume, URL).error is None
    assert time.monotonic() - started >= 0.3
    proxy.slow.clear()
    proxy.instead["bfb"] = "bf-bundle-2.9.1-40.bfb"
    assert fetched(volume, URL).error is None
    assert volume.versions("/bfb/a.bfb")["doca"] == "2.9.1"


@pytest.mark.slow
def test_a_server_that_goes_down_breaks_off_what_it_is_sending(volume: LiveVolume, proxy: ImageProxy) -> None:
    proxy._paced = lambda server: 600_000.0  # a minute, at this speed
    op = volume.download(URL, "/bfb/a.bfb", "/bfb/temp")
    deadline = time.monotonic() + 30
    while not (volume.folder / "temp").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    proxy.down["bfb"] = None
    while not op.finished:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert str(op.error) == f'Get "{URL}": read tcp: connection reset by peer'
