"""Whether a `distill` stage can learn labels in place of completions, and what that excludes."""

from __future__ import annotations

from typing import Any

from rld.utils.options import OptionError


def require_possible_labels(stage: Any) -> None:
    """Check that a stage can learn labels, if it does, and that it has no option of labels, if it does not.

    Args:
        stage: The stage, a `Distill`.

    Raises:
        OptionError: another of its options excludes that.
    """
    response = stage.signals.response
    if not stage.learns_labels:
        if response is not None and response.calibration != "none":
            message = "it is that of labels, and needs rollout.completions: labels"
            raise OptionError(message, "signals", "response", "calibration")
        return
    reasons = {
        "signals.policy": (stage.signals.policy, "there are no samples to reinforce"),
        "signals.feature": (stage.signals.feature, "distributions over labels are matched, and not tokens"),
        "signals.response.token_weights": (response and response.token_weights, "labels are weighted, not tokens"),
        "cache": (stage.cache, "it keeps what teachers say of gold answers"),
        "audit": (stage.audit, "it checks what the student samples"),
        "retain": (stage.retain, "protect skills in another stage"),
        "capacity.act": (
            stage.capacity and stage.capacity.act == "soften",
            "distributions over tokens are softened; report and reinforce are possible",
        ),
        "distill_on": (stage.distill_on != "all", "there are no samples that could fail"),
    }
    for name, (is_set, reason) in reasons.items():
        if is_set:
            raise OptionError(f"rollout.completions: labels goes without it: {reason}", *name.split("."))
    if response is None or not stage.teachers:
        message = "labels are learnt from teachers: set teachers and signals.response"
        raise OptionError(message, "rollout", "completions")
