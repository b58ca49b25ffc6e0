"""Train the arms of a recipe from the same start, seed by seed, and compare them.

Each arm and seed is an ordinary run in `DIR/seed-S/ARM`, by `rld train` in a process of its own. The stages before
the compared one are trained once per seed, in `DIR/shared`, for all arms in which they are the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rld.ablation import outcomes, page
from rld.ablation.arms import Arm, read_arms
from rld.ablation.jobs import Job, Start, process_starter, run_jobs
from rld.errors import CheckpointError
from rld.recipe.input_changes import Effect, input_changes
from rld.recipe.inputs import Inputs, InputsFile
from rld.recipe.reading import read_recipe
from rld.recipe.schema import Recipe
from rld.utils import files
from rld.utils.console import SafeConsole
from rld.utils.folder_lock import locked
from rld.utils.messages import tell
from rld.utils.run_folder import RunFolder
from rld.utils.secrets import masked_override, masked_recipe

_ANY_REWARDS = [{"use": "answers:exact_match", "weight": 1.0, "options": {}}]
"""The rewards of shared stages that use none, so that arms with other rewards can share them."""


@dataclass(frozen=True)
class AblationPlan:
    """The runs of an ablation: each arm with each seed.

    Attributes:
        source: The recipe's file.
        folder: The folder of the ablation.
        judge: The override that gives all runs the base recipe's judge, so that arms are scored alike.
    """

    source: Path
    folder: Path
    arms: Sequence[Arm]
    seeds: Sequence[int]
    judge: str

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / f"seed-{seed}" / arm.name


@dataclass
class _JobList:
    """The runs that are still to be done, each once.

    Attributes:
        jobs: A job that another one needs comes before it.
        conflicts: Messages about folders that hold runs of other recipes.
    """

    plan: AblationPlan
    jobs: list[Job] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    _job_of: dict[Path, Job | None] = field(default_factory=dict)
    """Of each run's folder; None where the run is finished."""

    def add(self, arm: Arm, seed: int) -> None:
        """Add the run of an arm with a seed, and that of the stages before the compared one."""
        folder, needs = self.plan.run_folder(arm, seed), None
        prepare: Callable[[], None] = functools.partial(folder.mkdir, parents=True, exist_ok=True)
        if arm.index:
            shared, needs = self._add_shared(arm, seed)
            before = arm.recipe.model_copy(update={"stages": arm.recipe.stages[: arm.index]})
            prepare = functools.partial(_copy_stages, shared, before, folder)
        overrides = (*arm.overrides, f"seed={seed}")
        job = Job(f"seed {seed}, {arm.name}", folder, self._arguments(overrides, folder), needs, prepare)
        self._add(job, overrides)

    def _add_shared(self, arm: Arm, seed: int) -> tuple[Path, Job | None]:
        """Add the run of the stages before the compared one.

        Returns:
            Its folder, and its job, None where it is finished. The folder's name contains a hash of the recipe, so
            that arms which come later find the runs that they can share.
        """
        recipe = _recipe_before(arm, seed)
        digest = hashlib.sha256(json.dumps(masked_recipe(recipe), sort_keys=True).encode()).hexdigest()[:8]
        folder = self.plan.folder / "shared" / f"seed-{seed}-{digest}"
        if folder not in self._job_of:
            values = [
                f"{key}={json.dumps(recipe[key], ensure_ascii=False)}"
                for key in ("seed", "rewards", "verifier", "stages")
            ]
            overrides = (*arm.overrides, *values)
            title = f"seed {seed}, {', '.join(stage['name'] for stage in recipe['stages'])}"
            prepare = functools.partial(folder.mkdir, parents=True, exist_ok=True)
            self._add(Job(title, folder, self._arguments(overrides, folder), None, prepare), overrides)
        return folder, self._job_of[folder]

    def _arguments(self, overrides: Sequence[str], folder: Path) -> tuple[str, ...]:
        return (str(self.plan.source), *overrides, self.plan.judge, "--output", str(folder), "--resume")

    def _add(self, job: Job, overrides: Sequence[str]) -> None:
        folder = RunFolder(job.folder)
        if folder.inputs.is_file():
            recipe = read_recipe(self.plan.source, [*overrides, self.plan.judge])
            inputs = Inputs.of(recipe, self.plan.source.parent, launch={})
            changes = input_changes(InputsFile.read(folder.inputs).inputs, inputs, started=())
            if changed := [change.text for change in changes if change.stages or change.effect is not Effect.ALLOWED]:
                self.conflicts.append(f"{job.folder} holds a run with other inputs ({'; '.join(changed)})")
        is_done = outcomes.is_finished(job.folder)
        self._job_of[job.folder] = None if is_done else job
        if is_done:
            files.remove_drafts(job.folder)
        else:
            self.jobs.append(job)


