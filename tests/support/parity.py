"""Train a small student with every feature, in as many processes and in the way that the launcher says.

A test runs it once for each way to share a training, and compares what it leaves in a folder: `CELL.json` with what was
logged, and `CELL.pt` with the student's weights.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

import tests.support.tiny as tiny
from rld.cli import main
from rld.controllers.gap import GapController
from rld.controllers.gradient import GradientAlignmentController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.sft_trainer import SFTTrainer
from rld.trainer.sharding import whole_state_dict
from tests.support.one_and_two import Always, even, scripted
from tests.support.runs import Killed

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 8}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
trainer: {optim: sgd, lr_scheduler_type: linear, warmup_steps: 0, learning_rate: 1.0e-1}
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 4, batch: 8, evaluate_every: 2, checkpoint_every: 2}
  - name: student
    kind: distill
    student: teacher
    teachers: {teacher: {model: teacher, probe_prompts: 2}}
    signals: {policy: {}, response: {}}
    rollout: {prompts: 2, completions: 4}
    lora: {r: 4}
    steps: 2
    evaluate_every: 1
"""
"""A run of two stages, of which the second trains an adapter; the test writes it beside its results."""

GROUP_SIZE = 4
"""Completions of a prompt."""

NUM_COMPLETIONS = 8
"""Completions of an update, over all processes and micro-batches: two groups, so that four updates are one epoch."""


def is_alone() -> bool:
    """Whether this is a training in one process, with which the others are compared."""
    return "WORLD_SIZE" not in os.environ


def student(tied: bool) -> LlamaForCausalLM:
    """A student whose output head is its embedding, or a weight of its own, as that of larger models."""
    config = copy.deepcopy(tiny.model().config)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def sizes(folder: Path, parts: int, **options: Any) -> dict[str, Any]:
    """Training arguments of updates in so many micro-batches per process."""
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    return tiny.options(
        folder,
        **{
            "num_generations": GROUP_SIZE,
            "per_device_train_batch_size": NUM_COMPLETIONS // num_processes // parts,
            "gradient_accumulation_steps": parts,
            "max_steps": 3,
            "optim": "sgd",
            **options,
        },
    )


def grpo(folder: Path, parts: int, **options: Any) -> GRPOTrainer:
    """The policy signal with a reference model, on completions that depend on prompts alone.

    One process trains with TRL's own trainer: what others share is compared with what is not rld's.
    """
    start = stored_student(folder.parent)  # from which TRL loads the reference too
    trainer, config = (GRPOTrainer, GRPOConfig) if is_alone() else (RLDTrainer, RLDConfig)
    args = config(**sizes(folder, parts, beta=0.1, max_steps=2))
    options = {"rollout_func": scripted, **options}
    return trainer(str(start), tiny.letters, args, tiny.rows(10), processing_class=tiny.tokenizer(), **options)


def sampled(folder: Path, parts: int) -> GRPOTrainer:
    """The same on completions that the student samples by `quantiles`."""
    return grpo(folder, parts, rollout_func=None)


def quantiles(probabilities_BV: torch.Tensor, num_samples: int, **_: Any) -> torch.Tensor:
    """Stand in for `torch.multinomial`: each completion of a group has a quantile of its own, whatever the process."""
    assert num_samples == 1
    numbers_B = torch.arange(len(probabilities_BV)) % GROUP_SIZE
    shares_B1 = ((numbers_B + 0.5) / GROUP_SIZE)[:, None]
    cumulative_BV = probabilities_BV.double().cumsum(-1)
    return (cumulative_BV < shares_B1 * cumulative_BV[:, -1:]).sum(-1, keepdim=True)


def signals(folder: Path, parts: int, tied: bool = False, **options: Any) -> RLDTrainer:
    """All signals, the teacher-scored reward, the gate and retention, on completions that depend on prompts alone."""
    adapter, controller = options.pop("peft_config", None), options.pop("controller", GapController(decide_every=2))
    one, two = tiny.model(seed=1, width=48), tiny.model(seed=2)
    trainer = RLDTrainer(
        model=student(tied),
        reward_funcs=[even, tiny.letters],
        args=RLDConfig(
            **sizes(folder, parts, **options),
            signals=["policy", "response", "feature"],
            teacher_reward=0.2,
            gate="per_prompt",
            retain={"probe_prompts": 3, "prompts": 20, "batch": 7, "budget": 0.00038},
        ),
        train_dataset=tiny.rows(10),
        processing_class=tiny.tokenizer(),
        peft_config=adapter,
        teachers=[
            Teacher(one, name="one", tokenizer=tiny.tokenizer(), verified={"first": (9, 9)}),
            Teacher(two, name="two", tokenizer=tiny.tokenizer()),
        ],
        controller=controller,
        gold_rows=[{**row, "answer": "bc"} for row in tiny.rows(7)],
        rollout_func=scripted,
        retain_dataset=[{**row, "skill": "old"} for row in tiny.rows(23)],
    )
    assert trainer.retention is not None
    trainer.retention.rule = Always(**trainer.retention.rule.model_dump())
    return trainer


