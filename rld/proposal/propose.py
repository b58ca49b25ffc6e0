"""What `rld init` does: look at rows, models and machine, and write a recipe that trains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rld.data.formats.hub import HubRows
from rld.errors import RecipeError, UsageError
from rld.proposal.columns import ColumnChoice, recognise
from rld.proposal.draft import Draft
from rld.proposal.lengths import measure
from rld.proposal.lines import two_digits
from rld.proposal.models import describe, needs_alignment
from rld.proposal.planning import make_plan, most_steps
from rld.proposal.survey import Source, survey
from rld.recipe.machine import measure_machine
from rld.recipe.names import is_hub_id
from rld.utils.files import user_path, write_text
from rld.utils.messages import tell
from rld.utils.suggestions import hint

_FEW_STEPS = 20


def propose(
    rows: str,
    student: str,
    teachers: Sequence[str],
    *,
    question: Sequence[str],
    answer: str | None,
    held_out: str | None,
    minutes: float,
    output: Path,
) -> None:
    """Write a recipe for rows, a student and teachers.

    Args:
        rows: A file, a folder or a data set of the hub.
        student: A folder or a hub id.
        teachers: The same of each teacher.
        question: The columns of the question. Empty: they are told by names and values.
        answer: The column of the answer. None: it is told by names and values.
        held_out: A file of rows for scores. None: they are taken from the others.
        minutes: The time that the run may take.
        output: The file to write.

    Raises:
        RecipeError: rows or models cannot be used; nothing is written.
        UsageError: the file exists, or cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise UsageError(f"{output} exists; remove it, or choose another --output")
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} for {output.name}; make it, or choose another --output")
    choice = ColumnChoice(question, answer)
    draft, plan = make_plan(_draft(rows, student, teachers, held_out, minutes=minutes, choice=choice))
    write_text(output, draft.text(plan, output.resolve().parent))
    for caution in draft.kind.cautions:
        tell(f"caution: {caution}")
    for stage, seconds in plan.step_seconds.items():
        if plan.steps[stage] < min(_FEW_STEPS, most_steps(draft, plan, stage)):
            fix = "give it more --minutes, or choose smaller models"
            steps = f"{plan.steps[stage]} steps of {two_digits(seconds)} s"
            tell(f"caution: {minutes:g} minutes hold {steps} for {stage!r}; {fix}")


def _draft(
    rows: str, student: str, teachers: Sequence[str], held_out: str | None, *, minutes: float, choice: ColumnChoice
) -> Draft:
    """Look at the rows, the models and the machine.

    Raises:
        RecipeError: rows or models cannot be used.
    """
    source = _source(rows)
    held_out_source = None if held_out is None else _source(held_out)
    rows_survey, own_survey = survey(source), None if held_out_source is None else survey(held_out_source)
    kind = recognise(rows_survey, own_survey, choice)
    pupil = describe(student)
    masters = [describe(name) for name in teachers]
    if kind.name == "conversation" and (plain := [model.place for model in (pupil, *masters) if not model.has_chat]):
        fix = "choose a model with one, such as its instruct version"
        raise RecipeError(f"{rows} has chat messages, and the model {plain[0]!r} has no chat template; {fix}")
    models_by_name = {f"teacher{i}" if len(masters) > 1 else "teacher": model for i, model in enumerate(masters, 1)}
    cards, has_gpu = measure_machine()
    return Draft(
        name=_name(rows),
        source=source,
        held_out=held_out_source,
        kind=kind,
        measured=measure(rows_survey, kind.reader, pupil),
        student=pupil,
        teachers=models_by_name,
        other_tokenizers=[name for name, model in models_by_name.items() if needs_alignment(pupil, model)],
        minutes=minutes,
        cards=cards,
        has_gpu=has_gpu,
    )


def _source(name: str) -> Source:
    """Return the rows that a word of the command line names.

    Raises:
        RecipeError: there is neither a file nor a data set of this name.
    """
    path = user_path(name)
    if path.exists():
        return path.resolve()
    if is_hub_id(name) and not path.suffix:
        return HubRows(name, None, "train", None)
    parent = path.parent if path.parent.is_dir() else Path()
    raise RecipeError(f"there is no file {name}{hint(name, [str(near) for near in parent.glob(f'*{path.suffix}')])}")


def _name(rows: str) -> str:
    """Return a name for a run on rows."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(rows).stem).strip("_") or "rows"
