"""Train a few steps on what the student's average says behind a prompt of its own. Tests run it in two processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.self_teacher import SelfTeacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def trained(folder: Path, **options: Any) -> Tensor:
    """Return the weights after three updates on 8 gold answers, which every number of processes has alike."""
    args = {"num_generations": 1, "gold_completions": 1, "signals": ["response"], "optim": "sgd", "max_steps": 3}
    made = RLDTrainer(
        tiny.model(),
        tiny.letters,
        RLDConfig(**tiny.rld_options(folder, **args, generation_batch_size=8, **options)),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[SelfTeacher("{answer}:{question}", average=0.5)],
        controller=FixedController(response=1.0),
    )
    made.train()
    return tiny.weights(made)


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    weights = trained(folder / "run", per_device_train_batch_size=8 // count)
    torch.save(weights, folder / f"{torch.distributed.get_rank()}.pt")
