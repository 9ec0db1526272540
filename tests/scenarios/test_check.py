"""Pre-flight: each rule finds its problem where it is, and says nothing where it is not."""

from pathlib import Path

import pytest

from scenarios.check import RULES, check, check_scenario
from scenarios.load import load_scenario
from scenarios.objects import manifests_of
from scenarios.rules import Picture, node_labels
from scenarios.rules_fleet import allowed, hugepage_bytes
from twin.model import fleet_file
from twin.model.fleet import Budget
from twin.model.timing_profile import default
from twin.model.yamlmarks import documents

ROOT = Path(__file__).parents[2]
NS = "dpf-operator-system"
GOOD = f"""
apiVersion: operator.dpu.nvidia.com/v1alpha1
kind: DPFOperatorConfig
metadata: {{name: dpfoperatorconfig, namespace: {NS}}}
spec: {{provisioningController: {{bfbPVCName: pvc}}}}
---
apiVersion: provisioning.dpu.nvidia.com/v1alpha1
kind: BFB
metadata: {{name: bfb, namespace: {NS}}}
spec: {{url: "http://x/b.bfb"}}
---
apiVersion: provisioning.dpu.nvidia.com/v1alpha1
kind: DPUFlavor
metadata: {{name: flavor, namespace: {NS}}}
spec: {{grub: {{kernelParameters: [hugepagesz=2048kB, hugepages=3072]}},
       nvconfig: [{{device: "*", parameters: [A=1]}}]}}
---
apiVersion: provisioning.dpu.nvidia.com/v1alpha1
kind: DPUCluster
metadata: {{name: cluster, namespace: {NS}}}
spec: {{type: kamaji, maxNodes: 10, version: v1.30.2}}
---
apiVersion: provisioning.dpu.nvidia.com/v1alpha1
kind: DPUSet
metadata: {{name: set, namespace: {NS}}}
spec:
  strategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 1}}}}
  dpuTemplate: {{spec: {{bfb: {{name: bfb}}, dpuFlavor: flavor, nodeEffect: {{drain: true}}}}}}
"""
EXTRA = f"""---
apiVersion: %s
kind: %s
metadata: {{name: %s, namespace: {NS}}}
%s
"""
FLEET = "generate: {racks: 2, hosts_per_rack: 2}"
PROVISIONING, SVC = "provisioning.dpu.nvidia.com/v1alpha1", "svc.dpu.nvidia.com/v1alpha1"


def extra(kind, name, rest, api=PROVISIONING):
    return EXTRA % (api, kind, name, rest)


def manifests(text):
    return [m for doc in documents(text, "m.yaml") for m in manifests_of(doc)]


def findings(text=GOOD, fleet=FLEET, policies=()):
    made = fleet_file.load(documents(fleet, "f.yaml")[0])
    return check(Picture(manifests(text), made, "f.yaml", profile=default(), policies=frozenset(policies)))


def rules(*args, **kwargs):
    return {f.rule for f in findings(*args, **kwargs)}


def test_a_sound_set_of_manifests_has_no_finding():
    assert findings() == []


def test_a_finding_says_where_what_and_what_upstream_calls_it():
    text = GOOD.replace("name: set, namespace: dpf-operator-system", "name: set, namespace: mine")
    found = next(f for f in findings(text) if f.rule == "namespace")

    assert str(found) == (
        "m.yaml:25:34: DPUSet/mine/set: metadata.namespace: no DPU will be made: DPUNodes are in dpf-operator-system "
        'and a DPUSet takes only those of its own namespace (got "mine") [error namespace, 4427091]')


