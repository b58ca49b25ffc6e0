"""Train a student under DeepSpeed in bf16 with updates that bf16 loses, at once and resumed, and in a recipe's stage.

It leaves in a folder the student's weights, `start.pt`, `whole.pt` and `resumed.pt`, and `run`, the recipe's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rld.cli import main
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.sharding import whole_state_dict
from tests.support import parity

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 8}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
trainer: {bf16: true, learning_rate: 1.0e-6}
stages:
  - {name: student, kind: sft, student: tiny, steps: 2, batch: 8}
"""


def student(folder: Path) -> RLDTrainer:
    options = {"optim": "adamw_torch", "learning_rate": 1e-6, "bf16": True, "save_strategy": "steps", "save_steps": 2}
    return parity.signals(folder, 1, max_steps=4, **options)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    whole, resumed = student(place / "whole"), student(place / "resumed")
    states = {"start": whole_state_dict(whole)}
    whole.train()
    states["whole"] = whole_state_dict(whole)
    resumed.train(resume_from_checkpoint=str(place / "whole" / "checkpoint-2"))
    states["resumed"] = whole_state_dict(resumed)
    if whole.accelerator.is_main_process:
        for name, state in states.items():
            torch.save(state, place / f"{name}.pt")
    assert main(["train", str(place / "small.yaml"), "--output", str(place / "run")]) == 0
