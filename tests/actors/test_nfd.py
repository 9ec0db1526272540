"""dpu-detector and NFD labels."""

from __future__ import annotations

from neighbours import SPACE, Card, Town

from twin.actors.kubelet import NodeRegistration
from twin.actors.nfd import NodeFeatures
from twin.model.core import Node
from twin.model.meta import ObjectMeta, replace
from twin.model.operator import DpfOperatorConfig, DpfOperatorConfigSpec, DpuDetector, ProvisioningController

PREFIX = "feature.node.kubernetes.io/"


def town(*hosts: str, cards: tuple[Card, ...] = (Card("0000-2b-00"),), **facts: object) -> Town:
    t = Town(*hosts)
    for machine in t.machines.all.values():
        machine.cards = cards
        for fact, value in facts.items():
            setattr(machine, fact, value)
    t.add(lambda k: NodeRegistration(k, t.clock, t.durations, t.machines))
    t.add(lambda k: NodeFeatures(k, t.clock, t.durations, t.machines))
    return t


def labels(t: Town, host: str = "h1") -> dict[str, str]:
    found = t.get(Node, host).metadata.labels
    return {k.removeprefix(PREFIX): v for k, v in found.items() if k.startswith(PREFIX)}


def test_a_host_is_labelled_a_round_after_the_detector_started() -> None:
    t = town("h1", cards=(Card("0000-2b-00"), Card("0000-a3-00", pf0_name="ens2f0np0", number_of_pfs=2, psid="")))
    t.run(59.9)
    assert labels(t) == {}
    t.run(0.2)

    assert labels(t) == {
        "dpu-0-pci-address": "0000-2b-00", "dpu-0-pf0-name": "ens1f0np0", "dpu-0-ps-id": "MT_0000000884",
        "dpu-0-number-of-pfs": "1", "dpu-1-pci-address": "0000-a3-00", "dpu-1-pf0-name": "ens2f0np0",
        "dpu-1-number-of-pfs": "2", "dpu-enabled": "true", "dpu-oob-bridge-configured": ""}


def test_a_host_without_dpus_or_bridge_gets_no_label() -> None:
    t = town("h1", cards=(Card("0000-2b-00", device_id="1021"),), oob_bridge=False)

    t.run(1000)

    assert labels(t) == {}


def test_without_a_dpu_detector_a_host_only_shows_that_it_has_dpus() -> None:
    t = town("h1")
    config = t.create(DpfOperatorConfig(metadata=ObjectMeta(namespace=SPACE, name="dpfoperatorconfig"), spec=(
        DpfOperatorConfigSpec(provisioning_controller=ProvisioningController(bfb_pvc_name="pvc"),
                              dpu_detector=DpuDetector(disable=True)))))
    t.run(100)
    assert labels(t) == {"dpu-enabled": "true"}

    t.server.update(replace(config, spec=replace(config.spec, dpu_detector=None)), "test", t.env.now)
    t.run(61)
    assert "dpu-oob-bridge-configured" in labels(t)


def test_a_change_shows_at_the_next_round_of_its_host() -> None:
    t = town("h1", oob_bridge=False)
    t.run(100)
    assert "dpu-oob-bridge-configured" not in labels(t)

    t.switch("h1", oob_bridge=True)
    t.run(19)
    assert "dpu-oob-bridge-configured" not in labels(t)
    t.run(2)
    assert labels(t)["dpu-oob-bridge-configured"] == ""
    t.switch("h1", oob_bridge=False)
    t.run(61)

    assert "dpu-oob-bridge-configured" not in labels(t)


def test_a_change_that_is_gone_by_the_next_round_is_never_written() -> None:
    t = town("h1")
    t.run(70)
    before = len(t.writes("Node"))

    t.switch("h1", oob_bridge=False)
    t.run(20)
    t.switch("h1", oob_bridge=True)
    t.run(200)

    assert len(t.writes("Node")) == before


def test_a_label_that_somebody_removes_comes_back_and_other_labels_stay() -> None:
    t = town("h1")
    t.run(70)

    node = t.get(Node, "h1")
    kept = {k: v for k, v in node.metadata.labels.items() if not k.endswith("dpu-enabled")}
    t.update(node, metadata=replace(node.metadata, labels={**kept, "mine": "1"}))
    t.run(60)

    assert labels(t)["dpu-enabled"] == "true"
    assert t.get(Node, "h1").metadata.labels["mine"] == "1"


def test_a_host_that_is_down_keeps_its_labels_and_starts_a_new_round_with_its_boot() -> None:
    t = town("h1")
    t.run(70)

    t.switch("h1", up=False, cards=())
    t.run(1000)
    assert labels(t)["dpu-enabled"] == "true"
    t.switch("h1", up=True, boot=1)
    t.run(59)
    assert labels(t)["dpu-enabled"] == "true"
    t.run(2)

    assert labels(t) == {"dpu-oob-bridge-configured": ""}


def test_rounds_that_change_nothing_cost_nothing() -> None:
    t = town("h1", "h2")
    t.run(100)
    before, executed = len(t.writes()), t.env.executed

    t.run(86_400)

    assert len(t.writes()) == before
    assert t.env.executed == executed
