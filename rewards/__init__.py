"""Rewards: functions that score completions. Each file is a family; recipes name them as `file:function`.

A reward takes `completions`, whichever columns of the rows it needs (`answer`, `entry`, `skill`, `level`) and
`**_` for the rest, and returns one number per completion, or None for a completion that it does not apply to.
Its options are keyword-only.
"""

from __future__ import annotations

from typing import Any


def text_of(completion: Any) -> str:
    """Return the text of a completion, which is plain text or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"] or "") for message in completion if message["role"] == "assistant")
