"""deploy/: the image's inputs, the manifests applied to a real API server, and a rollout done with that role only."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_parts import missing, need_clusters

from api.live import Config, Live
from api.live_check import NEEDS
from api.rehearse_lab import LabStory
from deploy.rules import LIBRARY, UNREACHED, Seen, derived, observe, unreached, yaml_of
from scenarios.load import load_scenario
from twin.backends.base import Settings
from twin.backends.kube import LiveKube
from twin.runtime.lease import Rules

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SPACE = "dpf-operator-system"
PACKAGES = ("twin", "controllers", "scenarios", "api", "reports")


# --- the image


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, rest in lines]


def context(root: Path) -> set[str]:
    """The files a builder sends: everything but what Dockerfile.dockerignore keeps out; the last match counts."""
    rules = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
             if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        kept = True
        for rule in rules:
            pattern = rule.removeprefix("!").replace("**/", "*/")
            names = [path, *(str(p) for p in Path(path).parents if str(p) != ".")]
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                kept = rule.startswith("!")
        return kept

    tops = (*PACKAGES, "tests", "docs", "deploy")
    found = (Path(folder, name).relative_to(root).as_posix() for top in tops
             for folder, _, names in os.walk(root / top) for name in names)
    return {p for p in (*found, *(p.name for p in root.iterdir() if p.is_file())) if sent(p)}


def copied() -> list[str]:
    """What the build stage takes out of the context."""
    return [source for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")
            for source in rest.split()[:-1]]


def tracked() -> set[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        missing("not a git checkout: nothing says which files belong")
    return {p for p in done.stdout.splitlines() if (ROOT / p).exists()}


def test_every_base_is_pinned_to_a_patch_release_and_a_distribution() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base) for base in bases), bases
    assert len(set(bases)) == 1, "the venv links to its interpreter"


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    last = max(i for i, (word, _) in enumerate(instructions()) if word == "FROM")
    stage = instructions()[last:]
    (user,) = [rest for word, rest in stage if word == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "Kubernetes can check runAsNonRoot only on numbers"
    assert [word for word, _ in stage][-1] == "ENTRYPOINT", "nothing runs as somebody else after USER"
    deployed = pod()["securityContext"]
    assert user == f"{deployed['runAsUser']}:{deployed['runAsGroup']}"


def test_no_secret_and_nothing_unpinned_enters_the_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"(?i)password|secret|token|api_?key|BEGIN|index-url|trusted-host", text)
    assert all(word not in ("ADD", "ARG") for word, _ in instructions())
    (install,) = [rest for word, rest in instructions() if word == "RUN"]
    assert "-c constraints.txt" in install
    sent = context(ROOT)
    assert not [p for p in sent if re.search(r"(?i)\.(key|pem|crt|p12|kubeconfig|env)$", p)]


def test_the_build_context_is_what_the_image_is_built_from() -> None:
    everything, known = context(ROOT), tracked()
    sent = everything & known
    wanted = {p for p in known for source in copied() if p == source or p.startswith(f"{source}/")}
    assert sent == wanted
    assert not [p for p in everything if p.startswith(("tests/", "docs/", "deploy/", "reports/out/", ".git"))]


@pytest.mark.slow
def test_the_wheel_built_from_that_context_holds_every_module_and_runs_without_the_checkout(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for path in sorted(context(ROOT) & tracked()):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps",
                    "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)], check=True,
                   capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = {n for n in packed.namelist() if ".dist-info/" not in n}
        packed.extractall(tmp_path / "site")
    wanted = {p for p in tracked() if p.startswith(tuple(f"{p}/" for p in PACKAGES))}
    assert names == {p for p in wanted if not p.endswith((".md", ".gitignore"))}
    said = subprocess.run([sys.executable, "-m", "api.cli", "crd", "bfb"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, check=True).stdout
    assert "bfbs.provisioning.dpu.nvidia.com" in said


# --- the manifests


def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    return [doc for name in names for doc in yaml.safe_load_all((DEPLOY / name).read_text())]


def pod() -> dict[str, Any]:
    (deployment,) = [m for m in manifests() if m["kind"] == "Deployment"]
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def test_the_pod_is_restricted_and_writes_only_to_the_volume_and_tmp() -> None:
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod()["volumes"]}
    assert volumes[mounts["/bfb"]]["persistentVolumeClaim"]["claimName"] == "bfb-pvc"
    assert "emptyDir" in volumes[mounts["/tmp"]]
    assert not pod().get("hostNetwork")


def test_the_pods_arguments_are_flags_of_live_and_its_ports_are_those_it_serves() -> None:
    import typer

    from api.cli import app

    (container,) = pod()["containers"]
    verb, *words = container["args"]
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    known = {o for p in command.params for o in p.opts}
    assert [w for w in words if w.startswith("--") and w not in known] == []
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert words[words.index("--listen") + 1] == f"0.0.0.0:{ports['metrics']}"
    assert words[words.index("--webhooks") + 1] == f"0.0.0.0:{ports['webhooks']}"
    assert {container[f"{p}Probe"]["httpGet"]["path"] for p in ("startup", "liveness", "readiness")} == {
        "/healthz", "/readyz"}
    services = {m["metadata"]["name"]: m["spec"] for m in manifests() if m["kind"] == "Service"}
    assert services["dpf-twin-webhooks"]["ports"][0]["port"] == 443, "as the webhook configurations say"


# --- the role


@pytest.fixture(scope="module")
def seen() -> Seen:
    return observe(sorted(LIBRARY.glob("*.yaml")))


@pytest.mark.slow
def test_the_role_is_what_the_controllers_were_seen_to_need(seen: Seen) -> None:
    assert unreached(seen) == set(UNREACHED), "a write that no scenario reaches must be listed, one that is must not"
    needed = derived(seen)
    assert {(g, r): frozenset(verbs) for g, r, verbs in NEEDS} == needed
    (role,) = [m for m in manifests() if m["kind"] == "ClusterRole" and m["metadata"]["name"] == "dpf-twin"]
    assert role["rules"] == yaml.safe_load(yaml_of(needed)), "paste what `python -m deploy.rules` prints"


class InCluster(LabStory):
    """The lab, with `live` as the service account of deploy/ and nothing else."""

    codes: Counter[int]
    refused: list[str]

    def _process(self) -> Live:
        self.codes, self.refused = Counter(), []
        status = self.lab.status()
        admin = [status["binaries"]["kubectl"], "--kubeconfig", status["kubeconfig"]]

        def kubectl(*words: str) -> str:
            done = subprocess.run([*admin, *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        kubectl("apply", "-f", str(DEPLOY / "namespace.yaml"))
        applied = kubectl("apply", "-k", str(DEPLOY))
        assert len(applied.splitlines()) == len(manifests())
        assert kubectl("apply", "-k", str(DEPLOY)).count("unchanged") == len(manifests())
        text = yaml.safe_load(Path(status["kubeconfig"]).read_text())
        token = kubectl("create", "token", "dpf-twin", "-n", SPACE).strip()
        text["users"] = [{"name": text["users"][0]["name"], "user": {"token": token}}]
        account = self.lab.folder / "account.kubeconfig"
        account.write_text(yaml.safe_dump(text))
        live = Live(Config(kubeconfig=account, settings=self.settings, volume=self.lab.folder / "bfb",
                           identity="pod", lead=True, rules=Rules(), fleet=self._plan.fleet), self.log)
        live.requests.append(self._heard)
        from api.live_check import check_access, check_crds, others, plan_words
        check_crds(live.lease_cluster)
        check_access(live.lease_cluster, live.config)
        live.prepare()
        assert others(live) == ""
        assert any("may drain" in line for line in plan_words(live, False))
        live.recorder = self.recorder
        return live

    @property
    def kube(self) -> LiveKube:
        """What the user does is the admin's."""
        assert self._watching is not None
        return LiveKube(self._watching, "kubectl", cached=False)

    def _heard(self, verb: str, path: str, seconds: float, code: int) -> None:
        self.codes[code] += 1
        if code in (401, 403):
            self.refused.append(f"{verb} {path}")


@pytest.fixture(params=["node-labels-in-place", "dpu-deletion"])
def story(request: pytest.FixtureRequest) -> Iterator[InCluster]:
    need_clusters()
    scenario = load_scenario(ROOT / f"scenarios/library/{request.param}.yaml")
    made = InCluster(scenario, speed=300.0, settings=Settings(cloud_init_s=1.0))
    yield made
    made.close()
    assert made.lab.down() == []


@pytest.mark.slow
@pytest.mark.lab
def test_a_rollout_needs_no_more_than_the_role_grants(story: InCluster) -> None:
    story.start()
    run = story.play()
    assert run.pending == []
    assert story.codes[200] > 100
    assert story.refused == [], "403s"
