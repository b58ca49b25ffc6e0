"""Sections on whole models: shared rows, teacher scoring, and an update against TRL's three."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from rld.controllers.baselines import FixedController
from rld.models.backbone import hidden_states
from rld.models.prompt_sharing import PromptSharingLayout
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import SIGNALS
from tests.gpu.measure import Watch, free, peak_bytes, seconds
from tests.gpu.sizes import Sizes, model, rollout, tokenizer

_LIMIT = 5e-2
"""Largest difference of states from those of sdpa in rows of their own, relative to their norm, in bf16."""


def shared_rows(sizes: Sizes) -> dict[str, Any]:
    """Forward and backward with shared rows and with rows of their own, with sdpa and FlexAttention."""
    ids_BS, mask_BS = rollout(sizes)
    rows: dict[str, Any] = {}
    states = {}
    for attention in ("sdpa", "flex_attention"):
        made = model(sizes.student, sizes, sizes.half, seed=0, attention=attention)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layout = PromptSharingLayout.of(made, "the student")
        reasons = [str(w.message).partition("because ")[2] for w in caught if "row of its own" in str(w.message)]
        layouts = {"shared": layout, "apart": replace(layout, shared=False)} if layout.shared else {"apart": layout}
        for name, way in layouts.items():
            step = _step(made, way, ids_BS, mask_BS, sizes.completion)
            row: dict[str, Any] = {"why apart": ", ".join(reasons)} if reasons else {}
            if attention == "sdpa" or sizes.device.type == "cuda":  # FlexAttention has no gradient on a CPU
                row |= {"seconds": seconds(step, sizes.repeats), "peak bytes": peak_bytes(step, sizes.device)}
                states[attention, name] = _completion_states(made, way, ids_BS, mask_BS, sizes.completion)
            rows[f"{attention}, {name}"] = row
        del made
        free()
    apart = states.pop(("sdpa", "apart"))
    errors = {", ".join(key): float((x - apart).norm() / apart.norm()) for key, x in states.items()}
    assert max(errors.values()) < _LIMIT, f"states differ from those of sdpa in rows of their own: {errors}"
    return {"difference of states": errors, "rows": rows}


def _step(
    made: PreTrainedModel, layout: PromptSharingLayout, ids_BS: Tensor, mask_BS: Tensor, num_tokens: int
) -> Callable[[], None]:
    def step() -> None:
        rows = layout.rows(ids_BS, mask_BS, num_tokens)
        rows.restore(made.base_model(**rows.inputs, use_cache=False).last_hidden_state).float().mean().backward()
        made.zero_grad()

    return step


@torch.no_grad()
def _completion_states(
    made: PreTrainedModel, layout: PromptSharingLayout, ids_BS: Tensor, mask_BS: Tensor, num_tokens: int
) -> Tensor:
    rows = layout.rows(ids_BS, mask_BS, num_tokens)
    states_BTH = rows.restore(made.base_model(**rows.inputs, use_cache=False).last_hidden_state)
    return states_BTH[mask_BS[:, -num_tokens:].bool()].double()


def teacher_scoring(sizes: Sizes) -> dict[str, Any]:
    """A teacher scores a rollout: its states are kept, and never the logits of all tokens."""
    ids_BS, mask_BS = rollout(sizes)
    teacher = model(sizes.teacher, sizes, sizes.half, seed=1)
    layout = PromptSharingLayout.of(teacher, "the teacher")

    def score() -> None:
        hidden_states(
            teacher, ids_BS, mask_BS, num_tokens=sizes.completion, rows_per_forward=sizes.group, layout=layout
        )

    with Watch() as watch:
        score()
    all_logits = sizes.num_tokens * sizes.vocabulary
    assert watch.largest_size < all_logits, f"a tensor {watch.largest} is as large as the logits of all tokens"
    peak = peak_bytes(score, sizes.device)
    assert peak is None or peak < 2 * all_logits, f"a peak of {peak:,} bytes"
    return {
        "largest tensor": list(watch.largest),
        "bytes of all logits in bf16": 2 * all_logits,
        "peak bytes": peak,
        "seconds": seconds(score, sizes.repeats),
    }


class Times(TrainerCallback):  # type: ignore[misc]
    """Seconds of each update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def update(sizes: Sizes) -> dict[str, Any]:
    """An update of policy, response from two teachers and feature against TRL's GRPO and its distillation, twice."""
    results = {}
    for name, build in (("joint", _joint), ("grpo", _grpo), ("distillation", _distillation)):
        times = Times()

        def train(build: Any = build, times: Times = times) -> None:
            with tempfile.TemporaryDirectory() as folder:
                trainer = build(sizes, folder)
                trainer.add_callback(times)
                trainer.train()

        peak = peak_bytes(train, sizes.device)
        results[name] = {"seconds": statistics.median(times.seconds[1:]), "peak bytes": peak}
    three = results["grpo"]["seconds"] + 2 * results["distillation"]["seconds"]
    return {"trainers": results, "joint / TRL's three": results["joint"]["seconds"] / three}


def _student(sizes: Sizes) -> PreTrainedModel:
    return model(sizes.student, sizes, torch.float32, seed=0)


def _teacher(sizes: Sizes, seed: int) -> PreTrainedModel:
    return model(sizes.teacher, sizes, sizes.half, seed=seed)


def _common(sizes: Sizes, folder: str) -> dict[str, Any]:
    is_gpu = sizes.device.type == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": sizes.group * sizes.groups,
        "max_steps": sizes.updates + 1,  # the first one warms up
        "max_completion_length": sizes.completion,
        "generation_kwargs": {"min_new_tokens": sizes.completion},
        "learning_rate": 1e-6,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not is_gpu,
        "bf16": is_gpu,
        "activation_checkpointing": False,
        "disable_tqdm": True,
    }


def _rows(sizes: Sizes, repeats: int = 1) -> Dataset:
    ids_BS, _ = rollout(replace(sizes, groups=sizes.groups * (sizes.updates + 1), device=torch.device("cpu")))
    prompts = [" ".join(f"w{i}" for i in row) for row in ids_BS[:: sizes.group, : sizes.prompt].tolist()]
    return Dataset.from_dict({"prompt": [text for text in prompts for _ in range(repeats)]})


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [len(text) % 7 / 6 for text in completions]


def _joint(sizes: Sizes, folder: str) -> RLDTrainer:
    feature = {"kind": "cosine", "layers": "last"}
    options = {**_common(sizes, folder), "num_generations": sizes.group, "gate": "off", "signals": [*SIGNALS]}
    words = tokenizer(sizes)
    return RLDTrainer(
        _student(sizes),
        _reward,
        RLDConfig(**options, divergence="forward_kl", feature=feature),
        _rows(sizes),
        processing_class=words,
        teachers=[Teacher(_teacher(sizes, seed), f"teacher {seed}", tokenizer=words) for seed in (1, 2)],
        controller=FixedController(),
    )


def _grpo(sizes: Sizes, folder: str) -> GRPOTrainer:
    args = GRPOConfig(**_common(sizes, folder), num_generations=sizes.group)
    return GRPOTrainer(_student(sizes), _reward, args, _rows(sizes), processing_class=tokenizer(sizes))


def _distillation(sizes: Sizes, folder: str) -> DistillationTrainer:
    args = DistillationConfig(**_common(sizes, folder), shuffle_dataset=False)
    rows, words = _rows(sizes, sizes.group), tokenizer(sizes)
    return DistillationTrainer(_student(sizes), _teacher(sizes, 1), args, rows, processing_class=words)
