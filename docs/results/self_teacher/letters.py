"""Questions of puzzles behind which an answer stands, so that a model learns to read a prompt that shows one."""

from __future__ import annotations

import random

NAMES = ("rev", "srt", "nxt", "rot")
"""With which the puzzles' questions begin."""


def told(rng: random.Random, *, length: int) -> tuple[str, str]:
    """Say what stands behind the question: `rev:bcaa=fjab=` is `fjab`, which is no puzzle's answer but by chance."""
    word, answer = ("".join(rng.choices("abcdefghij", k=length)) for _ in range(2))
    return f"{rng.choice(NAMES)}:{word}={answer}=", answer