@pytest.mark.parametrize(("rule", "old", "new"), [
    ("webhook-refuses", "maxUnavailable: 1", "maxUnavailable: 0"),
    ("webhook-refuses", "maxUnavailable: 1", "maxUnavailable: '50'"),
    ("webhook-refuses", "{device: \"*\", parameters: [A=1]}", "{device: \"*\"}, {device: \"*\"}"),
    ("webhook-refuses", "dpuTemplate: {spec",
     "dpuTemplate: {annotations: {provisioning.dpu.nvidia.com/host-power-cycle-required: maybe}, spec"),
    ("bfb-missing", "bfb: {name: bfb}", "bfb: {name: other}"),
    ("flavor-missing", "dpuFlavor: flavor", "dpuFlavor: other"),
    ("operator-config", "kind: DPFOperatorConfig", "kind: DPFOperatorConfigs"),
    ("operator-config-networking", "spec: {provisioningController", "spec: {networking: null, provisioningController"),
    ("operator-config-name", "name: dpfoperatorconfig", "name: mine"),
    ("redfish", "bfbPVCName: pvc",
     "bfbPVCName: pvc, installInterface: {installViaRedfish: {bfbRegistryAddress: 10.0.0.1}}"),
    ("client-secret", "bfbPVCName: pvc", "bfbPVCName: pvc, customCASecretName: mine"),
    ("component-disabled", "bfbPVCName: pvc", "bfbPVCName: pvc, disable: true"),
    ("component-disabled", "spec: {prov", "spec: {dpuDetector: {disable: true}, prov"),
    ("dms-timeout", "bfbPVCName: pvc", "bfbPVCName: pvc, dmsTimeout: 60"),
    ("bfcfg-template", "bfbPVCName: pvc", "bfbPVCName: pvc, bfCFGTemplateConfigMap: mine"),
    ("flavor-vfs", "parameters: [A=1]", "parameters: [A=1, NUM_OF_VFS=0]"),
    ("flavor-vfs", "parameters: [A=1]", "parameters: [NUM_OF_VFS=many]"),
    ("dpu-mode", "spec: {grub:", "spec: {dpuMode: nic, grub:"),
    ("host-power-cycle-ignored", "parameters: [A=1]", "parameters: [A=1], hostPowerCycleRequired: true"),
    ("custom-action-configmap", "nodeEffect: {drain: true}", "nodeEffect: {customAction: mine}"),
    ("taint-evicts-dms", "nodeEffect: {drain: true}", "nodeEffect: {taint: {key: a, effect: NoExecute}}"),
    ("effect-false", "nodeEffect: {drain: true}", "nodeEffect: {drain: false}"),
    ("cluster-missing", "kind: DPUCluster", "kind: DPUClusters"),
    ("cluster-unmanaged", "type: kamaji", "type: vendor/x"),
    ("cluster-unmanaged", "spec: {prov", "spec: {kamajiClusterManager: {disable: true}, prov"),
    ("static-kubeconfig", "type: kamaji", "type: static"),
    ("static-kubeconfig", "type: kamaji", "type: static, kubeconfig: nope"),
    ("flavor-memory", "hugepages=3072", "hugepages=15000"),
    ("flavor-memory", "hugepagesz=2048kB, hugepages=3072", "hugepagesz=1G, hugepages=30"),
    ("flavor-resources", "spec: {grub:", "spec: {dpuResources: {cpu: 17}, grub:"),
    ("flavor-resources", "spec: {grub:", "spec: {dpuResources: {memory: 33Gi}, grub:"),
    ("selects-nothing", "spec:\n  strategy", "spec:\n  dpuNodeSelector: {matchLabels: {a: b}}\n  strategy"),
    ("selects-nothing", "spec:\n  strategy", "spec:\n  dpuSelector: {a: b}\n  strategy"),
    ("cluster-capacity", "maxNodes: 10", "maxNodes: 3"),
])
def test_a_problem_in_manifests_is_found(rule, old, new):
    assert old in GOOD
    changed = GOOD.replace(old, new)
    known = changed if not new.startswith("kind") else "---".join(
        part for part in changed.split("---") if new not in part)  # the kind does not exist: the object is not there

    assert rule in rules(known)


