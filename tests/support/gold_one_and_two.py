"""Train a few steps on gold answers and a teacher's distributions. A test runs it in two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

ANSWERS = ["a", "bcd", "ef", "ghija", "b", "cdef", "gh", "ij"]
"""Of different lengths, so that a mean of means would show."""


def trainer(folder: Path, *, response: float = 0.4, **options: Any) -> RLDTrainer:
    """A trainer whose completions are gold answers alone, one for each prompt."""
    rows = tiny.rows().map(lambda _, i: {"answer": ANSWERS[i % len(ANSWERS)]}, with_indices=True)
    args = {"num_generations": 1, "gold_completions": 1, "gold_weight": 0.7, "signals": ["response"], "optim": "sgd"}
    return RLDTrainer(
        tiny.model(),
        tiny.letters,
        RLDConfig(**tiny.rld_options(folder, **(args | options))),
        rows,
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer())],
        controller=FixedController(response=response),
    )


def trained(folder: Path, *, num_parts: int, **options: Any) -> Tensor:
    """Return the student's weights after three updates of 8 prompts, each in `num_parts` micro-batches."""
    sizes = {"per_device_train_batch_size": 8 // num_parts, "gradient_accumulation_steps": num_parts}
    made = trainer(folder, max_steps=3, **({**sizes, "generation_batch_size": 8} | options))
    made.train()
    return tiny.weights(made)


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    weights = trained(folder / "run", num_parts=1, per_device_train_batch_size=8 // count, generation_batch_size=8)
    torch.save(weights, folder / f"{torch.distributed.get_rank()}.pt")
