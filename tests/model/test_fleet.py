"""Fleets: what is generated, what is given, what both make; stable names and addresses; mistakes with their places."""

import re
from pathlib import Path

import pytest

from twin.model import fleet_file
from twin.model.faults import FAULTS, LASTING, MOMENTS, fitting, kind_name, names_of
from twin.model.mistakes import BadInput
from twin.model.parts import PARTS
from twin.model.yamlmarks import document

FLEETS = sorted((Path(__file__).parents[2] / "scenarios" / "fleets").glob("*.yaml"))


def load(text):
    return fleet_file.load(document(text, "f.yaml"))


def mistakes(text):
    with pytest.raises(BadInput) as caught:
        load(text)
    return [str(m) for m in caught.value.mistakes]


def test_generated_hosts_stand_in_their_racks_with_their_dpus():
    fleet = load("generate: {racks: 2, hosts_per_rack: 3, dpus_per_host: 2}")

    assert [r.name for r in fleet.racks] == ["r1", "r2"]
    assert [h.name for h in fleet.hosts_in("r2")] == ["worker4", "worker5", "worker6"]
    assert [c.name for c in fleet.host["worker4"].cards] == ["worker4-0000-2b-00", "worker4-0000-a2-00"]
    assert len(fleet.cards) == 12


def test_no_two_things_of_a_large_fleet_share_a_name_or_an_address():
    fleet = load("generate: {racks: 10, hosts_per_rack: 100, dpus_per_host: 2}")
    addresses = [h.ip for h in fleet.hosts] + [a for c in fleet.cards for a in (c.oob_ip, c.bmc_ip)]

    assert len(set(addresses)) == 1000 + 2 * 2000
    assert len({c.name for c in fleet.cards}) == len({c.serial for c in fleet.cards}) == 2000
    assert not [a for a in addresses if a.endswith((".0", ".255"))]


def test_a_larger_fleet_begins_with_the_smaller_one():
    small = load("generate: {racks: 2, hosts_per_rack: 4, dpus_per_host: 1}")
    large = load("generate: {racks: 5, hosts_per_rack: 4, dpus_per_host: 1}")

    assert large.hosts[:8] == small.hosts


def test_an_explicit_host_replaces_fields_of_the_generated_one_and_others_follow():
    fleet = load("generate: {racks: 1, hosts_per_rack: 2, host: {labels: {a: b}, reboot: external}}\n"
                 "hosts:\n  - {name: worker2, oob_bridge: false}\n  - {name: extra, rack: r9, ip: 10.9.9.9}\n")

    assert [h.name for h in fleet.hosts] == ["worker1", "worker2", "extra"]
    assert (fleet.host["worker2"].oob_bridge, fleet.host["worker2"].reboot) == (False, "external")
    assert fleet.host["worker2"].labels == {"a": "b"}
    assert fleet.host["extra"].ip == "10.9.9.9"
    assert [r.name for r in fleet.racks] == ["r1", "r9"]


def test_a_model_brings_its_part_number_cores_and_memory():
    card = load("hosts: [{name: a, dpus: [{model: B3140H}]}]").cards[0]

    assert (card.cores, card.memory_bytes) == (8, 16 * 2**30)
    assert PARTS[card.opn].model == "B3140H"


def test_what_a_fleet_makes_up_fits_the_patterns_of_the_crds():
    for card in load("generate: {racks: 1, hosts_per_rack: 3, dpus_per_host: 8}").cards:
        assert re.fullmatch(r"([0-9a-fA-F]{4}-)?[0-9a-fA-F]{2}-[0-9a-fA-F]{2}", card.pci)
        assert re.fullmatch(r"MT_\d{10}", card.psid)
        assert re.fullmatch(r"\d{3}-[A-Z0-9]{5}-[A-Z0-9]{4}-[A-Z0-9]{3}", card.opn)


def test_generated_pods_carry_their_hosts_name_and_budgets_select_them():
    fleet = load("generate: "
                 "{racks: 1, hosts_per_rack: 2, host: {pods: [{name: web, labels: {app: web}, grace_s: 5s}]}}\n"
                 "budgets: [{name: web, selector: {app: web}, max_unavailable: 50%}]\n")

    assert [p.name for h in fleet.hosts for p in h.pods] == ["web-worker1", "web-worker2"]
    assert fleet.hosts[0].pods[0].grace_s == 5
    assert fleet.budgets[0].max_unavailable == "50%"


def test_a_host_that_replaces_a_generated_one_has_pods_of_its_own_names_only_if_it_lists_them():
    fleet = load("generate: {hosts_per_rack: 3, host: {pods: [{name: web}]}}\n"
                 "hosts: [{name: worker1, reboot: external}, {name: worker2}, {name: worker3, pods: [{name: db}]}]\n")

    assert [p.name for h in fleet.hosts for p in h.pods] == ["web-worker1", "web-worker2", "db"]


def test_pods_of_two_namespaces_may_have_one_name():
    assert load("hosts: [{name: a, pods: [{name: x}, {name: x, namespace: other}]}]").hosts[0].pods[1].name == "x"