@pytest.mark.parametrize(("rule", "more"), [
    ("bfb-file-shared", extra("BFB", "two", f"spec: {{url: 'http://y/c.bfb', fileName: {NS}-bfb.bfb}}")),
    ("operator-config", extra("DPFOperatorConfig", "second", "spec: {}", "operator.dpu.nvidia.com/v1alpha1")),
    ("keepalived-clash", extra("DPUCluster", "b", "spec: {type: kamaji, clusterEndpoint: {keepalived: {vip: 1.2.3.4}}}")
     + extra("DPUCluster", "c", "spec: {type: kamaji, clusterEndpoint: {keepalived: {vip: 1.2.3.4}}}")),
    ("static-kubeconfig", extra("DPUCluster", "s", "spec: {type: static, kubeconfig: k}")
     + extra("Secret", "k", "data: {kubeconfig: eA==}", "v1")),
    ("custom-action-configmap", extra(
        "DPUSet", "two", "spec: {dpuSelector: {a: b}, dpuTemplate: {spec: {bfb: {name: bfb}, dpuFlavor: flavor, "
                         "nodeEffect: {customAction: act}}}}")
     + extra("ConfigMap", "act", "data: {script: x}", "v1")),
    ("overlap", extra("DPUSet", "two", "spec: {dpuTemplate: {spec: {bfb: {name: bfb}, dpuFlavor: flavor}}}")),
    ("overlap", extra("DPUDeployment", "dep", "spec: {dpus: {bfb: bfb, flavor: flavor, dpuSets: [{nameSuffix: a}]}}",
                      SVC)),
    ("name-suffix", extra("DPUDeployment", "dep", "spec: {dpus: {bfb: bfb, flavor: flavor, dpuSets: [{nameSuffix: a}, "
                          "{nameSuffix: a}]}}", SVC)),
    ("bfb-missing", extra("DPUDeployment", "dep", "spec: {dpus: {bfb: no, flavor: flavor, dpuSets: [{nameSuffix: a}]}}",
                          SVC)),
    ("bfb-without-spec", extra("BFB", "two", "")),
    ("taint-taken",
     extra("DPUSet", "two", "spec: {dpuSelector: {a: b}, dpuTemplate: {spec: {bfb: {name: bfb}, dpuFlavor: "
                                           "flavor, nodeEffect: {taint: {key: k, effect: NoSchedule}}}}}")
     + extra("Node", "n", "spec: {taints: [{key: k, effect: NoSchedule}]}", "v1")),
    ("reboot-script", extra("DPUNode", "n", "spec: {nodeRebootMethod: {script: {name: nope}}}")),
    ("cluster-capacity", extra("DPUCluster", "d", "spec: {type: kamaji, maxNodes: 10}")),
])
def test_a_problem_between_objects_is_found(rule, more):
    assert rule not in rules()
    assert rule in rules(GOOD + more)


@pytest.mark.parametrize(("rule", "fleet"), [
    ("oob-bridge", "hosts: [{name: a, oob_bridge: false}]"),
    ("effect-needs-node", "hosts: [{name: a, kubernetes: false, reboot: external}]"),
    ("reboot-method", "hosts: [{name: a, kubernetes: false}]"),
    ("reboot-command", "hosts: [{name: a, annotations: {provisioning.dpu.nvidia.com/reboot-command: now}}]"),
    ("reboot-command", "hosts: [{name: a, annotations: {provisioning.dpu.nvidia.com/powercycle-command: skip}}]"),
    ("slow-reboot", "hosts: [{name: a, reboot: external}]\noperator: {after_s: 3h}"),
    ("slow-reboot", "hosts: [{name: a, reboot: external}]\noperator: {reboots: false}"),
    ("reboot-script", "hosts: [{name: a, reboot: script, reboot_script: nope}]"),
    ("several-dpus", "generate: {dpus_per_host: 2}"),
    ("cluster-capacity", "generate: {hosts_per_rack: 11}"),
    ("flavor-memory", "generate: {dpu: {model: X, cores: 8, memory_bytes: 8Gi}}"),
    ("part-unknown", "generate: {dpu: {model: X, cores: 8, memory_bytes: 64Gi}}"),
    ("drain-stuck", ("{generate: {host: {pods: [{name: p, labels: {a: b}}]}}, "
                     "budgets: [{name: b, selector: {a: b}, min_available: 100%}]}")),
    ("image-unreachable", "generate: {}\nimage_servers: [{name: s, url: 'http://other/'}]"),
    ("image-unreachable", "generate: {}\nimage_servers: [{name: s, url: 'http://x/', files: {other.bfb: {}}}]"),
    ("volume-full", "generate: {}\nvolume: {size_bytes: 1Gi}"),
    ("old-firmware", "generate: {dpu: {firmware: 32.40.1000}}"),
    ("one-worker", "generate: {racks: 10, hosts_per_rack: 100}"),
])
def test_a_problem_of_the_fleet_is_found(rule, fleet):
    assert rule in rules(fleet=fleet)


def own_template(*lines):
    """What the rule of templates says of one, without its ConfigMap's place."""
    named = GOOD.replace("bfbPVCName: pvc", "bfbPVCName: pvc, bfCFGTemplateConfigMap: mine")
    text = "".join(f"    {line}\n" for line in lines)
    return [f for f in findings(named + extra("ConfigMap", "mine", f"data:\n  BF_CFG_TEMPLATE: |\n{text}", "v1"))
            if f.rule == "bfcfg-template"]


def test_a_go_template_is_found_with_its_first_action():
    (found,) = own_template("a: b", "hostname {{.DPUHostName}}", "{{.KubeadmJoinCMD}}")

    assert (found.severity, found.file, found.field, found.got) == (
        "error", "m.yaml", "data.BF_CFG_TEMPLATE", '"{{.DPUHostName}}"')
    assert "line 2 has a Go template action (2 in all)" in found.words


