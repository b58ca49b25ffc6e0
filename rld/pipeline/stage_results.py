"""Store what a stage has made: its predictions, and its record with its model, whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rld.evaluation.held_out import Evaluation, HeldOutEvaluator
from rld.evaluation.measured import MeasuredScore
from rld.pipeline.predictions import write_predictions
from rld.pipeline.run import RunContext
from rld.pipeline.samples import write_samples
from rld.pipeline.teacher_loading import ProbedTeacher
from rld.recipe.stages.base import Stage
from rld.reporting.score_records import ScoreRecord
from rld.reporting.verdict import Estimate, losses_of_skills
from rld.utils import files
from rld.utils.manifest import write_manifest
from rld.utils.run_folder import stage_record_path

NOT_SCORED = Evaluation({}, {}, [])
"""Stands for the scores before a stage that trains no model."""


def stage_record(
    context: RunContext,
    stage: Stage,
    num_parameters: int,
    evaluator: HeldOutEvaluator,
    *,
    after: Evaluation,
    before: Evaluation = NOT_SCORED,
    teachers: Sequence[ProbedTeacher] = (),
) -> dict[str, Any]:
    """Return the record of a stage that has ended now, as `summary.json` shows it.

    Args:
        num_parameters: The number of parameters of its model.
        evaluator: What has made the evaluations.
        after: The model's evaluation.
        before: The evaluation of the model that was trained, before the stage.
        teachers: The teachers of the stage.
    """
    meter = context.flop_meter
    scorings = _scorings(before, after, teachers)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "fingerprint": context.inputs.fingerprint(stage.name),
        "seconds": round(time.monotonic() - context.started - context.seconds_before, 1),
        "watts": context.power_meter.watts,
        "flops": meter.total,
        "flops_by_account": meter.accounts,
        "flops_by_part": {account: parts for account, parts in meter.parts.items() if parts},
        "student": {"parameters": num_parameters, "scores": after.scores},
        "teachers": {
            str(probed.teacher.name): {
                "parameters": probed.num_parameters,
                "scores": probed.evaluation.scores,
                "agreement": (
                    _plain(evaluator.agreement(after, probed.evaluation)) if probed.evaluation.predictions else {}
                ),
            }
            for probed in teachers
        },
        "scorings": {name: plain_scores(evaluation) for name, evaluation in scorings.items()},
        "confusion": {name: table._asdict() for name, table in evaluator.confusion(after).items()},
        "before": before.scores,
        "after": after.scores,
        "below_start": losses_of_skills(_estimates(before), _estimates(after)),
        "retention": {skill: after.scores[skill] / score if score else None for skill, score in before.scores.items()},
    }


def store_result(
    context: RunContext,
    stage: Stage,
    record: Mapping[str, Any],
    evaluator: HeldOutEvaluator,
    *,
    evaluations: tuple[Evaluation, Evaluation],
    save: Callable[[Path], None] = lambda folder: None,
    teachers: Sequence[ProbedTeacher] = (),
    parts: Mapping[str, Evaluation] = MappingProxyType({}),
) -> None:
    """Write a stage's predictions, samples and the folder of its result, and remove its checkpoints.

    Its cost is added to that of the run.

    Args:
        evaluator: What has made the evaluations.
        evaluations: Those before and after the stage.
        parts: Further evaluations, by the names of their scorings.
        save: Writes the model, if there is one, into the folder that it gets.
        teachers: The teachers of the stage.
    """
    context.skip(record)
    if context.state.is_main_process:
        before, after = evaluations
        for scoring, evaluation in {**_scorings(before, after, teachers), **parts}.items():
            path = context.paths.predictions(stage.name, scoring)
            write_predictions(path, evaluator.rows, evaluation.predictions)
        by_teacher = {str(probed.teacher.name): probed.evaluation for probed in teachers}
        write_samples(context.paths.samples, stage.name, evaluator, before=before, after=after, teachers=by_teacher)
        with files.replace_folder(context.paths.stage_result(stage.name)) as draft:
            draft.mkdir(parents=True, exist_ok=True)
            save(draft)
            files.write_json(stage_record_path(draft), record)
            write_manifest(draft)
        files.remove_folder(context.paths.checkpoints(stage.name))
    context.state.wait_for_everyone()


def plain_scores(evaluation: Evaluation) -> dict[str, Any]:
    """Return all scores of an evaluation with their intervals, as JSON."""
    return {skill: _plain(scores) for skill, scores in evaluation.measured.items()}


def _estimates(evaluation: Evaluation) -> dict[str, Estimate]:
    measured = {skill: next(iter(evaluation.measured[skill].values())) for skill in evaluation.scores}
    return {skill: Estimate(main.value, ScoreRecord(**main._asdict()).error) for skill, main in measured.items()}


def _plain(scores: Mapping[str, MeasuredScore]) -> dict[str, Any]:
    return {name: score._asdict() for name, score in scores.items()}


def _scorings(before: Evaluation, after: Evaluation, teachers: Sequence[ProbedTeacher]) -> dict[str, Evaluation]:
    """Return the evaluations that a stage has made, by the names of their scorings."""
    scorings = {"before": before, "after": after}
    scorings |= {f"teacher/{probed.teacher.name}": probed.evaluation for probed in teachers}
    return {name: evaluation for name, evaluation in scorings.items() if evaluation.measured}
