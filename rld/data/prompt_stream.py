"""The prompts of a training run in the order that a curriculum sets; each row is drawn when it is first read.

The curriculum can therefore use all earlier observations, and a resumed run continues with exactly the same rows.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from datasets import Dataset
from torch import Tensor

from rld.data.data_set_rows import data_set_rows
from rld.errors import CurriculumError
from rld.types import DEFAULT_SKILL, Curriculum, Event, Row, Task
from rld.utils.user_calls import CALL_SECONDS, description, user_code

_MOST_TRIES = 200
"""Consecutive picks of inactive skills after which `PromptStream` raises an error."""


class RowSource(Protocol):
    """The rows of one skill, by level, from which a stream draws."""

    num_levels: int

    def draw(self, level: int, rng: random.Random, number: int = 0) -> Row: ...


@runtime_checkable
class ChangingSource(RowSource, Protocol):
    """Rows whose levels are set when a training starts; checkpoints hold them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PromptStream:
    """The prompts of a training run, in the order that a curriculum sets.

    A trainer reads `dataset` in order, without workers: the row of slot i is drawn when slot i is first read. A data
    loader prefetches, so a task may be picked before the preceding update has been observed. The state holds the
    tasks that were picked and not yet trained on, so that a resumed run continues with exactly the same rows.

    Args:
        sources: The source of rows of each skill.
        curriculum: Picks the skill and the level of each prompt.
        seed: Seed of the stream's random numbers.
        num_slots: The largest number of prompts that the run can need.
    """

    prompts_per_update: int = 1
    """Number of prompts of one update over all processes. Each process reads only its own rows but picks the tasks of
    the whole update, so that every process has all tasks and any process can write the state."""

    gold_rows: Mapping[str, int] = {}
    """Number of rows with a gold answer of each skill that has an end of them, as `even_size` counts them. 0: the skill
    has none to learn."""

    answerable_rows: Mapping[str, float] = {}
    """Number of rows, counted in the same way, of each skill of which teachers may answer them; infinite without an
    end of them."""

    inactive_skills: frozenset[str] = frozenset()
    """Skills of which no rows are drawn at present. A pick of one of them is discarded and repeated."""

    def __init__(self, sources: Mapping[str, RowSource], curriculum: Curriculum, seed: int, num_slots: int) -> None:
        self.curriculum = curriculum
        self.level_overrides: dict[str, list[int]] = {}
        """Per skill, entry i is the level from which rows are drawn when the curriculum picks level i; the last entry
        also replaces all higher levels. Skills without an entry keep their levels."""
        self._sources, self._seed = dict(sources), seed
        self._counts: dict[Task, tuple[int, int]] = {}
        """The latest successes and attempts of each task since levels were last looked at."""
        self._levels = self._current_levels()
        self._tasks: dict[int, Task] = {}
        self._numbers: dict[int, int] = {}
        self._picks: Counter[Task] = Counter()
        self._rows: dict[int, Row] = {}
        self.dataset = Dataset.from_dict({"slot": np.arange(num_slots)})
        self.dataset.set_transform(lambda batch: self._columns(batch["slot"]))  # a lambda is not copied with a data set

    @classmethod
    def over(cls, dataset: Dataset, curriculum: Curriculum, seed: int, num_slots: int) -> PromptStream:
        """Return a stream of the rows of `dataset`, by its columns `skill` and `level` where it has them.

        Raises:
            DataError: a level without rows.
        """
        sources = data_set_rows(dataset)
        stream = cls(sources, curriculum, seed, num_slots)
        stream.gold_rows = {skill: even_size(source.sizes) for skill, source in sources.items()}
        stream.answerable_rows = dict(stream.gold_rows)
        return stream

    @property
    def skills(self) -> list[str]:
        """The skills that prompts are drawn from."""
        return list(self._sources)

    def replacement(self, rollout: int, group: int, attempt: int) -> Row:
        """Return a row to take the place of another, of a task that the curriculum picks now; no state changes.

        Args:
            rollout: Rollouts of the training before this one.
            group: The number of the prompt in the rollout over all processes.
            attempt: How often that prompt has been replaced.
        """
        place = f"{self._seed}:replacement:{rollout}:{group}:{attempt}"
        return self._row(self._pick_active(random.Random(f"{place}:task")), random.Random(f"{place}:row"))

    def another(self, task: Task, place: str) -> Row:
        """Return a row of a task that is not picked; no state changes.

        Args:
            task: The task.
            place: Where it goes; the same place gets the same row.
        """
        return self._row(task, random.Random(f"{self._seed}:another:{place}"))

    def examples(self, skill: str, count: int) -> list[Row]:
        """Return so many rows of a skill, of its levels in turn; no state changes."""
        num_levels = self._sources[skill].num_levels
        places = ((Task(skill, i % num_levels), random.Random(f"{self._seed}:example:{i}")) for i in range(count))
        return [self._row(task, rng) for task, rng in places]

    def count(
        self, names: Sequence[str], skills_B: Tensor, levels_B: Tensor, attempted_B: Tensor, success_B: Tensor
    ) -> None:
        """Report the successes and attempts of each task of a rollout to the curriculum.

        Args:
            names: The name of each skill index.
            skills_B: Skill index of each completion; all tensors hold the completions of all processes.
            levels_B: Level of each completion.
            attempted_B: Whether each completion counts as an attempt.
            success_B: Whether each completion is correct.
        """
        for s, level in sorted(set(zip(skills_B.tolist(), levels_B.tolist(), strict=True))):
            chosen_B = (skills_B == s) & (levels_B == level) & attempted_B
            self.observe(Task(names[s], level), int(success_B[chosen_B].sum()), int(chosen_B.sum()))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        """Report the successes and attempts of a task in one update, over all processes, to the curriculum.

        Raises:
            CurriculumError: the curriculum raised.
        """
        self._call("observe", task, successes, attempts)
        self._counts[task] = successes, attempts

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        """Pass the controller's preferred share of prompts per skill to a curriculum that has `allocate`."""
        if hasattr(self.curriculum, "allocate"):
            self._call("allocate", shares)

    def restart(self) -> None:
        """Pick all rows anew that were read before the first update, to look at them: their levels have changed."""
        self._tasks, self._numbers, self._picks, self._rows = {}, {}, Counter(), {}

    def level_events(self, step: int) -> list[Event]:
        """Return an event for each skill whose level has changed since the last call."""
        before, self._levels = self._levels, self._current_levels()
        events = []
        for skill, level in self._levels.items():
            if level != before.get(skill, level):
                counts_by_level = {task.level: counts for task, counts in self._counts.items() if task.skill == skill}
                measured = "; ".join(
                    f"at level {at}, {s} of {n} answers were correct" for at, (s, n) in sorted(counts_by_level.items())
                )
                kind, rule = (
                    "level up" if level > before[skill] else "level down",
                    f"decided by the curriculum {type(self.curriculum).__name__}",
                )
                events.append(Event(step, kind, skill, f"from {before[skill]:g} to {level:g}", measured, rule))
        self._counts = {}
        return events

    def metrics(self) -> dict[str, float]:
        """Return the curriculum's numbers for the log.

        Raises:
            CurriculumError: it returned something else than numbers by name.
        """
        metrics = self._call("metrics")
        if not isinstance(metrics, Mapping):
            raise self._error(f"metrics() returned {metrics!r:.80}; it should return a dict of numbers by name")
        for name, value in metrics.items():
            if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self._error(f"metrics() returned {value!r:.80} for {name!r}; it should be a number")
        return dict(metrics)

    def _current_levels(self) -> dict[str, float]:
        metrics = self.metrics()
        return {skill: metrics[f"level/{skill}"] for skill in self._sources if f"level/{skill}" in metrics}

    def state_dict(self, first_unused_slot: int) -> dict[str, Any]:
        """Return the curriculum's state and the tasks picked from slot `first_unused_slot`; delete earlier tasks."""
        self._tasks = {slot: task for slot, task in self._tasks.items() if slot >= first_unused_slot}
        self._numbers = {slot: self._numbers[slot] for slot in self._tasks}
        state = self._call("state_dict")
        try:
            json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self._error(f"state_dict() returned what JSON cannot hold: {error}") from error
        return {
            "curriculum": state,
            "tasks": [[slot, *task, self._numbers[slot]] for slot, task in self._tasks.items()],
            "picks": [[*task, count] for task, count in self._picks.items()],
            "sources": {skill: source.state_dict() for skill, source in self._changing().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._call("load_state_dict", state["curriculum"])
        for skill, source in self._changing().items():
            source.load_state_dict(state["sources"][skill])
        self._levels, self._counts = self._current_levels(), {}
        self._tasks = {slot: Task(skill, level) for slot, skill, level, _ in state["tasks"]}
        self._numbers = {slot: number for slot, *_, number in state["tasks"]}
        self._picks = Counter({Task(skill, level): count for skill, level, count in state["picks"]})
        self._rows = {}

    def _changing(self) -> dict[str, ChangingSource]:
        return {skill: source for skill, source in self._sources.items() if isinstance(source, ChangingSource)}

    def _columns(self, slots: list[int]) -> dict[str, list[Any]]:
        previous_rows = self._rows
        self._rows = {}
        for slot in slots:
            if slot not in self._rows:
                self._rows[slot] = previous_rows[slot] if slot in previous_rows else self._draw(slot)
        rows = [self._rows[slot] for slot in slots]
        names = dict.fromkeys(name for row in rows for name in row)  # documents have one column more
        return {name: [row.get(name) for row in rows] for name in names}

    def _draw(self, slot: int) -> Row:
        if slot not in self._tasks:
            first = slot - slot % self.prompts_per_update
            for other in range(first, first + self.prompts_per_update):
                if other not in self._tasks:
                    task = self._tasks[other] = self._pick(other)
                    self._numbers[other] = self._picks[task]
                    self._picks[task] += 1
        return self._row(self._tasks[slot], random.Random(f"{self._seed}:row:{slot}"), self._numbers[slot])

    def _row(self, task: Task, rng: random.Random, number: int = 0) -> Row:
        skill, level = task
        levels = self.level_overrides.get(skill)
        source_level = level if levels is None else levels[min(level, len(levels) - 1)]
        row = self._sources[skill].draw(source_level, rng, number)
        return row if levels is None else {**row, "level": level}

    def _pick(self, slot: int) -> Task:
        place = slot % self.prompts_per_update
        start = random.Random(f"{self._seed}:skills:{slot - place}").random()
        rng = _Systematic(f"{self._seed}:task:{slot}")
        rng.first = (place + start) / self.prompts_per_update
        return self._pick_active(rng)

    def _pick_active(self, rng: random.Random) -> Task:
        for _ in range(_MOST_TRIES):
            task = self._next(rng)
            if task.skill not in self.inactive_skills:
                return task
        raise self._error(
            f"{_MOST_TRIES} picks in a row were skills that have left: {', '.join(sorted(self.inactive_skills))}"
        )

    def _next(self, rng: random.Random) -> Task:
        task = self._call("next", rng)
        match task:
            case (str(skill), int(level)) if skill in self._sources and 0 <= level < self._sources[skill].num_levels:
                return Task(skill, level)
        num_levels = ", ".join(f"{skill!r} with {source.num_levels}" for skill, source in self._sources.items())
        raise self._error(f"next() returned {task!r}, not a skill and one of its levels, counted from 0 ({num_levels})")

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the curriculum.

        Raises:
            CurriculumError: it raised, or did not return.
        """
        try:
            with user_code(CALL_SECONDS):
                return getattr(self.curriculum, method)(*arguments)
        except Exception as error:
            arguments_text = "" if method in ("next", "load_state_dict") else ", ".join(map(repr, arguments))
            raise self._error(f"{method}({arguments_text}) {description(error)}") from error

    def _error(self, message: str) -> CurriculumError:
        return CurriculumError(f"curriculum {type(self.curriculum).__name__}: {message}")


class _Systematic(random.Random):
    """A random generator whose first number is preset by systematic sampling; later numbers are pseudo-random.

    The first numbers of an update's prompts are spread evenly over [0, 1). A curriculum that draws the skill first
    therefore gives each skill its share of an update's prompts to within one prompt.
    """

    first: float | None = None

    def random(self) -> float:
        first, self.first = self.first, None
        return super().random() if first is None else first

    def getrandbits(self, k: int, /) -> int:
        return super().getrandbits(k)  # otherwise Python derives integers from the overridden `random`


def even_size(sizes: Sequence[int]) -> int:
    """Return the number of rows of levels of these sizes as if all levels had as few as the smallest one.

    Of levels that are drawn from alike, the smallest one's rows come back from that number on.
    """
    return min(sizes) * len(sizes)


def skills_of(stream: PromptStream | None, dataset: Any) -> list[str]:
    """Return the skills of a training set: those of the stream behind it, or of its column `skill`."""
    if stream is not None:
        return sorted(stream.skills)
    if isinstance(dataset, Dataset) and "skill" in dataset.column_names:
        return sorted({str(skill) for skill in dataset["skill"]})
    return [DEFAULT_SKILL]
