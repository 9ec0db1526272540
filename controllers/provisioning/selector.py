"""Does a label selector match (apimachinery's rules)."""

from __future__ import annotations

from collections.abc import Mapping

from twin.model.provisioning import LabelSelector, LabelSelectorRequirement


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """None and the empty selector match everything. An unknown operator matches nothing."""
    if selector is None:
        return True
    return (all(labels.get(k) == v for k, v in selector.match_labels.items())
            and all(_meets(r, labels) for r in selector.match_expressions))


def _meets(rule: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    match rule.operator:
        case "In":
            return labels.get(rule.key) in rule.values
        case "NotIn":
            return rule.key not in labels or labels[rule.key] not in rule.values
        case "Exists":
            return rule.key in labels
        case "DoesNotExist":
            return rule.key not in labels
        case _:
            return False
