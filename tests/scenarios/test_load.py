"""From files to a scenario: paths, includes, variables, kubectl order, and every mistake with its place."""

from pathlib import Path

import pytest

from scenarios.base import Apply, Patch
from scenarios.load import Overrides, load_manifests, load_scenario
from scenarios.variables import fill
from twin.model.mistakes import BadInput

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "dpf" / "manifests" / "v25.4"
BFB = ("apiVersion: provisioning.dpu.nvidia.com/v1alpha1\nkind: BFB\nmetadata: {name: %s, namespace: ns}\n"
       "spec: {url: %s}\n")
HEAD = "apiVersion: dpf-twin/v1\nname: story\nfleet: {generate: {racks: 2}}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return Path(name)

    return to


def mistakes(path, **overrides):
    with pytest.raises(BadInput) as caught:
        load_scenario(path, Overrides(**overrides))
    return [str(m) for m in caught.value.mistakes]


def test_a_scenario_is_loaded_with_all_it_names(write):
    write("fleets/f.yaml", "generate: {racks: 3}\n")
    write("m/b.yaml", BFB % ("b", "http://x/b.bfb"))
    write("later/c.yaml", BFB % ("c", "http://x/c.bfb"))
    write("mine.yaml", "apiVersion: dpf-twin/v1\nname: mine\noperations: {os-install: {fixed_s: 10m}}\n")
    path = write("s/story.yaml", """
apiVersion: dpf-twin/v1
name: story
fleet: ../fleets/f.yaml
manifests: [../m/]
timing: ../mine.yaml
horizon: 2h
seed: 7
timeline:
  - {at: 90m, fault: {kind: rack-power, rack: r2}, for: 10m}
  - {at: 1h, apply: ../later}
  - {at: 1h, patch: {kind: BFB, namespace: ns, name: b, merge: {metadata: {labels: {a: b}}}}}
expect: ["dpus.all(d, d.phase == 'Ready')"]
""")
    s = load_scenario(path)

    assert (s.name, s.seed, s.horizon_s, len(s.fleet.hosts)) == ("story", 7, 7200.0, 3)
    assert s.profile.operations["os-install"].takes.at(0) == 600
    assert [str(m.id) for m in s.manifests if not m.stock] == ["BFB/ns/b"]
    assert [(st.at_s, st.what, st.for_s) for st in s.timeline] == [
        (3600, "apply", None), (3600, "patch", None), (5400, "fault", 600)]
    assert isinstance(s.timeline[0].action, Apply)
    assert isinstance(s.timeline[1].action, Patch)
    assert s.timeline[0].where == "s/story.yaml:11:5"
    assert set(s.inputs) == {"fleets/f.yaml", "m/b.yaml", "later/c.yaml", "mine.yaml", "s/story.yaml"}


def test_what_was_read_loads_again_from_where_it_is_written_out(write, tmp_path):
    write("fleets/f.yaml", "generate: {racks: 3}\n")
    write("m/b.yaml", BFB % ("b", "$URL"))
    path = write("s/story.yaml", "apiVersion: dpf-twin/v1\nname: story\nfleet: ../fleets/f.yaml\nmanifests: ../m\n")
    first = load_scenario(path, Overrides(variables={"URL": "http://x/b.bfb"}))
    for name, content in first.inputs.items():
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    again = load_scenario(Path("again/s/story.yaml"), Overrides(variables=first.variables))

    assert again.fleet == first.fleet
    assert [m.data for m in again.manifests] == [m.data for m in first.manifests]


def test_measured_values_are_kept_with_what_names_them(write, tmp_path):
    write("m/installs.csv", "700\n800\n")
    path = write("s/story.yaml", HEAD + "timing: {operations: {os-install: {empirical_s: ../m/installs.csv}}}\n")
    first = load_scenario(path)
    for name, content in first.inputs.items():
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)

    assert first.profile.operations["os-install"].takes.values == (700.0, 800.0)
    assert load_scenario(Path("again/s/story.yaml")).profile == first.profile


def test_manifests_from_the_command_line_leave_a_scenario_that_loads_again(write, tmp_path):
    write("f.yaml", "generate: {racks: 3}\n")
    write("m/b.yaml", BFB % ("b", "$URL"))
    first = load_manifests(["m"], "f.yaml", Overrides(variables={"URL": "http://x/b.bfb"}))
    for name, content in first.inputs.items():
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)

    assert [m.data for m in load_scenario(Path("again/scenario.yaml")).manifests] == [m.data for m in first.manifests]


