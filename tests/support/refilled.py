"""Train with replaced prompts on completions that depend on the prompt alone, and save the student. Run by a test."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from rld.curricula.fixed import Uniform

import tests.support.tiny as tiny
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.trainer.test_prompt_refill import LEVELS, rows, solved


class Scripted(RLDTrainer):
    """Its completions of a prompt differ in length for two prompts in three, which the reward tells apart."""

    def _sample(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        seen: dict[str, int] = {}
        completions = []
        for ids in prompt_ids:
            key = str(ids)
            index = seen[key] = seen.get(key, -1) + 1
            length = 2 + (index % 2 if zlib.crc32(key.encode()) % 3 else 0)
            completions.append([*[5 + index] * length, 1])
        return completions, None


def main(folder: Path, num_processes: int) -> None:
    options = tiny.rld_options(
        folder / "run", max_steps=4, per_device_train_batch_size=16 // num_processes, optim="sgd"
    )
    trainer = Scripted(
        model=tiny.model(),
        reward_funcs=[solved],
        args=RLDConfig(**options, refill=2),
        train_dataset=rows(),
        processing_class=tiny.tokenizer(),
        curriculum=Uniform(LEVELS),
    )
    trainer.train()
    name = f"refilled_{num_processes}_{trainer.accelerator.process_index}"
    totals = trainer.totals
    counts = {"replaced": totals.groups_replaced, "same": totals.groups_without_difference, "groups": totals.groups}
    student = trainer.accelerator.unwrap_model(trainer.model)
    torch.save(torch.cat([weight.detach().flatten() for weight in student.parameters()]), folder / f"{name}.pt")
    (folder / f"{name}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