def test_the_longest_names_and_any_label_that_the_api_server_takes_are_fine():
    host = load(f"hosts: [{{name: {'a' * 63}, labels: {{ex/a: '', example.com/A_b: c.D}}, "
                f"annotations: {{Ex.com/a: 'any b'}}, pods: [{{name: {'p' * 63}}}]}}]").hosts[0]

    assert host.labels == {"ex/a": "", "example.com/A_b": "c.D"}


def test_an_image_server_has_the_files_it_lists_and_no_others():
    fleet = load("generate: {}\nimage_servers:\n"
                 "  - {name: all, url: 'http://a/'}\n"
                 "  - {name: listed, url: 'http://a/b', files: {x.bfb: {size_bytes: 1Gi, versions: {bsp: 4.9.0.1}}}}\n")
    listed = fleet.image_server("http://a/b/x.bfb")

    assert listed.name == "listed", "the longest prefix answers"
    assert listed.file("http://a/b/x.bfb").size_bytes == 2**30
    assert listed.file("http://a/b/x.bfb").versions["bsp"] == "4.9.0.1"
    assert listed.file("http://a/b/y.bfb") is None
    assert fleet.image_server("http://a/z.bfb").file("http://a/z.bfb") is not None
    assert fleet.image_server("ftp://a/z.bfb") is None


def test_images_of_different_names_have_different_versions_and_newer_firmware_than_the_cards():
    fleet = load("generate: {}")
    server = fleet.image_servers[0]
    one, two = (server.file(f"http://x/bf-bundle-{n}.bfb") for n in (1, 2))
    named = server.file("http://x/bf-bundle-3.0.0-135_25.04.bfb")

    assert one.versions != two.versions
    assert named.versions["doca"] == "3.0.0"
    assert named.versions["bsp"] == "5.0.0.135"
    assert one.firmware != fleet.cards[0].firmware


def test_the_graph_holds_failure_domains_and_the_links_between():
    graph = load("generate: {racks: 2, hosts_per_rack: 2, dpus_per_host: 1}\nimage_servers: "
                 "[{name: s, url: 'http://a'}]"
                 ).graph()
    import networkx

    assert set(networkx.descendants(graph, ("rack", "r1"))) == {
        ("host", "worker1"), ("host", "worker2"), ("dpu", "worker1-0000-2b-00"), ("dpu", "worker2-0000-2b-00")}
    assert graph.edges[("image-server", "s"), ("controller", "")]["bytes_per_s"] == 1.25e9
    assert networkx.has_path(graph, ("image-server", "s"), ("dpu", "worker4-0000-2b-00"))


def test_a_fleet_without_hosts_is_refused():
    assert mistakes("name: empty\n") == [
        "f.yaml:1:1: fleet empty: hosts: a fleet needs at least one host: give hosts or generate"]