def test_includes_come_first_and_the_including_file_has_the_last_word(write):
    write("base/common.yaml", HEAD + "seed: 3\nhorizon: 5h\nmanifests: [b.yaml]\nexpect: ['1 < 2']\n"
                                     "variables: {A: base, B: base}\n")
    write("base/b.yaml", BFB % ("b", "http://$A/$B.bfb"))
    path = write("s.yaml", "apiVersion: dpf-twin/v1\nname: top\ninclude: base/common.yaml\nseed: 4\nexpect: ['2 < 3']\n"
                           "variables: {B: top}\n")
    s = load_scenario(path)

    assert (s.name, s.seed, s.horizon_s, s.expect) == ("top", 4, 18000.0, ("1 < 2", "2 < 3"))
    assert s.manifests[-1].data["spec"]["url"] == "http://base/top.bfb"


def test_files_that_include_each_other_are_refused(write):
    write("a.yaml", HEAD + "include: b.yaml\n")
    write("b.yaml", HEAD + "include: [c.yaml]\n")
    write("c.yaml", HEAD + "include: [a.yaml]\n")

    assert mistakes(Path("a.yaml")) == [
        "c.yaml:4:11: scenario story: include[0]: files include each other in a circle (got \"a.yaml\")"]


def test_timing_profiles_based_on_each_other_are_refused(write):
    write("t.yaml", "apiVersion: dpf-twin/v1\nname: t\nbase: u.yaml\n")
    write("u.yaml", "apiVersion: dpf-twin/v1\nname: u\nbase: t.yaml\n")

    assert "based on each other in a circle" in mistakes(write("s.yaml", HEAD + "timing: t.yaml\n"))[0]


def test_all_mistakes_of_a_timing_profile_are_told_at_once(write):
    (Path("folder.csv")).mkdir()
    write("t.yaml", "apiVersion: dpf-twin/v1\nname: t\noperations:\n  os-install: {empirical_s: nope.csv}\n"
                    "  dpu-join: {empirical_s: folder.csv}\nlimits: {workers_dpu: 0, client_qp: 3}\n")

    assert mistakes(write("s.yaml", HEAD + "timing: t.yaml\n")) == [
        't.yaml:4:29: timing t: operations.os-install.empirical_s: no such file (got "nope.csv")',
        "folder.csv: is a folder, a file was expected",
        "t.yaml:6:23: timing t: limits.workers_dpu: must be a whole number, at least 1 and at most 1000 (got 0)",
        "t.yaml:6:26: timing t: limits.client_qp: unknown limit, did you mean client_qps?"]


def test_manifests_are_applied_as_kubectl_would_but_what_others_need_comes_first(write):
    write("m/a.yaml", BFB % ("b1", "http://x/1.bfb") + "---\n" + BFB % ("b2", "http://x/2.bfb"))
    write("m/b.json", '{"apiVersion": "v1", "kind": "List", "items": ['
                      '{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}},'
                      '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}]}')
    write("m/z.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n")
    write("m/notes.txt", "no manifest")
    write("m/below/x.yaml", "not read: {")
    s = load_scenario(write("s.yaml", HEAD + "manifests: m\n"))

    assert [str(m.id) for m in s.manifests if not m.stock] == [
        "Namespace/ns", "Secret/default/s", "BFB/ns/b1", "BFB/ns/b2", "Pod/default/p"]


def test_globs_name_files_in_order(write):
    for name in ("2", "1", "3"):
        write(f"m/{name}.yaml", BFB % (f"b{name}", f"http://x/{name}.bfb"))
    s = load_scenario(write("s.yaml", HEAD + "manifests: ['m/[12].yaml']\n"))

    assert [m.id.name for m in s.manifests if not m.stock] == ["b1", "b2"]
    assert mistakes(write("s.yaml", HEAD + "manifests: ['m/x*.yaml']\n")) == ["m/x*.yaml: no file fits this pattern"]


def test_the_installations_own_flavor_is_there_unless_the_user_brings_it(write):
    stock = [m for m in load_scenario(write("s.yaml", HEAD)).manifests if m.stock]
    write("m.yaml", "apiVersion: provisioning.dpu.nvidia.com/v1alpha1\nkind: DPUFlavor\nmetadata: {name: "
                    "dpf-provisioning-hbn-ovn, namespace: dpf-operator-system}\nspec: {}\n")
    mine = load_scenario(write("s.yaml", HEAD + "manifests: m.yaml\n")).manifests

    assert [str(m.id) for m in stock] == ["DPUFlavor/dpf-operator-system/dpf-provisioning-hbn-ovn"]
    assert [m.stock for m in mine] == [False]


