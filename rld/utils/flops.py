"""Estimates of a model's floating-point operations and bytes, and a meter that sums operations.

A forward pass counts 2 operations per parameter and token, a backward pass twice that (Kaplan et al. 2020, section
2.1); the quadratic part of attention is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Account = Literal["generation", "teachers", "gate", "student", "retention", "answers"]
"""The purpose of operations:

- `generation`: the student samples completions and reads them for old and reference log-probabilities;
- `teachers`: teachers score completions;
- `gate`: teachers answer prompts, which decides whether they teach on them;
- `student`: the student's updates, gold answers that it reads for old and reference log-probabilities or because a
  controller has it, rows that it answers before its first update, and rows by which it is cut;
- `retention`: protected skills are sampled, replayed and probed;
- `answers`: teachers answer probes before a stage, and prompts whose answers are learnt.

The parts of `teachers`, `gate` and `answers` are the teachers' names, those of `student` are `StudentPart`.
"""

StudentPart = Literal["updates", "gold", "probes", "cut"]
"""What the student's operations are for: updates on completions or rows, gold answers beside completions (updates on
them, and their old and reference log-probabilities), gold answers that a controller has it read and rows that it
answers before its first update, and rows by which it is cut."""


class SourceFlops(NamedTuple):
    """A stage's operations by the text that its student learns from."""

    sampled: float = 0.0
    """Its own completions: generation, the gate, teachers that score them, and updates on them."""
    gold: float = 0.0
    """Gold answers, or those of teachers in their place: their old and reference log-probabilities, updates on them."""


_FLOAT32 = 4

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def forward_flops(num_parameters: int, tokens: float) -> int:
    """Return the operations of a forward pass over `tokens` tokens."""
    return round(2 * num_parameters * tokens)


def training_flops(num_parameters: int, tokens: float) -> int:
    """Return the operations of a forward and a backward pass over `tokens` tokens."""
    return 3 * forward_flops(num_parameters, tokens)


class FlopMeter:
    """Sums the floating-point operations of one stage by account and part of it, over all processes.

    Evaluation on held-out rows is not counted, because it is not part of training.

    Attributes:
        parts: The operations of each part of each account.
    """

    def __init__(self) -> None:
        self.parts: dict[Account, dict[str, float]] = {account: {} for account in get_args(Account)}

    @property
    def accounts(self) -> dict[Account, float]:
        """The operations of each account."""
        return {account: sum(parts.values(), 0.0) for account, parts in self.parts.items()}

    @property
    def total(self) -> float:
        """The sum of the operations of all accounts."""
        return sum(self.accounts.values())

    @property
    def by_source(self) -> SourceFlops:
        """The operations of what is sampled, and of gold answers."""
        updates = self.parts["student"]
        sampling = sum(self.accounts[account] for account in ("generation", "gate", "teachers"))
        return SourceFlops(sampling + updates.get("updates", 0.0), updates.get("gold", 0.0))

    def add(self, account: Account, flops: float, part: str | None = None) -> None:
        """Add operations to a part of an account; an account without parts is its only one."""
        parts, name = self.parts[account], part or account
        parts[name] = parts.get(name, 0.0) + flops

    def add_student(self, part: StudentPart, flops: float) -> None:
        """Add operations to a part of the student's account."""
        self.add("student", flops, part)

    def replace(self, parts: Mapping[Account, Mapping[str, float]]) -> None:
        """Replace all operations by those of a checkpoint."""
        self.parts = {account: dict(parts[account]) for account in self.parts}


def training_bytes(num_parameters: int) -> int:
    """Return the memory of weights, gradients and AdamW's two moments in float32."""
    return 4 * _FLOAT32 * num_parameters


def frozen_bytes(num_parameters: int, dtype: str = "float32") -> int:
    """Return the memory of weights that are only read, such as a teacher's."""
    return _BYTES.get(dtype, _FLOAT32) * num_parameters
