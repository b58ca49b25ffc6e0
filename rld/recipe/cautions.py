"""What in a recipe may be a mistake, though it can be run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rld.recipe.gold import obstacles
from rld.recipe.schema import SHORT_STAGE, Recipe
from rld.recipe.sizes import StageCost, quantity
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft


class _Rates(NamedTuple):
    """The lowest and the highest learning rate that is usual for the weights that a stage trains."""

    weights: str
    lowest: float
    highest: float


_NEW = _Rates("weights that were random at the start", 1e-4, 1e-2)
_ADAPTER = _Rates("an adapter", 1e-5, 1e-3)
_PRETRAINED = _Rates("all weights of a pre-trained model", 1e-7, 1e-4)


def learning_rate_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each stage whose learning rate is unusual for the weights that it trains.

    A default rate is unusual only in a short stage, whose rate is chosen so as not to make a trained student worse.
    """
    for stage in recipe.training_stages:
        rate = stage.trainer.get("learning_rate")
        if rate == stage.trainer_defaults(recipe.learns_as_new(stage)).get("learning_rate"):
            is_short = recipe.is_new(stage.student) and not recipe.learns_as_new(stage)
            if is_short and rate is not None and stage.lora is None:
                yield (
                    f"stage '{stage.name}': at its default learning rate, {rate:g}, a model that was random at the "
                    f"start hardly changes in {stage.steps} steps; give it {SHORT_STAGE} steps, which have the rate of "
                    "random weights, or a rate (trainer.learning_rate)"
                )
            continue
        usual = _NEW if recipe.is_new(stage.student) else _PRETRAINED if stage.lora is None else _ADAPTER
        if isinstance(rate, (int, float)) and not usual.lowest <= rate <= usual.highest:
            yield (
                f"stage '{stage.name}': the learning rate {rate:g} is unusual for {usual.weights} "
                f"({usual.lowest:g} to {usual.highest:g})"
            )


def seconds_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each stage that ends by the clock."""
    for stage in recipe.training_stages:
        if stage.stop.max_seconds is not None:
            fix = "a budget of FLOPs or tokens is the same each time"
            yield f"stage '{stage.name}' ends by the clock (stop.max_seconds), so its result is not reproducible; {fix}"


def budget_cautions(recipe: Recipe, costs: Mapping[str, StageCost]) -> Iterator[str]:
    """Yield a sentence, with its place, for each budget that a teacher's answers use up before the first update.

    Args:
        recipe: The recipe.
        costs: The estimated cost of each stage by name.
    """
    for stage in recipe.training_stages:
        limit, planned = stage.stop.max_flops, costs[stage.name].flops_by_account
        if not isinstance(stage, Sft) or limit is None or planned is None or planned["answers"] < limit:
            continue
        place, flops = recipe.place("stages", stage.name, "stop", "max_flops"), quantity(planned["answers"])
        yield (
            f"{place}, {limit:g}, would end the stage before its first update: answers of teacher '{stage.teacher}' to "
            f"{stage.rows_in_use} rows cost about {flops} FLOPs; lower num_rows or steps, or raise the budget"
        )


def gold_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence, with its place, for each option that keeps a stage from learning gold answers by itself."""
    for stage in recipe.training_stages:
        for path in obstacles(stage) if isinstance(stage, Distill) else ():
            yield (
                f"{recipe.place('stages', stage.name, *path)} keeps the stage from learning gold answers beside own "
                "completions, as it would at the option's default; signals.gold: null says that it should not"
            )


def vllm_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each stage that samples with a vLLM which is missing here, or has its own random numbers."""
    for stage in recipe.training_stages:
        if not stage.trainer.get("use_vllm"):
            continue
        if importlib.util.find_spec("vllm") is None:
            yield f"stage '{stage.name}' samples with vLLM (trainer.use_vllm), which `rld train` needs installed"
        if stage.trainer.get("vllm_mode") == "server":
            yield (
                f"stage '{stage.name}': a vLLM server (trainer.vllm_mode) draws its own random numbers, so that its "
                "samples do not follow the seed; with vllm_mode: colocate they do"
            )


def synonym_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence, with its place, for each skill whose synonyms no stage asks teachers for."""
    stages = [stage for stage in recipe.training_stages if isinstance(stage, Distill) and stage.learns_labels]
    for skill, words in recipe.label_words.items():
        if any(words.synonyms) and not any(stage.skills is None or skill in stage.skills for stage in stages):
            place = recipe.place("skills", skill, "synonyms")
            yield f"{place} has no effect: teachers are asked for them where a stage has rollout.completions: labels"


def unreachable_rule_cautions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence, with its place, for each rule of a stage that its steps are too few for."""
    for stage in recipe.training_stages:
        steps, interval = stage.steps, stage.evaluate_every or stage.steps
        for rule in stage.stop.rules_of_scores:
            num_needed = stage.stop.scorings_needed(rule)
            if num_needed * interval >= steps:
                count = "one scoring" if num_needed == 1 else f"{num_needed} scorings"
                yield (
                    f"{recipe.place('stages', stage.name, 'stop', rule)} can't end the stage early: it needs {count}, "
                    f"{interval} steps apart (evaluate_every), and the stage has {steps} steps"
                )
        if isinstance(stage, Distill) and stage.capacity is not None:
            num_ticks, decide_every = 2 * stage.capacity.window, stage.controller.decide_every
            if num_ticks * decide_every > steps:
                place = recipe.place("stages", stage.name, "capacity", "window")
                yield (
                    f"{place} is too long to find a gap: two of them are {num_ticks} ticks, {decide_every} steps apart "
                    f"(controller.decide_every), and the stage has {steps} steps"
                )
