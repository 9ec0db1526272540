"""bf.cfg: what a flavor asks for is in it, and the DPU reads out of it what DPF meant."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from twin.model import bfcfg
from twin.model.bfcfg import Unrenderable
from twin.model.provisioning import (
    ConfigFile,
    ContainerdConfig,
    DpuFlavorSpec,
    Grub,
    NvConfig,
    OvsConfig,
    Sysctl,
)

JOIN = "kubeadm join 10.0.0.5:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:00ff --v=5"
FLAVOR = DpuFlavorSpec(
    grub=Grub(kernel_parameters=("console=hvc0", "hugepagesz=2048kB", "hugepages=3072")),
    sysctl=Sysctl(parameters=("net.core.rmem_max=1", "vm.swappiness=0")),
    nvconfig=(NvConfig(device="*", parameters=("PF_TOTAL_SF=20", "NUM_OF_VFS=46")),),
    ovs=OvsConfig(raw_config_script="ovs-vsctl add-br br-sfc\novs-vsctl add-port br-sfc p0\n"),
    bfcfg_parameters=("UPDATE_DPU_OS=yes", "WITH_NIC_FW_UPDATE=yes", "ubuntu_PASSWORD='$1$abc'"),
    config_files=(ConfigFile(path="/etc/a", operation="append", raw="x\ny\n", permissions="0644"),
                  ConfigFile(path="/etc/b", operation="override", raw="")),
    containerd_config=ContainerdConfig(registry_endpoint="http://mirror:5000"),
)


def render(flavor: DpuFlavorSpec = FLAVOR, **changes: object) -> str:
    arguments = {"hostname": "worker1-0000-2b-00", "join_command": JOIN, "number_of_pfs": 2, **changes}
    return bfcfg.render(flavor, **arguments).decode()  # type: ignore[arg-type]


def user_data(text: str) -> dict[str, object]:
    """The cloud-init document inside the shell script."""
    data = yaml.safe_load(text.split("<<'DPF_USER_DATA'\n")[1].split("DPF_USER_DATA\n")[0])
    assert isinstance(data, dict)
    return data


def complaints(script: str) -> bytes:
    return subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False).stderr


def files(text: str) -> dict[str, str]:
    entries = user_data(text)["write_files"]
    assert isinstance(entries, list)
    return {e["path"]: e["content"] for e in entries}


def test_the_dpu_reads_what_dpf_wrote() -> None:
    config = bfcfg.read(render().encode())
    assert (config.hostname, config.server, config.token) == (
        "worker1-0000-2b-00", "10.0.0.5:6443", "abcdef.0123456789abcdef")
    assert config.nvconfig == ("PF_TOTAL_SF=20", "NUM_OF_VFS=46")
    assert (config.firmware_update, config.extra_reboot, config.mtu) == (True, False, 1500)
    assert config.hugepages_gb == pytest.approx(6.44, abs=0.01)


def test_an_empty_flavor_asks_for_nothing() -> None:
    config = bfcfg.read(render(DpuFlavorSpec(), control_plane_mtu=9000, extra_reboot=True).encode())
    assert (config.nvconfig, config.firmware_update, config.extra_reboot, config.mtu, config.hugepages_gb) == (
        (), False, True, 9000, 0.0)


@pytest.mark.parametrize("flavor", [FLAVOR, DpuFlavorSpec()])
def test_the_file_is_a_shell_script_with_a_cloud_init_document_inside(flavor: DpuFlavorSpec) -> None:
    text = render(flavor)
    assert complaints(text) == b""
    assert user_data(text)["hostname"] == "worker1-0000-2b-00"
    assert "@" not in text.replace("OS@", "")


def test_scripts_in_it_are_shell_too() -> None:
    scripts = "\n".join(content for path, content in files(render()).items() if path.endswith(".sh"))
    assert scripts.count("#!/bin/bash") == 7
    assert complaints(scripts) == b""


def test_every_field_of_the_flavor_lands_where_it_acts() -> None:
    text = render()
    written = files(text)
    assert "\nUPDATE_DPU_OS=yes\nWITH_NIC_FW_UPDATE=yes\n" in text
    assert "hashed_passwd: $1$abc" in text
    assert "ubuntu_PASSWORD" not in text
    assert written["/etc/default/grub.d/99-dpf.cfg"] == (
        'GRUB_CMDLINE_LINUX="console=hvc0 hugepagesz=2048kB hugepages=3072"\n')
    assert written["/etc/sysctl.d/99-dpf.conf"] == "net.core.rmem_max=1\nvm.swappiness=0\n"
    assert "set -e\novs-vsctl add-br br-sfc\novs-vsctl add-port br-sfc p0\n" in written["/opt/dpf/ovs.sh"]
    assert (written["/etc/a"], written["/etc/b"]) == ("x\ny\n", "")
    assert 'REGISTRY="http://mirror:5000"\n' in written["/etc/dpf/settings"]
    entries = user_data(text)["write_files"]
    assert isinstance(entries, list)
    assert [e.get("append") for e in entries if e["path"] in ("/etc/a", "/etc/b")] == [True, None]


def test_the_bridge_to_the_host_has_the_control_plane_mtu_and_vf0_as_member() -> None:
    netplan = yaml.safe_load(files(render(control_plane_mtu=9000))["/etc/netplan/60-dpf.yaml"])
    assert netplan["network"]["bridges"]["br-comm-ch"] == {"dhcp4": True, "interfaces": ["pf0vf0"], "mtu": 9000}


def test_each_pf_is_listed_with_its_host_representor() -> None:
    assert 'PFS="p0 pf0hpf p1 pf1hpf"' in render()
    assert 'PFS="p0 pf0hpf"' in render(number_of_pfs=1)


def test_trusted_sfs_are_taken_from_the_untrusted() -> None:
    settings = files(render(flavor_annotations={bfcfg.NUM_OF_TRUSTED_SFS: "4"}))["/etc/dpf/settings"]
    assert "\nSFS=16\nTRUSTED_SFS=4\n" in settings


@pytest.mark.parametrize("value", ["0", "11", "x", "-1", ""])
def test_a_number_of_trusted_sfs_outside_one_to_ten_is_refused(value: str) -> None:
    with pytest.raises(Unrenderable, match="from 1 to 10"):
        render(flavor_annotations={bfcfg.NUM_OF_TRUSTED_SFS: value})


def test_without_a_number_of_pfs_nothing_is_rendered() -> None:
    with pytest.raises(Unrenderable, match=r"^numberOfPFs is not set$"):
        render(number_of_pfs=None)


def test_the_limit_is_128_kib_to_the_byte() -> None:
    marks = "@HOSTNAME@ @JOIN_COMMAND@"
    room = 128 * 1024 - len(render(template=marks))
    assert len(render(template=marks + "x" * room)) == 128 * 1024
    with pytest.raises(Unrenderable, match="131073 bytes"):
        render(template=marks + "x" * (room + 1))


def test_a_custom_template_is_filled_in_and_unknown_marks_stay() -> None:
    text = render(template="hostname: @HOSTNAME@\n@JOIN_COMMAND@\n@MINE@\n")
    assert text == f"hostname: worker1-0000-2b-00\n{JOIN}\n@MINE@\n"
    assert bfcfg.read(text.encode()).token == "abcdef.0123456789abcdef"


@pytest.mark.parametrize(("template", "says"), [
    ("# @HOSTNAME@ @JOIN_COMMAND@\n{{.KubeadmJoinCMD}}", r"line 2 .*1 in all.*\(got \{\{\.KubeadmJoinCMD\}\}\)$"),
    ("{{ range .A }}{{ . }}{{ end }}", r"line 1 .*3 in all.*\(got \{\{ range \.A \}\}\)$"),
    ("{{/* a\ncomment */}}", r"line 1 .*\(got \{\{\)$"),
    ("hostname: @HOSTNAME@\n", "lacks @JOIN_COMMAND@: DPUs would not get their kubeadm join command"),
    ("@JOIN_COMMAND@ @HOST_NAME@\n", "lacks @HOSTNAME@: DPUs would not get their name"),
])
def test_a_custom_template_that_is_not_filled_in_is_refused(template: str, says: str) -> None:
    with pytest.raises(Unrenderable, match=f"^bf.cfg template: .*{says}"):
        render(template=template)


def test_all_that_a_template_lacks_is_said_at_once() -> None:
    assert [flaw.words.split(":")[0] for flaw in bfcfg.flaws("")] == ["it lacks @HOSTNAME@", "it lacks @JOIN_COMMAND@"]


def test_braces_that_a_flavor_brings_are_not_the_templates() -> None:
    flavor = DpuFlavorSpec(ovs=OvsConfig(raw_config_script="crictl ps --format '{{.ID}}'"))
    template = "@HOSTNAME@ @JOIN_COMMAND@\n@OVS@"
    assert "{{.ID}}" in render(flavor)
    assert "{{.ID}}" in render(flavor, template=template)


def test_two_flavors_never_share_a_body() -> None:
    for n in range(200):
        flavor = DpuFlavorSpec(nvconfig=(NvConfig(parameters=(f"PF_TOTAL_SF={n}",)),))
        assert bfcfg.read(render(flavor).encode()).nvconfig == (f"PF_TOTAL_SF={n}",)


@pytest.mark.parametrize(("parameters", "vfs"), [((), 16), (("NUM_OF_VFS=46",), 46), (("X=1", "NUM_OF_VFS=8"), 8),
                                                 (("MY_NUM_OF_VFS=8",), 16)])
def test_the_vf_count_must_start_its_parameter(parameters: tuple[str, ...], vfs: int) -> None:
    assert bfcfg.number_of_vfs(DpuFlavorSpec(nvconfig=(NvConfig(parameters=parameters),))) == vfs


def test_only_the_first_nvconfig_counts_and_a_bad_count_is_said() -> None:
    two = (NvConfig(parameters=("PF_TOTAL_SF=1",)), NvConfig(parameters=("NUM_OF_VFS=4",)))
    assert bfcfg.number_of_vfs(DpuFlavorSpec(nvconfig=two)) == 16
    with pytest.raises(ValueError, match='parsing "many"'):
        bfcfg.number_of_vfs(DpuFlavorSpec(nvconfig=(NvConfig(parameters=("NUM_OF_VFS=many",)),)))


@pytest.mark.parametrize(("words", "gb"), [
    ("hugepagesz=1G hugepages=14", 15.03), ("hugepages=512", 1.07), ("quiet", 0.0),
    ("hugepagesz=2M hugepages=1 hugepagesz=1G hugepages=1", 1.08)])
def test_hugepages_are_pages_times_their_size(words: str, gb: float) -> None:
    assert bfcfg.hugepages_gb(words) == pytest.approx(gb, abs=0.01)


def test_only_a_line_of_its_own_names_the_host() -> None:
    config = bfcfg.read(b"# hostname: not-this\n# kubeadm join later\nhostname: d1\n"
                        b"kubeadm join 10.0.0.1:6443 --token a.b\nhostname: d2\n")
    assert (config.hostname, config.server, config.token) == ("d1", "10.0.0.1:6443", "a.b")


@pytest.mark.parametrize("line", ["hostname d1", "  hostnamectl set-hostname d1", "  - hostnamectl set-hostname d1"])
def test_a_script_may_name_the_host(line: str) -> None:
    assert bfcfg.read(f"# hostname of d2\n{line}\n".encode()).hostname == "d1"


def test_reading_what_is_no_bf_cfg_gives_nothing() -> None:
    assert bfcfg.read(b"\xff\x00 nothing here").token == ""
