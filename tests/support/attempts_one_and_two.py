"""Train on what teachers say behind prompts with feedback and attempts. Tests run it in two processes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.self_teacher import SelfTeacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def scripted(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Completions of 1 to 4 tokens that depend on the prompt and their place among those of all processes."""
    first, completions = trainer.accelerator.process_index * len(prompts), []
    for i, prompt in enumerate(prompts, first):
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()) + i)
        completions.append([*torch.randint(5, 15, (1 + i % 4,), generator=generator).tolist(), 1])
    ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


def odd(completions: list[str], log_extra: Callable[..., None], **_: Any) -> list[float]:
    """A verifier that accepts an odd number of letters, and says which letters an even number begins with."""
    log_extra("feedback", [None if len(text) % 2 else text[:2] for text in completions])
    return [float(len(text) % 2) for text in completions]


def trainer(folder: Path, teachers: list[Any], **options: Any) -> RLDTrainer:
    """A trainer that learns from teachers alone."""
    more = {name: options.pop(name) for name in ("model", "reward_funcs", "train_dataset") if name in options}
    return RLDTrainer(
        more.get("model", tiny.model()),
        more.get("reward_funcs", odd),
        RLDConfig(**tiny.rld_options(folder, divergence="reverse_kl", **options)),
        more.get("train_dataset", tiny.rows()),
        processing_class=tiny.tokenizer(),
        teachers=teachers,
        controller=FixedController(policy=0.0, response=1.0),
        rollout_func=scripted,
    )


def trained(folder: Path, **options: Any) -> Tensor:
    """Return the weights after three updates on one prompt each, whose completions two processes share."""
    teachers = [
        SelfTeacher("{feedback}:{question}", "told"),
        SelfTeacher("{correct_attempt}:{question}", "shown", average=0.5),
    ]
    made = trainer(folder, teachers, gate="per_prompt", num_generations=8, optim="sgd", max_steps=3, **options)
    made.train()
    return tiny.weights(made)


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    weights = trained(folder / "run", per_device_train_batch_size=8 // count)
    torch.save(weights, folder / f"{torch.distributed.get_rank()}.pt")
