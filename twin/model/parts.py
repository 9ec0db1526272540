"""What is on the card: part numbers and models, their cores and memory, and whether a flavor fits.

Figures are NVIDIA's published BlueField-3 and BlueField-2 product tables; the rule for a model's cores and gigabytes is
that of provisioning.md 2.2, phase 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final


@dataclass(frozen=True, slots=True)
class Capacity:
    """Arm cores and on-board memory; `memory_gb` is the number before "GB" in the product table."""

    cores: int
    memory_gb: int


@dataclass(frozen=True, slots=True)
class Part:
    """One orderable card. `opn` is the ordering part number, `psid` the parameter-set id that flint prints."""

    opn: str
    model: str
    psid: str
    description: str
    capacity: Capacity


MODELS: Final[Mapping[str, Capacity]] = {
    "B3220SH": Capacity(16, 48),
    "B3210L": Capacity(8, 16), "B3220L": Capacity(8, 16), "B3140L": Capacity(8, 16), "B3140H": Capacity(8, 16),
    "B3210E": Capacity(16, 32), "B3210": Capacity(16, 32), "B3220": Capacity(16, 32), "B3240": Capacity(16, 32),
}
"""BlueField-3 models, the more specific name first."""

_BF3: Final = ("NVIDIA BlueField-3 {model} {rest}; {cores} Arm cores; {gb}GB on-board DDR; integrated BMC; "
               "Crypto {crypto}")
_X32: Final = "PCIe Gen5.0 x16 with x16 PCIe extension option"


def _bf3(opn: str, model: str, psid: str, rest: str, crypto: str) -> Part:
    size = MODELS[model]
    text = _BF3.format(model=model, rest=rest, cores=size.cores, gb=size.memory_gb, crypto=crypto)
    return Part(opn, model, psid, text, size)


_200G: Final = "200GbE (default mode) / NDR200 IB; Dual-port QSFP112"
_100G: Final = "100GbE (default mode) / HDR100 IB; Dual-port QSFP112"
_400G: Final = "400GbE / NDR IB (default mode)"

PARTS: Final[Mapping[str, Part]] = {part.opn: part for part in (
    _bf3("900-9D3B6-00CV-AA0", "B3220", "MT_0000000884", f"P-Series FHHL DPU; {_200G}; {_X32}", "Enabled"),
    _bf3("900-9D3B6-00SV-AA0", "B3220", "MT_0000000965", f"P-Series FHHL DPU; {_200G}; {_X32}", "Disabled"),
    _bf3("900-9D3B6-00CC-AA0", "B3210", "MT_0000001024", f"P-Series FHHL DPU; {_100G}; {_X32}", "Enabled"),
    _bf3("900-9D3B6-00SC-AA0", "B3210", "MT_0000001025", f"P-Series FHHL DPU; {_100G}; {_X32}", "Disabled"),
    _bf3("900-9D3B6-00CN-AB0", "B3240", "MT_0000000883",
         f"P-Series Dual-slot FHHL DPU; {_400G}; Dual-port QSFP112; {_X32}", "Enabled"),
    _bf3("900-9D3B6-00SN-AB0", "B3240", "MT_0000000964",
         f"P-Series Dual-slot FHHL DPU; {_400G}; Dual-port QSFP112; {_X32}", "Disabled"),
    _bf3("900-9D3B4-00CC-EA0", "B3210L", "MT_0000000966", f"E-Series FHHL DPU; {_100G}; PCIe Gen4.0 x16", "Enabled"),
    _bf3("900-9D3B4-00SC-EA0", "B3210L", "MT_0000000967", f"E-Series FHHL DPU; {_100G}; PCIe Gen4.0 x16", "Disabled"),
    _bf3("900-9D3B4-00PN-EA0", "B3140L", "MT_0000001011",
         f"E-Series FHHL DPU; {_400G}; Single-port QSFP112; PCIe Gen5.0 x16", "Disabled"),
    _bf3("900-9D3D4-00EN-HA0", "B3140H", "MT_0000001069",
         "E-Series HHHL DPU; 400GbE (default mode) / NDR IB; Single-port QSFP112; PCIe Gen5.0 x16", "Enabled"),
    _bf3("900-9D3B6-00CC-EA0", "B3210E", "MT_0000001117", f"E-Series FHHL DPU; {_100G}; {_X32}", "Enabled"),
    _bf3("900-9D3C6-00CV-DA0", "B3220SH", "MT_0000001101", f"P-Series FHHL Storage Controller; {_200G}; {_X32}",
         "Enabled"),
    _bf3("900-9D3B4-00CV-EA0", "B3220L", "MT_0000001093", f"E-Series FHHL DPU; {_200G}; PCIe Gen5.0 x16", "Enabled"),
    _bf3("900-9D3B4-00EN-EA0", "B3140L", "MT_0000001010",
         f"E-Series FHHL DPU; {_400G}; Single-port QSFP112; PCIe Gen5.0 x16", "Enabled"),
    Part("900-9D219-0086-ST1", "MBF2M516A-CECOT", "MT_0000000375",
         "BlueField-2 E-Series DPU 100GbE Dual-Port QSFP56; PCIe Gen4 x16; Crypto and Secure Boot Enabled; "
         "8 Arm cores; 16GB on-board DDR; 1GbE OOB management; FHHL", Capacity(8, 16)),
)}

DEFAULT_OPN: Final = "900-9D3B6-00CV-AA0"

_MODEL: Final = re.compile(r"\b(" + "|".join(MODELS) + r")\b")
_CORES: Final = re.compile(r"(\d+)\s*Arm cores\b", re.IGNORECASE)
_DDR: Final = re.compile(r"(\d+)\s*GB on-board DDR\b", re.IGNORECASE)
_FIELD: Final = re.compile(r"^(Part Number|Description):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


class UnknownPart(ValueError):
    """The card cannot be told from what flint printed."""


def flint_fields(text: str) -> tuple[str, str]:
    """(part number, board description) of `flint ... query full`; '' for what is missing.

    flint prints a second `Description:`, the head of its GUID table, which is not the board's.
    """
    part = description = ""
    for name, value in _FIELD.findall(text):
        if name == "Part Number":
            part = part or value
        elif not value.startswith("UID"):
            description = description or value
    return part, description


def capacity(text: str) -> Capacity:
    """Cores and memory from the output of `flint ... query full`: by part number, else by description.

    Raises:
        UnknownPart: neither says.
    """
    number, description = flint_fields(text)
    part = PARTS.get(number[:-1] + "0") if number else None
    part = PARTS.get(number, part)
    if part is not None:
        return part.capacity
    model = _MODEL.search(description)
    if model:
        return MODELS[model[1]]
    cores, memory = _CORES.search(description), _DDR.search(description)
    if cores and memory:
        return Capacity(int(cores[1]), int(memory[1]))
    raise UnknownPart(f"unable to tell the capacity of part number {number!r}, description {description!r}")


# --- does a flavor fit

_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL: Final = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
                   "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
                   "P": Decimal(10**15), "E": Decimal(10**18)}
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i)|([numkMGTPE]))?")


def quantity(text: str | int | float) -> tuple[Decimal, str]:
    """A Kubernetes quantity as (value, format); the formats are BinarySI, DecimalSI and DecimalExponent.

    Raises:
        ValueError: not a quantity.
    """
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"quantities must match the regular expression of Kubernetes (got {text!r})")
    number, exponent, binary, decimal = match.groups()
    try:
        value = Decimal(number)
        if exponent:
            return value * Decimal(f"1{exponent}"), "DecimalExponent"
    except InvalidOperation as error:
        raise ValueError(f"quantity {text!r} is out of range") from error
    if binary:
        return value * _BINARY[binary], "BinarySI"
    return value * _DECIMAL[decimal or ""], "DecimalSI"


def fits(resources: Mapping[str, str | int | float] | None, card: Capacity) -> bool:
    """Is the card at least what a flavor's `dpuResources` ask for? Only cpu and memory are looked at.

    The card's "GB" counts as Gi against a request in binary or exponent format and as G against a decimal one
    (provisioning.md 2.2, phase 4). Raises ValueError for a quantity that is none.
    """
    if not resources:
        return True
    if "cpu" in resources and quantity(resources["cpu"])[0] > card.cores:
        return False
    if "memory" in resources:
        asked, form = quantity(resources["memory"])
        unit = _DECIMAL["G"] if form == "DecimalSI" else _BINARY["Gi"]
        return asked <= card.memory_gb * unit
    return True