# --- variables


def test_variables_come_from_the_command_line_then_the_scenario_then_the_environment(write):
    write("m.yaml", BFB % ("b", "http://$A/${B}/$C.bfb"))
    path = write("s.yaml", HEAD + "manifests: m.yaml\nvariables: {A: file, B: file}\n")
    s = load_scenario(path, Overrides(variables={"A": "flag"}), {"A": "env", "B": "env", "C": "env", "D": "env"})

    assert s.manifests[-1].data["spec"]["url"] == "http://flag/file/env.bfb"
    assert s.variables == {"A": "flag", "B": "file", "C": "env"}, "only those that manifests name"


def test_a_value_becomes_yaml_as_envsubst_leaves_it(write):
    write("m.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: $D\n")
    s = load_scenario(write("s.yaml", HEAD + "manifests: m.yaml\n"), Overrides(variables={"D": "{a: b, n: 25.4}"}))

    assert s.manifests[-1].data["data"] == {"a": "b", "n": 25.4}


def test_a_missing_variable_is_told_with_its_place_every_time(write):
    write("m.yaml", BFB % ("$NAME", "http://x/${FILE}.bfb") + "# not $THIS\n")

    assert mistakes(write("s.yaml", HEAD + "manifests: m.yaml\n")) == [
        f"m.yaml:{place}: variable ${n} has no value: give --var {n}=... or set it in the scenario's variables or the "
        "environment" for place, n in (("3:18", "NAME"), ("4:22", "FILE"))]


def test_a_script_keeps_its_own_variables_but_not_those_that_are_shouted():
    text = "script: |\n  for i in $LIST; do echo $i \"$@\" $? ${i}; done\n"

    assert fill(text, {"LIST": "a b"}, "f").text == text.replace("$LIST", "a b")
    with pytest.raises(BadInput, match="f:2:12: variable \\$LIST has no value"):
        fill(text, {}, "f")


def test_places_are_those_of_the_file_and_not_of_the_filled_text(write):
    write("m.yaml", "apiVersion: provisioning.dpu.nvidia.com/v1alpha1\nkind: BFB\n"
                    "metadata: {name: b, namespace: ns}\nspec: {url: $URL, filename: x}\n")

    assert mistakes(write("s.yaml", HEAD + "manifests: m.yaml\n"),
                    variables={"URL": "http://long.example.com/b.bfb"}) == [
        "m.yaml:4:19: BFB/ns/b: spec.filename: unknown field (got \"x\")"]


def test_a_value_with_a_line_break_is_refused(write):
    write("m.yaml", BFB % ("b", "$URL"))

    assert mistakes(write("s.yaml", HEAD + "manifests: m.yaml\n"), variables={"URL": "a\nb"}) == [
        "m.yaml: the value of $URL holds a line break"]


def test_patches_and_objects_of_the_timeline_are_filled_in_too(write):
    path = write("s.yaml", HEAD + "timeline:\n"
                 "  - {at: 1h, patch: {kind: BFB, name: b, merge: {metadata: {labels: {a: $A}}}}}\n"
                 "  - {at: 1h, apply: {apiVersion: v1, kind: Pod, metadata: {name: $A}}}\n")
    s = load_scenario(path, Overrides(variables={"A": "x"}))

    assert s.timeline[0].action.merge == {"metadata": {"labels": {"a": "x"}}}
    assert s.timeline[1].action.manifests[0].id.name == "x"
    assert [m.split(": ")[0] for m in mistakes(path)] == ["s.yaml:5:73", "s.yaml:6:66"]


# --- objects


def objects(write, text, **overrides):
    write("m.yaml", text)
    return mistakes(write("s.yaml", HEAD + "manifests: m.yaml\n"), **overrides)


