"""Rewards for the form of a completion, to be added to a verifier with a small weight."""

from __future__ import annotations

from typing import Any

from rld.errors import RewardError


def brief(completions: list[Any], completion_ids: list[list[int]], *, target: int, **_: Any) -> list[float]:
    """Give 1 up to `target` tokens, and less the longer a completion is: `target / length`, in (0, 1].

    Args:
        target: The greatest length in tokens that gets the full reward, at least 1.
    """
    if target < 1:
        raise RewardError(f"shape:brief: target should be at least 1 token, not {target}")
    return [target / max(target, len(ids)) for ids in completion_ids]
