"""get and describe: as kubectl would have answered at that moment of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from reports.columns import age, columns, find
from reports.describe import describe
from reports.folder import FolderError, RunFolder, read, write, write_tables
from reports.look import Query, QueryError, get, selects
from scenarios.result import Run, summarise
from twin.model.core import ContainerStatus, Node, NodeSpec, Pod, PodSpec, PodStatus, Secret
from twin.model.kinds import to_manifest
from twin.model.meta import Condition, ObjectMeta, Unstructured, format_time
from twin.model.provisioning import Dpu, DpuSpec, DpuStatus
from twin.sim.trace import NS, Trace

EPOCH = 1_735_689_600.0
DPF = "dpf-operator-system"
PLANTED = "cGxhbnRlZC1zZWNyZXQ="


def dpu(name: str, phase: str, *, namespace: str = DPF, at_s: float = 0.0, **labels: str) -> Dpu:
    conditions = (Condition(type="Ready", status="True", reason="DPUReady"),) if phase == "Ready" else ()
    return Dpu(metadata=ObjectMeta(name=name, namespace=namespace, uid=name, labels=labels,
                                   creation_timestamp=format_time(EPOCH + at_s)),
               spec=DpuSpec(dpu_node_name="h1", dpu_device_name="dev", bfb="b"),
               status=DpuStatus(phase=phase, conditions=conditions))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two DPUs, one in another namespace, one deleted at 5,000 s; some neighbours."""
    trace = Trace(objects=True)
    story = [
        (0, "ADDED", "", dpu("d1", "Initializing", rack="r1")),
        (60, "ADDED", "", dpu("d2", "Pending", rack="r2", at_s=60)),
        (600, "MODIFIED", "", dpu("d1", "OS Installing", rack="r1")),
        (700, "ADDED", "", dpu("d3", "Ready", namespace="other", at_s=700)),
        (900, "MODIFIED", "", dpu("d1", "Ready", rack="r1")), (5000, "DELETED", "", dpu("d2", "Deleting", at_s=60)),
        (0, "ADDED", "", Node(metadata=ObjectMeta(name="h1", creation_timestamp=format_time(EPOCH)),
                              spec=NodeSpec(unschedulable=True))),
        (0, "ADDED", "dpu-cluster-1", Node(metadata=ObjectMeta(name="d1"))),
        (0, "ADDED", "", Secret(metadata=ObjectMeta(name="s", namespace=DPF), data={"kubeconfig": PLANTED})),
        (0, "ADDED", "", Unstructured(metadata=ObjectMeta(name="x", namespace=DPF), kind="DPUServiceNAD",
                                      group_version="svc.dpu.nvidia.com/v1alpha1", content={"spec": {"bridge": "br"}})),
    ]
    for t, op, cluster, obj in story:
        trace.object(t * NS, op, cluster, obj)
    for t, phase in ((0, "Initializing"), (600, "OS Installing"), (900, "Ready")):
        trace.phase(t * NS, "d1", phase)
    trace.wait_begin(600 * NS, "d1", "image-server bfb-1")
    trace.wait_end(800 * NS, "d1", "image-server bfb-1")
    made = Run(scenario="s", seed=1, trace=trace, virtual_s=10_000.0, epoch_s=EPOCH)
    path = write([made], summarise([made]), tmp_path_factory.mktemp("look") / "run", report=False)
    write_tables([made], path)
    return read(path)


def test_a_list_shows_upstreams_columns_at_that_time(run: RunFolder) -> None:
    assert get(run, Query(kind="dpu", at_s=700)).out == ("NAME   READY   PHASE           AGE\n"
                                                         "d1             OS Installing   11m\n"
                                                         "d2             Pending         10m\n")


def test_a_change_is_seen_from_its_moment_on(run: RunFolder) -> None:
    assert "OS Installing" in get(run, Query(kind="dpu", name="d1", at_s=899.9)).out
    assert "True    Ready" in get(run, Query(kind="dpu", name="d1", at_s=900)).out


def test_what_was_not_yet_or_no_more_there_is_not_shown(run: RunFolder) -> None:
    assert "d2" not in get(run, Query(kind="dpu", at_s=59)).out
    assert "d2" in get(run, Query(kind="dpu", at_s=4999)).out
    assert "d2" not in get(run, Query(kind="dpu")).out


def test_all_namespaces_add_a_column(run: RunFolder) -> None:
    assert get(run, Query(kind="dpu", all_namespaces=True)).out.splitlines() == [
        "NAMESPACE             NAME   READY   PHASE   AGE", "dpf-operator-system   d1     True    Ready   166m",
        "other                 d3     True    Ready   155m"]