def lora(folder: Path, parts: int) -> RLDTrainer:
    """The same with an adapter, a frozen head that is the embedding, and gradients of gold answers."""
    torch.manual_seed(0)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    controller = GradientAlignmentController(decide_every=2)
    return signals(folder, parts, tied=True, peft_config=adapter, controller=controller)


def stored_student(folder: Path) -> Path:
    """Where this process has its student, which is written before the processes know of one another."""
    return folder / f"start_{os.environ.get('RANK', 0)}"


def stopped_run(recipe: Path, folder: Path) -> None:
    """Leave a run that was killed when it had written the first checkpoint of its first stage."""
    save = SFTTrainer._save_checkpoint

    def killed(self: Any, *args: Any) -> None:
        save(self, *args)
        raise Killed

    with patch.object(SFTTrainer, "_save_checkpoint", killed), suppress(Killed):
        main(["train", str(recipe), "--output", str(folder)])


CELLS: dict[str, Callable[[Path, int], Any]] = {"grpo": grpo, "sampled": sampled, "signals": signals, "lora": lora}


def resumable(folder: Path, parts: int) -> RLDTrainer:
    """All signals, with an optimizer that has a state, a rate that changes, and TRL's controller of the entropy.

    A checkpoint is written halfway. The entropy is always below its target, so that its weight grows with each update;
    the weight is small, because TRL's bonus is a mean over a micro-batch.
    """
    options = {"optim": "adamw_torch", "adam_epsilon": 1e-3, "save_strategy": "steps", "save_steps": 2}
    entropy = {"use_adaptive_entropy": True, "entropy_target": 10.0, "entropy_coef_delta": 1e-5}
    return signals(folder, parts, max_steps=4, **options, **entropy)


def resumed(folder: Path, parts: int, checkpoint: Path) -> RLDTrainer:
    trainer = resumable(folder, parts)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def trained(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name and the trainer of each training."""
    for parts in (1, 4):
        for name, build in CELLS.items():
            trainer = build(folder / f"{name}_{parts}", parts)
            with patch("torch.multinomial", quantiles):
                trainer.train()
            yield f"{name}_{parts}", trainer
        trainer = resumable(folder / f"whole_{parts}", parts)
        trainer.train()
        yield f"whole_{parts}", trainer
        yield f"resumed_{parts}", resumed(folder / "again", parts, folder / f"whole_{parts}" / "checkpoint-2")


def store(folder: Path, name: str, trainer: Any) -> None:
    """Write what was logged in each update, and the student's weights."""
    weights = whole_state_dict(trainer)
    if trainer.accelerator.is_main_process:
        torch.save(weights, folder / f"{name}.pt")
        updates = [line for line in trainer.state.log_history if "loss" in line]
        kind = str(trainer.accelerator.distributed_type.value)
        (folder / f"{name}.json").write_text(json.dumps({"kind": kind, "updates": updates}, default=float))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    start = student(True)
    if not is_alone():  # no letter that is rewarded; the options of a student are not those of its rollouts
        start.generation_config.suppress_tokens = tiny.tokenizer().convert_tokens_to_ids(["a", "b"])
    start.save_pretrained(stored_student(place))
    for cell, finished in trained(place):
        store(place, cell, finished)
    assert main(["train", str(place / "small.yaml"), "--output", str(place / "run")]) == 0
    stopped_run(place / "small.yaml", place / "stopped")
    for other in map(Path, sys.argv[2:]):  # trainings in one process, which go on in these
        store(place, "taken over", resumed(place / "taken over", 1, other / "whole_1" / "checkpoint-2"))
        command = ["train", str(other / "small.yaml"), "--output", str(place / "resumed"), "--resume"]
        if PartialState().is_main_process:
            shutil.copytree(other / "stopped", place / "resumed")
        PartialState().wait_for_everyone()
        assert main(command) == 2  # the number of processes is another one
        assert main([*command, "--accept-changes"]) == 0
