"""bf.cfg: what DPF hands to the installer of a DPU's OS (provisioning.md 4.2 to 4.5), written and read.

The layout is ours; what it makes the DPU do is what provisioning.md 4.3 lists. A bf.cfg is a shell script: the first
lines are parameters of the installer, `bfb_modify_os` runs before the new OS starts and puts cloud-init's user data in
place, `bfb_post_install` runs after it.

A custom template (key BF_CFG_TEMPLATE of the ConfigMap in DPFOperatorConfig) is text with the same `@NAME@` marks.
Upstream's templates are Go's, over fields that our sources do not name: one of those is refused, never sent as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from twin.model.bfcfg_template import TEMPLATE
from twin.model.device import Config
from twin.model.provisioning import ConfigFile, DpuFlavorSpec

MAX_BYTES: Final = 128 * 1024
PF_MTU: Final = 9126
DEFAULT_VFS: Final = 16
"""VFs of a host whose flavor does not set NUM_OF_VFS."""

NUM_OF_VFS: Final = "NUM_OF_VFS="
NUM_OF_TRUSTED_SFS: Final = "provisioning.dpu.nvidia.com/num-of-trusted-sfs"
MAX_TRUSTED_SFS: Final = 10

_PASSWORD: Final = "ubuntu_PASSWORD="
_USER: Final = "ubuntu"
QUOTE: Final = "'"


class Unrenderable(ValueError):
    """bf.cfg cannot be written; the text is what the install task reports."""


# --- what a flavor says


def nvconfig(flavor: DpuFlavorSpec) -> tuple[str, ...]:
    """Firmware parameters. upstream: only the first element counts (provisioning.md 1.5)."""
    return flavor.nvconfig[0].parameters if flavor.nvconfig else ()


def number_of_vfs(flavor: DpuFlavorSpec) -> int:
    """Host VFs that the flavor asks for: NUM_OF_VFS at the start of a parameter, else 16.

    Raises ValueError when it is no number.
    """
    return _number(flavor, NUM_OF_VFS, DEFAULT_VFS)


def number_of_sfs(flavor: DpuFlavorSpec) -> int:
    return _number(flavor, "PF_TOTAL_SF=", 0)


def _number(flavor: DpuFlavorSpec, start: str, default: int) -> int:
    for parameter in nvconfig(flavor):
        if parameter.startswith(start):
            text = parameter[len(start):]
            if not text.isdecimal():
                raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
            return int(text)
    return default


def trusted_sfs(annotations: Mapping[str, str]) -> int:
    """Trusted SFs that the flavor's annotation asks for, 0 without it. Raises Unrenderable outside 1 to 10."""
    text = annotations.get(NUM_OF_TRUSTED_SFS)
    if text is None:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= MAX_TRUSTED_SFS:
        raise Unrenderable(f"annotation {NUM_OF_TRUSTED_SFS} must be from 1 to {MAX_TRUSTED_SFS} (got {text!r})")
    return int(text)


# --- writing


def render(flavor: DpuFlavorSpec, *, hostname: str, join_command: str, number_of_pfs: int | None,
           control_plane_mtu: int = 1500, extra_reboot: bool = False,
           flavor_annotations: Mapping[str, str] | None = None, template: str | None = None) -> bytes:
    """The bf.cfg of one DPU. `extra_reboot`: the host's reboot is skipped, so the DPU reboots itself once.

    Raises:
        Unrenderable: number of PFs missing, annotation out of range, a template with a flaw, or larger than 128 KiB.
    """
    if number_of_pfs is None:
        raise Unrenderable("numberOfPFs is not set")
    body = _flavored(flavor, number_of_pfs, control_plane_mtu, extra_reboot, trusted_sfs(flavor_annotations or {}),
                     template)
    text = body.replace("@HOSTNAME@", hostname).replace("@JOIN_COMMAND@", join_command)
    content = text.encode()
    if len(content) > MAX_BYTES:
        raise Unrenderable(f"bf.cfg is {len(content)} bytes, the limit is {MAX_BYTES}")
    return content


_bodies: dict[tuple[object, ...], tuple[DpuFlavorSpec, str]] = {}


def _flavored(flavor: DpuFlavorSpec, pfs: int, mtu: int, extra_reboot: bool, trusted: int, template: str | None) -> str:
    """Everything but the DPU's name and join command: a fleet shares it, so the last few are kept."""
    key = (id(flavor), pfs, mtu, extra_reboot, trusted, template)
    kept = _bodies.get(key)
    if kept is not None and kept[0] is flavor:
        return kept[1]
    if template is not None and (flaw := next(flaws(template), None)):
        raise Unrenderable(f"bf.cfg template: {flaw}")
    body = _body(flavor, pfs, mtu, extra_reboot, trusted, TEMPLATE if template is None else template)
    if len(_bodies) >= 64:
        _bodies.clear()
    _bodies[key] = (flavor, body)
    return body


