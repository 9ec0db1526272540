"""The scenarios that are timed: generated fleets of any size."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from scenarios.base import Scenario
from scenarios.load import load_scenario

ROOT = Path(__file__).resolve().parent.parent
BASIC = ROOT / "scenarios/manifests/basic/dpf.yaml"
TOKEN = "bootstrap-token-lasts-a-day"
"""Without it a thousand DPUs behind one worker find their join tokens expired: a finding, but no benchmark."""
NEXT = ROOT / "scenarios/manifests/next-bfb"


def fleet(hosts: int, dpus_per_host: int, *, clusters: int = 1, update: bool = False,
          policies: tuple[str, ...] = (TOKEN,)) -> Scenario:
    """A first install of `hosts` x `dpus_per_host` DPUs in racks of 50 hosts; `update`: then a new BFB at 5 %."""
    manifests = list(yaml.safe_load_all(BASIC.read_text()))
    cluster = next(m for m in manifests if m["kind"] == "DPUCluster")
    dpuset = next(m for m in manifests if m["kind"] == "DPUSet")
    manifests.remove(cluster)
    dpuset["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = "5%"
    dpuset["spec"]["dpuTemplate"]["spec"]["nodeEffect"] = {"noEffect": True}
    for n in range(clusters):
        copy = yaml.safe_load(yaml.safe_dump(cluster))
        copy["metadata"]["name"] = f"cluster-{n:02d}"
        copy["spec"]["clusterEndpoint"]["keepalived"].update(vip=f"10.0.10.{10 + n}", virtualRouterID=10 + n)
        manifests.append(copy)
    per_rack = min(50, hosts)
    scenario: dict[str, Any] = {
        "apiVersion": "dpf-twin/v1", "name": f"bench-{hosts * dpus_per_host}",
        "fleet": {"generate": {"racks": max(1, hosts // per_rack), "hosts_per_rack": per_rack,
                               "dpus_per_host": dpus_per_host}},
        "manifests": ["dpf.yaml"], "policies": list(policies), "horizon": "2000h",
    }
    if update:
        scenario["timeline"] = [
            {"at": "24h", "apply": str(NEXT)},
            {"at": "24h", "patch": {"kind": "DPUSet", "namespace": "dpf-operator-system", "name": "fleet",
                                    "merge": {"spec": {"dpuTemplate": {"spec": {"bfb": {"name": "bf-bundle-2"}}}}}}},
        ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dpf.yaml").write_text(yaml.safe_dump_all(manifests))
        path = Path(folder, "scenario.yaml")
        path.write_text(yaml.safe_dump(scenario))
        return load_scenario(path)
