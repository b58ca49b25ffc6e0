"""Run an `evaluate` stage: score a model on held-out rows."""

from __future__ import annotations

from dataclasses import replace

from rld.errors import RecipeError
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.stage_results import NOT_SCORED, stage_record, store_result
from rld.recipe.stages.evaluate import Evaluate


def dry_run(context: RunContext, stage: Evaluate) -> None:
    """Check that there is a row to score the model on.

    Raises:
        RecipeError: there is none.
    """
    has_tasks = stage.skills is None and context.evaluators
    if not has_tasks and not any(row["skill"] in context.skills(stage) for row in context.evaluator.rows):
        with context.mistakes_in(stage, "skills"):
            raise RecipeError("none of them has a held-out row")


def run(context: RunContext, stage: Evaluate) -> None:
    """Score the model and store its scores, and its predictions for the held-out rows."""
    model, tokenizer = context.models.load(stage.model)
    record_revisions(context)
    rows = [row for row in context.evaluator.rows if row["skill"] in context.skills(stage)]
    evaluator = replace(context.evaluator, rows=rows)
    evaluation = evaluator.evaluate(model, tokenizer)
    if stage.skills is None:
        evaluation = evaluation.with_tasks(context.task_scores(model, tokenizer))
    record = stage_record(context, stage, model.num_parameters(), evaluator, after=evaluation)
    store_result(context, stage, record, evaluator, evaluations=(NOT_SCORED, evaluation))
