"""How long a stage takes on stated cards, and how much memory of each: from operations and bytes, not from a trial.

A training step and a scoring are bound by operations; sampling is bound by reading weights and keys and values from
memory, once for each token of the longest completion. Cards share the rows evenly, and what they send each other is
left out. A card reaches a share of its peak only; the shares are assumptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rld.errors import UsageError
from rld.losses.logit_memory import WORKING_BYTES
from rld.utils.flops import Account
from rld.utils.suggestions import hint

TRAINING_SHARE = 0.3
"""Of the peak operations, in forward and backward passes with output heads of large vocabularies."""

SCORING_SHARE = 0.5
"""Of the peak operations, in forward passes of frozen models."""

SAMPLING_SHARE = 0.5
"""Of the peak bandwidth, in sampling by vLLM; transformers, which starts each operation by itself, reaches less."""


class Card(NamedTuple):
    """A kind of GPU, by its data sheet."""

    flops: float
    """Peak operations per second in bf16, without sparsity."""
    bandwidth: float
    """Bytes per second from its memory."""
    memory: float
    """Bytes."""


CARDS = {
    "A100": Card(312e12, 2.04e12, 80e9),
    "H100": Card(989e12, 3.35e12, 80e9),
    "H200": Card(989e12, 4.8e12, 141e9),
    "L40S": Card(362e12, 0.864e12, 48e9),
}

HERE = "here"
"""Stands for what the machine on which `rld` runs can do."""


@dataclass(frozen=True)
class Cards:
    """Several cards of one kind."""

    name: str
    number: int = 1
    measured: Card | None = None
    """What one of them can do, where that was measured. None: as its data sheet says."""

    @classmethod
    def parse(cls, text: str) -> Cards:
        """Read `H100` or `8xH100`, or `here`, which `measured_here` is to replace.

        Raises:
            UsageError: it is none of these, or a card that is not known.
        """
        if text.strip().lower() == HERE:
            return cls(HERE)
        match = re.fullmatch(r"(?:([1-9]\d{0,4})x)?(\w+)", text.strip(), flags=re.IGNORECASE)
        name = match.group(2).upper() if match else ""
        if match is None or name not in CARDS:
            raise UsageError(
                f"--card {text!r}: write H100 or 8xH100{hint(name, CARDS)}; known: {', '.join(CARDS)}, here"
            )
        return cls(name, int(match.group(1) or 1))

    def __str__(self) -> str:
        return f"{self.number}x{self.name}" if self.measured is None else self.name

    @property
    def card(self) -> Card:
        """What one of them can do."""
        return CARDS[self.name] if self.measured is None else self.measured


@dataclass(frozen=True)
class Demand:
    """What a stage asks of cards beside operations, in bytes."""

    state_bytes: int
    """Weights, gradients and moments of what is trained, which FSDP2 and ZeRO-3 divide among the cards."""
    frozen_bytes: int
    """Weights of teachers in the training process, whole on each card."""
    activation_bytes: float
    """Activations of one forward and backward over a micro-batch, on all cards together."""
    cache_bytes: float = 0.0
    """Keys and values of the completions of an update when all are complete, on all cards together."""
    passes: float = 0.0
    """Forward passes of sampling that follow one another, in all of the stage."""
    pass_bytes: float = 0.0
    """Weights that each card reads in each of them."""
    read_bytes: float = 0.0
    """Keys and values that are read in all of them, on all cards together."""


@dataclass(frozen=True)
class Estimate:
    """What a stage takes."""

    seconds: Mapping[str, float]
    """By account."""
    whole_bytes: float
    """Of each card, if it holds the whole student."""
    sharded_bytes: float
    """Of each card, if the student is divided among them."""

    @property
    def bottleneck(self) -> str:
        """The account that takes longest."""
        return max(self.seconds, key=lambda account: self.seconds[account])

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def estimate(flops: Mapping[Account, float], demand: Demand, cards: Cards) -> Estimate:
    """Return what a stage takes on cards.

    Args:
        flops: Its operations by account.
        demand: What it asks for beside them.
        cards: The cards.
    """
    card, number = cards.card, cards.number
    seconds: dict[str, float] = {}
    for account, operations in flops.items():
        share = TRAINING_SHARE if account in ("student", "retention") else SCORING_SHARE
        seconds[account] = operations / (number * card.flops * share)
    reading = (demand.passes * demand.pass_bytes + demand.read_bytes / number) / (card.bandwidth * SAMPLING_SHARE)
    if reading:
        seconds["generation"] = max(seconds.get("generation", 0.0), reading)
    at_once = max(demand.activation_bytes / number + WORKING_BYTES, demand.cache_bytes / number)
    rest = demand.frozen_bytes + at_once
    return Estimate(
        {account: time for account, time in seconds.items() if time},
        demand.state_bytes + rest,
        demand.state_bytes / number + rest,
    )
