"""Run a `prune` stage: cut a smaller model out of a larger one."""

from __future__ import annotations

from pathlib import Path

from rld.pipeline.model_card import write_model_card
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.stage_results import stage_record, store_result
from rld.recipe.stages.prune import Prune


def dry_run(context: RunContext, stage: Prune) -> None:
    """Cut the model without its weights, if it is on this machine.

    Raises:
        RecipeError: it cannot be cut so.
    """
    context.models.skeleton(stage.name)


def run(context: RunContext, stage: Prune) -> None:
    """Cut the model, and score and store the result."""
    whole, tokenizer = context.models.load(stage.model)
    record_revisions(context)
    before = context.earlier_evaluation(stage.model) or context.evaluate(whole, tokenizer)
    with context.mistakes_in(stage):
        model = context.models.cut_out((whole, tokenizer), stage)
    after = context.evaluate(model, tokenizer)
    record = stage_record(context, stage, model.num_parameters(), context.evaluator, before=before, after=after)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_model_card(folder, context, stage, record)

    store_result(context, stage, record, context.evaluator, evaluations=(before, after), save=save)