def test_marks_that_a_template_lacks_are_found_and_a_whole_one_is_fine():
    assert ["@HOSTNAME@" in f.words for f in own_template("nothing")] == [True, False]
    assert own_template("hostname: @HOSTNAME@", "@JOIN_COMMAND@") == []
    assert ["128 KiB" in f.words for f in own_template("@HOSTNAME@ @JOIN_COMMAND@", "x" * 2**17)] == [True]


@pytest.mark.parametrize("parameters", ["[NUM_OF_VFS=1]", "[MY_NUM_OF_VFS=0]", "[NUM_OF_VFS=16, NUM_OF_VFS=0]", "[]"])
def test_a_flavor_with_vfs_is_fine(parameters):
    assert "flavor-vfs" not in rules(GOOD.replace("parameters: [A=1]", f"parameters: {parameters}"))


def test_what_only_dms_refuses_is_no_finding_over_redfish():
    asks = GOOD.replace("spec: {grub:", "spec: {dpuMode: nic, grub:").replace("[A=1]", "[NUM_OF_VFS=0]")
    redfish = asks.replace("bfbPVCName: pvc", "bfbPVCName: pvc, installInterface: {installViaRedfish: {}}")

    assert {"dpu-mode", "flavor-vfs"} <= rules(asks)
    assert not {"dpu-mode", "flavor-vfs"} & rules(redfish)


def test_a_hold_that_nobody_releases_as_the_code_wants_is_found():
    held = GOOD.replace("nodeEffect: {drain: true}", "nodeEffect: {hold: true}")

    assert "hold-release" not in rules(held)
    assert "hold-release" in rules(held, FLEET + "\noperator: {release: remove}")
    assert "hold-release" in rules(held, FLEET + "\noperator: {releases: false}")


def test_the_default_node_effect_is_drain_where_a_template_has_a_spec():
    bare = "hosts: [{name: a, kubernetes: false, reboot: external}]"
    without = GOOD.replace(", nodeEffect: {drain: true}", "")

    assert "effect-needs-node" in rules(without, bare)
    assert "effect-needs-node" not in rules(GOOD.replace("drain: true", "noEffect: true"), bare)


def test_a_policy_that_fixes_a_wart_silences_its_rule():
    two = GOOD.replace("maxNodes: 10", "maxNodes: 3") + extra("DPUCluster", "d", "spec: {type: kamaji, maxNodes: 10}")

    assert "cluster-capacity" in rules(two)
    assert "cluster-capacity" not in rules(two, policies=["allocator-spills-over"])


def test_one_file_of_many_is_not_blamed_for_what_the_others_hold():
    only_the_set = manifests("---".join(p for p in GOOD.split("---") if "kind: DPUSet" in p))

    assert {f.rule for f in check(Picture(only_the_set, whole=False))} == set()
    assert {f.rule for f in check(Picture(only_the_set))} == {
        "bfb-missing", "flavor-missing", "operator-config", "cluster-missing"}


def test_hugepages_are_counted_as_the_kernel_does():
    def asked(*parameters):
        text = extra("DPUFlavor", "f", f"spec: {{grub: {{kernelParameters: {list(parameters)}}}}}")
        return hugepage_bytes(manifests(text)[0])

    assert asked("hugepages=512") == 2**30, "2 MiB is the default"
    assert asked("hugepagesz=2048kB", "hugepages=3072") == 6 * 2**30
    assert asked("hugepagesz=2M", "hugepages=512", "hugepagesz=1G", "hugepages=2") == 3 * 2**30
    assert asked("console=hvc0", "hugepagesz=x", "hugepages=no") == 0


@pytest.mark.parametrize(("bound", "pods", "evictions"), [
    ({"max_unavailable": 2}, 5, 2), ({"max_unavailable": "30%"}, 5, 2), ({"max_unavailable": "0%"}, 5, 0),
    ({"min_available": 4}, 5, 1), ({"min_available": "100%"}, 5, 0), ({"min_available": "50%"}, 5, 2)])
def test_a_budget_allows_what_kubernetes_would(bound, pods, evictions):
    assert allowed(Budget("ns", "b", {"a": "b"}, **bound), pods) == evictions


def test_selectors_see_the_labels_that_discovery_gives_a_host():
    host = fleet_file.load(documents("hosts: [{name: a, labels: {rack: x}}]", "f.yaml")[0]).hosts[0]

    assert node_labels(host)["feature.node.kubernetes.io/dpu-enabled"] == "true"
    assert node_labels(host)["feature.node.kubernetes.io/dpu-oob-bridge-configured"] == ""
    assert node_labels(host)["rack"] == "x"


# --- timelines


