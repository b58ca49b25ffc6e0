"""Train a few steps on the distributions of two teachers over labels. A test runs it in two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

LABELS = {"first": ["a", "bc", "bd"], "second": ["c", "de"]}
"""Of different lengths, and fewer for one skill than for the other."""


def rows(num: int = 16) -> Dataset:
    """Rows of two skills, some with a gold label, some with the same prompt."""
    made = []
    for i in range(num):
        skill = "first" if i % 3 else "second"
        prompt = tiny.WORDS[i % 4] + tiny.WORDS[(3 * i + 1) % 10] + "="
        answer = LABELS[skill][i % len(LABELS[skill])] if i % 2 else ""
        made.append({"prompt": prompt, "answer": answer, "skill": skill})
    return Dataset.from_list(made)


def teachers() -> list[Teacher]:
    one = Teacher(tiny.model(seed=1, width=48), name="one", tokenizer=tiny.tokenizer())
    return [one, Teacher(tiny.model(seed=2), name="two", tokenizer=tiny.tokenizer(), skills=["first"])]


def trainer(folder: Path, *, response: float = 0.8, **options: Any) -> RLDTrainer:
    """A trainer of the labels of 8 prompts an update."""
    args = {
        "labels": LABELS,
        "gold_weight": 0.7,
        "divergence": "forward_kl",
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "per_device_train_batch_size": 24,
    }
    return RLDTrainer(
        tiny.model(),
        args=RLDConfig(**tiny.rld_options(folder, **(args | options))),
        train_dataset=rows(),
        processing_class=tiny.tokenizer(),
        teachers=teachers(),
        controller=FixedController(response=response),
    )


def trained(folder: Path, *, num_parts: int = 1, num_processes: int = 1, **options: Any) -> Tensor:
    """Return the student's weights after three updates, each in `num_parts` micro-batches."""
    size = {"per_device_train_batch_size": 24 // num_parts // num_processes, "gradient_accumulation_steps": num_parts}
    made = trainer(folder, **size, **options)
    made.train()
    return tiny.weights(made)


if __name__ == "__main__":
    options = {"gate": "per_prompt", "label_calibration": "prior_matching"}
    weights = trained(Path(sys.argv[1]) / "run", num_processes=int(sys.argv[2]), **options)
    torch.save(weights, Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
