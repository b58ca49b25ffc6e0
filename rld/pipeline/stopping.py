"""End a stage by the rules of its recipe, on every process after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rld.recipe.stopping import BUDGETS, Plateau, StoppingRules
from rld.types import Event

Scores = Mapping[str, float]
"""Held-out scores by skill."""


class Ending(NamedTuple):
    """Why a stage ended before its last step: the rule, what was measured, and after which step."""

    rule: str
    measured: str
    step: int

    @property
    def event(self) -> Event:
        """The event that says so."""
        return Event(self.step, "stage ended", "all skills", self.rule, self.measured)


class Stopping(TrainerCallback, ExportableState):
    """Ends a stage when the first of its rules is met. Checkpoints hold what it has measured.

    Another callback may end the stage by `end`, for a rule of its own.

    Args:
        rules: The rules.
        skills: The skills of the stage that are scored.
        teachers: By skill, the highest held-out score of a teacher of that skill.
        flops, tokens: Return what the stage has used so far, over all processes.
        tell: Gets the event when the stage ends.

    Attributes:
        scorings: The student's scores, oldest first, on the way.
        ending: Why the stage ended early; None as long as it has not.
    """

    def __init__(
        self,
        rules: StoppingRules,
        *,
        skills: Sequence[str],
        teachers: Scores,
        flops: Callable[[], float],
        tokens: Callable[[], float],
        tell: Callable[[Event], None],
    ) -> None:
        self.rules, self._skills, self._teachers = rules, skills, teachers
        self._tell = tell
        self._seconds = self._began = 0.0
        self._counts: dict[str, Callable[[], float]] = {
            "max_flops": flops,
            "max_tokens": tokens,
            "max_seconds": lambda: self._seconds,
        }
        self.scorings: list[dict[str, float]] = []
        self.ending: Ending | None = None

    def budget_used(self) -> float:
        """Return the share of the budget that is used, the largest of several."""
        return max((self._counts[name]() / limit for name, limit in self.rules.budgets.items()), default=0.0)

    def end(self, ending: Ending, control: Any) -> None:
        """End the stage after this step, on this process; `control` is that of a callback."""
        self.ending = ending
        control.should_training_stop = True
        self._tell(ending.event)

    def receive_scores(self, scores: Scores, state: Any, control: Any) -> None:
        """Take in the student's scores after a step, and end the stage if a rule is met by them."""
        self.scorings.append(dict(scores))
        self.on_step_end(None, state, control)

    # -- the trainer's calls -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        earlier = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if earlier:
            self.scorings = list(earlier["scorings"])
            self._seconds = float(earlier["seconds"])
        self._began = time.monotonic() - self._seconds
        ending = self._first_met(state.global_step)
        if ending is not None:
            self.end(ending, control)  # before its first update, or resumed behind its last one

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.rules.max_seconds is not None:  # before the learning rate is set, and the same on every process
            seconds = [time.monotonic() - self._began]
            broadcast_object_list(seconds)
            self._seconds = seconds[0]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ending = self._first_met(state.global_step)
        if ending is not None:
            self.end(ending, control)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"seconds": self._seconds, "scorings": self.scorings}

    # -- the rules -----------------------------------------------------------------------------------------------------

    def _first_met(self, step: int) -> Ending | None:
        """Return the first rule that is met on the main process, whose scores count for all processes."""
        endings = [next((Ending(*rule, step) for rule in self._met()), None)]
        if self.rules != StoppingRules():
            broadcast_object_list(endings)
        return endings[0]

    def _met(self) -> Iterator[tuple[str, str]]:
        """Yield the rules that are met, with their figures."""
        for name, limit in self.rules.budgets.items():
            if (used := self._counts[name]()) >= limit:
                yield name, f"{used:.4g} of {limit:.4g} {BUDGETS[name]}"
        if not self.scorings:
            return
        scores = self.scorings[-1]
        if self.rules.score and all(scores[skill] >= least for skill, least in self.rules.score.items()):
            yield "score", _pairs(scores, self.rules.score, "of at least")
        if self.rules.plateau is not None:
            means = [fmean(scoring[skill] for skill in self._skills) for scoring in self.scorings]
            if (measured := plateau(means, self.rules.plateau)) is not None:
                yield "plateau", measured
        teachers = self._teachers if self.rules.teacher_surpassed else {}
        if teachers and all(surpasses(scores[skill], teacher) for skill, teacher in teachers.items()):
            yield "teacher_surpassed", _pairs(scores, teachers, "and its best teacher")


def plateau(means: Sequence[float], rule: Plateau) -> str | None:
    """Return the figures by which mean scores, oldest first, have stopped rising; None where they have not."""
    if len(means) <= rule.scorings:
        return None
    before, since = max(means[: -rule.scorings]), max(means[-rule.scorings :])
    if since > before + rule.gain:
        return None
    return f"a mean score of at most {since:.4g} in {rule.scorings} scorings, after {before:.4g} before"


def surpasses(student: float, teacher: float) -> bool:
    """Tell whether a student's score is above its best teacher's, or both are 1, above which there is none."""
    return student > teacher or student == teacher == 1.0


def _pairs(scores: Scores, others: Scores, word: str) -> str:
    return ", ".join(f"{skill} {scores[skill]:.4g} {word} {other:.4g}" for skill, other in others.items())
