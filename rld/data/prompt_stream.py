"""The prompts of a training run, as a curriculum picks them: each is drawn only when it is asked for.

So the curriculum can go by all that came before, and a resumed run goes on with exactly the same rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from datasets import Dataset
from torch import Tensor

from rld.errors import CurriculumError, DataError
from rld.types import DEFAULT_SKILL, Curriculum, Event, Row, Task
from rld.utils.suggestions import describe_exception

_MOST_TRIES = 200
"""Picks in a row of skills that are not there after which the curriculum is taken to know no other."""


class RowSource(Protocol):
    """What a stream draws rows from."""

    num_levels: int

    def draw(self, level: int, rng: random.Random) -> Row: ...


class PromptStream:
    """The prompts of a training run, in the order that a curriculum sets.

    `dataset` is what a trainer reads in order, without workers: slot i's row is drawn when slot i is first asked for.
    A data loader looks ahead, so a task may be picked before the update in front of it has been observed. The state
    holds the tasks picked and not yet trained on, so that a resumed run goes on with exactly the same rows.

    Args:
        sources: Per skill, what its rows are drawn from.
        curriculum: Picks skill and level.
        seed: Of the stream.
        num_slots: Prompts that the run needs at most.
    """

    together: int = 1
    """Prompts of one update over all processes. Their tasks are picked together, though each process asks for its
    own: so every process knows all of them, and any one can write the state."""

    absent: frozenset[str] = frozenset()
    """Skills that are not drawn for now, whatever the curriculum picks."""

    def __init__(self, sources: Mapping[str, RowSource], curriculum: Curriculum, seed: int, num_slots: int) -> None:
        self.curriculum = curriculum
        self.shifted: dict[str, list[int]] = {}
        """Per skill the levels that its rows are drawn from, in the place of its first, second and further ones."""
        self._sources, self._seed = dict(sources), seed
        self._seen: dict[Task, tuple[int, int]] = {}
        self._levels = self._current_levels()
        self._tasks: dict[int, Task] = {}
        self._rows: dict[int, Row] = {}
        self.dataset = Dataset.from_dict({"slot": list(range(num_slots))})
        self.dataset.set_transform(lambda batch: self._columns(batch["slot"]))  # a lambda is not copied with a data set

    @classmethod
    def over(cls, dataset: Dataset, curriculum: Curriculum, seed: int, num_slots: int) -> PromptStream:
        """Return a stream of the rows of `dataset`, by its columns `skill` and `level` where it has them.

        Raises:
            DataError: a level without rows.
        """
        names = dataset.column_names
        skills = dataset["skill"] if "skill" in names else itertools.repeat(DEFAULT_SKILL, len(dataset))
        levels = dataset["level"] if "level" in names else itertools.repeat(0, len(dataset))
        found: dict[str, dict[int, list[int]]] = {}
        for i, (skill, level) in enumerate(zip(skills, levels, strict=True)):
            found.setdefault(str(skill), {}).setdefault(level, []).append(i)
        sources = {skill: _Labelled(skill, dataset, rows) for skill, rows in found.items()}
        return cls(sources, curriculum, seed, num_slots)

    @property
    def skills(self) -> list[str]:
        """The skills that prompts are drawn from."""
        return list(self._sources)

    def count(
        self, names: Sequence[str], skills_B: Tensor, levels_B: Tensor, success_B: Tensor, attempted_B: Tensor
    ) -> None:
        """Tell the curriculum what came of each task of a rollout; rows are those of all processes."""
        for s, level in sorted(set(zip(skills_B.tolist(), levels_B.tolist(), strict=True))):
            chosen_B = (skills_B == s) & (levels_B == level) & attempted_B
            self.observe(Task(names[s], level), int(success_B[chosen_B].sum()), int(chosen_B.sum()))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        """Tell the curriculum what came of a task in one update, over all processes.

        Raises:
            CurriculumError: the curriculum raised.
        """
        try:
            self.curriculum.observe(task, successes, attempts)
        except Exception as error:
            raise self._error(f"observe({task}, {successes}, {attempts}) raised {describe_exception(error)}") from error
        self._seen[task] = successes, attempts

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        """Tell a curriculum that listens which share of the prompts the controller would give each skill."""
        if hasattr(self.curriculum, "allocate"):
            self.curriculum.allocate(shares)

    def moves(self, step: int) -> list[Event]:
        """Return an event for each skill whose level has moved since the last call."""
        before, self._levels = self._levels, self._current_levels()
        events = []
        for skill, level in self._levels.items():
            if level != before.get(skill, level):
                seen = {task.level: counts for task, counts in self._seen.items() if task.skill == skill}
                told = ", ".join(f"{s} of {n} right at level {at}" for at, (s, n) in sorted(seen.items()))
                kind, rule = "level up" if level > before[skill] else "level down", type(self.curriculum).__name__
                events.append(Event(step, kind, skill, f"from {before[skill]:g} to {level:g}", told, rule))
        self._seen = {}
        return events

    def _current_levels(self) -> dict[str, float]:
        shown = self.curriculum.metrics()
        return {skill: shown[f"level/{skill}"] for skill in self._sources if f"level/{skill}" in shown}

    def state_dict(self, first_unused_slot: int) -> dict[str, Any]:
        """Return the curriculum's state and the tasks already picked from `first_unused_slot` on; forget older ones."""
        self._tasks = {slot: task for slot, task in self._tasks.items() if slot >= first_unused_slot}
        return {
            "curriculum": self.curriculum.state_dict(),
            "tasks": [[slot, *task] for slot, task in self._tasks.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.curriculum.load_state_dict(state["curriculum"])
        self._levels, self._seen = self._current_levels(), {}
        self._tasks = {slot: Task(skill, level) for slot, skill, level in state["tasks"]}
        self._rows = {}

    def _columns(self, slots: list[int]) -> dict[str, list[Any]]:
        known = self._rows
        self._rows = {}
        for slot in slots:
            if slot not in self._rows:
                self._rows[slot] = known[slot] if slot in known else self._draw(slot)
        rows = [self._rows[slot] for slot in slots]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _draw(self, slot: int) -> Row:
        if slot not in self._tasks:
            first = slot - slot % self.together
            for other in range(first, first + self.together):
                self._tasks.setdefault(other, self._pick(other))
        skill, level = self._tasks[slot]
        levels = self.shifted.get(skill)
        drawn = level if levels is None else levels[min(level, len(levels) - 1)]
        row = self._sources[skill].draw(drawn, random.Random(f"{self._seed}:row:{slot}"))
        return row if levels is None else {**row, "level": level}

    def _pick(self, slot: int) -> Task:
        place = slot % self.together
        start = random.Random(f"{self._seed}:skills:{slot - place}").random()
        rng = _Systematic(f"{self._seed}:task:{slot}")
        rng.first = (place + start) / self.together
        for _ in range(_MOST_TRIES):
            task = self._next(rng)
            if task.skill not in self.absent:
                return task
        raise self._error(f"{_MOST_TRIES} picks in a row were skills that have left: {', '.join(sorted(self.absent))}")

    def _next(self, rng: random.Random) -> Task:
        try:
            task = self.curriculum.next(rng)
        except Exception as error:
            raise self._error(f"next() raised {describe_exception(error)}") from error
        match task:
            case (str(skill), int(level)) if skill in self._sources and 0 <= level < self._sources[skill].num_levels:
                return Task(skill, level)
        known = ", ".join(f"{skill!r} with {source.num_levels}" for skill, source in self._sources.items())
        raise self._error(f"next() returned {task!r}, not a skill and one of its levels, counted from 0 ({known})")

    def _error(self, what: str) -> CurriculumError:
        return CurriculumError(f"curriculum {type(self.curriculum).__name__}: {what}")


class _Systematic(random.Random):
    """Randomness whose first number is given: for the prompts of an update they are spread evenly over [0, 1).

    So a curriculum that draws the skill first gives each skill its share of an update's prompts to within one.
    """

    first: float | None = None

    def random(self) -> float:
        first, self.first = self.first, None
        return super().random() if first is None else first

    def getrandbits(self, k: int, /) -> int:
        return super().getrandbits(k)  # or Python would make whole numbers from `random`


class _Labelled:
    """The rows of one skill in a data set that the user brings."""

    def __init__(self, skill: str, dataset: Dataset, levels: Mapping[int, list[int]]) -> None:
        self.num_levels = max(levels) + 1
        missing = set(range(self.num_levels)) - set(levels)
        if missing:
            raise DataError(f"train_dataset: skill {skill!r} has no rows of level {min(missing)}")
        self._dataset, self._levels = dataset, levels

    def draw(self, level: int, rng: random.Random) -> Row:
        row: Row = self._dataset[rng.choice(self._levels[level])]
        return row


def skills_of(stream: PromptStream | None, dataset: Any) -> list[str]:
    """Return the skills of a training set: those of the stream behind it, or of its column `skill`."""
    if stream is not None:
        return sorted(stream.skills)
    if isinstance(dataset, Dataset) and "skill" in dataset.column_names:
        return sorted({str(skill) for skill in dataset["skill"]})
    return [DEFAULT_SKILL]
