"""Ask the libraries about a recipe and, if wanted, load its models and have them answer."""

from __future__ import annotations

from pathlib import Path

from rld.errors import ModelError
from rld.models.self_check import require_sound_model
from rld.pipeline.reward_loading import RewardLoader
from rld.pipeline.run import RunContext
from rld.pipeline.run_checks import require_runnable
from rld.recipe.schema import Recipe


def ask_libraries(recipe: Recipe, source: Path, deep: bool) -> RunContext:
    """Check what `rld train` checks before its first stage; with `deep`, also each model's weights and rewards.

    Raises:
        RldError: `rld train` would refuse the recipe.
    """
    run = RunContext(recipe, source, Path(), resume=False)
    require_runnable(run, downloads=deep)
    if deep:
        _try_models(run)
    return run


def _try_models(run: RunContext) -> None:
    """Load each model that is no stage's result, have it answer a row per skill, and ask the rewards about that."""
    stages = {stage.name for stage in run.recipe.stages}
    rows = [row for source in run.skill_rows.values() for row in source.held_out()[:1]]
    names = dict.fromkeys(name for stage in run.recipe.stages for name in stage.references() if name not in stages)
    for name in names:
        if run.models.is_adapter(name):  # which `require_runnable` has tried on its base
            continue
        model, tokenizer = run.models.load(name)
        require_sound_model(model, f"the model {name}", ModelError)
        run.evaluator.predict(model, tokenizer, rows)
    for stage in run.recipe.stages:
        if stage.uses_rewards:
            RewardLoader(run).load_all(stage)
