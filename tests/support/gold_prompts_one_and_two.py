"""Train a few steps in which some prompts have their gold answer alone. A test runs it in two processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rld.curricula.fixed import Uniform
from torch import Tensor

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.sharding import whole_state_dict

ANSWERS = ["a", "bcd", "ef", "ghija", "b", "cdef", "gh", "ij"]
"""Of different lengths, so that a mean of means would show."""


FIRST, SECOND = 92, 67
"""Seeds of teachers with random weights of whose answers many end."""


def brief(completions: list[str], **_: Any) -> list[float]:
    """A verifier to which a short text with one of a few letters is correct."""
    return [float(0 < len(text) < 6 and bool(set(text) & set("abcdefg"))) for text in completions]


def begins_well(completions: list[str], **_: Any) -> list[float]:
    """A verifier to which a text that begins with `ab` is correct."""
    return [float(text.startswith("ab")) for text in completions]


def saying(text: str) -> Any:
    """A student that has learnt to answer each prompt with a text, and then to end."""
    made, tokenizer = tiny.model(tie_word_embeddings=False), tiny.tokenizer()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    ids = torch.tensor([[*tokenizer(prompt + text)["input_ids"], 1] for prompt in tiny.rows()["prompt"]])
    for _ in range(40):
        made(input_ids=ids, labels=ids.clone().index_fill_(1, torch.arange(3), -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


def teachers(*seeds: int) -> list[Teacher]:
    """Teachers with random weights, called by their numbers."""
    models = {seed: tiny.model(seed=seed, tie_word_embeddings=False) for seed in seeds}
    return [Teacher(model, name=f"t{seed}", tokenizer=tiny.tokenizer()) for seed, model in models.items()]


class Recorded(RLDTrainer):
    """Keeps the records of its rollouts."""

    def _finish_rollout(self, batch: Any, record: Any) -> None:
        super()._finish_rollout(batch, record)
        self.records = [*getattr(self, "records", []), record]


def trainer(
    folder: Path,
    *,
    seeds: Sequence[int] = (),
    num_rows: int = 16,
    reward: Any = tiny.letters,
    unanswered: str = "",
    says: str | None = None,
    peft_config: Any = None,
    **options: Any,
) -> Recorded:
    """A trainer of which some prompts have their gold answer alone, with the teachers of some seeds.

    The rows of the skill `unanswered` have no answer. The student has learnt to answer with `says`, or nothing.
    """

    def answer(row: dict[str, Any], i: int) -> dict[str, Any]:
        return {"answer": "" if row["skill"] == unanswered else ANSWERS[i % len(ANSWERS)]}

    rows = tiny.rows(num_rows).map(answer, with_indices=True)
    args = {"per_device_train_batch_size": 32, "gold_weight": 0.7, "gold_share": 0.5, "optim": "sgd"} | options
    return Recorded(
        tiny.model(tie_word_embeddings=False) if says is None else saying(says),
        reward,
        RLDConfig(**tiny.rld_options(folder, **args)),
        rows,
        processing_class=tiny.tokenizer(),
        teachers=teachers(*seeds),
        controller=FixedController(policy=0.6, response=0.4, balance_gradients=False),
        curriculum=Uniform({"first": 1, "second": 1}),
        peft_config=peft_config,
    )


FIRST_ANSWERS: dict[str, Any] = {
    "says": "ab",
    "reward": begins_well,
    "gold_share": None,
    "max_completion_length": 12,
    "max_steps": 1,
    "seed": 1,
}
"""A student that answers rows before its first update, which has gold answers alone in all of its eight groups."""


def trained(folder: Path, *, num_parts: int = 1, num_processes: int = 1, **options: Any) -> Tensor:
    """Return the student's weights after three updates of 32 gold answers, each in `num_parts` micro-batches."""
    sizes = {"per_device_train_batch_size": 32 // num_parts // num_processes, "gradient_accumulation_steps": num_parts}
    made = trainer(folder, **({**sizes, "max_steps": 3, "gold_share": 1.0, "generation_batch_size": 32} | options))
    made.train()
    return tiny.weights(made)


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    of_teachers: dict[str, Any] = {"seeds": (FIRST, SECOND), "reward": brief, "gold_answers": "teachers"}
    if sys.argv[3:] == ["half a group"]:  # of which the first process has the gold answers
        options = {"gold_completions": 2, "gold_share": None, "num_generations": 4}
        trainer(folder / "run", per_device_train_batch_size=2, max_steps=2, **options).train()
    elif sys.argv[3:] == ["first answers"]:
        made = trainer(folder / "run", per_device_train_batch_size=16, **FIRST_ANSWERS)
        made.train()
        rank = torch.distributed.get_rank()
        torch.save([whole_state_dict(made, everywhere=True), made.runtime.state], folder / f"{rank}.pt")
    else:
        weights = trained(folder / "run", num_processes=count, **(of_teachers if "teachers" in sys.argv else {}))
        torch.save(weights, folder / f"{torch.distributed.get_rank()}.pt")
