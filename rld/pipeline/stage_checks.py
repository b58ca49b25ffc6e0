"""Checks of a stage that need the libraries but no weights: its optimiser, adapter, feature layers and target."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from peft import inject_adapter_in_model
from transformers import Trainer, TrainingArguments, get_scheduler

from rld.errors import RecipeError
from rld.losses.feature_matching import FeaturePlan
from rld.models.adapters import require_mergeable
from rld.pipeline.run import SETUP, RunContext
from rld.pipeline.trainer_arguments import lora_config
from rld.recipe import registry
from rld.recipe.stages.base import TrainingStage
from rld.recipe.stages.distill import Distill


def require_trainable(context: RunContext, stage: TrainingStage, arguments: TrainingArguments) -> None:
    """Build the stage's optimiser and schedule for one parameter, and its adapter in a model without weights.

    Raises:
        RecipeError: an option cannot be used.
    """
    with context.mistakes_in(stage, "trainer", SETUP):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        parameter = torch.nn.Parameter(torch.zeros(1))
        needs_model = {"params", "model", "optimizer_dict"} & options.keys()
        if not needs_model:
            optimizer = kind([parameter], **options)
            get_scheduler(
                arguments.lr_scheduler_type,
                optimizer,
                num_warmup_steps=arguments.get_warmup_steps(stage.steps),
                num_training_steps=stage.steps,
                scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),  # type: ignore[arg-type]
            )
    model = context.models.skeleton(stage.student)
    with context.mistakes_in(stage, "lora", SETUP):
        config = lora_config(stage.lora)
        if config is not None and model is not None:
            peft_model: Any = model  # PEFT annotates a module, and needs its configuration
            inject_adapter_in_model(config, peft_model, low_cpu_mem_usage=True)
            require_mergeable(model)


def require_features(context: RunContext, stage: Distill) -> None:
    """Find the layers that the stage's feature signal compares, in models without weights.

    Raises:
        RldError: a layer does not exist, or its width does not fit the loss.
    """
    feature, student = stage.signals.feature, context.models.skeleton(stage.student)
    for name, spec in stage.loaded.items() if feature is not None and student is not None else ():
        teacher = context.models.skeleton(spec.model)
        if feature is not None and student is not None and teacher is not None:
            with context.mistakes_in(stage, "signals.feature"), suppress(RuntimeError, NotImplementedError):
                FeaturePlan.of(feature.loss, student, teacher, name)  # else its forward needs values


def require_verified_answers(context: RunContext, stage: Distill) -> None:
    """Refuse a stage that learns the correct answers of teachers if its verifier cannot be asked about them.

    Raises:
        RecipeError: it cannot.
    """
    use = (stage.audit_in_use or context.recipe.verifier_in_use).use
    is_named = stage.signals.gold != "auto"
    if is_named and stage.learns_teachers and not registry.can_judge(use, context.source.parent):
        with context.mistakes_in(stage, "signals.gold.answers"):
            raise RecipeError(
                f"{use} is to tell which answers of teachers are correct, and takes a model or is asynchronous, so "
                "that it cannot be asked about any text; name a plain function as the recipe's verifier"
            )


def require_gold_of_target(context: RunContext, stage: Distill) -> None:
    """Refuse a stage with a target in which a skill has no gold answers, whose gradients would be compared.

    Raises:
        RecipeError: there is such a skill.
    """
    for skill in [*stage.target, *context.skills(stage)] if stage.target is not None else ():
        if any(not row["answer"] for row in context.skill_rows[skill].probe(1)):
            with context.mistakes_in(stage, "target"):
                raise RecipeError(
                    f"skill {skill!r} has questions without a gold answer, and transfer is measured on gold answers; "
                    "leave the skill out"
                )
