"""How a trace names what a fault strikes."""

from __future__ import annotations

import pytest

from twin.model import faults as f


@pytest.mark.parametrize(("fault", "text"), [
    (f.RackPower(kind="rack-power", rack="r2"), "r2"),
    (f.HostPower(kind="host-power", host=["h1", "h2"]), "h1 h2"),
    (f.DmsSlow(kind="dms-slow", host="*", factor=3), "*,3.0"),
    (f.NfsDown(kind="nfs-down"), ""),
])
def test_a_fault_is_named_by_the_values_of_its_fields(fault: object, text: str) -> None:
    assert f.target_text(fault) == text  # type: ignore[arg-type]
