"""Run an `export` stage: write a model in the files of another runtime, and verify and score it there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from rld.pipeline.exporting import ExportPlan, first_rows, new_folder
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import on_main_process, record_revisions
from rld.pipeline.stage_results import stage_record, store_result
from rld.recipe.stages.export import Export


def dry_run(context: RunContext, stage: Export) -> None:
    """Check that the format has all that the model and its tokenizer need, if the model is on this machine.

    Raises:
        ModelError: it has not.
    """
    model = context.models.skeleton(stage.model)
    if model is not None:
        encoder, _ = context.models.encoder(stage.model)
        with context.mistakes_in(stage, "format"):
            ExportPlan(model, encoder, stage.format, stage.precision_in_use, []).require_exportable()


def run(context: RunContext, stage: Export) -> None:
    """Export the model, and score it and the exported one on held-out rows."""
    model, tokenizer = context.models.load(stage.model)
    record_revisions(context)
    encoder, rows = context.encoder(model, tokenizer), context.evaluator.rows
    plan = ExportPlan(model, encoder, stage.format, stage.precision_in_use, rows)
    folder = context.paths.checkpoints(stage.name)
    exported: list[Any] = [None]

    def export() -> None:
        with new_folder(folder) as draft:
            exported[0] = plan.export(draft).model_dump()

    with context.mistakes_in(stage, "format"):
        on_main_process(context.state, export)
        broadcast_object_list(exported)
        evaluator = replace(context.evaluator, rows=first_rows(rows, stage.max_rows))
        before, after = evaluator.evaluate(model, tokenizer), plan.score(folder, evaluator)
    record = stage_record(context, stage, model.num_parameters(), evaluator, before=before, after=after)
    record["export"] = exported[0]

    def save(target: Path) -> None:
        for path in folder.iterdir():
            shutil.move(path, target / path.name)

    store_result(context, stage, record, evaluator, evaluations=(before, after), save=save)
