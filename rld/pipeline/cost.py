"""What a run has cost, and when its student has paid for itself: the function behind `rld cost`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import PartialState
from pydantic import ValidationError

from rld.errors import CheckpointError, UsageError
from rld.models.throughput import Load, measure_throughput
from rld.pipeline.model_loading import ModelLoader
from rld.recipe.prices import MACHINE_TIME, Prices
from rld.recipe.schema import Recipe
from rld.recipe.stages.base import Stage
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.evaluate import Evaluate
from rld.recipe.stages.sft import Sft
from rld.recipe.teachers import SelfTeacherSpec, ServedTeacher, TeacherSpec
from rld.reporting.break_even import Band, Comparison, Service, StageSpending, Timing
from rld.reporting.cost_page import CostReport
from rld.reporting.history import read_run
from rld.reporting.report import write_report
from rld.reporting.score_records import are_shares_of_answers
from rld.reporting.spending import stage_spending
from rld.reporting.summary_records import StageResult
from rld.utils import files
from rld.utils.files import Record
from rld.utils.messages import tell
from rld.utils.run_folder import RunFolder
from rld.utils.suggestions import hint


def cost(run: Path, source: Path | None, prices: Prices | None, requests_per_day: float, batch: int) -> int:
    """Print what a finished run has cost and when its student has paid for itself, and draw `cost.html`.

    Args:
        run: The run's folder.
        source: The recipe's file; paths of models are relative to its folder. None: where the run was started.
        prices: What things cost. None: as the recipe says, or hours of this machine.
        requests_per_day: Requests that are to be answered.
        batch: Requests that a busy machine answers at once.

    Raises:
        UsageError: there is no run, it is not finished, makes no model, or has no such teacher as the prices name.
    """
    transformers.utils.logging.disable_progress_bar()
    recipe, results = _finished_run(run)
    paths, prices = recipe.run_folder(run), prices or recipe.prices or MACHINE_TIME
    models = [stage.name for stage in recipe.stages if stage.makes_model]
    if not models:
        raise UsageError(f"no stage of {run} makes a model, so there is no student that could pay for itself")
    teachers = _teachers_of(recipe.way_to(models[-1]))
    names = [name for stage in recipe.stages for name in stage.teacher_names]
    unknown = [name for name in prices.apis if name not in names]
    if unknown:
        raise UsageError(f"apis: no teacher is called {unknown[0]!r}{hint(unknown[0], names)}")
    stages = {stage.name: stage_spending(results[stage.name]) for stage in recipe.stages}
    cautions = [*_api_cautions(recipe, stages, prices)]
    report = CostReport(list(stages.values()), prices, requests_per_day, cautions=cautions)
    if teachers:
        source = paths.find_recipe_file() if source is None else source
        loader = ModelLoader(recipe, source, paths.stage_result, lambda count: [], lambda flops: None)
        report.comparisons += _Served(loader, recipe, run, results, batch).comparisons(teachers, stages, prices)
    report.show()
    files.write_text(paths.cost, report.page(recipe.name))
    write_report(run)  # which refers to that page
    tell(f"page: {paths.cost}")
    return 0


def _finished_run(run: Path) -> tuple[Recipe, dict[str, StageResult]]:
    """Return the recipe of a run and the results of its stages.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    paths = RunFolder(run)
    if not paths.recipe.is_file():
        raise UsageError(f"{run} holds no run; rld train RECIPE makes one")
    recipe, results = _recipe(paths.recipe), {result.name: result for result in read_run(run).summary.stages}
    missing = [stage.name for stage in recipe.stages if stage.name not in results]
    if missing:
        raise UsageError(f"{run} is not finished: stage {missing[0]} is to do; rld train --resume goes on with it")
    return recipe, results


def _recipe(path: Path) -> Recipe:
    """Return the resolved recipe of a run, whose paths are relative to the file that it was read from."""
    try:
        return Recipe.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key, fix = ".".join(map(str, first["loc"])), "use the version that trained it"
        raise CheckpointError(f"{path} is not what this version of rld writes: {key}: {first['msg']}; {fix}") from error


def _api_cautions(recipe: Recipe, stages: Mapping[str, StageSpending], prices: Prices) -> Iterator[str]:
    """Yield a sentence for each teacher that an API serves and stage that has no record of the tokens that it read."""
    for stage in recipe.stages:
        for name in stage.teacher_names:
            if name in prices.apis and name not in stages[stage.name].teacher_tokens:
                yield (
                    f"stage {stage.name} has no record of the tokens that teacher {name} read, so what its API asked "
                    "for them counts as 0; add it to `fixed` of the prices"
                )


