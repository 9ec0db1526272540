"""The command line: what goes to stdout and stderr, exit codes, one document with -o json."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml

from api.cli import TO_COME, app, call
from reports.look import DEFAULT_NAMESPACE
from twin.version import VERSION

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "scenarios" / "library" / "first-install.yaml"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        code = call([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_the_version_is_printed_without_loading_anything_heavy():
    code = ("import sys, api.cli; api.cli.call(['--version']); "
            "heavy = {'pydantic', 'yaml', 'msgspec', 'simpy', 'networkx', 'rich', 'matplotlib'} & sys.modules.keys();"
            "sys.exit(f'loaded {heavy}' if heavy else 0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.stderr == ""
    assert done.stdout.startswith(f"dpf-twin {VERSION} ")


@pytest.mark.parametrize("verb", ["rehearse", "check", "get", "describe", "crd", "schema"])
def test_every_verb_has_help(run, verb):
    code, out, _ = run(verb, "--help")

    assert code == 0
    assert f"Usage: dpf-twin {verb}" in out
    assert "<class" not in out


def test_a_verb_that_is_still_to_come_is_neither_mistaken_for_another_nor_there(run):
    there = typer.main.get_command(app).commands

    assert run("diff", "s.yaml", "--change", "c.yaml") == (2, "", "dpf-twin diff: not in this release\n")
    assert {*TO_COME}.isdisjoint(there)


@pytest.mark.parametrize("verb", ["get", "describe"])
def test_help_names_the_namespace_that_a_list_shows(run, verb):
    assert f"thedefaultis{DEFAULT_NAMESPACE}" in "".join(run(verb, "--help")[1].split())


def test_no_verb_shows_the_help_and_is_no_success(run):
    code, out, _ = run()

    assert code == 2
    assert "rehearse" in out


@pytest.mark.parametrize(("arguments", "line"), [
    (["nope"], "dpf-twin: No such command 'nope'."),
    (["get", "--foo"], "dpf-twin get: No such option"),
    (["get", "dpu"], "dpf-twin get: Missing option '--run'"),
    (["rehearse"], "rehearse: give one SCENARIO, or --manifests PATH... and --fleet FILE"),
    (["rehearse", "a", "b"], "rehearse: give one SCENARIO"),
    (["rehearse", "--manifests", "a"], "rehearse: --manifests needs --fleet FILE"),
    (["rehearse", "a", "--fleet", "b"], "rehearse: --fleet goes with --manifests"),
    (["rehearse", LIBRARY, "-o", "xml"], "-o: must be one of table, wide, json, yaml (got xml)"),
    (["rehearse", LIBRARY, "--var", "x"], "--var: must be NAME=VALUE (got x)"),
    (["rehearse", LIBRARY, "--until", "-3h"], "--until: a duration must not be negative (got -3h)"),
    (["rehearse", LIBRARY, "--until", "soon"], "--until: a duration is a number of seconds or text"),
    (["rehearse", LIBRARY, "--record", "films"], "--record: must be none, or some of objects, trace (got films)"),
    (["rehearse", LIBRARY, "--until", "0ms"], "--until: must be greater than 0 (got 0s)"),
    (["rehearse", LIBRARY, "--until", "1e-10"], "--until: a duration must be 0s or at least 1ns (got 1e-10)"),
    (["rehearse", LIBRARY, "--replications", "x"], "dpf-twin rehearse: Invalid value for '--replications'"),
    (["rehearse", LIBRARY, "--replications", "0"], "--replications: must be greater than or equal to 1 (got 0)"),
    (["rehearse", LIBRARY, "--replications", "100001"], "--replications: must be less than or equal to 100000"),
    (["rehearse", LIBRARY, "--seed", "-1"], "--seed: must be greater than or equal to 0 (got -1)"),
    (["rehearse", LIBRARY, "--seed", "99999999999999999999"], "--seed: must be less than 9223372036854775808"),
    (["rehearse", LIBRARY, "--world", "lab", "--speed", "-1"], "--speed: must be greater than 0 and finite (got -1)"),
    (["rehearse", LIBRARY, "--world", "lab", "--speed", "nan"], "--speed: must be greater than 0 and finite (got nan)"),
    (["rehearse", LIBRARY, "--policy", "nope"], "--policy: unknown policy"),
    (["rehearse", LIBRARY, "--timing", "nope"], "nope: unknown timing profile"),
    (["rehearse", "nope.yaml"], "nope.yaml: cannot be read: No such file or directory"),
    (["check", "nope.yaml"], "nope.yaml: cannot be read: No such file or directory"),
    (["check", LIBRARY, "--policy", "nope"], "--policy: unknown policy"),
    (["get", "dpu", "--run", "nope"], "nope: no such run folder"),
    (["get", "dpu", "--run", "x" * 5000], "x" * 5000 + ": no such run folder"),
    (["describe", "dpu", "x", "--run", "."], ".: not a run folder (no run.json)"),
    (["schema", "nope"], "schema: must be one of scenario, fleet, timing, summary (got nope)"),
    (["crd", "nope"], "crd: no such kind"),
    (["lab", "up", "--dir", "/proc/x"], "--dir: must be a folder that can be written: no such file or directory (got"),
    *((["lab", verb, "--dir", "x" * 300], "--dir: must be a folder: file name too long (got xxx")
      for verb in ("up", "status", "down")),
    (["crd", "-o", "table"], "-o: must be one of yaml, json (got table)"),
])
def test_bad_usage_is_one_clear_line_and_exit_2(run, tmp_path, arguments, line):
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_crds_are_documents_that_kubectl_takes(run):
    _, out, _ = run("crd")
    found = list(yaml.safe_load_all(out))
    _, listed, _ = run("crd", "-o", "json")

    assert {d["kind"] for d in found} == {"CustomResourceDefinition"}
    assert {"bfbs.provisioning.dpu.nvidia.com", "dpudeployments.svc.dpu.nvidia.com"} <= {
        d["metadata"]["name"] for d in found}
    assert "&id" not in out, "no YAML anchors"
    assert json.loads(listed)["items"] == found
    assert len(list(yaml.safe_load_all(run("crd", "BFB", "dpusets")[1]))) == 2


@pytest.mark.parametrize("kind", ["scenario", "fleet", "timing", "summary"])
def test_schemas_are_json_schemas(run, kind):
    _, out, _ = run("schema", kind)

    assert json.loads(out)["type"] == "object"
    assert yaml.safe_load(run("schema", kind, "-o", "yaml")[1]) == json.loads(out)


def test_the_timing_schema_names_every_operation_with_where_it_acts(run):
    from twin.model.timing_profile import default

    found = json.loads(run("schema", "timing")[1])["properties"]["operations"]["properties"]

    assert found.keys() == default().operations.keys()
    assert "published" in found["cloud-init"]["description"]


def test_check_prints_findings_and_exits_1(run, tmp_path):
    (tmp_path / "m.yaml").write_text("apiVersion: provisioning.dpu.nvidia.com/v1alpha1\nkind: DPUSet\n"
                                     "metadata: {name: s, namespace: mine}\nspec: {}\n")
    code, out, err = run("check", "m.yaml")

    assert code == 1
    assert out.startswith("m.yaml:3:32: DPUSet/mine/s: metadata.namespace: no DPU will be made")
    assert "1 objects: 1 error, 0 warnings, 0 notes" in err
    code, out, err = run("check", "m.yaml", "-o", "json", "-q")
    assert code == 1
    assert json.loads(out)["findings"][0]["rule"] == "namespace"
    assert err == ""


def test_check_takes_every_kind_of_file_and_is_silent_when_all_is_well(run, tmp_path):
    (tmp_path / "fleet.yaml").write_text("apiVersion: dpf-twin/v1\nname: f\ngenerate: {racks: 2}\n")
    (tmp_path / "timing.yaml").write_text("apiVersion: dpf-twin/v1\nname: t\noperations: {cloud-init: {fixed_s: 1}}\n")
    code, out, err = run("check", "fleet.yaml", "timing.yaml", LIBRARY, ROOT / "scenarios" / "fleets")

    assert (code, out) == (0, "")
    assert "0 errors, 0 warnings" in err


def test_check_tells_all_mistakes_of_all_files(run, tmp_path):
    (tmp_path / "fleet.yaml").write_text("apiVersion: dpf-twin/v1\nname: f\ngenerate: {racks: -2}\n")
    (tmp_path / "timing.yaml").write_text("apiVersion: dpf-twin/v1\nname: t\noperations: {cloud: {fixed_s: 1}}\n")
    (tmp_path / "m.yaml").write_text("kind: x\n")
    (tmp_path / "s.yaml").write_text("apiVersion: dpf-twin/v1\nname: s\nfleet: fleet.yaml\nmanifests: m.yaml\n")
    code, out, err = run("check", ".")

    assert (code, out) == (2, "")
    assert {line.partition(":")[0] for line in err.splitlines()} == {"fleet.yaml", "timing.yaml", "m.yaml"}


# --- rehearse, get, describe


@pytest.mark.slow
def test_rehearse_prints_a_summary_and_writes_a_run_folder_that_can_be_looked_at(run, tmp_path):
    code, out, err = run("rehearse", LIBRARY, "--no-report", "--no-progress")
    folder = "reports/out/first-install-1"

    assert code == 0
    assert out.startswith("first-install: converged after ")
    assert f"run folder: {folder}" in err
    code, out, _ = run("get", "dpu", "-A", "--run", folder)
    assert code == 0
    assert "Ready" in out.splitlines()[1]
    name = out.split()[out.split().index("dpf-operator-system") + 1]
    assert run("describe", "dpu", name, "--run", folder, "--at", "10m")[1].startswith("Name:")
    assert run("get", "dpu", "nope", "--run", folder)[0] == 1
    code, out, err = run("get", "dpu", "--run", folder, "--at", "999h")
    assert (code, out) == (2, "")
    assert err.startswith("--at is after the end of the run")


@pytest.mark.slow
def test_json_is_exactly_one_document_and_replications_do_not_depend_on_processes(run):
    code, out, err = run("rehearse", LIBRARY, "--no-report", "-o", "json", "--replications", "2", "-q")
    one = json.loads(out)
    two = json.loads(run("rehearse", LIBRARY, "--no-report", "-o", "json", "--replications", "2", "--jobs", "2",
                         "-q")[1])

    assert (code, err) == (0, "")
    assert one["replications"] == 2
    assert one["digest"] == two["digest"]
    assert {k: v for k, v in one.items() if k != "wall_s"} == {k: v for k, v in two.items() if k != "wall_s"}


@pytest.mark.slow
def test_a_scenario_that_does_not_converge_or_meet_its_expectation_exits_1(run, tmp_path):
    (tmp_path / "s.yaml").write_text(f"apiVersion: dpf-twin/v1\nname: s\ninclude: {LIBRARY}\nexpect: ['dpus.size() > "
                                     "99']\n")

    assert run("rehearse", LIBRARY, "--no-report", "--until", "5m", "-q")[0] == 1
    code, out, _ = run("rehearse", "s.yaml", "--no-report", "-q")
    assert code == 1
    assert "DOES NOT HOLD" in out


@pytest.mark.slow
def test_the_run_folder_reproduces_itself(run, tmp_path):
    first = json.loads(run("rehearse", LIBRARY, "--no-report", "-o", "json", "-q", "--out", "a")[1])
    again = next((tmp_path / "a" / "inputs").rglob("first-install.yaml"))

    assert json.loads(run("rehearse", again, "--no-report", "-o", "json", "-q", "--out",
                          "b")[1])["digest"] == first["digest"]


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_ctrl_c_says_what_was_kept_and_exits_130(tmp_path):
    """Of many replications those that were finished are kept."""
    command = [sys.executable, "-m", "api.cli", "rehearse", str(LIBRARY), "--replications", "5000", "--no-report",
               "--out", str(tmp_path / "out"), "-v"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("read ")  # everything is loaded: the replications begin
    deadline = time.monotonic() + 60
    while cpu_s(process.pid) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "of 5000 replications were finished and kept in" in err
    assert "replications from seed 1" in out
    assert (tmp_path / "out" / "summary.json").exists()
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["of stdout", "of both"])
@pytest.mark.parametrize(("arguments", "code"), [
    ("rehearse good.yaml --no-report", 0), ("rehearse bad.yaml --no-report", 1), ("rehearse nope.yaml", 2),
    ("crd", 0), ("check good.yaml -o json", 0), ("rehearse --help", 0), ("--version", 0), ("", 2)])
def test_a_reader_that_goes_away_does_not_change_the_exit_code(tmp_path, arguments, code, both):
    for name, expected in (("good", "converged"), ("bad", "!converged")):
        (tmp_path / f"{name}.yaml").write_text(f"apiVersion: dpf-twin/v1\nname: {name}\ninclude: {LIBRARY}\n"
                                               f"expect: ['{expected}']\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "api.cli", *arguments.split()], cwd=tmp_path, text=True, stdout=write,
                          stderr=write if both else subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    os.close(write)

    assert done.returncode == code
    assert "Traceback" not in (done.stderr or "")
    assert "Exception ignored" not in (done.stderr or "")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["&-", "/dev/full"])
def test_notes_that_cannot_be_written_do_not_change_the_exit_code(tmp_path, to):
    done = subprocess.run(f"{sys.executable} -m api.cli rehearse {tmp_path}/nope.yaml 2>{to}", shell=True, cwd=ROOT,
                          capture_output=True, env=os.environ)

    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.slow
def test_a_reader_may_read_one_line():
    done = subprocess.run(f"{sys.executable} -m api.cli crd | head -1", shell=True, cwd=ROOT, capture_output=True,
                          text=True, env=os.environ)

    assert (done.stdout, done.stderr) == ("---\n", "")
