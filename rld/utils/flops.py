"""Estimates of a model's floating-point operations and bytes, and a meter that sums operations.

A forward pass counts 2 operations per parameter and token, a backward pass twice that (Kaplan et al. 2020, section
2.1); the quadratic part of attention is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Account = Literal["generation", "teachers", "gate", "student", "retention", "answers"]
"""The purpose of operations:

- `generation`: the student samples completions and reads them for old and reference log-probabilities;
- `teachers`: teachers score completions;
- `gate`: teachers answer prompts, which decides whether they teach on them;
- `student`: the student's updates, gold answers that a controller has it read, and rows by which it is cut;
- `retention`: protected skills are sampled, replayed and probed;
- `answers`: before an update, teachers answer probes and prompts to fine-tune on.
"""

_FLOAT32 = 4

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def forward_flops(num_parameters: int, tokens: float) -> int:
    """Return the operations of a forward pass over `tokens` tokens."""
    return round(2 * num_parameters * tokens)


def training_flops(num_parameters: int, tokens: float) -> int:
    """Return the operations of a forward and a backward pass over `tokens` tokens."""
    return 3 * forward_flops(num_parameters, tokens)


class FlopMeter:
    """Sums the floating-point operations of one stage by account, over all processes.

    Evaluation on held-out rows is not counted, because it is not part of training.
    """

    def __init__(self) -> None:
        self.accounts: dict[Account, float] = dict.fromkeys(get_args(Account), 0.0)

    @property
    def total(self) -> float:
        """The sum of the operations of all accounts."""
        return sum(self.accounts.values())

    def add(self, account: Account, flops: float) -> None:
        """Add operations to an account."""
        self.accounts[account] += flops

    def replace(self, accounts: Mapping[Account, float]) -> None:
        """Replace the operations of some accounts by values from a checkpoint or another counter."""
        self.accounts.update(accounts)


def training_bytes(num_parameters: int) -> int:
    """Return the memory of weights, gradients and AdamW's two moments in float32."""
    return 4 * _FLOAT32 * num_parameters


def frozen_bytes(num_parameters: int, dtype: str = "float32") -> int:
    """Return the memory of weights that are only read, such as a teacher's."""
    return _BYTES.get(dtype, _FLOAT32) * num_parameters
