"""Rows with answers of teachers that the verifier accepts, which are learnt as gold answers are."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rld.controllers.gold_share import MOST_DRAWS
from rld.data.prompt_stream import PromptStream
from rld.errors import RecipeError
from rld.rollout.accepted_answers import AcceptedAnswer, AcceptedAnswers
from rld.rollout.row_keys import require_equal_rows
from rld.rollout.verifier import Verify
from rld.types import Row, Task

_FEW_ROWS = 16
"""Rows of a task, fewer than one in `MOST_DRAWS` with an accepted answer, after which no more are drawn for a
rollout."""


class AnsweredRows:
    """Draws rows of a rollout that teachers answer correctly; every process draws the same.

    Args:
        trainer: The `RLDTrainer`, with its stream.
        answers: The teachers' answers.
    """

    def __init__(self, trainer: Any, answers: AcceptedAnswers) -> None:
        self._trainer, self.answers = trainer, answers

    @classmethod
    def for_trainer(cls, trainer: Any, verify: Verify | None) -> AnsweredRows | None:
        """Return those of an `RLDTrainer` with its teachers; None where the answers of rows are learnt.

        Args:
            trainer: The trainer.
            verify: Gives 1 to correct answers. None: there is no such function.

        Raises:
            RecipeError: its teachers' answers cannot be had, or not be verified.
        """
        if trainer.args.gold_answers == "rows":
            return None
        if not trainer.teachers:
            raise RecipeError("gold_answers: there are no teachers whose answers could be learnt; pass teachers=[...]")
        if verify is None:
            raise RecipeError(
                "gold_answers: answers of teachers are learnt where the first reward, or the audit's, gives 1, and "
                "this one is none that can be asked about any text: it is a model, asynchronous, or missing"
            )
        for teacher in trainer.teachers:
            if teacher.is_student:
                raise RecipeError(f"gold_answers: teacher '{teacher.name}' is the student itself, which has no others")
        answers = AcceptedAnswers(
            trainer.teachers,
            trainer._encoder,
            verify,
            max_new_tokens=trainer.args.answer_length,
            device=trainer.accelerator.device,
            order=trainer.runtime.preferred_teachers,
            count=functools.partial(_count, trainer),
        )
        trainer.ensemble.observers.append(answers.forget)
        return cls(trainer, answers)

    def of(self, number: int, size: int, tasks: Mapping[int, Task]) -> dict[int, list[tuple[Row, str]]]:
        """Return for each group so many rows of its task, with the answers that are learnt.

        A group for which too few of the rows that are drawn have an accepted answer is left out.

        Args:
            number: Rollouts of the training before this one.
            size: Completions of a group.
            tasks: The task of each group, by the group's number; the same on every process.
        """
        groups: dict[Task, list[int]] = {}
        for group, task in sorted(tasks.items()):
            if task.skill not in self.answers.unanswered_skills:
                groups.setdefault(task, []).append(group)
        pairs_by_task: dict[Task, list[tuple[Row, AcceptedAnswer]]] = {task: [] for task in groups}
        num_drawn = Counter[Task]()
        for attempt in range(MOST_DRAWS):
            missing = {
                task: len(of_task) * size - len(pairs_by_task[task])
                for task, of_task in groups.items()
                if num_drawn[task] < _FEW_ROWS or len(pairs_by_task[task]) * MOST_DRAWS >= num_drawn[task]
            }
            if attempt == 0:  # by these it is seen whether others are worth asking for
                missing = {task: min(count, _FEW_ROWS) for task, count in missing.items()}
            num_drawn.update(missing)
            places = [(task, f"{number}:{attempt}:{i}") for task, count in missing.items() for i in range(count)]
            if places:
                self._add_answered(pairs_by_task, places)
        for skill, share in self.answers.take_shares().items():
            self._trainer._metrics["train"][f"answered/{skill}"].append(share)
        answered = {
            group: pairs_by_task[task][i * size : (i + 1) * size]
            for task, of_task in groups.items()
            for i, group in enumerate(of_task[: len(pairs_by_task[task]) // size])
        }
        taught = Counter(answer.teacher for pairs in answered.values() for _, answer in pairs)
        self._trainer.totals.add_teachers(prompts=taught)
        return {group: [(row, answer.text) for row, answer in pairs] for group, pairs in answered.items()}

    def _add_answered(
        self, pairs_by_task: Mapping[Task, list[tuple[Row, AcceptedAnswer]]], places: Iterable[tuple[Task, str]]
    ) -> None:
        """Draw a row for each place of a task, and add those with an accepted answer to what is found."""
        stream: PromptStream = self._trainer.stream
        tasks, rows = [task for task, _ in places], [stream.another(task, place) for task, place in places]
        require_equal_rows("gold answers of teachers", rows)
        with self._trainer.timer.part("teachers"):
            answers = self.answers.of(rows)
        for task, row, answer in zip(tasks, rows, answers, strict=True):
            if answer is not None:
                pairs_by_task[task].append((row, answer))


def _count(trainer: Any, teacher: str, num_tokens: int, flops: float) -> None:
    """Count what a teacher read and wrote for its answers' sake."""
    trainer.totals.add_teachers(tokens={teacher: num_tokens})
    trainer.flop_meter.add("answers", flops, teacher)
