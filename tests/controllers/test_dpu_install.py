"""OS Installing: order of calls, attempts, budget, deletion, restarts (provisioning.md 2.2 phase 6, 3.2)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from dpu_bench import BFB_FILE, NS, Bench

from controllers.provisioning.dpu_install import ACTIVATED
from twin.model.core import ConfigMap, DpfOperatorConfig, Secret
from twin.model.meta import ObjectMeta
from twin.model.names import Annotation, Label
from twin.model.provisioning import Bfb, Dpu, DpuDevice, DpuFlavor, DpuNode, Phase
from twin.sim.dms_servers import Attempts

MINUTE = 60.0


def installing(**more: Any) -> Bench:
    spec = more.pop("spec", {})
    bench = Bench(**more)
    bench.at(Phase.OS_INSTALLING, **spec)
    return bench


def tokens(bench: Bench) -> list[Secret]:
    return [s for s in bench.server.table(Secret).values() if isinstance(s, Secret)]


def starts(bench: Bench) -> int:
    """How often an OS was really installed."""
    return bench.card.counts.get("os-install", 0)


def test_the_calls_come_in_upstreams_order() -> None:
    bench = installing().until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert [w for w in bench.writes if w not in ("status", "volume remove")] == [
        "OS.Install", "create", "volume write", "OS.Install", "exec md5sum", "OS.Activate", "patch"]


def test_success_labels_the_dpu_for_its_node() -> None:
    bench = installing().until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert bench.is_("OSInstalled") == ("True", "OSInstalled", "")
    assert bench.get(Dpu, bench.name).spec.cluster.node_labels == {
        Label.DOCA_BFB_VERSION: "bf-bundle-3.0.0-135", Label.HOST: bench.host}


def test_the_task_sleeps_for_cloud_init_after_the_reboot() -> None:
    bench = installing()
    ended: list[float] = []
    bench.hosts.listeners.install_ended.append(lambda dpu, why: ended.append(bench.env.now_s))
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    # up to 3 s until the next RebootStatus, 90 s, up to 5 s until the next poll
    assert 90 <= bench.env.now_s - ended[0] <= 99


def test_the_bf_cfg_is_named_after_the_dpu_and_carries_a_fresh_token() -> None:
    bench = installing().run(200)
    uid = bench.get(Dpu, bench.name).metadata.uid
    text = (bench.volume.files[f"/bfb/{bench.name}-{uid}.cfg"].content or b"").decode()
    (token,) = tokens(bench)
    fields = {k: base64.b64decode(v).decode() for k, v in token.data.items()}
    assert token.metadata.namespace == "kube-system"
    assert token.metadata.name == f"bootstrap-token-{fields['token-id']}"
    assert token.type == "bootstrap.kubernetes.io/token"
    assert f"kubeadm join c1.example:6443 --token {fields['token-id']}.{fields['token-secret']}" in text
    assert fields["auth-extra-groups"] == "system:bootstrappers:kubeadm:default-node-token"
    assert (fields["usage-bootstrap-authentication"], fields["usage-bootstrap-signing"]) == ("true", "true")
    assert fields["expiration"].startswith("2025-05-01T02:01")


def test_a_running_install_changes_nothing() -> None:
    bench = installing().run(120)
    before = bench.get(Dpu, bench.name)
    assert bench.run(300).get(Dpu, bench.name) is before
    assert bench.phase() == Phase.OS_INSTALLING
    assert bench.status().conditions == ()


def test_eleven_failed_attempts_end_in_error_and_no_condition_changes_before() -> None:
    bench = installing()
    bench.dms.answer_errors(bench.host, ("INTERNAL", "no space left", ".bfb"))
    bench.run(50)
    assert bench.status().conditions == ()
    bench.run(6)
    assert bench.phase() == Phase.ERROR
    assert bench.is_("OSInstalled") == (
        "False", "InstallationFailed", "rpc error: code = Internal desc = no space left")


def test_an_attempt_that_fails_at_once_still_waits_for_the_poll() -> None:
    bench = installing()
    bench.delete(Secret, "dpf-provisioning-client-secret")
    bench.run(54)
    assert bench.phase() == Phase.OS_INSTALLING
    bench.run(2)
    assert bench.is_("OSInstalled") == (
        "False", "InstallationFailed",
        'client secret not found: Secret "dpf-provisioning-client-secret" not found')


def test_each_attempt_makes_a_new_token() -> None:
    bench = installing()
    bench.dms.fail_installs(bench.name, Attempts((1, 2)))
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 3
    assert len(tokens(bench)) == 3
    assert bench.is_("OSInstalled") == ("True", "OSInstalled", "")


def test_a_failing_checksum_fails_the_attempt() -> None:
    bench = installing()
    bench.effect_hook = lambda what, _: what == "volume write" and bench.volume.put(f"/bfb/{BFB_FILE}", None)
    bench.run(100)
    assert "OS.Activate" not in bench.writes
    assert "exec md5sum" in bench.writes


def test_a_host_outside_kubernetes_has_no_pod_to_check_the_sum_in() -> None:
    bench = installing(host={"kubernetes": False}).until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert not [w for w in bench.writes if w.startswith("exec")]


@pytest.mark.parametrize(("what", "message"), [
    ("mtu", "exactly one DPFOperatorConfig necessary"),
    ("flavor", 'DPUFlavor.provisioning.dpu.nvidia.com "flavor" not found'),
    ("device", 'DPUDevice.provisioning.dpu.nvidia.com "{dpu}" not found'),
    ("reboot", 'invalid value "bogus", supported values: ["cycle" "reset" "skip"]'),
    ("cluster", 'Post "https://c1.example:6443/api/v1/namespaces/kube-system/secrets": dial tcp'),
    ("template", 'ConfigMap "tmpl" not found'),
])
def test_what_cannot_be_rendered_costs_attempts(what: str, message: str) -> None:
    bench = installing()
    if what == "mtu":
        bench.delete(DpfOperatorConfig, "dpfoperatorconfig")
    if what == "flavor":
        bench.delete(DpuFlavor, "flavor")
    if what == "device":
        bench.delete(DpuDevice, bench.name)
    if what == "reboot":
        bench.patch(DpuNode, bench.host, {"metadata": {"annotations": {Annotation.REBOOT_COMMAND: "bogus"}}})
    if what == "cluster":
        bench.server.down = True
    if what == "template":
        bench.patch(DpfOperatorConfig, "dpfoperatorconfig", {"spec": {"provisioningController": {
            "bfbPVCName": "pvc", "bfCFGTemplateConfigMap": "tmpl"}}})
    bench.until(Phase.ERROR)
    assert bench.is_("OSInstalled")[2].startswith(message.format(dpu=bench.name))
    assert starts(bench) == 0


def test_an_installation_may_bring_its_own_template() -> None:
    bench = installing()
    bench.create(ConfigMap(metadata=ObjectMeta(namespace=NS, name="tmpl"),
                           data={"BF_CFG_TEMPLATE": "mine for @HOSTNAME@: @JOIN_COMMAND@"}))
    bench.patch(DpfOperatorConfig, "dpfoperatorconfig", {"spec": {"provisioningController": {
        "bfbPVCName": "pvc", "bfCFGTemplateConfigMap": "tmpl"}}})
    bench.run(200)
    uid = bench.get(Dpu, bench.name).metadata.uid
    content = bench.volume.files[f"/bfb/{bench.name}-{uid}.cfg"].content or b""
    assert content.decode().startswith(f"mine for {bench.name}: kubeadm join")


def test_a_template_that_is_not_filled_in_is_never_sent() -> None:
    bench = installing()
    bench.create(ConfigMap(metadata=ObjectMeta(namespace=NS, name="tmpl"),
                           data={"BF_CFG_TEMPLATE": "hostname {{ .DPUHostName }}\n{{ .KubeadmJoinCMD }}\n"}))
    bench.patch(DpfOperatorConfig, "dpfoperatorconfig", {"spec": {"provisioningController": {
        "bfbPVCName": "pvc", "bfCFGTemplateConfigMap": "tmpl"}}})
    bench.until(Phase.ERROR)
    assert bench.is_("OSInstalled")[1] == "InstallationFailed"
    assert bench.is_("OSInstalled")[2].endswith("(got {{ .DPUHostName }})")
    assert "volume write" not in bench.writes
    assert len(tokens(bench)) == 11


def test_an_install_that_does_not_end_uses_up_its_thirty_minutes() -> None:
    bench = installing()
    bench.run(200)
    assert bench.card.device.doing == "os-install"
    if bench.card.timer is not None:
        bench.card.timer.cancel()
    bench.run(26 * MINUTE)
    assert starts(bench) == 1
    bench.run(5 * MINUTE)
    assert starts(bench) == 2


# --- the BFB


def test_without_its_bfb_a_dpu_stays_whatever_its_task_did() -> None:
    bench = installing()
    bench.run(100)
    bench.delete(Bfb, "bundle")
    bench.run(3600)
    assert bench.is_("OSInstalled") == (
        "False", "BFBNotFound", 'BFB.provisioning.dpu.nvidia.com "bundle" not found')
    assert bench.phase() == Phase.OS_INSTALLING


def test_an_install_under_way_labels_its_dpu_although_the_bfb_has_gone() -> None:
    bench = installing()
    bench.run(100)
    bench.delete(Bfb, "bundle")
    bench.run(3600)
    assert starts(bench) == 1
    assert bench.get(Dpu, bench.name).spec.cluster.node_labels == {
        Label.DOCA_BFB_VERSION: "bf-bundle-3.0.0-135", Label.HOST: bench.host}


def test_a_deleted_dpu_without_its_bfb_is_wedged() -> None:
    bench = installing()
    bench.run(1)
    bench.delete(Bfb, "bundle")
    bench.delete(Dpu, bench.name)
    bench.run(3600)
    assert bench.phase() == Phase.OS_INSTALLING


def test_the_policy_lets_a_deleted_dpu_without_bfb_go_when_its_install_has_ended() -> None:
    bench = installing(policies=["deletion-ends-os-install"])
    bench.run(100)
    bench.delete(Bfb, "bundle")
    bench.delete(Dpu, bench.name)
    bench.run(100)
    assert bench.phase() == Phase.OS_INSTALLING  # the install is under way
    bench.run(1200)
    assert bench.gone(Dpu, bench.name)


# --- deletion


def test_a_deletion_waits_for_the_install_and_then_goes_without_a_reboot() -> None:
    bench = installing()
    bench.run(100)
    bench.delete(Dpu, bench.name)
    bench.run(60)
    assert bench.phase() == Phase.OS_INSTALLING
    bench.run(1200)
    assert bench.gone(Dpu, bench.name)
    assert bench.card.host.boots == 0


def test_a_deleted_dpu_tries_again_all_the_same() -> None:
    bench = installing()
    bench.dms.fail_installs(bench.name, Attempts((1,)))
    bench.run(100)
    bench.delete(Dpu, bench.name)
    bench.run(1000)
    assert starts(bench) == 2


def test_the_policy_starts_no_further_attempt_for_a_deleted_dpu() -> None:
    bench = installing(policies=["deletion-ends-os-install"])
    bench.dms.fail_installs(bench.name, Attempts((1,)))
    bench.run(100)
    bench.delete(Dpu, bench.name)
    bench.run(1000)
    assert starts(bench) == 1
    assert bench.gone(Dpu, bench.name)


# --- restarts


def test_a_restarted_controller_installs_a_second_time_beside_the_first() -> None:
    bench = installing()
    bench.run(300)
    assert starts(bench) == 1
    bench.restart()
    bench.run(300)
    assert starts(bench) == 2


def test_under_the_policy_a_restarted_controller_waits_for_the_install_it_finds() -> None:
    bench = installing(policies=["no-duplicate-os-install"])
    bench.run(300)
    assert ACTIVATED in bench.get(Dpu, bench.name).metadata.annotations
    bench.restart()
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 1
    assert bench.get(Dpu, bench.name).spec.cluster.node_labels[Label.HOST] == bench.host


def test_under_the_policy_an_install_that_had_failed_meanwhile_is_done_again() -> None:
    bench = installing(policies=["no-duplicate-os-install"])
    bench.dms.fail_installs(bench.name, Attempts((1,)))
    bench.run(300)
    bench.restart()
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 2


def test_under_the_policy_a_failed_attempt_of_the_same_process_is_not_waited_for() -> None:
    bench = installing(policies=["no-duplicate-os-install"])
    bench.dms.fail_installs(bench.name, Attempts((1, 2)))
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 3


def test_under_the_policy_a_mark_older_than_the_budget_means_nothing() -> None:
    bench = installing(policies=["no-duplicate-os-install"], spec={"annotations": {ACTIVATED: "called/1000.000"}})
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 1


def test_a_call_that_may_not_have_been_made_is_made_again_where_the_host_has_two_dpus() -> None:
    bench = Bench(policies=["no-duplicate-os-install"], dpus_per_host=2)
    second = bench.fleet.cards[1].name
    bench.at(Phase.OS_INSTALLING, name=second)  # keeps the host's RebootStatus active
    bench.at(Phase.OS_INSTALLING, annotations={ACTIVATED: "calling/1746057600.000"})
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 1


def test_a_call_that_may_not_have_been_made_is_made_when_nothing_is_under_way() -> None:
    mark = {ACTIVATED: "calling/1746057600.000"}
    bench = installing(policies=["no-duplicate-os-install"], spec={"annotations": mark})
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == 1


@pytest.mark.parametrize(("policies", "installs"), [([], 2), (["no-duplicate-os-install"], 1)])
def test_an_api_server_that_goes_when_the_install_begins_costs_another_one_but_under_the_policy(
        policies: list[str], installs: int) -> None:
    """The attempt's writes after OS.Activate (its mark, the labels) fail it, or wait for the API server."""
    bench = installing(policies=policies)

    def gone(what: str, over: bool) -> None:
        if what == "OS.Activate" and over:
            bench.refuse("patch")

    bench.effect_hook = gone
    bench.run(1500)
    assert bench.effect_hook is not gone
    bench.heal()
    bench.until(Phase.CHECKING_HOST_REBOOT_REQUIRED)
    assert starts(bench) == installs
    assert bench.get(Dpu, bench.name).spec.cluster.node_labels[Label.HOST] == bench.host
