"""Train a few steps on completions that depend on nothing but the prompt, and save the student. Run by a test."""

from __future__ import annotations

import json
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rld.rewards.teachers import likelihood

import tests.support.tiny as tiny
from rld.controllers.base import BaseController
from rld.controllers.gap import GapController
from rld.controllers.gradient import GradientAlignmentController, GradientNoiseController
from rld.controllers.retention_rule import RetentionRule
from rld.pipeline.callbacks import StopOnRequest
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def scripted(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Four fixed completions per prompt, of different lengths."""
    tokenizer, completions, seen = trainer.processing_class, [], {}
    for prompt in prompts:
        index = seen[prompt] = seen.get(prompt, -1) + 1
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()) + index)
        completions.append([*torch.randint(5, 15, (1 + index,), generator=generator).tolist(), 1])
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}


class Always(RetentionRule):
    """Holds on from the start."""

    def weights(self, state: Any) -> dict[str, float]:
        return dict.fromkeys(state["skills"], 0.5)


def even(completions: list[str], **_: Any) -> list[float]:
    """A verifier that finds about half of all texts right."""
    return [float(zlib.crc32(text.replace(" ", "").encode()) % 2) for text in completions]


def main(folder: Path, num_processes: int, stopped_rank: int | None, controller: BaseController) -> None:
    trainer = RLDTrainer(
        model=tiny.model(),
        reward_funcs=[even, tiny.letters, partial(likelihood, model=tiny.model(seed=3), tokenizer=tiny.tokenizer())],
        args=RLDConfig(
            **tiny.options(folder / "run", max_steps=4, per_device_train_batch_size=16 // num_processes, optim="sgd"),
            signals=["policy", "response", "feature"],
            teacher_reward=0.2,
            gate="per_prompt",
            combine_teachers="best_of",
            retain={"probe_prompts": 3, "prompts": 20, "batch": 7, "budget": 0.00038},
            audit_share=0.5,
        ),
        train_dataset=tiny.rows(10),
        processing_class=tiny.tokenizer(),
        teachers=[
            Teacher(tiny.model(seed=1, width=48), name="one", tokenizer=tiny.tokenizer(), verified={"first": (9, 9)}),
            Teacher(tiny.model(seed=2), name="two", tokenizer=tiny.tokenizer()),
        ],
        controller=controller.model_copy(update={"decide_every": 2}),
        gold_rows=[{**row, "answer": "bc"} for row in tiny.rows(7)],
        rollout_func=scripted,
        audit_reward=even,
        retain_dataset=[{**row, "skill": "old"} for row in tiny.rows(23)],
    )
    assert trainer.retention is not None
    trainer.retention.rule = Always(**trainer.retention.rule.model_dump())
    rank = trainer.accelerator.process_index
    if stopped_rank is not None:
        stop = StopOnRequest(lambda: rank == stopped_rank and trainer.state.global_step >= 2, trainer.accelerator)
        trainer.add_callback(stop)
    trainer.train()
    (folder / f"steps_{rank}").write_text(str(trainer.state.global_step))
    name = f"{controller.kind}_{num_processes}_{rank}"
    torch.save(tiny.weights(trainer), folder / f"{name}.pt")
    (folder / f"{name}.json").write_text(json.dumps(trainer._checkpointed_parts.state(0)))


if __name__ == "__main__":
    stopped = int(sys.argv[3]) if len(sys.argv) > 3 else None
    controllers: list[Any] = (
        [GapController()]
        if stopped is not None
        else [GapController(), GradientNoiseController(), GradientAlignmentController()]
    )
    for one in controllers:
        main(Path(sys.argv[1]), int(sys.argv[2]), stopped, one)