@pytest.mark.parametrize(("text", "mistake"), [
    (BFB % ("b", "3"), "m.yaml:4:13: BFB/ns/b: spec.url: must be of type string"),
    (BFB % ("b", "x.bfb"), "spec.url: should match"),
    (BFB.replace("spec:", "spek:") % ("b", "x"), "m.yaml:4:1: BFB/ns/b: spek: unknown field"),
    (BFB.replace("kind: BFB", "kind: BFF") % ("b", "x"), "m.yaml:2:7: BFF/ns/b: kind: unknown kind in provision"),
    (BFB.replace("v1alpha1", "v1") % ("b", "x"), "DPF has BFB in provisioning.dpu.nvidia.com/v1alpha1 only"),
    (BFB.replace("provisioning.dpu", "provision.dpu") % ("b", "x"), "unknown API group of DPF"),
    (BFB % ("Upper", "x"), "metadata.name: must be small letters"),
    ("kind: BFB\nmetadata: {name: b}\n", "m.yaml:1:1: BFB/b: apiVersion: required: every Kubernetes object has one"),
    ("apiVersion: v1\nkind: Pod\n", "metadata: required: every Kubernetes object has it"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "metadata.name: required"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: 1}}\n", "metadata.labels.a: must be a string"),
    ("apiVersion: v1\nkind: Podd\nmetadata: {name: p}\n", "kind: unknown kind in v1, did you mean Pod?"),
    ("- a\n", "m.yaml:1:1: a Kubernetes object was expected"),
    (HEAD, "a scenario, fleet or timing profile is not a manifest"),
    ("\tx: 1\n", "m.yaml:1:1: tabs may not indent YAML"),
    ("", "m.yaml: empty: holds no YAML document"),
    (b"\x7fELF\xff\xfe", "m.yaml:1:1: not a text file"),
])
def test_a_bad_object_is_told_with_its_place_and_field(write, text, mistake):
    assert mistake in objects(write, text)[0]


def test_the_same_object_twice_is_refused(write):
    assert objects(write, BFB % ("b", "http://x/1.bfb") + "---\n" + BFB % ("b", "http://x/2.bfb")) == [
        "m.yaml:6:1: BFB/ns/b: the same object stands at m.yaml:1:1 already"]


def test_a_kind_that_no_controller_acts_on_is_stored_and_named_once(write):
    write("m.yaml",
          "".join(f"---\napiVersion: example.com/v1\nkind: Gadget\nmetadata: {{name: g{i}}}\n" for i in (1, 2)))
    s = load_scenario(write("s.yaml", HEAD + "manifests: m.yaml\n"))

    assert len([m for m in s.manifests if not m.stock]) == 2
    assert s.warnings == ("Gadget: 2 stored, no controller acts on this kind",)


def test_mistakes_of_all_files_are_told_at_once(write):
    write("a.yaml", BFB % ("a", "3"))
    write("b.yaml", "a: [")
    told = mistakes(write("s.yaml", HEAD + "manifests: [a.yaml, b.yaml, c.yaml]\npolicies: [nope]\nexpect: ['1 +']\n"))

    assert [t.split(": ")[0] for t in told] == ["a.yaml:4:13", "b.yaml:2:1", "s.yaml:4:29", "s.yaml:5:12",
                                                "s.yaml:6:10"]


# --- scenarios


