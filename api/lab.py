"""`dpf-twin lab up`, `status`, `down`: a fleet on this machine with real parts."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from api.output import Refused, answer, note

if TYPE_CHECKING:
    from twin.backends.lab.lab import Lab
    from twin.model.fleet import Fleet
    from twin.model.timing import Profile

PLAN: Final = "plan.pickle"
REGISTERED_S: Final = 120.0
"""Hosts are there when their Nodes are; a loaded machine takes its time."""


@dataclass(frozen=True, kw_only=True)
class LabRequest:
    """The flags of `lab up`, parsed."""

    folder: str = ""
    hosts: int = 2
    dpus_per_host: int = 1
    speed: float = 1.0
    fleet: str = ""
    timing: str = "default"
    seed: int = 1
    netns: bool = True
    output: str = "table"
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the lab's program is started with; kept in the lab's folder, readable by its owner only."""

    fleet: Fleet
    profile: Profile
    seed: int
    speed: float
    netns: bool


def open_lab(folder: str, *, quiet: bool = True) -> Lab:
    """The lab of this folder (default: the user's). Raises Refused."""
    from twin.backends.lab.lab import Lab, default_folder

    try:
        Path(folder).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # no lab is there
    except OSError as error:
        raise Refused(f"--dir: must be a folder: {(error.strerror or str(error)).lower()} (got {folder})") from error
    return Lab(Path(folder) if folder else default_folder(), say=(lambda line: None) if quiet else note)


def up(request: LabRequest) -> int:
    """Raises: Refused, BadInput, LabError, MissingPart."""
    from scenarios.load import Loader, flag_mistakes
    from twin.model.mistakes import BadInput

    if wrong := flag_mistakes(seed=request.seed):
        raise BadInput(wrong)
    if request.fleet:
        fleet = Loader().fleet(Path(request.fleet))
    else:
        from twin.model import fleet_file

        fleet = fleet_file.from_data({"apiVersion": "dpf-twin/v1", "name": "lab", "generate": {
            "racks": 1, "hosts_per_rack": request.hosts, "dpus_per_host": request.dpus_per_host},
            "image_servers": [{"name": "bfb", "url": "http://bfb.example.com/", "bandwidth_bytes_per_s": "1.25GB"}]})
    lab = open_lab(request.folder, quiet=request.quiet)
    profile = Loader().profile(request.timing, Path(), ())
    start(lab, Plan(fleet=fleet, profile=profile, seed=request.seed, speed=request.speed, netns=request.netns))
    _print(lab.status(), request.output)
    if not request.quiet:
        status = lab.status()
        note(f"try: export KUBECONFIG={status['kubeconfig']}; dpf-twin live --lab --yes"
             + (f" --dir {lab.folder}" if request.folder else "") + "; kubectl apply -f scenarios/manifests/basic/; "
             "kubectl get dpu -A -w")
    return 0


def start(lab: Lab, plan: Plan, *, registered_s: float = REGISTERED_S) -> dict[str, Any]:
    """Bring the lab up and wait until its hosts are registered; nothing is left when that fails.

    Raises: LabError, MissingPart.
    """
    from dataclasses import replace

    from twin.backends.lab.lab import LabError
    from twin.model.kinds import KINDS
    from twin.model.schema import crd, has_crd

    plan = replace(plan, fleet=on_free_loopback(plan.fleet, lab.folder))
    crds = [crd(kind) for kind in KINDS.values() if has_crd(kind)] + neighbour_crds()
    lab.up(plan.fleet, crds, speed=plan.speed, netns=plan.netns, program=lambda lab: _program(lab, plan))
    deadline = time.monotonic() + registered_s
    ready = lab.folder / "ready"
    while not ready.exists():
        if lab.processes.pid("hosts") is None or time.monotonic() > deadline:
            words = lab.processes.last_line("hosts")
            lab.down()
            raise LabError(f"the emulated hosts did not start: {words}")
        time.sleep(0.05)
    return lab.status()


