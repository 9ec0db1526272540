"""What has not come about is said in words, and a run that provisioned nothing it was asked to has not converged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stories import written

from scenarios.check import check_scenario
from scenarios.run import run

HOSTS: dict[str, Any] = {"racks": 1, "hosts_per_rack": 1}


def test_a_bfb_larger_than_its_volume_is_in_error_as_check_says(tmp_path: Path) -> None:
    s = written(tmp_path, fleet={"generate": HOSTS, "volume": {"size_bytes": 1}})
    found = run(s)
    assert any("FailedDownload" in line for line in found.pending)
    assert "volume-full" in {finding.rule for finding in check_scenario(s)}
