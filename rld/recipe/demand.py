"""What a training stage asks of cards beside operations: states, activations, and what sampling reads from memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rld.controllers.gold_share import NEW_SHARE
from rld.recipe.distill_cost import fixed_completion, planned_gold_share
from rld.recipe.hardware import Demand
from rld.recipe.sizes import Sizes
from rld.utils.flops import frozen_bytes, training_bytes


def state_bytes(stage: Any, num_parameters: int) -> int:
    """Return the memory of a stage's student; beside an adapter, which does not count, its weights are only read."""
    return training_bytes(num_parameters) if stage.lora is None else frozen_bytes(num_parameters)


def sft_demand(stage: Any, num_parameters: int, sizes: Sizes) -> Demand:
    """Return the demand of fine-tuning on rows of their mean length."""
    tokens = stage.batch * sizes.lengths(stage.skills or sizes.skills).total
    activations = sizes.shape(stage.student).activation_bytes() * tokens / _num_micro_batches(stage)
    return Demand(state_bytes(stage, num_parameters), 0, activations)


def distill_demand(
    stage: Any, num_parameters: int, teachers: Mapping[str, int], *, sizes: Sizes, teacher_bytes: int
) -> Demand:
    """Return the demand of a `distill` stage.

    Where the controller sets the share of gold answers, memory is what the share takes that takes most: of the cache
    none of them, of activations the largest share, for each gold answer has a prompt of its own.

    Args:
        stage: The stage, a `Distill`.
        num_parameters: Parameters of the student.
        teachers: Parameters of each teacher that is loaded in the training process.
        sizes: The sizes of the recipe.
        teacher_bytes: Bytes of the teachers' weights in the training process.
    """
    skills, rollout, shape = stage.skills or sizes.skills, stage.rollout, sizes.shape(stage.student)
    prompt, answer = sizes.lengths(skills).prompt, fixed_completion(stage, sizes)
    num_completions = rollout.num_completions(sizes.num_words(skills))
    mean_share = least_share = most_share = planned_gold_share(stage, num_parameters, teachers, sizes)
    if stage.has_gold_prompts and stage.gold.share is None:
        least_share, most_share = 0.0, NEW_SHARE
    num_possible = 0 if stage.learns_labels else rollout.prompts * (num_completions - rollout.gold_completions)
    num_sampled = (1 - mean_share) * num_possible
    tokens = rollout.prompts * ((1 - most_share + most_share * num_completions) * prompt + num_completions * answer)
    num_reads = num_sampled * answer * (prompt + answer / 2)  # each token reads all those before it
    return Demand(
        state_bytes(stage, num_parameters),
        teacher_bytes,
        activation_bytes=shape.activation_bytes() * tokens / _num_micro_batches(stage),
        cache_bytes=shape.cache_bytes() * (1 - least_share) * num_possible * (prompt + answer),
        passes=stage.steps * sizes.max_new_tokens if num_sampled else 0,
        pass_bytes=frozen_bytes(num_parameters, "bfloat16"),
        read_bytes=stage.steps * shape.cache_bytes() * num_reads,
    )


def _num_micro_batches(stage: Any) -> int:
    return max(int(stage.trainer.get("gradient_accumulation_steps", 1)), 1)
