"""What is checked before the first stage trains, by `rld train` and by `rld check`: one function for both."""

from __future__ import annotations

from rld.pipeline.plain_recipe import absent_models
from rld.pipeline.reward_probe import probe_judge
from rld.pipeline.run import RunContext


def require_runnable(run: RunContext, downloads: bool = True) -> None:
    """Check all that can be told of a run without weights: rows, options, models, curricula and rewards.

    Args:
        run: The run.
        downloads: Whether tokenizers and configurations that are not on this machine are downloaded. Otherwise such
            models are left out, and rows are not checked if there is one.

    Raises:
        RldError: a stage would stop with a mistake of the user.
    """
    probe_judge(run)
    if downloads or not absent_models(run.recipe, run.source.parent):
        run.row_checks.require(run.skill_rows)
    for stage in run.recipe.stages:
        stage.dry_run(run)