@pytest.mark.parametrize(("text", "mistake"), [
    ("generate: {racks: 0}", "f.yaml:1:19: fleet: generate.racks: must be greater than or equal to 1 (got 0)"),
    ("generate: {racks: two}", "generate.racks: must be an integer, unable to parse string"),
    ("generate: {racks: 5000, hosts_per_rack: 5000}", "at most 100,000 DPUs"),
    ("generate: {dpu: {pci: 2b-00}}", "pci cannot be the same for all DPUs"),
    ("hosts: 3", "f.yaml:1:8: fleet: hosts: must be a list (got 3)"),
    ("hosts: [{name: a, rak: r1}]", "f.yaml:1:19: fleet: hosts[0].rak: unknown field (got"),
    ("hosts: [{rack: r1}]", "f.yaml:1:9: fleet: hosts[0].name: required field is missing"),
    ("hosts: [{name: A}]", "must match pattern"),
    ("hosts: [{name: a}, {name: a}]", "f.yaml:1:27: fleet: hosts[1].name: another host has this name (got \"a\")"),
    ("hosts: [{name: a, ip: 1.2.3}]", "hosts[0].ip: must be an IPv4 address (got \"1.2.3\")"),
    ("hosts: [{name: a, ip: 1.2.3.4}, {name: b, ip: 1.2.3.4}]", "hosts[1].ip: another host has this address"),
    ("hosts: [{name: a, dpus: [{pci: 2b-00}, {pci: 0000-2b-00}]}]", "another DPU of this host has this PCI address"),
    ("hosts: [{name: a, dpus: [{model: X}]}]", "model 'X' is none of"),
    ("hosts: [{name: a, reboot: script}]", "reboot: script and reboot_script go together"),
    ("hosts: [{name: a, rack: r2}]\nracks: [{name: r1}]", "hosts[0].rack: no such rack in racks (got \"r2\")"),
    ("hosts: [{name: a, pods: [{name: p, grace_s: -3s}]}]", "a duration must not be negative (got \"-3s\")"),
    ("generate: {}\nbudgets: [{name: b, selector: {a: b}}]", "exactly one of min_available, max_unavailable"),
    ("generate: {}\nimage_servers: [{name: a, url: x}]", "image_servers[0].url: must match pattern"),
    ("generate: {}\nbudgets: [{name: b, selector: {}, min_available: 1}]", "selector: must have at least 1 item"),
    ("generate: {}\nbudgets: [{name: b, selector: {a: b}, min_available: x}]", "min_available: must match pattern"),
    ("generate: {}\nbudgets: [{name: b, selector: {a: b}, min_available: true}]", "min_available: must be a number"),
    ("generate: {}\nbudgets: [{name: b, selector: {a: b c}, min_available: 1}]", "selector.a: must have at most 63"),
    ("generate: {}\nbudgets: [{name: b, namespace: a.b, selector: {a: b}, min_available: 1}]", "must match pattern"),
    ("hosts: [{name: a..b}]", "hosts[0].name: must match pattern"),
    ("hosts: [{name: a.-b}]", "hosts[0].name: must match pattern"),
    (f"hosts: [{{name: {'a' * 64}}}]", "hosts[0].name: must have at most 63 characters"),
    (f"generate: {{host_name: {'a' * 63}}}", "generate.host_name: a host's name must have at most 63 characters"),
    ("hosts: [{name: cp1}]", 'hosts[0].name: a control-plane node has this name (got "cp1")'),
    ("generate: {racks: 9, host_name: cp}", 'generate.host_name: a control-plane node has this name (got "cp1")'),
    ("hosts: [{name: a, labels: {team: a b}}]", "hosts[0].labels.team: must have at most 63 letters"),
    ("hosts: [{name: a, labels: {'a b': c}}]", "f.yaml:1:28: fleet: hosts[0].labels.a b: a key must be [prefix/]name"),
    ("hosts: [{name: a, annotations: {'a b': c d}}]", "hosts[0].annotations.a b: a key must be [prefix/]name"),
    pytest.param(f"hosts: [{{name: a, annotations: {{x: {'a' * 2**18}}}}}]",
                 "annotations must have at most 262144 bytes", id="large annotations"),
    ("hosts: [{name: a, dpus: [{pf0: a b}]}]", "hosts[0].dpus[0].pf0: must have at most 63 letters"),
    ("hosts: [{name: a, pods: [{name: x, labels: {'a b': c}}]}]", "hosts[0].pods[0].labels.a b: a key must be"),
    ("hosts: [{name: a, pods: [{name: x}, {name: x}]}]", "hosts[0].pods[1].name: another pod of this namespace has"),
    ("hosts: [{name: a, pods: [{name: x}]}, {name: b, pods: [{name: x}]}]", "hosts[1].pods[0].name: another pod of"),
    ("generate: {racks: 2, host: {pods: [{name: x}, {name: x}]}}", "generate.host.pods[1].name: another pod of"),
    ("generate: {host: {pods: [{name: x}]}}\nhosts: [{name: b, pods: [{name: x-worker1}]}]",
     'hosts[0].pods[0].name: another pod of this namespace has this name (got "x-worker1")'),
    (f"generate: {{racks: 2, host: {{pods: [{{name: {'a' * 56}, controller: none}}]}}}}",
     "generate.host.pods[0].name: a pod's name must have at most 63 characters, its host's included"),
    ("generate: {racks: true}", "generate.racks: must be a number (got true)"),
    ("generate: {}\nvolume: {size_bytes: -1}", "a size is a number of bytes"),
    ("generate: {}\nvolume: {size_bytes: .inf}", "volume.size_bytes: a size must be less than 8Ei"),
    ("generate: {}\nvolume: {bandwidth_bytes_per_s: 0.001}",
     "bandwidth_bytes_per_s: must be greater than or equal to 1 (got 0.001)"),
])
def test_a_mistake_is_told_with_its_place_and_field(text, mistake):
    told = mistakes(text)

    assert len(told) == 1
    assert mistake.removesuffix(" (got") in told[0]


def test_all_mistakes_of_a_fleet_are_told_at_once():
    assert len(mistakes("generate: {racks: -1}\nhosts: [{name: A}, {nam: b}]\ncontrol_plane: 99\n")) == 5


def test_every_shipped_fleet_loads():
    assert FLEETS
    for path in FLEETS:
        assert fleet_file.load(document(path.read_text(), path.name)).cards


# --- faults: what they may name


def test_every_fault_is_a_moment_or_lasts_and_no_kind_is_named_twice():
    kinds = [kind_name(f) for f in FAULTS]

    assert len(set(kinds)) == len(kinds)
    assert {*MOMENTS, *LASTING} == {*kinds}


def test_patterns_select_names_in_fleet_order():
    fleet = load("generate: {racks: 2, hosts_per_rack: 6, dpus_per_host: 1}")

    assert fitting(("worker1*", "worker3"), names_of("host", fleet)) == (
        "worker1", "worker3", "worker10", "worker11", "worker12")
    assert names_of("rack", fleet) == ("r1", "r2")
    assert names_of("factor", fleet) is None