def _body(flavor: DpuFlavorSpec, pfs: int, mtu: int, extra_reboot: bool, trusted: int, template: str) -> str:
    password = next((p[len(_PASSWORD):] for p in flavor.bfcfg_parameters if p.startswith(_PASSWORD)), "")
    marks = {
        "PARAMETERS": "\n".join(p for p in flavor.bfcfg_parameters if not p.startswith(_PASSWORD)),
        "PASSWORD": f"hashed_passwd: {password.strip(QUOTE)}" if password else f"plain_text_passwd: {_USER}",
        "EXPIRE": "false" if password else "true",
        "CONTROL_PLANE_MTU": str(mtu),
        "PF_MTU": str(PF_MTU),
        "PFS": " ".join(name for i in range(pfs) for name in (f"p{i}", f"pf{i}hpf")),
        "SFS": str(max(0, number_of_sfs(flavor) - trusted)),
        "TRUSTED_SFS": str(trusted),
        "NVCONFIG": " ".join(nvconfig(flavor)),
        "KERNEL": " ".join(flavor.grub.kernel_parameters) if flavor.grub else "",
        "SYSCTL": _indented("\n".join(flavor.sysctl.parameters) if flavor.sysctl else ""),
        "OVS": _indented(flavor.ovs.raw_config_script if flavor.ovs else ""),
        "REGISTRY": flavor.containerd_config.registry_endpoint if flavor.containerd_config else "",
        "FILES": _files(flavor.config_files),
        "REBOOT": "reboot" if extra_reboot else "true",
    }
    return _MARK.sub(lambda m: marks.get(m[1], m[0]), template)


_MARK: Final = re.compile(r"@([A-Z_]+)@")
_ACTION: Final = re.compile(r"\{\{(?:[^\n]{0,60}?\}\})?")
_NEEDED: Final = {"@HOSTNAME@": "name", "@JOIN_COMMAND@": "kubeadm join command"}


class Flaw(NamedTuple):
    """Why a custom template is not filled in; `got`: what stands there, None where something is missing."""

    words: str
    got: str | None = None

    def __str__(self) -> str:
        return self.words if self.got is None else f"{self.words} (got {self.got})"


def flaws(template: str) -> Iterator[Flaw]:
    """All of a custom template. Of Go's actions only the first is told: whoever writes one writes many."""
    actions = list(_ACTION.finditer(template))
    if actions:
        first, line = actions[0][0], template.count("\n", 0, actions[0].start()) + 1
        yield Flaw(
            f"line {line} has a Go template action ({len(actions)} in all), which upstream fills in and the twin does "
            "not; put marks like @HOSTNAME@ in their place, or leave bfCFGTemplateConfigMap out for the twin's own "
            "bf.cfg", first)
        return
    for mark, what in _NEEDED.items():
        if mark not in template:
            yield Flaw(f"it lacks {mark}: DPUs would not get their {what}, nor join")


def _indented(text: str) -> str:
    return "\n".join("      " + line for line in text.splitlines())


def _files(files: Sequence[ConfigFile]) -> str:
    parts = []
    for file in files:
        append = "\n    append: true" if file.operation == "append" else ""
        mode = f"\n    permissions: \"{file.permissions}\"" if file.permissions else ""
        parts.append(f"  - path: {file.path}{mode}{append}\n    content: |\n{_indented(file.raw)}")
    return "\n".join(parts)


# --- reading, as the DPU does

_JOIN: Final = re.compile(r"kubeadm join (\S+) --token ([a-z0-9.]+)")
_HOSTNAME: Final = re.compile(r"^hostname: (\S+)$", re.MULTILINE)
_SET_HOSTNAME: Final = re.compile(r"^[ \t]*(?:- )?(?:hostname|hostnamectl set-hostname) ([\w.-]+)$", re.MULTILINE)
"""How a custom template's script may do it."""


def read(content: bytes) -> Config:
    """What the installed OS does with this bf.cfg. What is not in it (a custom template) is absent in the answer."""
    text = content.decode(errors="replace")
    hostname = _first(_HOSTNAME, "hostname: ", text) or _SET_HOSTNAME.search(text)
    join = _first(_JOIN, "kubeadm join ", text)
    name = hostname[1] if hostname else ""
    server, token = join.groups() if join else ("", "")
    # What is left without the DPU's own values is the same for a whole fleet: read it once.
    shared = _read(text.replace(join[0], "").replace(name, "") if join and name else text)
    return Config(name, server, token, *shared)


def _first(pattern: re.Pattern[str], start: str, text: str) -> re.Match[str] | None:
    """The first match of a pattern that begins with `start`, which is found much faster alone."""
    at = text.find(start)
    return pattern.search(text, at) if at >= 0 else None


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[tuple[str, ...], bool, bool, int, float]:
    """(nvconfig, firmware update, extra reboot, MTU, hugepages in GB)"""

    def line(start: str) -> str:
        found = re.search(rf"^\s*{start}(.*)$", text, re.MULTILINE)
        return found[1].strip().strip('"') if found else ""

    mtu = line("CONTROL_PLANE_MTU=")
    return (tuple(line("NVCONFIG=").split()), line("WITH_NIC_FW_UPDATE=") == "yes", line("DPF_REBOOT=") == "reboot",
            int(mtu) if mtu.isdecimal() else 1500, hugepages_gb(line("GRUB_CMDLINE_LINUX=")))


_SIZES_GB: Final = {"K": 2**10 / 1e9, "M": 2**20 / 1e9, "G": 2**30 / 1e9}


def hugepages_gb(kernel_parameters: str) -> float:
    """Memory that `hugepagesz=`/`hugepages=` pairs take, in 10^9 bytes; without a size pages are 2 MiB."""
    size, total = _SIZES_GB["M"] * 2, 0.0
    for word in kernel_parameters.split():
        name, _, value = word.partition("=")
        match = re.fullmatch(r"(\d+)([kKMG]?)B?", value)
        if name == "hugepagesz" and match:
            size = int(match[1]) * _SIZES_GB.get(match[2].upper(), 1e-9)
        elif name == "hugepages" and match:
            total += int(match[1]) * size
    return total