def story(tmp_path, *entries, text=GOOD):
    (tmp_path / "m.yaml").write_text(text)
    path = tmp_path / "s.yaml"
    path.write_text("apiVersion: dpf-twin/v1\nname: s\nfleet: {generate: {racks: 2}}\nmanifests: m.yaml\ntimeline:\n"
                    + "".join(f"  - {e}\n" for e in entries))
    return {f.rule: f for f in check_scenario(load_scenario(path))}


def delete(at, kind, name):
    return f"{{at: {at}, delete: {{kind: {kind}, namespace: {NS}, name: {name}}}}}"


def patch(kind, name, merge):
    return f"{{at: 1h, patch: {{kind: {kind}, namespace: {NS}, name: {name}, merge: {merge}}}}}"


@pytest.mark.parametrize(("rule", "entries"), [
    ("bfb-deleted", [delete("1h", "DPUSet", "set"), delete("70m", "BFB", "bfb")]),
    ("bfb-deleted", [delete("1h", "BFB", "bfb")]),
    ("operator-config-deleted", [delete("1h", "DPFOperatorConfig", "dpfoperatorconfig")]),
    ("cluster-deleted", [delete("1h", "DPUCluster", "cluster")]),
    ("host-removed", ["{at: 1h, delete: {kind: Node, name: worker1}}"]),
    ("host-removed", ["{at: 1h, fault: {kind: host-lost, host: worker1}}"]),
    ("host-removed", ["{at: 1h, scale: {hosts: 1}}"]),
    ("mtu-edit", [patch("DPFOperatorConfig", "config", "{spec: {networking: {controlPlaneMTU: 9000}}}")]),
    ("deployment-effect-edit", [patch("DPUDeployment", "d", "{spec: {dpus: {nodeEffect: {drain: true}}}}")]),
    ("label-removal",
     [patch("DPUSet", "set", "{spec: {dpuTemplate: {spec: {cluster: {nodeLabels: {a: null}}}}}}")]),
    ("reboot-method-edit", [patch("DPUNode", "n", "{spec: {nodeRebootMethod: {external: {}}}}")]),
    ("immutable-edit", [patch("BFB", "bfb", "{spec: {url: x}}")]),
])
def test_a_problem_of_the_timeline_is_found_at_its_entry(tmp_path, rule, entries):
    found = story(tmp_path, *entries)

    assert rule in found
    assert found[rule].line == 5 + len(entries)


@pytest.mark.parametrize("entry", [
    "{at: 1h, fault: {kind: host-lost, host: worker1}, for: 1h}",
    "{at: 0s, scale: {hosts: 1}}",
    patch("BFB", "bfb", "{metadata: {labels: {a: b}}}"),
])
def test_a_harmless_timeline_has_no_finding(tmp_path, entry):
    assert story(tmp_path, entry) == {}


def test_an_object_that_is_applied_again_is_not_its_own_rival(tmp_path):
    (tmp_path / "again.yaml").write_text(GOOD)

    assert story(tmp_path, "{at: 1h, apply: again.yaml}") == {}


def test_on_delete_is_noted_when_the_timeline_counts_on_a_roll_out(tmp_path):
    entry = patch("DPUSet", "set", "{spec: {dpuTemplate: {spec: {dpuFlavor: x}}}}")
    by_hand = GOOD.replace("{type: RollingUpdate, rollingUpdate: {maxUnavailable: 1}}", "{type: OnDelete}")

    assert "on-delete" in story(tmp_path, entry, text=by_hand)
    assert "on-delete" not in story(tmp_path, entry)


def test_every_rule_has_a_title_and_a_reference_and_is_in_a_test_above():
    tests = Path(__file__).read_text()

    assert len(RULES) > 40
    for rule in RULES.values():
        assert rule.title, rule.id
        assert rule.reference, rule.id
        assert f'"{rule.id}"' in tests, rule.id


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["hbn_ovn", "hbn_only"])
def test_upstreams_own_manifests_have_no_error(folder):
    shared = ROOT.parent / "shared" / "dpf" / "manifests" / "v25.4" / folder
    if not shared.exists():
        pytest.skip("../shared is not here")
    text = "\n---\n".join(p.read_text() for p in sorted(shared.glob("*.yaml"))).replace(
        "$BLUEFIELD_BITSTREAM", "http://x/b.bfb")
    from scenarios.objects import with_stock

    fleet = fleet_file.load(documents(FLEET, "f.yaml")[0])
    found = check(Picture(with_stock(manifests(text)), fleet, profile=default()))
    assert [f for f in found if f.severity == "error"] == []
