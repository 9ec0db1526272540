"""Bad input to `live` and `lab`: one clear line, exit 2 (wrong) or 3 (a real part is missing), nothing half done.

Kubeconfigs, permissions and flags against a lab that runs are in test_live.py; here is what goes wrong without one, and
what needs an API server of its own to be wrong.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from lab_parts import missing, need_clusters, need_root

import twin.backends.lab.lab
from api.cli import call
from api.lab import neighbour_crds
from twin.backends.base import DmsTarget, RpcError
from twin.backends.dms import LiveDms
from twin.backends.kube import LiveKube, install_crds, open_cluster
from twin.backends.lab import binaries
from twin.backends.lab.certificates import authority, issue, kubeconfig
from twin.backends.lab.control_plane import ControlPlane, ControlPlanes
from twin.backends.lab.lab import Lab
from twin.backends.lab.processes import Processes
from twin.model.kinds import KINDS
from twin.model.meta import Key
from twin.model.provisioning import Bfb
from twin.model.schema import crd, has_crd

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def dpf_twin(*words: str) -> tuple[int, list[str]]:
    """Exit code and the lines on stderr; stdout stays empty."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("KUBECONFIG", "")
        patch.setattr(sys, "stdin", StringIO())
        code = call(list(words))
    assert out.getvalue() == ""
    return code, err.getvalue().splitlines()


def refused(*words: str, code: int) -> str:
    """The one line it says."""
    got, lines = dpf_twin(*words)
    assert (got, len(lines)) == (code, 1), lines
    return lines[0]


# --- the lab


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A lab's folder; afterwards nothing of a lab may be left."""
    yield tmp_path / "lab"
    lab = Lab(tmp_path / "lab")
    assert not list(lab.processes.marked())
    assert not lab.namespaces.existing()


def up(folder: Path, *words: str) -> tuple[str, ...]:
    return ("lab", "up", "-q", "--dir", str(folder), "--hosts", "1", *words)


