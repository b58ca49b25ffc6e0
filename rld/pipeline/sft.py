"""The `sft` stage at work."""

from __future__ import annotations

from typing import Any


def tokens_seen(history: list[dict[str, Any]]) -> float:
    """Tokens that an SFT trainer has seen; its own count starts again with each process."""
    total = last = 0.0
    for entry in history:
        if "num_tokens" in entry:
            now = float(entry["num_tokens"])
            total += now - last if now >= last else now
            last = now
    return total