@pytest.mark.parametrize(("text", "mistake"), [
    ("timeline: [{at: -4h, restart: '*'}]", "timeline[0].at: a duration must not be negative (got \"-4h\")"),
    ("timeline: [{at: 1h}]", "give exactly one of patch, apply"),
    ("timeline: [{at: 1h, restart: x, scale: {hosts: 1}}]", "give exactly one of patch, apply"),
    ("timeline: [{at: 1h, fault: {kind: rack-powr}}]", "fault.kind: must be one of host-power, rack-power"),
    ("timeline: [{at: 1h, fault: {kind: rack-power, rack: r1, rck: r1}}]", "fault.rck: unknown field"),
    ("timeline: [{at: 1h, fault: {kind: rack-power, rack: r3}}]", "the fleet has no such rack (got \"r3\")"),
    ("timeline: [{at: 1h, fault: {kind: dms-slow, host: 'x*', factor: 3}}]", "the fleet has no such host"),
    ("timeline: [{at: 1h, fault: {kind: controller-restart}, for: 1m}]", "happens at a moment: for has no meaning"),
    ("timeline: [{at: 1h, restart: x, for: 1m}]", "restart happens at a moment"),
    ("timeline: [{at: 1h, scale: {hosts: 9}}]", "the fleet has 2 hosts (got 9)"),
    ("timeline: [{at: 1h, cordon: {node: worker7}}]", "the fleet has no such host"),
    ("timeline: [{at: 1h, patch: {kind: DPUSett, name: x, merge: {}}}]", "unknown kind, did you mean DPUSet?"),
    ("timeline: [{at: 1h, patch: {kind: DPUSet, name: x}}]", "give exactly one of merge, json_patch"),
    ("timeline: [{at: 1h, patch: {kind: Quux, name: x, merge: {}}}]", "unknown kind, give its apiVersion too"),
    ("timeline: [{at: 1h, delete: {kind: DPUSett, name: x}}]", "delete.kind: unknown kind, did you mean DPUSet?"),
    ("timeline: [{at: 1h, operator: {kind: Quux, annotation: x/y}}]",
     'operator.kind: unknown kind, nobody here can look after it (got "Quux")'),
    ("timeline: [{at: 1h, operator: {kind: DPUNod, annotation: x/y}}]", "unknown kind, did you mean DPUNode?"),
    ("timeline: [{at: 1h, operator: {annotation: a}}]", "annotation needs the kind of object"),
    ("timing: nope", "timing: unknown timing profile: give default, fixed or a file (got \"nope\")"),
    ("timing: {operations: {os-instal: {fixed_s: 1}}}", "unknown operation, did you mean os-install?"),
    ("policies: [allocator-spill-over]", "unknown policy, did you mean allocator-spills-over?"),
    ("expect: ['dpus.all(d, d.phase ==']", "not a CEL expression: column 23: Syntax error"),
    ("expect: ['dpuss.all(d, d.ready)']", "expect[0]: unknown value dpuss, did you mean dpus?"),
    ("expect: ['dpus.all(d, d.ready && e.ready)']", "expect[0]: unknown value e"),
    ("expect: ['p96(completion_s) < hour']", "expect[0]: unknown function p96, did you mean p95?"),
    ("horizon: 1e300", "horizon: a duration must not be longer than 100 years (got 1e+300)"),
    ("timing: {limits: {client_qps: -1}}", "timing.limits.client_qps: must be greater than or equal to 0 (got -1)"),
    ("timing: {limits: {client_qps: {value: .inf}}}", "timing.limits.client_qps.value: must be less than or equal to"),
    ("timing: {limits: {client_qps: 1e-300}}", "timing.limits.client_qps: must be 0 or at least 0.000001"),
    ("timing: {operations: {os-install: {gamma_s: {mean: 60, sd: 0.1}}}}", "sd must be between a hundredth of mean"),
    ("timeline: [{at: 1h, fault: {kind: api-slow, factor: 1e300}, for: 1h}]", "factor: must be less than or equal"),
    ("replications: 0", "replications: must be greater than or equal to 1 (got 0)"),
    ("horizon: 0", "horizon: must be greater than 0"),
    ("horizon: 0.0000000001", "horizon: a duration must be 0s or at least 1ns (got 1e-10)"),
    ("seed: -1", "seed: must be greater than or equal to 0 (got -1)"),
    ("seed: true", "seed: must be a number (got true)"),
    ("replications: true", "replications: must be a number (got true)"),
    ("timeline: [{at: true, restart: '*'}]", "timeline[0].at: a duration is a number of seconds"),
    ("timeline: [{at: 1h, fault: {kind: dms-slow, host: '*', factor: true}}]", "factor: must be a number (got true)"),
    ("timeline: [{at: 1h, fault: {kind: install-fails, dpu: '*', attempts: [true]}}]", "attempts[0]: must be a number"),
    ("timing: {operations: {os-instal: {fixed_s: 1}}}", "timing.operations.os-instal: unknown operation"),
    ("timing: {operations: {os-install: {empirical_s: nope.csv}}}", "os-install.empirical_s: no such file (got"),
    ("timing: {limits: {workers_dpu: 0}}", "timing.limits.workers_dpu: must be a whole number, at least 1 and at most"),
    ("timing: {limits: {workers_dpu: {value: 1.5}}}", "timing.limits.workers_dpu.value: must be a whole number"),
    ("timing: {base: nope}", "timing.base: unknown timing profile: give default, fixed or a file (got \"nope\")"),
    ('timing: "\\0"', "timing: unknown timing profile"),
    ('include: "\\0"', "include: no such file (got"),
    ("include: [nope.yaml]", "include[0]: no such file (got \"nope.yaml\")"),
    pytest.param(f"include: {'x' * 5000}", "include: no such file", id="a long include"),
    pytest.param(f"manifests: [{'x' * 5000}]", "manifests[0]: no such file or folder", id="a long manifest"),
    ('manifests: "a\\0/*"', "manifests: no such file or folder"),
    ("timing: {limits: {client_qps: true}}", "timing.limits.client_qps: must be a number (got true)"),
    ("timing: {operations: {os-install: {empirical_s: 3}}}", "os-install.empirical_s: must be a list (got 3)"),
    ("timing: {operations: {os-install: {empirical_s: []}}}", "empirical_s: must have at least 1 item (got [])"),
    ("timing: {operations: {os-install: {uniform_s: [1, 2, 3]}}}", "uniform_s: must have at most 2 items (got"),
    ("timeline: [{at: 1h, fault: {kind: install-fails, dpu: '*', attempts: []}}]",
     "attempts: must have at least 1 item (got [])"),
    ("timeline: [{at: 1h, fault: {kind: rack-power, rack: []}}]", "fault.rack: must have at least 1 item (got [])"),
    ("variables: {A: [1]}", "variables.A: must be text, a number, true or false (got [1])"),
    ("sed: 1", "sed: unknown field"),
    ("manifests: nowhere/", "manifests: no such file or folder (got \"nowhere/\")"),
])
def test_a_mistake_in_a_scenario_is_told_with_its_place_and_field(write, text, mistake):
    told = mistakes(write("s/s.yaml", HEAD + text + "\n"))

    assert len(told) == 1
    assert told[0].startswith("s/s.yaml:4:")
    assert mistake in told[0]


