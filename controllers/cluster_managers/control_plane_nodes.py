"""Placement on the host cluster's control-plane nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ROLES: Final = ("node-role.kubernetes.io/master", "node-role.kubernetes.io/control-plane")


def affinity(labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Required: any of the two roles, and these labels."""
    narrow = [{"key": k, "operator": "In", "values": [v]} for k, v in (labels or {}).items()]
    terms = [{"matchExpressions": [{"key": role, "operator": "Exists"}, *narrow]} for role in ROLES]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def tolerations() -> list[dict[str, Any]]:
    return [{"key": role, "operator": "Exists", "effect": "NoSchedule"} for role in ROLES]
