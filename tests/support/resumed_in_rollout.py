"""Train a few updates, resume inside a rollout, and compare the weights. Run by a test with several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import tests.support.tiny as tiny
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def four_updates(folder: Path) -> RLDTrainer:
    """Return a trainer of four updates, two of each rollout, with a checkpoint after each."""
    saving = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2}
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=[tiny.letters],
        args=RLDConfig(**tiny.rld_options(folder, max_steps=4, **saving)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer())],
    )


def trained(folder: Path, checkpoint: Path | None) -> torch.Tensor:
    """Return the student's weights after the updates."""
    trainer = four_updates(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return tiny.weights(trainer)


if __name__ == "__main__":
    run = Path(sys.argv[1]) / "run"
    whole = trained(run, None)
    assert (run / "checkpoint-3" / "rld_rollout_1.pt").is_file()
    assert trained(run, run / "checkpoint-3").equal(whole)