@pytest.mark.parametrize(("text", "mistake"), [
    ("name: x\n", "s.yaml:1:1: scenario x: apiVersion: a scenario begins with apiVersion: dpf-twin/v1"),
    ("apiVersion: dpf-twin/v1\nname: x\n", "fleet: required field is missing"),
    ("apiVersion: dpf-twin/v1\nname: x\nfleet: nope.yaml\n", "s.yaml:3:8: scenario x: fleet: no such file"),
    pytest.param(f"apiVersion: dpf-twin/v1\nname: x\nfleet: {'x' * 5000}\n",
                 "s.yaml:3:8: scenario x: fleet: no such file", id="a long fleet"),
    ('apiVersion: dpf-twin/v1\nname: x\nfleet: "\\0"\n', "s.yaml:3:8: scenario x: fleet: no such file"),
    ("apiVersion: dpf-twin/v1\nname: x\nfleet: {}\n", "fleet: fleet.hosts: a fleet needs at least one host"),
    ("apiVersion: dpf-twin/v1\nname: x\nfleet: {generate: {rack: 1}}\n", "fleet.generate.rack: unknown field"),
])
def test_a_scenario_that_lacks_something_is_refused(write, text, mistake):
    assert mistake in mistakes(write("s.yaml", text))[0]


def test_what_the_horizon_cuts_off_is_warned_of(write):
    s = load_scenario(write("s.yaml", HEAD + "horizon: 1h\ntimeline: [{at: 2h, restart: '*'}]\n"))

    assert s.warnings == ("s.yaml:5:12: never happens, it is at or behind the horizon of 1h",)


def test_the_command_line_has_the_last_word(write):
    s = load_scenario(write("s.yaml", HEAD + "seed: 3\n"), Overrides(
        seed=9, replications=4, horizon_s=60.0, timing="fixed", policies=("allocator-spills-over",)))

    assert (s.seed, s.replications, s.horizon_s, s.profile.name) == (9, 4, 60.0, "fixed")
    assert s.policies == ("allocator-spills-over",)
    assert "--policy: unknown policy" in mistakes(Path("s.yaml"), policies=("nope",))[0]
    assert mistakes(Path("s.yaml"), timing="nope") == [
        "nope: unknown timing profile: give default, fixed or a file (got \"nope\")"]


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["hbn_ovn", "hbn_only"])
def test_real_manifests_load_unchanged(folder):
    if not SHARED.exists():
        pytest.skip("../shared is not here")
    with pytest.raises(BadInput) as caught:
        load_manifests([str(SHARED / folder)], str(ROOT / "scenarios/fleets/two-racks.yaml"))
    missing = dict.fromkeys(m.rule.split()[1].lstrip("$") for m in caught.value.mistakes)
    values = dict.fromkeys(missing, "https://example.com/x.bfb") | {"DPUCLUSTER_VIP": "10.0.0.100",
                                                                              "TARGETCLUSTER_API_SERVER_PORT": "6443"}
    s = load_manifests([str(SHARED / folder)], str(ROOT / "scenarios/fleets/two-racks.yaml"),
                       Overrides(variables=values))

    assert {"BFB", "DPUCluster", "DPUDeployment", "DPFOperatorConfig"} <= {m.id.kind for m in s.manifests}
    assert s.variables == {name: values[name] for name in missing}


def test_every_library_scenario_loads():
    library = sorted((ROOT / "scenarios/library").glob("*.yaml"))

    assert library
    for path in library:
        assert load_scenario(path).name