class _Teacher(NamedTuple):
    """A teacher of stages that lead to the student."""

    name: str
    stages: list[tuple[Stage, Any]]
    """With its options in each."""


def _teachers_of(stages: Sequence[Stage]) -> list[_Teacher]:
    """Return the teachers of stages, each once, in the order of the stages."""
    teachers: dict[tuple[str, str], _Teacher] = {}
    for stage in stages:
        for name, spec in _specs(stage).items():
            teachers.setdefault((name, spec.place), _Teacher(name, [])).stages.append((stage, spec))
    return list(teachers.values())


def _specs(stage: Stage) -> dict[str, Any]:
    """Return the options of a stage's teachers by name; the model whose answers are fine-tuned on is one."""
    if isinstance(stage, Distill):
        return dict(stage.teachers)
    answering = stage.teacher if isinstance(stage, Sft) else None
    return {} if answering is None else {answering: TeacherSpec(model=answering)}


class _Model(NamedTuple):
    """A model as it answers requests, not timed yet."""

    service: Service
    reference: str
    from_pretrained: Mapping[str, Any] | None
    """How it is loaded. None: an API serves it, and it is not timed."""

    @property
    def key(self) -> str:
        """What is equal for models that are timed as one."""
        return json.dumps([self.reference, self.from_pretrained], sort_keys=True, default=str)


class _Pair(NamedTuple):
    """The student, and a teacher whose place it could take."""

    student: _Model
    teacher: _Model
    score_names: Mapping[str, str]
    """The main score of each skill that is compared."""
    own_stages: Collection[str]
    """The stages that make the teacher."""


