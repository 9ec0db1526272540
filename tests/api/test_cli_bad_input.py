"""Bad input to `rehearse` and `check`: one clear line for each mistake, exit 2, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab_parts import need_root

from api.cli import call

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "scenarios" / "library" / "first-install.yaml"
HEAD = "apiVersion: dpf-twin/v1\nname: story\nfleet: {generate: {racks: 2}}\n"
BFB = ("apiVersion: provisioning.dpu.nvidia.com/v1alpha1\nkind: BFB\nmetadata: {name: b, namespace: ns}\n"
       "spec: {url: 'http://x/b.bfb'}\n")


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Writes files, runs `rehearse s.yaml` and `check s.yaml`, and gives the lines that both say."""
    monkeypatch.chdir(tmp_path)

    def of(scenario=HEAD, /, *arguments, **files):
        for name, content in {"s.yaml": scenario, **{n.replace("_", "."): c for n, c in files.items()}}.items():
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        before = sorted(tmp_path.rglob("*"))
        lines = []
        for verb in ("rehearse", "check"):
            code = call([verb, "s.yaml", *(arguments if verb == "rehearse" else ())])
            said = capsys.readouterr()
            if verb == "rehearse" or not arguments:
                assert (code, said.out) == (2, "")
                lines.append(said.err)
        assert len(set(lines)) == 1
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
        return lines[0].splitlines()

    return of


MANIFEST = HEAD + "manifests: m.yaml\n"


@pytest.mark.parametrize(("manifest", "line"), [
    pytest.param(BFB.replace("url:", "uri: x, url:"), "m.yaml:4:8: BFB/ns/b: spec.uri: unknown field",
                 id="unknown field"),
    pytest.param(BFB.replace("'http://x/b.bfb'", "7"), "m.yaml:4:13: BFB/ns/b: spec.url: must be of type", id="type"),
    pytest.param(BFB.replace("kind: BFB",
                             "kind: DPUSet").replace("{url: 'http://x/b.bfb'}", "{strategy: {type: Fast}}"),
                 "m.yaml:4:25: DPUSet/ns/b: spec.strategy.type", id="enum"),
    pytest.param(BFB.replace("http://x/b.bfb", "$URL"), "m.yaml:4:14: variable $URL has no value",
                 id="missing variable"),
    pytest.param(BFB + "---\n" + BFB, "m.yaml:6:1: BFB/ns/b: the same object stands at m.yaml:1:1", id="duplicate"),
    pytest.param(BFB.replace("BFB", "BFX"), "m.yaml:2:7: BFX/ns/b: kind: unknown kind in", id="unknown kind"),
    pytest.param("a: [1\n", "m.yaml:2:1: not YAML", id="broken YAML"),
    pytest.param("a:\n\tb: 1\n", "m.yaml:2:1: tabs may not indent YAML", id="tabs"),
    pytest.param("", "m.yaml: empty: holds no YAML document", id="empty file"),
    pytest.param(b"\x7fELF\x02\x01\x00\xff", "m.yaml:1:1: not a text file", id="binary file"),
    pytest.param("a: 1\na: 2\n", "m.yaml:2:1: duplicate key 'a'", id="duplicate key"),
])
def test_a_bad_manifest_is_one_line(refused, manifest, line):
    lines = refused(MANIFEST, m_yaml=manifest)

    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.mark.parametrize(("scenario", "line"), [
    pytest.param(HEAD + "include: s.yaml\n", "s.yaml:4:10: scenario story: include", id="cyclic include"),
    pytest.param(HEAD.replace("{generate: {racks: 2}}", "{}"), "s.yaml:3:8: fleet: fleet.hosts: a fleet needs at least",
                 id="fleet without hosts"),
    pytest.param(HEAD + "timeline: [{at: -1h, restart: x}]\n",
                 "s.yaml:4:17: scenario story: timeline[0].at: a duration must not be negative",
                 id="negative duration"),
    pytest.param(HEAD + "timing: ours\n", "s.yaml:4:9: scenario story: timing: unknown timing profile",
                 id="unknown timing profile"),
    pytest.param(HEAD + "expect: ['1 +']\n", "s.yaml:4:10: scenario story: expect[0]: not a CEL expression: column 4",
                 id="CEL error"),
    pytest.param(HEAD + "policies: [magic]\n", "s.yaml:4:12: scenario story: policies[0]: unknown policy",
                 id="unknown policy"),
    pytest.param(HEAD + "colour: red\n", "s.yaml:4:1: scenario story: colour: unknown field", id="unknown field"),
    pytest.param(HEAD + "timing: {operations: {os-install: {empirical_s: no.csv}}}\n",
                 "s.yaml:4:49: scenario story: timing.operations.os-install.empirical_s: no such file", id="no CSV"),
    pytest.param(HEAD.replace("racks: 2", "racks: 2, host: {pods: [{name: x}, {name: x}]}"),
                 "s.yaml:3:62: fleet: fleet.generate.host.pods[1].name: another pod", id="two pods of one name"),
    pytest.param(HEAD.replace("racks: 2", "racks: 2, host: {labels: {team: a b}}"),
                 "s.yaml:3:52: scenario story: fleet.generate.host.labels.team: must have at most", id="label"),
    pytest.param(HEAD + 'include: "\\0"\n', "s.yaml:4:10: scenario story: include: no such file", id="zero byte"),
    pytest.param("", "s.yaml: empty: holds no YAML document", id="empty scenario"),
])
def test_a_bad_scenario_is_one_line(refused, scenario, line):
    lines = refused(scenario)

    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_file_of_100_megabytes_is_refused_at_once(refused, tmp_path):
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(100 * 2**20)

    assert refused(HEAD + "manifests: big.yaml\n") == [
        "big.yaml: larger than 32 MiB, the most this tool reads (got 100 MiB)"]


