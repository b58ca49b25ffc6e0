"""Questions behind which the answer stands, so that a model learns to read a prompt that tells it."""

from __future__ import annotations

import random

SIGNS = "rtsf"
"""The first letters of the puzzles' questions."""


def told(rng: random.Random, *, length: int = 3) -> tuple[str, str]:
    """Say what stands behind the question: `s630=415=` is `415`, which is no puzzle's answer but by chance."""
    asked, answer = ("".join(map(str, rng.choices(range(8), k=length))) for _ in range(2))
    return f"{rng.choice(SIGNS)}{asked}={answer}=", answer