def test_without_go_and_programs_the_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    if shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin"):
        code = "from twin.backends.lab import binaries\nbinaries.find_go = lambda: None\n"
    else:
        code = ""
    code += f"from api.cli import call\nimport sys; sys.exit(call({list(up(folder, '--no-netns'))!r}))"
    (tmp_path / "bin").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={
        "PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3
    assert line.startswith("etcd, kube-apiserver, kube-controller-manager, kubectl: not found, and no Go 1.24 or newer")
    assert not folder.exists()


def test_without_root_the_flag_that_needs_none_is_named(tmp_path: Path) -> None:
    need_root("to become somebody else needs")
    code = "import os\nos.geteuid = lambda: 65534\nfrom api.cli import call\nimport sys\nsys.exit(call(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *up(tmp_path / "lab")], capture_output=True, text=True, cwd=ROOT)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3
    assert "not root; run as root, or `lab up --no-netns`" in line
    assert not (tmp_path / "lab").exists()


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small file system; the parameter is mount's size."""
    need_root("mounts need")
    folder = Path(tempfile.mkdtemp(prefix="dpf-twin-test-"))
    words = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        folder.rmdir()
        missing("this machine allows no mounts")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.mark.parametrize("disk", ["1m"], indirect=True)
def test_too_small_a_disk_is_told_before_anything_starts(disk: Path) -> None:
    assert refused(*up(disk / "lab", "--no-netns"), code=2) == (
        f"1 MiB are free in {disk / 'lab'}, a lab needs 256: free some, or choose another --dir")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("disk", ["20m"], indirect=True)
def test_a_disk_that_fills_up_is_one_line_and_nothing_stays(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd finds no room for its log and dies with a stack trace; the line names the reason."""
    need_clusters()
    monkeypatch.setattr(twin.backends.lab.lab, "NEEDED_BYTES", 0)
    line = refused(*up(disk / "lab", "--no-netns"), code=2)
    assert line == f"no space left in {disk / 'lab'}: free some, or choose another --dir"
    assert list(disk.iterdir()) == []
    assert not list(Processes(disk / "lab").marked())


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = refused(*up(tmp_path / "file" / "lab", "--no-netns"), code=2)
    assert told == f"--dir: must be a folder that can be written: not a directory (got {tmp_path / 'file' / 'lab'})"


def test_a_half_dead_lab_is_named_with_the_way_out_and_down_removes_it(folder: Path) -> None:
    processes = Processes(folder)
    processes.start("etcd", ["sleep", "1000"])
    (folder / ".dpf-twin-lab").touch()
    line = refused(*up(folder, "--no-netns"), code=2)
    assert line == f"a broken lab is in {folder}: run `dpf-twin lab down` first"
    assert processes.pid("etcd") is not None, "up touches nothing of it"
    assert refused("live", "--lab", "--dir", str(folder), code=3) == (
        f"live: the lab in {folder} is broken: run `dpf-twin lab down` and `dpf-twin lab up`")
    assert dpf_twin("lab", "down", "-q", "--dir", str(folder)) == (0, [])
    assert not folder.exists()
    assert dpf_twin("lab", "down", "-q", "--dir", str(folder)) == (0, []), "down may be repeated"


@pytest.mark.parametrize(("words", "says"), [
    (("--hosts", "0"), "--hosts"), (("--dpus-per-host", "9"), "--dpus-per-host"), (("--speed", "-1"), "--speed"),
    (("--seed", "-1"), "--seed: must be greater than or equal to 0"),
    (("--seed", str(2**63)), "--seed: must be less than 9223372036854775808"),
    (("--fleet", "none.yaml"), "none.yaml"), (("--timing", "none"), "none"), (("-o", "xml"), "-o: must be one of"),
])
def test_a_wrong_flag_of_lab_up_is_one_line(folder: Path, words: tuple[str, str], says: str) -> None:
    assert says in refused("lab", "up", "--dir", str(folder), "--no-netns", *words, code=2)
    assert not folder.exists()


# --- live


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with the CRDs of an installation, and the CRD of BFBs in another version only."""
    need_clusters()
    folder = tmp_path_factory.mktemp("plane")
    processes = Processes(folder)
    try:
        plane = ControlPlanes(folder, processes, binaries.ensure()).start("host", controllers=())
        cluster = open_cluster(Path(plane.kubeconfig), qps=0)
        crds = [crd(kind) for kind in KINDS.values() if has_crd(kind) and kind is not Bfb] + neighbour_crds()
        older = json.loads(json.dumps(crd(Bfb)).replace("v1alpha1", "v1alpha0"))
        install_crds(LiveKube(cluster), [*crds, older])
        cluster.close()
        yield plane
    finally:
        assert processes.stop_all() == []


def live(config: Path, tmp_path: Path, *words: str, code: int) -> str:
    return refused("live", "--kubeconfig", str(config), "--volume", str(tmp_path), *words, code=code)


def test_crds_of_another_version_are_named_with_the_way_to_install_ours(plane: ControlPlane, tmp_path: Path) -> None:
    assert live(Path(plane.kubeconfig), tmp_path, "--yes", code=2) == (
        f"{plane.server}: CustomResourceDefinitions missing or of another version: "
        "bfbs.provisioning.dpu.nvidia.com (v1alpha1); install ours with "
        "`dpf-twin crd | kubectl apply --server-side -f -`")


def test_every_wrong_kubeconfig_is_one_line(plane: ControlPlane, tmp_path: Path) -> None:
    ca = Path(plane.ca_file).read_text()
    from twin.backends.lab.certificates import Pair
    signer = Pair(ca, (Path(plane.ca_file).with_suffix(".key")).read_text())
    texts = {
        "binary": "\x00\x01", "list": "- a\n", "tabs": "a:\n\tb: 1\n", "no-user": kubeconfig(
            "x", plane.server, ca, "u", issue(signer, "u")).replace("user: u", "user: nobody"),
        "expired": kubeconfig("x", plane.server, ca, "u", issue(signer, "u", expired=True)),
        "stranger": kubeconfig("x", plane.server, ca, "u", issue(authority("other"), "u")),
        "half": Path(plane.kubeconfig).read_text()[:400],
    }
    for name, text in texts.items():
        config = tmp_path / name
        config.write_text(text)
        line = live(config, tmp_path, "--yes", code=2)
        assert str(config) in line or plane.server in line, (name, line)
    assert "the server does not know us" in live(tmp_path / "expired", tmp_path, "--yes", code=2)
    assert "no such file" in live(tmp_path / "none", tmp_path, code=2)
    assert "is a directory" in live(tmp_path, tmp_path, code=2)


@pytest.fixture(scope="module")
def whole(plane: ControlPlane) -> ControlPlane:
    """The same with our CRD of BFBs."""
    cluster = open_cluster(Path(plane.kubeconfig), qps=0)
    cluster.connection.request("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
                                         f"{Bfb.PLURAL}.{Bfb.GROUP}")
    install_again(LiveKube(cluster))
    cluster.close()
    return plane


def install_again(kube: LiveKube) -> None:
    import time

    from twin.backends.base import ApiError
    deadline = time.monotonic() + 90
    while True:
        try:
            install_crds(kube, [crd(Bfb)])
            return
        except ApiError:  # the old one is still being deleted
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_without_permission_the_verbs_and_resources_are_named(whole: ControlPlane, tmp_path: Path) -> None:
    from twin.backends.lab.certificates import Pair
    ca = Pair(Path(whole.ca_file).read_text(), Path(whole.ca_file).with_suffix(".key").read_text())
    config = tmp_path / "nobody"
    config.write_text(kubeconfig("x", whole.server, ca.certificate, "nobody", issue(ca, "nobody")))
    line = live(config, tmp_path, "--yes", code=2)
    assert line.startswith(f"{whole.server}: no permission to get bfbs.provisioning.dpu.nvidia.com, list bfbs.")
    assert line.endswith("deploy/rbac.yaml grants what is needed")


def test_a_port_that_is_taken_is_one_line_and_nothing_was_begun(whole: ControlPlane, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--listen", "--webhooks"):
            code, lines = dpf_twin("live", "--kubeconfig", whole.kubeconfig, "--volume", str(tmp_path), "--yes", flag,
                                   address)
            assert (code, lines[-1]) == (2, f"{flag}: {address}: address already in use")
    cluster = open_cluster(Path(whole.kubeconfig), qps=0)
    for path in ("/apis/coordination.k8s.io/v1/namespaces/dpf-operator-system/leases",
                 "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"):
        assert b"dpf-twin" not in cluster.connection.request("GET", path)
    cluster.close()


# --- DMS


def test_a_dms_with_the_wrong_authority_is_named_as_upstream_names_it() -> None:
    import base64

    from twin.backends.lab.dms_emulator import DmsServer
    ours, theirs = authority("ours"), authority("theirs")
    client = issue(ours, "client")
    secret = {"tls.crt": client.certificate, "tls.key": client.key, "ca.crt": ours.certificate}
    data = {name: base64.b64encode(text.encode()).decode() for name, text in secret.items()}
    server = DmsServer("h", "127.77.0.1", cast(Any, None),  # no call gets that far
                       lambda: (issue(theirs, "h", addresses=("127.77.0.1",)), theirs.certificate))
    server.start()
    dms = LiveDms(lambda key: data)
    try:
        with pytest.raises(RpcError, match=r"authentication handshake failed: tls: failed to verify certificate: x509: "
                                           r"certificate signed by unknown authority"):
            dms.get(DmsTarget("127.77.0.1", 9339, Key("ns", "client")), "uptime -s")
    finally:
        dms.close()
        server.stop()
