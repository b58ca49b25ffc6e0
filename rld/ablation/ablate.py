"""Train the arms of a recipe from the same start, seed by seed, and compare them.

Each arm and seed is an ordinary run in `DIR/seed-S/ARM`, by `rld train` in a process of its own. The stages before
the compared one are trained once per seed, in `DIR/shared`, for all arms that have them alike.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from rld.ablation import jobs, outcomes, page
from rld.ablation.arms import Arm, read_arms
from rld.ablation.jobs import Job, Start
from rld.errors import CheckpointError
from rld.recipe.reading import read_recipe
from rld.utils import files
from rld.utils.run_folder import RunFolder

_ANY_REWARDS = [{"use": "answers:exact_match", "weight": 1.0, "options": {}}]
"""What stages that heed no rewards are given, so that arms with other rewards can share them."""


@dataclass(frozen=True)
class AblationPlan:
    """What is to be compared, and where."""

    source: Path
    folder: Path
    arms: Sequence[Arm]
    seeds: Sequence[int]

    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / f"seed-{seed}" / arm.name


@dataclass
class _JobQueue:
    """What is left to do, each run once."""

    plan: AblationPlan
    todo: list[Job] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Folders that hold runs of other recipes."""
    _known: dict[Path, Job | None] = field(default_factory=dict)

    def add(self, arm: Arm, seed: int) -> None:
        """Add an arm's run with a seed, and that of the stages before the compared one."""
        folder, needs = self.plan.run(arm, seed), None
        prepare: Callable[[], None] = functools.partial(folder.mkdir, parents=True, exist_ok=True)
        if arm.index:
            shared, needs = self._shared(arm, seed)
            stages = [stage.name for stage in arm.recipe.stages[: arm.index]]
            prepare = functools.partial(_start_from, shared, stages, folder)
        overrides = (*arm.overrides, f"seed={seed}")
        self._add(Job(f"seed {seed}, {arm.name}", folder, self._train(overrides, folder), needs, prepare), overrides)

    def _shared(self, arm: Arm, seed: int) -> tuple[Path, Job | None]:
        """Where the stages before the compared one are trained, and the job that does it, None where it is done.

        The folder's name tells recipes apart, so that arms may come and go.
        """
        before = _before(arm, seed)
        key = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.plan.folder / "shared" / f"seed-{seed}-{key}"
        if folder not in self._known:
            given = [f"{key}={json.dumps(before[key], ensure_ascii=False)}" for key in ("seed", "rewards", "stages")]
            overrides = (*arm.overrides, *given)
            title = f"seed {seed}, {', '.join(stage['name'] for stage in before['stages'])}"
            prepare = functools.partial(folder.mkdir, parents=True, exist_ok=True)
            self._add(Job(title, folder, self._train(overrides, folder), None, prepare), overrides)
        return folder, self._known[folder]

    def _train(self, overrides: Sequence[str], folder: Path) -> tuple[str, ...]:
        return (str(self.plan.source), *overrides, "--output", str(folder), "--resume")

    def _add(self, job: Job, overrides: Sequence[str]) -> None:
        recipe = read_recipe(self.plan.source, overrides).model_dump(mode="json")
        folder = RunFolder(job.folder)
        if folder.recipe.is_file():
            old = files.read_json(folder.recipe)
            if changed := sorted(key for key in recipe.keys() | old.keys() if recipe.get(key) != old.get(key)):
                self.stale.append(f"{job.folder} holds a run of another recipe (changed: {', '.join(changed)})")
        self._known[job.folder] = None if folder.is_done else job
        if not folder.is_done:
            self.todo.append(job)


