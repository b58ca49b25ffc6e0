"""What a run has cost, and when its student has paid for itself: the function behind `rld cost`."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from accelerate import PartialState
from pydantic import ValidationError

from rld.errors import CheckpointError, UsageError
from rld.models.placement import move_unless_placed
from rld.models.throughput import measure_throughput
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
    taught = [stage for stage in recipe.way_to(models[-1]) if _teachers(stage)]
    specs = _teachers(taught[-1]) if taught else {}
    names = [name for stage in recipe.stages for name in stage.teacher_names]
    unknown = [name for name in prices.apis if name not in names]
    if unknown:
        raise UsageError(f"apis: no teacher is called {unknown[0]!r}{hint(unknown[0], names)}")
    stages = {stage.name: stage_spending(results[stage.name]) for stage in recipe.stages}
    cautions = [*_api_cautions(recipe, stages, prices)]
    report = CostReport(list(stages.values()), prices, requests_per_day, cautions=cautions)
    if taught:
        source = paths.find_recipe_file() if source is None else source
        loader = ModelLoader(recipe, source, paths.stage_result, lambda count: [], lambda flops: None)
        served = _Served(loader, recipe, run, results, batch)
        for name, spec in specs.items():
            own_stages = {stage.name for stage in recipe.way_to(spec.model)} if isinstance(spec, TeacherSpec) else set()
            spendings = [spending for stage, spending in stages.items() if stage not in own_stages]
            report.comparisons += served.comparisons(taught[-1], name, spec, spendings, prices)
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


def _teachers(stage: Stage) -> dict[str, Any]:
    """Return the options of a stage's teachers by name; the model whose answers are fine-tuned on is one."""
    if isinstance(stage, Distill):
        return dict(stage.teachers)
    answering = stage.teacher if isinstance(stage, Sft) else None
    return {} if answering is None else {answering: TeacherSpec(model=answering)}


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
        self._timings: dict[str, Sequence[Timing]] = {}

    def comparisons(
        self, stage: Stage, name: str, spec: Any, stages: Sequence[StageSpending], prices: Prices
    ) -> Iterator[Comparison]:
        """Yield the comparisons of the student with a teacher of a stage, for each number of requests at once."""
        if isinstance(spec, SelfTeacherSpec):
            tell(f"teacher {name} is the student itself, in whose place nothing can be saved")
            return
        if isinstance(spec, ServedTeacher) and name not in prices.apis:
            tell(f"teacher {name} is on a server, whose price is not known; add apis.{name} to the --prices")
            return
        scoring = self._scoring(stage, name)
        if scoring is None:
            tell(f"teacher {name} was not scored on held-out rows, so it is not compared; a stage evaluate scores it")
            return
        place, scores = scoring
        skills = spec.skills or _better(scores, self._results[stage.name].before)
        student_rows = _rows(self._paths.predictions(self._student, "after"), skills)
        teacher_rows = _rows(place, skills)
        if not student_rows or not teacher_rows:
            tell(f"teacher {name} has no stored predictions for rows that ask for an answer, so it is not compared")
            return
        is_api = name in prices.apis
        student = self._service("the student", self._student, student_rows, {})
        reference = spec.model if isinstance(spec, TeacherSpec) else self._student  # a server has its tokenizer
        options = spec.from_pretrained if isinstance(spec, TeacherSpec) else {}
        teacher = self._service(name, reference, teacher_rows, None if is_api else options)
        for batch in self._batches:
            yield Comparison(student, teacher, stages, batch, prices)

    def _scoring(self, stage: Stage, name: str) -> tuple[Path, Mapping[str, float]] | None:
        """Return the predictions of a stage's teacher and its scores; None where it was not scored."""
        if isinstance(stage, Distill):
            teacher = self._results[stage.name].teachers.get(name)
            return None if teacher is None else (self._paths.predictions(stage.name, f"teacher/{name}"), teacher.scores)
        for other in self._recipe.stages:
            if name == other.name or (isinstance(other, Evaluate) and name == other.model):
                return self._paths.predictions(other.name, "after"), self._results[other.name].after
        return None

    def _service(
        self,
        name: str,
        reference: str,
        rows: Sequence[Record],
        from_pretrained: Mapping[str, Any] | None,
    ) -> Service:
        """Return a model as it answers rows; without arguments of `from_pretrained` it is not timed."""
        encoder, _ = self._models.encoder(reference)
        num_written = [len(ids) + 1 for ids in encoder.encode_answers([row["answer"] for row in rows])]  # and the end
        prompts = [len(ids) for ids in encoder.encode_all([row["prompt"] for row in rows])]
        num_read = [  # a prompt of its own is longer than the row's; a label's row counts the tokens of every label
            prompt if "probabilities" in row else max(row["num_tokens"] - answer + 1, 1)
            for prompt, answer, row in zip(prompts, num_written, rows, strict=True)
        ]
        rewards: dict[str, list[float]] = {}
        for row in rows:
            rewards.setdefault(row["skill"], []).append(row["reward"])
        return Service(
            name,
            score=fmean(map(fmean, rewards.values())),
            failures=fmean(reward < 1 for of_skill in rewards.values() for reward in of_skill),
            read=Band.of_mean(num_read),
            written=Band.of_mean(num_written),
            timings=[]
            if from_pretrained is None
            else self._timed(name, reference, from_pretrained, num_read, num_written),
        )

    def _timed(
        self, name: str, reference: str, options: Mapping[str, Any], num_read: Sequence[int], num_written: Sequence[int]
    ) -> Sequence[Timing]:
        """Return how fast this machine serves a model, which is measured once."""
        if name not in self._timings:
            model, _ = self._models.load(reference, options, "auto")
            model = move_unless_placed(model, self._device)
            timings = []
            for batch in self._batches:
                speed = measure_throughput(model, fmean(num_read), fmean(num_written), batch)
                bands = Band.of_repeats(speed.prefill_seconds), Band.of_repeats(speed.decode_seconds)
                timings.append(Timing(batch, *bands, speed.num_bytes))
            self._timings[name] = timings
            del model
            gc.collect()
        return self._timings[name]


def _better(scores: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    """Return the skills in which a teacher is better than the student was at the start of a stage; all if in none."""
    return [skill for skill, score in scores.items() if score > start.get(skill, 0.0)] or list(scores)


def _rows(path: Path, skills: Collection[str]) -> list[Record]:
    """Return the predictions of a file for skills whose rows ask for an answer; a text is only read."""
    rows = files.read_jsonl(path).records
    return [row for row in rows if row["skill"] in skills and row.get("reward") is not None]
