"""Sums and differences of two whole numbers, such as `8+17=` and `15-8=`."""

from __future__ import annotations

import random


def add(rng: random.Random, *, low: int = 0, high: int = 19) -> tuple[str, str]:
    """Add two numbers from `low` to `high`."""
    a, b = rng.randint(low, high), rng.randint(low, high)
    return f"{a}+{b}=", str(a + b)


def subtract(rng: random.Random, *, low: int = 0, high: int = 19) -> tuple[str, str]:
    """Subtract the smaller of two numbers from `low` to `high` from the larger."""
    a, b = sorted((rng.randint(low, high), rng.randint(low, high)), reverse=True)
    return f"{a}-{b}=", str(a - b)
