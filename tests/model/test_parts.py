"""Cards: what flint prints tells their size, and flavors that ask for more do not fit."""

from __future__ import annotations

import pytest

from twin.model import dms_commands as commands
from twin.model import fleet_file
from twin.model.device import Device
from twin.model.fleet import GI
from twin.model.parts import PARTS, Capacity, UnknownPart, capacity, fits, flint_fields, quantity

BIG = Capacity(16, 32)


def printed(number: str, description: str) -> str:
    device = Device(flash="32.43.1014", running="32.43.1014", memory_gb=32)
    return commands.print_flint(commands.Board(number, "MT_0000000884", description), device, full=True)


@pytest.mark.parametrize(("model", "cores", "gb"), [
    ("B3220", 16, 32), ("B3240", 16, 32), ("B3210", 16, 32), ("B3210E", 16, 32), ("B3210L", 8, 16), ("B3220L", 8, 16),
    ("B3140L", 8, 16), ("B3140H", 8, 16), ("B3220SH", 16, 48)])
def test_a_model_name_in_the_description_tells_the_size(model: str, cores: int, gb: int) -> None:
    assert capacity(printed("N/A", f"NVIDIA BlueField-3 {model} FHHL DPU; 200GbE")) == Capacity(cores, gb)


@pytest.mark.parametrize("opn", list(PARTS))
def test_a_part_number_tells_the_size_whatever_the_description(opn: str) -> None:
    assert capacity(printed(opn, "N/A")) == PARTS[opn].capacity


@pytest.mark.parametrize("opn", list(PARTS))
def test_number_and_description_of_a_part_agree(opn: str) -> None:
    assert capacity(printed("none", PARTS[opn].description)) == PARTS[opn].capacity


def test_the_last_letter_of_a_part_number_is_a_revision() -> None:
    assert capacity(printed("900-9D3B6-00CV-AAH", "N/A")) == BIG


def test_a_description_with_cores_and_memory_is_enough() -> None:
    assert capacity(printed("X", "Some card; 12 Arm cores; 24GB on-board DDR; FHHL")) == Capacity(12, 24)


@pytest.mark.parametrize("dpu", [*({"model": p.model} for p in PARTS.values()),
                                 {"model": "Z9", "cores": 12, "memory_bytes": "24Gi"}], ids=lambda d: d["model"])
def test_a_card_of_a_fleet_says_its_size_whether_or_not_a_table_knows_it(dpu: dict[str, object]) -> None:
    card = fleet_file.from_data({"generate": {"dpu": dpu}}).cards[0]
    board = commands.board(card)
    assert capacity(printed(board.part_number, board.description)) == Capacity(card.cores, card.memory_bytes // GI)


def test_an_unknown_part_is_said_with_its_number() -> None:
    with pytest.raises(UnknownPart, match="900-9D3XX-00XX-XX0"):
        capacity(printed("900-9D3XX-00XX-XX0", "N/A"))
    with pytest.raises(UnknownPart):
        capacity("")


def test_the_head_of_the_guid_table_is_not_the_description() -> None:
    assert flint_fields("Description:           UID                GuidsNumber\n") == ("", "")


@pytest.mark.parametrize(("resources", "enough"), [
    (None, True), ({}, True), ({"cpu": 16, "memory": "32Gi"}, True), ({"cpu": "17"}, False), ({"cpu": "16001m"}, False),
    ({"cpu": "16000m"}, True), ({"memory": "33Gi"}, False), ({"memory": "32G"}, True), ({"memory": "32.1G"}, False),
    ({"memory": "34e9"}, True), ({"memory": "35e9"}, False), ({"memory": "34359738368"}, False),
    ({"storage": "9Ti"}, True),
])
def test_gigabytes_count_as_gi_unless_the_request_is_decimal(resources: dict[str, str] | None, enough: bool) -> None:
    assert fits(resources, BIG) is enough


@pytest.mark.parametrize("text", ["", "Gi", "1GiB", "1 Gi", "abc", "1.2.3", "--1", "1e"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantities must match"):
        quantity(text)