def ablate(
    source: Path,
    overrides: Sequence[str],
    arms: str,
    num_seeds: int,
    folder: Path | None = None,
    at_once: int = 1,
    max_flops: float | None = None,
    start: Start | None = None,
) -> int:
    """Train and compare arms of the recipe in `source`; what is in `folder` already is not trained again.

    Args:
        overrides: Of all arms.
        arms: As `arms.read_arms` takes them; the first is what the others are compared with.
        num_seeds: How many seeds, counted from the recipe's.
        folder: Where to. None: runs/NAME-ablation.
        at_once: Runs at the same time.
        max_flops: The budget of the compared stage. None: its steps.
        start: Starts a run. None: as a process.

    Returns:
        0, or 1 where a run failed.

    Raises:
        RldError: the user's mistake, before anything runs.
    """
    made = read_arms(arms, source, overrides, max_flops)
    first = made[0].recipe
    plan = AblationPlan(
        source,
        folder or Path("runs") / f"{first.name}-ablation",
        made,
        range(first.seed, first.seed + num_seeds),
    )
    left = _JobQueue(plan)
    for seed in plan.seeds:
        for arm in plan.arms:
            left.add(arm, seed)
    if left.stale:
        raise CheckpointError("\n".join(f"{text}; choose another --output or arm's name" for text in left.stale))
    failed = jobs.run(left.todo, at_once, start or jobs.starter(at_once), _tell)
    _show(plan)
    return 1 if failed else 0


def _show(plan: AblationPlan) -> None:
    finished = [(arm, seed) for arm in plan.arms for seed in plan.seeds if RunFolder(plan.run(arm, seed)).is_done]
    if not finished:
        _tell("no run has finished, so there is nothing to compare")
        return
    shared = _num_alike(plan.arms)
    runs = [
        outcomes.read_outcome(arm.name, seed, plan.run(arm, seed), arm.index, min(shared, arm.index))
        for arm, seed in finished
    ]
    for arm in plan.arms:
        short = [run.seed for run in runs if run.arm == arm.name and run.own_flops < (arm.stage.max_flops or 0)]
        if short:
            seeds = ", ".join(map(str, short))
            _tell(f"{arm.name} ran out of steps before its budget of FLOPs (seeds {seeds}); give it more steps")
    own = {arm.name: arm.overrides for arm in plan.arms}
    result = outcomes.compare(plan.arms[0].recipe.name, own, list(plan.seeds), runs)
    files.write_json(plan.folder / "ablation.json", result.as_json(plan.folder))
    report = page.write_scoreboard(result, plan.folder)
    console = Console(highlight=False)
    for table in page.tables(result):
        console.print(table)
    console.print(f"report: {report}", soft_wrap=True, markup=False)


def _resolved(arm: Arm, seed: int) -> dict[str, Any]:
    return arm.recipe.model_copy(update={"seed": seed}).model_dump(mode="json")


def _before(arm: Arm, seed: int) -> dict[str, Any]:
    """Return the recipe of the stages before the compared one: arms that agree on it share its results."""
    recipe = _resolved(arm, seed)
    stages = recipe["stages"][: arm.index]
    heeds_rewards = any(stage.uses_rewards for stage in arm.recipe.stages[: arm.index])
    return recipe | {"stages": stages, "rewards": recipe["rewards"] if heeds_rewards else _ANY_REWARDS}


def _num_alike(arms: Sequence[Arm]) -> int:
    """Return how many stages, from the first, are the same in all arms: no arm is charged for them."""
    recipes = [_before(arm, arm.recipe.seed) for arm in arms]
    rest = [{key: value for key, value in recipe.items() if key != "stages"} for recipe in recipes]
    if any(other != rest[0] for other in rest):
        return 0
    count = 0
    for stages in zip(*(recipe["stages"] for recipe in recipes), strict=False):
        if any(stage != stages[0] for stage in stages):
            break
        count += 1
    return count


def _start_from(shared: Path, stages: Sequence[str], folder: Path) -> None:
    """Begin a run where another has ended: with its stages' results, which take no space again, and what it logged."""
    if folder.exists():
        return
    begun = RunFolder(shared, stages[-1])
    with files.replace_folder(folder) as draft:
        for name in stages:
            shutil.copytree(begun.stage_result(name), RunFolder(draft).stage_result(name), copy_function=_link)
        for path in (begun.metrics, begun.events):
            if path.is_file():
                shutil.copy(path, draft)
        files.write_json(RunFolder(draft).summary, files.read_json(begun.summary) | {"status": "stopped"})


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _tell(text: str) -> None:
    print(f"rld: {text}", file=sys.stderr, flush=True)