def ablate(
    source: Path,
    overrides: Sequence[str],
    arms: str,
    *,
    num_seeds: int,
    folder: Path | None = None,
    num_parallel: int = 1,
    max_flops: float | None = None,
    start: Start | None = None,
) -> int:
    """Train and compare arms of the recipe in `source`; runs that `folder` holds already are not repeated.

    Args:
        overrides: Overrides of all arms.
        arms: As `arms.read_arms` takes them; the others are compared with the first.
        num_seeds: The number of seeds, counted from the recipe's.
        folder: Where the runs and the page go. None: runs/NAME-ablation.
        num_parallel: Runs at the same time.
        max_flops: The budget of the compared stage, in FLOPs. None: the stage ends after its steps.
        start: Starts a run. None: as a process.

    Returns:
        0, or 1 where a run failed.

    Raises:
        RldError: the user's mistake, before anything runs.
    """
    all_arms = read_arms(arms, source, overrides, max_flops=max_flops)
    recipe = all_arms[0].recipe
    seeds = range(recipe.seed, recipe.seed + num_seeds)
    judge = read_recipe(source, overrides).judge_in_use.model_dump_json()
    plan = AblationPlan(
        source, folder or Path("runs") / f"{recipe.name}-ablation", all_arms, seeds, judge=f"judge={judge}"
    )
    with locked(plan.folder):
        return _run(plan, num_parallel, start or process_starter(num_parallel))


def _run(plan: AblationPlan, num_parallel: int, start: Start) -> int:
    """Do the runs that are still to be done, and report; return the exit code."""
    for folder in (plan.folder, *(plan.folder / f"seed-{seed}" for seed in plan.seeds)):
        files.remove_drafts(folder)
    todo = _JobList(plan)
    for seed in plan.seeds:
        for arm in plan.arms:
            todo.add(arm, seed)
    if todo.conflicts:
        raise CheckpointError("\n".join(f"{text}; choose another --output or arm's name" for text in todo.conflicts))
    failed = run_jobs(todo.jobs, num_parallel, start, tell)
    _report(plan)
    return 1 if failed else 0


def _report(plan: AblationPlan) -> None:
    """Compare the finished runs, write the result, and show it."""
    runs = _finished_runs(plan)
    if not runs:
        tell("no run has finished, so there is nothing to compare")
        return
    for arm in plan.arms:
        budget = arm.stage.stop.max_flops or 0
        seeds = [str(run.seed) for run in runs if run.arm == arm.name and run.stage_flops < budget]
        if seeds:
            tell(
                f"{arm.name} ran out of steps before its budget of FLOPs (seeds {', '.join(seeds)}); give it more steps"
            )
    arms = {arm.name: tuple(map(masked_override, arm.overrides)) for arm in plan.arms}
    result = outcomes.compare(plan.arms[0].recipe.name, arms, list(plan.seeds), runs)
    outcomes.write_result(result, plan.folder)
    show_result(result, plan.folder)


def _finished_runs(plan: AblationPlan) -> list[outcomes.RunOutcome]:
    num_shared = _num_alike(plan.arms)
    return [
        outcomes.read_outcome(arm.name, seed, folder, index=arm.index, num_shared=min(num_shared, arm.index))
        for arm in plan.arms
        for seed in plan.seeds
        if outcomes.is_finished(folder := plan.run_folder(arm, seed))
    ]


def show_result(result: outcomes.AblationResult, folder: Path) -> None:
    """Draw the page of an ablation into its folder, and print its tables."""
    path = page.write_page(result, folder)
    console = SafeConsole(highlight=False)
    for table in page.terminal_tables(result):
        console.print(table)
    console.print(f"report: {path}", soft_wrap=True, markup=False)


def _recipe_before(arm: Arm, seed: int) -> dict[str, Any]:
    """Return the recipe of the stages before the compared one; arms in which it is the same share their results."""
    recipe = arm.recipe.model_copy(update={"seed": seed}).model_dump(mode="json")
    stages = recipe["stages"][: arm.index]
    uses_rewards = any(stage.uses_rewards for stage in arm.recipe.stages[: arm.index])
    unused = {} if uses_rewards else {"rewards": _ANY_REWARDS, "verifier": None}
    return recipe | unused | {"stages": stages}


def _num_alike(arms: Sequence[Arm]) -> int:
    """Return how many stages, from the first, are the same in all arms: no arm is charged for them."""
    recipes = [_recipe_before(arm, arm.recipe.seed) for arm in arms]
    settings = [{key: value for key, value in recipe.items() if key != "stages"} for recipe in recipes]
    if any(other != settings[0] for other in settings):
        return 0
    count = 0
    for stages in zip(*(recipe["stages"] for recipe in recipes), strict=False):
        if any(stage != stages[0] for stage in stages):
            break
        count += 1
    return count


def _copy_stages(shared: Path, before: Recipe, folder: Path) -> None:
    """Create a run's folder with the results of the stages of a recipe that another run has run, and their logs.

    The weights are hard links, so they take no space again. A folder that exists is left as it is.
    """
    if folder.exists():
        return
    source = before.run_folder(shared)
    with files.replace_folder(folder) as draft:
        target = RunFolder(draft, without_model=source.without_model)
        for stage in before.stages:
            shutil.copytree(source.stage_result(stage.name), target.stage_result(stage.name), copy_function=_link)
        for path in (source.metrics, source.events, source.samples):
            if path.is_file():
                shutil.copy(path, draft)
        files.write_json(RunFolder(draft).summary, files.read_json(source.summary) | {"status": "stopped"})


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
