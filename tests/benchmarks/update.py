"""Time whole updates against TRL's trainers, and against the floor, in turns, in one process.

    python -m tests.benchmarks.update MODEL [--prompt 128] [--completion 32] [--group 8] [--groups 2] [--rounds 4]

One `RLDTrainer` update (policy, response from two teachers, feature; generation included) against one `GRPOTrainer`
update and two `DistillationTrainer` updates on the same prompts, completions of the same length, and copies of one
model. The trainers take turns, update by update; the first round warms up. The floor is made of parts measured alone
after the last round: generation from one reading of each prompt, a forward of each teacher and a forward and backward
of the student over shared rows with their heads, and the optimiser's step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
import warnings
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from rld.controllers.baselines import FixedController
from rld.models.heads import LMHead
from rld.models.hidden_states import capture_states
from rld.models.prompt_sharing import PromptSharingLayout
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import SIGNALS

_WORDS = ["the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "by", "at"]  # a token each
_ORDER = "joint", "grpo", "distil", "distil"


class Turns:
    """Whose turn it is, and how long each turn took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.over = threading.Condition()

    def comes(self, name: str) -> bool:
        return _ORDER[len(self.seconds) % len(_ORDER)] == name


class InTurns(TrainerCallback):  # type: ignore[misc]
    """Lets one trainer at a time make an update."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name, self.turns = name, turns

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        with self.turns.over:
            self.turns.over.wait_for(lambda: self.turns.comes(self.name))
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        with self.turns.over:
            self.turns.seconds.append(time.perf_counter() - self.start)
            self.turns.over.notify_all()


def prompts(options: argparse.Namespace) -> Dataset:
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(_WORDS, k=options.prompt)) for _ in range(options.groups * (options.rounds + 1))]
    return Dataset.from_dict({"prompt": texts})


def trainers(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [len(text) % 7 / 6 for text in completions]

    batch = options.groups * options.group
    common = {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": options.rounds + 1,
        "max_completion_length": options.completion,
        "generation_kwargs": {"min_new_tokens": options.completion},
        "learning_rate": 1e-6,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
    }
    rows = prompts(options)
    repeated = Dataset.from_dict({"prompt": [text for text in rows["prompt"] for _ in range(options.group)]})
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    assert {len(ids) for ids in tokenizer(list(rows["prompt"]))["input_ids"]} == {options.prompt}
    grouped = common | {"num_generations": options.group}
    joint = RLDTrainer(
        model(),
        reward,
        RLDConfig(**grouped, gate="off", signals=[*SIGNALS], feature={"kind": "cosine", "layers": "last"}),
        rows,
        processing_class=tokenizer,
        teachers=[Teacher(model(), name) for name in ("one", "two")],
        controller=FixedController(),
    )
    grpo = GRPOTrainer(model(), reward, GRPOConfig(**grouped), rows, processing_class=tokenizer)
    twice = common | {"max_steps": 2 * (options.rounds + 1)}
    args = DistillationConfig(**twice, shuffle_dataset=False)
    distil = DistillationTrainer(model(), model(), args, repeated, processing_class=tokenizer)
    return {"joint": joint, "grpo": grpo, "distil": distil}


def in_turns(made: dict[str, Any]) -> list[list[float]]:
    """Seconds of each turn, by round; the first round is left out."""
    turns = Turns()
    for name, trainer in made.items():
        trainer.add_callback(InTurns(name, turns))
    threads = [threading.Thread(target=trainer.train) for trainer in made.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    size = len(_ORDER)
    return [turns.seconds[start : start + size] for start in range(size, len(turns.seconds), size)]


def floor(options: argparse.Namespace, joint: RLDTrainer) -> dict[str, float]:
    """Seconds of what an update can't do without, each part alone."""
    student, teachers = joint._student, [slot.model for slot in joint.ensemble.slots]
    ids = torch.cat(
        [
            torch.tensor(joint._tokenizer(list(prompts(options)["prompt"])[: options.groups])["input_ids"]),
            torch.randint(1000, (options.groups, options.completion)),
        ],
        dim=1,
    ).repeat_interleave(options.group, 0)
    ids[:, -options.completion :] = torch.randint(1000, (len(ids), options.completion))
    prompt = ids[:, : -options.completion]

    def generation() -> None:
        with torch.no_grad():
            given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
            student.generate(**given, generation_config=joint.generation_config)

    rows = PromptSharingLayout.of(student, "the student").rows(ids, torch.ones_like(ids), options.completion)

    def forward(model: Any) -> torch.Tensor:
        with capture_states(model, (), rows.restore):
            labels = ids[:, -options.completion :]
            loss: torch.Tensor = model(**rows.inputs, shift_labels=labels, fused_lm_head=True).loss
        return loss

    def teacher_states() -> None:
        with torch.no_grad():
            for model in teachers:
                states = rows.restore(model.base_model(**rows.inputs, use_cache=False).last_hidden_state)
                for some in states.flatten(0, 1).split(64):
                    LMHead.of(model).logits(some)

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    parts = {
        "generation": generation,
        "teachers": teacher_states,
        "student": lambda: forward(student).backward(),
        "optimiser": optimizer.step,
    }
    seconds = {}
    student.eval()
    for name, part in parts.items():
        times = []
        for _ in range(6):
            start = time.perf_counter()
            part()
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times[1:])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in {"prompt": 128, "completion": 32, "group": 8, "groups": 2, "rounds": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(options, folder)
        rounds = in_turns(made)
    for seconds in rounds:
        print(", ".join(f"{name} {t:.1f} s" for name, t in zip(_ORDER, seconds, strict=True)))
    ratios = [joint / sum(apart) for joint, *apart in rounds]
    print(f"joint / apart: {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    logged = made["joint"].state.log_history[-1]  # means over all rounds, the first included
    spent = {key.removeprefix("time/"): value for key, value in logged.items() if key.startswith("time/")}
    print("joint:", ", ".join(f"{name} {t:.2f} s" for name, t in spent.items()))
    parts = floor(options, made["joint"])
    print("floor:", ", ".join(f"{name} {t:.2f} s" for name, t in parts.items()))
    print(f"joint / floor: {statistics.median(joint for joint, *_ in rounds) / sum(parts.values()):.2f}")


if __name__ == "__main__":
    main()
