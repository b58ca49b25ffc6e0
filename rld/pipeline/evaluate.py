"""Run an `evaluate` stage: score a model on held-out rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rld.errors import RecipeError
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.stage_results import NOT_SCORED, stage_record, store_result
from rld.recipe.stages.evaluate import Evaluate
from rld.utils import files

PREDICTIONS = "predictions.jsonl"
"""The name of the file with a model's answers, in the folder of the stage's result."""


def dry_run(context: RunContext, stage: Evaluate) -> None:
    """Check that there is a row to score the model on.

    Raises:
        RecipeError: there is none.
    """
    if not any(row["skill"] in context.skills(stage) for row in context.evaluator.rows):
        raise RecipeError(f"{context.source}: stages.{stage.name}: none of its skills has a held-out row")


def run(context: RunContext, stage: Evaluate) -> None:
    """Score the model and store its scores, and its answer to each held-out row."""
    model, tokenizer = context.models.load(stage.model)
    record_revisions(context)
    rows = [row for row in context.evaluator.rows if row["skill"] in context.skills(stage)]
    evaluator = replace(context.evaluator, rows=rows)
    evaluation, answers = evaluator.predict(model, tokenizer)
    record = stage_record(context, stage, model.num_parameters(), after=evaluation)

    def save(folder: Path) -> None:
        files.append_jsonl(
            folder / PREDICTIONS,
            [
                {"skill": row["skill"], "prompt": row["prompt"], "gold": row["answer"], **answer._asdict()}
                for row, answer in zip(rows, answers, strict=True)
            ],
        )

    store_result(context, stage, record, evaluator.sample_rows, evaluations=(NOT_SCORED, evaluation), save=save)