def on_free_loopback(fleet: Fleet, folder: Path) -> Fleet:
    """Each host with a loopback address of its own: 127.1.0.1, 127.1.0.2, ...; labs in folders of their own begin
    elsewhere, so that two that start at once do not meet.

    Raises: LabError when every range is taken.
    """
    from dataclasses import replace

    from twin.backends.lab.control_plane import ensure_free
    from twin.backends.lab.kubelet import PORT
    from twin.backends.lab.lab import LabError, default_folder, on_loopback
    from twin.backends.lab.processes import ProcessFailed
    from twin.model.fleet import DMS_PORT

    usual = on_loopback(fleet)
    first = 1 if folder == default_folder().resolve() else 2 + crc32(str(folder).encode()) % 198
    for second in (first, *range(2, 200)):
        made = replace(usual, hosts=tuple(
            replace(h, ip=h.ip.replace("127.1.", f"127.{second}.", 1)) for h in usual.hosts))
        try:
            ensure_free(DMS_PORT, reserved_address(made))
            for host in made.hosts:
                ensure_free(DMS_PORT, host.ip)
                ensure_free(PORT, host.ip)
            return made
        except ProcessFailed as error:
            taken = str(error)
    raise LabError(f"no loopback addresses are free for the hosts: {taken}")


def reserved_address(fleet: Fleet) -> str:
    """The address a lab's program listens on as long as it runs, so that no other lab takes its hosts' range."""
    return f"127.{fleet.hosts[0].ip.split('.')[1]}.255.254"


def _program(lab: Lab, plan: Plan) -> Sequence[str]:
    from twin.backends.lab.certificates import write_private

    path = write_private(lab.folder / PLAN, "")
    path.write_bytes(pickle.dumps(plan))
    return [sys.executable, "-m", "api.lab_program", str(lab.folder)]


def neighbour_crds() -> list[dict[str, Any]]:
    """CRDs that other operators bring: whatever they hold is theirs, so everything is let through."""
    from twin.model import core

    out = []
    for kind in (core.NodeMaintenance, core.TenantControlPlane, core.Certificate, core.CertificateRequest):
        names = {"kind": kind.KIND, "plural": kind.PLURAL, "singular": kind.KIND.lower(),
                 "listKind": f"{kind.KIND}List"}
        out.append({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind.PLURAL}.{kind.GROUP}"},
            "spec": {"group": kind.GROUP, "names": names, "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
                     "versions": [{"name": kind.VERSION, "served": True, "storage": True, "schema": {
                         "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                         "subresources": {"status": {}}}]}})
    return out


def status(folder: str, output: str) -> int:
    found = open_lab(folder).status()
    _print(found, output)
    return 0 if found["state"] == "running" else 1


def down(folder: str, *, quiet: bool) -> int:
    lab = open_lab(folder)
    left = lab.down()
    if left:
        raise Refused("\n".join(f"lab down: {what} would not go" for what in left))
    if not quiet:
        note(f"nothing is left in {lab.folder}")
    return 0


def _print(found: dict[str, Any], output: str) -> None:
    from api.output import document

    if output in ("json", "yaml"):
        answer(document(found, output))
        return
    lines = [f"state       {found['state']}", f"dir         {found['dir']}"]
    if found["kubeconfig"]:
        lines += [f"kubeconfig  {found['kubeconfig']}", f"kubectl     {found['binaries'].get('kubectl', '')}"]
    lines += [f"DPU cluster {c['name']}  {c['kubeconfig']}" for c in found["dpu_clusters"]]
    lines += [f"host        {h['name']}  DMS {h['dms']}  netns {h['netns'] or '-'}  DPUs {', '.join(h['dpus'])}"
              for h in found["hosts"]]
    if found["pids"]:
        lines.append("pids        " + "  ".join(f"{n}={p}" for n, p in found["pids"].items()))
    answer("\n".join(lines) + "\n")