def test_a_name_is_found_in_any_namespace_but_only_in_the_one_asked_for(run: RunFolder) -> None:
    assert get(run, Query(kind="dpu", name="d3")).code == 0
    wrong = get(run, Query(kind="dpu", name="d3", namespace=DPF))

    assert (wrong.out, wrong.code) == ("", 1)
    assert wrong.err == 'Error from server (NotFound): dpus.provisioning.dpu.nvidia.com "d3" not found\n'


def test_an_empty_list_is_said_on_stderr_and_is_no_error(run: RunFolder) -> None:
    assert get(run, Query(kind="bfb")) == ("", f"No resources found in {DPF} namespace.\n", 0)
    assert get(run, Query(kind="bfb", all_namespaces=True)) == ("", "No resources found\n", 0)


@pytest.mark.parametrize("word", ["dpu", "DPU", "dpus", "dpus.provisioning.dpu.nvidia.com", "Dpu/d1", "dpu/d1"])
def test_kinds_are_named_as_kubectl_lets_them(run: RunFolder, word: str) -> None:
    assert "d1" in get(run, Query(kind=word)).out


def test_kinds_without_a_class_are_found_too(run: RunFolder) -> None:
    assert get(run, Query(kind="dpuservicenads", output="name")).out == "dpuservicenad.svc.dpu.nvidia.com/x\n"


def test_an_unknown_kind_is_refused_in_kubectls_words(run: RunFolder) -> None:
    with pytest.raises(QueryError, match='the server doesn\'t have a resource type "dpuu"'):
        get(run, Query(kind="dpuu"))


@pytest.mark.parametrize(("query", "says"), [
    (Query(kind="dpu", output="jsonpath"), "output format"),
    (Query(kind="dpu", at_s=10_001), "after the end of the run"),
    (Query(kind="dpu/d1", name="d2"), "resource/name form"), (Query(kind="dpu", name="d1", selector="a=b"), "selector"),
    (Query(kind="dpu", name="d1", all_namespaces=True), "across all namespaces"),
    (Query(kind="dpu", selector="a=b=c"), "unable to parse requirement"),
])
def test_bad_usage_is_one_clear_line(run: RunFolder, query: Query, says: str) -> None:
    with pytest.raises(QueryError, match=says) as error:
        get(run, query)
    assert "\n" not in str(error.value)


def test_json_is_one_document_and_says_the_phase_even_where_it_is_the_default(run: RunFolder) -> None:
    one = json.loads(get(run, Query(kind="dpu", name="d1", at_s=0, output="json")).out)
    listed = json.loads(get(run, Query(kind="dpu", output="json", all_namespaces=True)).out)

    assert one["status"]["phase"] == "Initializing"
    assert listed["kind"] == "List"
    assert [o["metadata"]["name"] for o in listed["items"]] == ["d1", "d3"]


def test_yaml_says_the_same_as_json(run: RunFolder) -> None:
    query = Query(kind="dpu", all_namespaces=True, output="yaml")

    assert yaml.safe_load(get(run, query).out) == json.loads(
        get(run, Query(kind="dpu", all_namespaces=True, output="json")).out)


def test_a_cluster_that_the_run_never_had_is_told_with_those_it_has(run: RunFolder) -> None:
    with pytest.raises(QueryError, match=r"--cluster: no such DPU cluster, the run has dpu-cluster-1 \(got nope\)"):
        get(run, Query(kind="node", cluster="nope"))


def test_clusters_are_kept_apart(run: RunFolder) -> None:
    assert get(run, Query(kind="node")).out.splitlines()[1].split()[:2] == ["h1", "Unknown,SchedulingDisabled"]
    assert "d1" in get(run, Query(kind="node", cluster="dpu-cluster-1")).out
    assert "h1" not in get(run, Query(kind="node", cluster="dpu-cluster-1")).out


def test_several_kinds_are_several_tables_with_prefixed_names(run: RunFolder) -> None:
    out = get(run, Query(kind="dpu,secret")).out

    assert "dpu.provisioning.dpu.nvidia.com/d1" in out
    assert "secret/s" in out
    assert "\n\n" in out


@pytest.mark.parametrize(("selector", "names"), [
    ("rack=r1", ["d1"]), ("rack==r2", ["d2"]), ("rack!=r1", ["d2"]), ("rack", ["d1", "d2"]), ("!rack", []),
    ("rack in (r1, r2)", ["d1", "d2"]), ("rack notin (r1)", ["d2"]), ("rack in (r1,r2),rack!=r2", ["d1"]), ("x=1", [])])