def test_several_mistakes_are_one_line_each(refused):
    assert len(refused(HEAD + "seed: x\ncolour: red\ntimeline: [{at: 1h}]\n")) == 3


def test_something_else_than_a_run_folder_is_not_replaced(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")

    assert refused(HEAD, "--out", "out") == ["out: exists and is not a run folder; it is not replaced"]


def test_an_out_below_a_file_is_refused_before_anything_runs(refused, tmp_path):
    (tmp_path / "file").write_text("")

    assert refused(HEAD, "--out", "file/out") == [f"{tmp_path / 'file'}: not a directory"]


def test_a_run_folder_of_another_version_is_refused(capsys, tmp_path):
    (tmp_path / "run.json").write_text('{"format": 99, "version": "9.9.9"}')
    (tmp_path / "summary.json").write_text('{"version": "9.9.9"}')

    assert call(["get", "dpu", "--run", str(tmp_path)]) == 2
    assert "run folder of another version: written by dpf-twin 9.9.9" in capsys.readouterr().err


def in_a_process(command, tmp_path):
    return subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_a_folder_without_permission_is_refused_before_anything_runs(tmp_path):
    need_root("to become another user needs")
    (tmp_path / "locked").mkdir(mode=0o555)
    done = in_a_process(
        f"import os, sys; from api.cli import call; call(['rehearse', {str(LIBRARY)!r}, '--out', 'o', '-q', "
        "'--no-report'])\n"
        f"os.seteuid(65534); sys.exit(call(['rehearse', {str(LIBRARY)!r}, '--out', 'locked/out', '-q']))", tmp_path)

    assert done.returncode == 2
    assert done.stderr.endswith(": permission denied\n")
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "locked").iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    """A limit on file sizes stands in for the full disk: the write fails in the middle, as it would there."""
    done = in_a_process("import resource; import api.cli\n"
                        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
                        f"raise SystemExit(api.cli.call(['rehearse', {str(LIBRARY)!r}, '--out', 'out', '-q']))",
                        tmp_path)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write the run folder: file too large" in done.stderr
    assert list(tmp_path.iterdir()) == []