class _Served:
    """The student of a run and its teachers, as they serve requests like the held-out rows."""

    def __init__(
        self, models: ModelLoader, recipe: Recipe, run: Path, results: Mapping[str, StageResult], batch: int
    ) -> None:
        self._models, self._recipe, self._results = models, recipe, results
        self._paths = recipe.run_folder(run)
        self._student = next(stage.name for stage in reversed(recipe.stages) if stage.makes_model)
        self._device = PartialState(cpu=not torch.cuda.is_available()).device
        self._batches = [1, batch] if batch > 1 else [1]

    def comparisons(
        self, teachers: Sequence[_Teacher], stages: Mapping[str, StageSpending], prices: Prices
    ) -> Iterator[Comparison]:
        """Yield the comparisons of the student with each teacher, for each number of requests at once."""
        pairs = [pair for teacher in teachers if (pair := self._pair(teacher, prices)) is not None]
        timings = self._timings([model for pair in pairs for model in (pair.student, pair.teacher)])
        names = Counter(pair.teacher.service.name for pair in pairs)
        for pair in pairs:
            student = replace(pair.student.service, timings=timings[pair.student.key])
            teacher = replace(pair.teacher.service, timings=timings.get(pair.teacher.key, []))
            if names[teacher.name] == 1:
                teacher = replace(teacher, stage="")
            spendings = [spending for stage, spending in stages.items() if stage not in pair.own_stages]
            for batch in self._batches:
                yield Comparison(student, teacher, spendings, batch, prices, score_names=pair.score_names)

    def _pair(self, teacher: _Teacher, prices: Prices) -> _Pair | None:
        """Return the student with a teacher; None, and a message, where they cannot be compared."""
        name, (stage, spec) = teacher.name, teacher.stages[-1]
        if isinstance(spec, SelfTeacherSpec):
            tell(f"teacher {name} is the student itself, in whose place nothing can be saved")
            return None
        if isinstance(spec, ServedTeacher) and name not in prices.apis:
            tell(f"teacher {name} is on a server, whose price is not known; add apis.{name} to the --prices")
            return None
        scoring = self._scoring(teacher)
        if scoring is None:
            tell(f"teacher {name} was not scored on held-out rows, so it is not compared; a stage evaluate scores it")
            return None
        place, scores = scoring
        result = self._results[self._student]
        student_rows, teacher_rows = _rows(self._paths.predictions(self._student, "after")), _rows(place)
        of_both = result.after.keys() & scores.keys() & student_rows.keys() & teacher_rows.keys()
        skills = [skill for skill in self._skills(teacher, scores) if skill in of_both]
        if not skills:
            tell(f"teacher {name} has no stored predictions for rows that ask for an answer, so it is not compared")
            return None
        is_loaded = isinstance(spec, TeacherSpec)
        reference = spec.model if is_loaded else self._student  # a server has its tokenizer
        student = self._service("the student", self._student, student_rows, result.after, skills)
        service = replace(self._service(name, reference, teacher_rows, scores, skills), stage=stage.name)
        return _Pair(
            _Model(student, self._student, {}),
            _Model(service, reference, None if name in prices.apis else spec.from_pretrained),
            {skill: result.main_score(skill) for skill in skills},
            [stage.name for stage in self._recipe.way_to(spec.model)] if is_loaded else [],
        )

    def _scoring(self, teacher: _Teacher) -> tuple[Path, Mapping[str, float]] | None:
        """Return a teacher's predictions and main scores, of its last stage that has them; None: it was not scored."""
        name = teacher.name
        for stage, _ in reversed(teacher.stages):
            scores = self._results[stage.name].teachers.get(name)
            if isinstance(stage, Distill) and scores is not None:
                return self._paths.predictions(stage.name, f"teacher/{name}"), scores.scores
            for other in self._recipe.stages if isinstance(stage, Sft) else ():
                if name == other.name or (isinstance(other, Evaluate) and name == other.model):
                    return self._paths.predictions(other.name, "after"), self._results[other.name].after
        return None

    def _skills(self, teacher: _Teacher, scores: Mapping[str, float]) -> list[str]:
        """Return the skills that a teacher is to teach, or else does better than the student before; all if in none."""
        skills = [spec.skills for _, spec in teacher.stages]
        if all(skills):
            return list(dict.fromkeys(chain.from_iterable(skills)))
        start = self._results[teacher.stages[0][0].name].before
        return [skill for skill, score in scores.items() if score > start.get(skill, 0.0)] or list(scores)

    def _service(
        self,
        name: str,
        reference: str,
        rows: Mapping[str, Sequence[Record]],
        scores: Mapping[str, float],
        skills: Sequence[str],
    ) -> Service:
        """Return a model, not timed, as it answers the rows of skills, from its rows and main scores by skill."""
        encoder, _ = self._models.encoder(reference)
        answers = [row for skill in skills for row in rows[skill]]
        num_written = [
            len(ids) + 1 for ids in encoder.encode_answers([row["answer"] for row in answers])
        ]  # and the end
        prompts = [len(ids) for ids in encoder.encode_all([row["prompt"] for row in answers])]
        num_read = [  # a prompt of its own is longer than the row's; a label's row counts the tokens of every label
            prompt if "probabilities" in row else max(row["num_tokens"] - written + 1, 1)
            for prompt, written, row in zip(prompts, num_written, answers, strict=True)
        ]
        failures = None
        if are_shares_of_answers(map(self._results[self._student].main_score, skills)):
            failures = sum((1 - scores[skill]) * len(rows[skill]) for skill in skills) / len(answers)
        return Service(
            name,
            score=fmean(scores[skill] for skill in skills),
            failures=failures,
            read=Band.of_mean(num_read),
            written=Band.of_mean(num_written),
            timings=[],
        )

    def _timings(self, models: Sequence[_Model]) -> dict[str, list[Timing]]:
        """Return how fast this machine serves models, by their keys; each is timed once, in turn with the others."""
        loads: dict[str, Load] = {}
        for model in models:
            if model.key not in loads and model.from_pretrained is not None:
                weights, _ = self._models.load(model.reference, model.from_pretrained, "auto")
                loads[model.key] = Load(weights, model.service.read.middle, model.service.written.middle)
        timings: dict[str, list[Timing]] = {key: [] for key in loads}
        for batch in self._batches:
            speeds = measure_throughput(list(loads.values()), batch, self._device)
            for of_model, speed in zip(timings.values(), speeds, strict=True):
                bands = Band.of_repeats(speed.prefill_seconds), Band.of_repeats(speed.decode_seconds)
                of_model.append(Timing(batch, *bands, speed.num_bytes))
        return timings


def _rows(path: Path) -> dict[str, list[Record]]:
    """Return the predictions of a file by skill, for rows that ask for an answer; a text is only read."""
    rows: dict[str, list[Record]] = {}
    for row in files.read_jsonl(path).records:
        if row.get("reward") is not None:
            rows.setdefault(row["skill"], []).append(row)
    return rows