def test_labels_select_as_in_kubectl(run: RunFolder, selector: str, names: list[str]) -> None:
    out = get(run, Query(kind="dpu", selector=selector, at_s=700)).out

    assert [line.split()[0] for line in out.splitlines()[1:]] == names


def test_an_empty_selector_selects_everything() -> None:
    assert selects("")({}) is True


def test_describe_shows_the_way_of_a_dpu_up_to_that_time(run: RunFolder) -> None:
    out = describe(run, Query(kind="dpu", name="d1", at_s=700)).out

    assert "Name:         d1\n" in out
    assert "  Phase:  OS Installing\n" in out
    assert "  OS Installing   10m    1m 40s   1              open\n" in out
    assert "  image-server bfb-1   10m    1m 40s so far\n" in out
    assert "Ready   " not in out
    assert out.endswith("Events:  <none>\n")


def test_describe_shows_kubernetes_events_of_that_object_only(make_run: Callable[..., Run], tmp_path: Path) -> None:
    made = make_run(4)
    folder = read(write([made], summarise([made]), tmp_path / "run", report=False))
    out = describe(folder, Query(kind="dpu", name="r1-h01-0000-03-00")).out

    assert out.count("the DPU is ready") == 2
    assert "Phases:  <not recorded>" in out
    assert "Conditions:\n  Type " in out


def test_what_a_secret_holds_is_neither_recorded_nor_shown(run: RunFolder) -> None:
    assert "Kubeconfig:  <not recorded>" in describe(run, Query(kind="secret", name="s")).out
    assert json.loads(get(run, Query(kind="secret/s", output="json")).out)["data"] == {"kubeconfig": "cmVkYWN0ZWQ="}
    assert not any(PLANTED.encode() in line for line in run.object_lines())


def test_describe_of_nothing_is_not_found(run: RunFolder) -> None:
    assert describe(run, Query(kind="dpu", name="ghost")).code == 1


def test_a_run_without_recorded_objects_says_how_to_get_them(four: Run, tmp_path: Path) -> None:
    folder = read(write([four], summarise([four]), tmp_path / "run", report=False, record=frozenset()))

    with pytest.raises(FolderError, match="--record objects"):
        get(folder, Query(kind="dpu"))


@pytest.mark.parametrize(("s", "text"), [
    (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (599, "9m59s"), (600, "10m"), (10_799, "179m"),
    (10_800, "3h"), (11_000, "3h3m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"), (180_000, "2d2h"),
    (691_200, "8d"), (63_072_000, "2y"), (63_158_400, "2y1d"), (-1, "0s"), (-5, "<invalid>")])
def test_ages_are_shortened_as_kubectl_does(s: int, text: str) -> None:
    assert age(EPOCH + s, format_time(EPOCH)) == text


def test_an_object_without_a_creation_time_has_an_unknown_age() -> None:
    assert age(EPOCH, "") == "<unknown>"


def test_json_paths_of_printer_columns_reach_through_filters() -> None:
    obj = {"status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": "True"}]}}

    assert find(obj, ".status.conditions[?(@.type=='Ready')].status") == "True"
    assert find(obj, '.status.conditions[?(@.type=="Gone")].status') is None
    assert find(obj, ".status.conditions.status") is None


def cells(status: PodStatus, *, deleted: str = "") -> list[str]:
    pod = Pod(metadata=ObjectMeta(name="p", deletion_timestamp=deleted), spec=PodSpec(containers=({"name": "c"},)),
              status=status)
    return [c.cell(to_manifest(pod), EPOCH) for c in columns("Pod")][:3]


def test_a_pod_shows_its_init_containers_before_its_phase() -> None:
    waiting = ContainerStatus(name="i", restart_count=3, state={"waiting": {"reason": "CrashLoopBackOff"}})
    done = ContainerStatus(name="i", state={"terminated": {"exitCode": 0}})
    runs = ContainerStatus(name="c", ready=True, state={"running": {}})

    assert cells(PodStatus(phase="Pending", init_container_statuses=(done, waiting))) == [
        "0/1", "Init:CrashLoopBackOff", "3"]
    assert cells(PodStatus(phase="Pending", init_container_statuses=(done, runs))) == ["0/1", "Init:1/2", "0"]
    assert cells(PodStatus(phase="Running", container_statuses=(runs,))) == ["1/1", "Running", "0"]
    assert cells(PodStatus(phase="Running"), deleted="2025-01-01T00:00:00Z")[1] == "Terminating"
