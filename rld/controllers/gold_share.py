"""Which share of a skill's prompts is learnt from gold answers, and not from the student's own completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from rld.controllers.base import State
from rld.controllers.observation import Observation, SkillObservation, Weights
from rld.controllers.wrapped import WrappedController
from rld.types import Event, Signal

MEMORY = 0.9
"""Share of earlier costs that one tick keeps: about ten ticks are averaged."""

NEW_SHARE = 31 / 32
"""Share while a skill's gold answers are as good as new: on the others success, costs and teachers are measured. Where
an update more is worth 0.03, as in short runs, what is sampled beyond that costs more than 0.01 of the score."""

NEW_PASSES = 8
"""Passes over a skill's rows in which its gold answers count as new: in the last of them a row still teaches
exp(-7 / 15.4), 0.63 of what a new one does (Muennighoff et al. 2023, arXiv:2305.16264)."""

MOST_DRAWS = 8
"""Most rows that are drawn for a teacher's answer that is learnt: teachers that are right on half of the rows leave one
prompt in 256 without one."""

NUM_FIRST = 8
"""Completions from which it is seen how the student answers, and correct ones that decide about gold answers."""

MOST_FIRST = 32
"""Rows of a skill that the student answers at most before its first update: more than `NUM_FIRST` only while its
answers are much longer than gold ones and none is correct. By 8 rows a student that is right on a tenth of them would
be taken for one that never is in 43 cases of 100, by 32 in 3."""

BARE = 1 / 2
"""A gold answer below this share of the length of the student's own correct completions is a bare result."""


def repeated_share(cost_ratio: float) -> float:
    """Return the share of prompts whose gold answers are learnt once they repeat.

    The prompts are split in inverse proportion to costs, so that gold answers and completions take the same operations:
    1/2 each where both cost the same, and never more than while the answers were new. The student's success rate has no
    part in it: on rows that it knows by heart it says little about others.

    Args:
        cost_ratio: Operations of a sampled completion, its teachers included, per those of a gold answer; above 0.
    """
    return min(cost_ratio / (1 + cost_ratio), NEW_SHARE)


def are_bare(gold_length: float, own_length: float) -> bool:
    """Return whether gold answers of a mean length are bare results beside completions of another mean length."""
    return gold_length < BARE * own_length


@dataclass(frozen=True)
class GoldShareController(WrappedController):
    """A controller that also sets the share of each skill's prompts whose gold answers are learnt.

    Where one answer alone is correct, the gradients of its log-likelihood and of the success rate have one direction,
    and a gold answer shows it with less noise than a completion does, which costs no less. That holds for answers that
    are new. Of repeated ones a student learns the rows by heart, and its own completions and the teachers'
    distributions on these tell more that holds on other rows.

    Attributes:
        share: The share, fixed. None: 31/32 while the gold answers that were learnt come to less than 8 passes over the
            skill's rows, then `repeated_share` of what a sampled completion costs. 0 where gold answers are bare
            results, less than half as long as the student's first 8 or more correct completions, and where they may be:
            while its completions are more than twice as long and fewer than 8, and while its correct ones are.
        num_rows: The number of rows with a gold answer of each skill that has an end of them. 0: none is learnt.
        num_answerable: The number of rows that teachers may answer of each skill of which they may, infinite where they
            have no end. Their correct answers take the place of gold answers that are none to learn, and of those that
            are, or may be, bare results.
        num_iterations: How often a rollout is learnt from.
        gold_lengths: Mean tokens of gold answers by skill. A skill that is not listed has none that are bare results.
        longest: Tokens of the longest completion.
    """

    STATE_KEY = "gold"

    share: float | None = None
    num_rows: Mapping[str, int] = field(default_factory=dict)
    num_answerable: Mapping[str, float] = field(default_factory=dict)
    num_iterations: int = 1
    gold_lengths: Mapping[str, float] = field(default_factory=dict)
    longest: float = math.inf

    @property
    def doubtful_skills(self) -> list[str]:
        """Skills whose gold answers may be bare results, for completions can be more than twice as long."""
        if self.share is not None:
            return []
        return [skill for skill, length in self.gold_lengths.items() if are_bare(length, self.longest)]

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        inner = self.controller.start(skills, teachers, signals)
        return {**inner, "gold": _saved({skill: _SkillState() for skill in skills}, _Cost())}

    def with_first_answers(self, state: State, answers: Mapping[str, FirstAnswers]) -> tuple[State, list[Event]]:
        """Return a state that knows how the student answers rows of some skills before its first update.

        Args:
            state: The state before the first tick.
            answers: Counts by skill, over all processes.

        Returns:
            The state, and the events of step 0.
        """
        by_skill, cost = _loaded(state["gold"])
        events = list[Event]()
        for skill, first in answers.items():
            before = by_skill[skill]
            by_skill[skill] = before.model_copy(update={"first": first})
            events += self._events(0, skill, before, by_skill[skill], cost)
        return {**state, "gold": _saved(by_skill, cost)}, events

    def weights(self, state: State) -> Weights:
        by_skill, cost = _loaded(state["gold"])
        shares = {skill: self._share(skill, of_skill, cost) for skill, of_skill in by_skill.items()}
        answered = frozenset(skill for skill, of_skill in by_skill.items() if self._learns_teachers(skill, of_skill))
        return replace(self.controller.weights(self._inner(state)), gold_share=shares, teacher_answers=answered)

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        inner, _, events = self.controller.step(self._inner(state), observation)
        by_skill, cost = _loaded(state["gold"])
        cost = cost.updated(observation)
        for skill, before in by_skill.items():
            after = before.updated(observation.skills[skill], self.num_iterations)
            if self._learns_teachers(skill, after) != self._learns_teachers(skill, before):
                after = after.model_copy(update={"learnt": 0})  # what was learnt so far are the other ones' answers
            by_skill[skill] = after
            if self.share is None:
                events = [*events, *self._events(observation.step, skill, before, after, cost)]
        state = {**inner, "gold": _saved(by_skill, cost)}
        return state, self.weights(state), events

    def _share(self, skill: str, state: _SkillState, cost: _Cost) -> float:
        learns_teachers = self._learns_teachers(skill, state)
        if not learns_teachers and self._has_none(skill, state):
            return 0.0
        if self.share is not None:
            return self.share
        return repeated_share(cost.ratio) if self._is_repeated(skill, state) else NEW_SHARE

    def _has_none(self, skill: str, state: _SkillState) -> bool:
        """Return whether a skill's rows have no gold answers to learn, or what may still turn out as bare results."""
        if self.num_rows.get(skill) == 0:
            return True
        gold_length = self._gold_length(skill)
        may_be_bare = are_bare(gold_length, self.longest) and state.first.leave_doubt(gold_length)
        return self.share is None and (state.first.are_bare(gold_length) or may_be_bare)

    def _learns_teachers(self, skill: str, state: _SkillState) -> bool:
        return skill in self.num_answerable and self._has_none(skill, state)

    def _gold_length(self, skill: str) -> float:
        return self.gold_lengths.get(skill, math.inf)

    def _num_rows(self, skill: str, state: _SkillState) -> float:
        if self._learns_teachers(skill, state):
            return self.num_answerable[skill]
        return self.num_rows.get(skill, math.inf)

    def _is_repeated(self, skill: str, state: _SkillState) -> bool:
        num_rows = self._num_rows(skill, state)
        return num_rows > 0 and state.learnt >= NEW_PASSES * num_rows

    def _events(self, step: int, skill: str, before: _SkillState, after: _SkillState, cost: _Cost) -> Iterator[Event]:
        length = self._gold_length(skill)
        if after.first.are_bare(length) and not before.first.are_bare(length):
            measured = f"{length:.1f} tokens; correct ones of the student have {after.first.success_length:.1f}"
            instead = "correct answers of teachers are" if skill in self.num_answerable else "none is"
            rule = f"below {BARE:g} of these: it is a bare result, and {instead} learnt"
            yield Event(step, "gold answers bare", skill, "gold", measured, rule)
        if after.first.show_no_success(length) and not before.first.show_no_success(length):
            measured = f"{length:.1f} tokens; none of {after.first.attempts} longer completions is correct"
            yield Event(step, "gold answers short", skill, "gold", measured, "they are learnt: nothing shows them bare")
        if self._is_repeated(skill, after) and not self._is_repeated(skill, before):
            measured = f"{after.learnt} gold answers of its {self._num_rows(skill, after):g} rows were learnt"
            rule = f"{NEW_PASSES} passes count as new; a completion costs {cost.ratio:.1f} gold answers"
            yield Event(step, "gold answers repeat", skill, "gold", measured, rule)


class FirstAnswers(BaseModel, frozen=True):
    """Counts from the beginning, of a skill, until enough completions are correct to compare lengths."""

    attempts: int = 0
    attempt_tokens: int = 0
    successes: int = 0
    success_tokens: int = 0

    def __add__(self, other: FirstAnswers) -> FirstAnswers:
        return FirstAnswers(**{name: value + getattr(other, name) for name, value in self})

    @property
    def suffice(self) -> bool:
        return self.successes >= NUM_FIRST

    @property
    def success_length(self) -> float:
        """Mean tokens of the student's correct completions; 0 without any."""
        return self.success_tokens / max(self.successes, 1)

    @property
    def attempt_length(self) -> float:
        """Mean tokens of the student's completions; 0 without any."""
        return self.attempt_tokens / max(self.attempts, 1)

    def are_bare(self, gold_length: float) -> bool:
        """Return whether gold answers are bare results beside the student's correct completions."""
        return self.suffice and are_bare(gold_length, self.success_length)

    def leave_doubt(self, gold_length: float) -> bool:
        """Return whether the first completions are so long that more of them can show that gold answers are bare.

        Where none is judged, more show nothing.
        """
        if are_bare(gold_length, self.success_length):
            return not self.suffice
        return 0 < self.attempts < NUM_FIRST and are_bare(gold_length, self.attempt_length)

    def show_no_success(self, gold_length: float) -> bool:
        """Return whether enough completions are there, much longer than gold answers, and none is correct."""
        return self.attempts >= NUM_FIRST and not self.successes and are_bare(gold_length, self.attempt_length)


class _Cost(BaseModel, frozen=True):
    """Operations of sampled completions and of gold answers over all skills, and their numbers; all forget.

    Operations are not counted by skill.
    """

    num_sampled: float = 0.0
    sampled_flops: float = 0.0
    num_gold: float = 0.0
    gold_flops: float = 0.0

    @property
    def ratio(self) -> float:
        """Operations of a sampled completion, its teachers included, per those of a gold answer; 1 until measured."""
        if not (self.num_sampled and self.num_gold and self.sampled_flops and self.gold_flops):
            return 1.0
        return self.sampled_flops / self.num_sampled / (self.gold_flops / self.num_gold)

    def updated(self, observation: Observation) -> _Cost:
        """Return the cost one tick later."""
        skills, flops = observation.skills.values(), observation.flops
        return _Cost(
            num_sampled=MEMORY * self.num_sampled + sum(skill.sampled for skill in skills),
            sampled_flops=MEMORY * self.sampled_flops + flops.sampled,
            num_gold=MEMORY * self.num_gold + sum(skill.gold_answers for skill in skills),
            gold_flops=MEMORY * self.gold_flops + flops.gold,
        )


class _SkillState(BaseModel, frozen=True):
    """What is remembered of a skill."""

    learnt: int = 0
    """Gold answers, or those of teachers while these take their place, each as often as it was learnt."""
    first: FirstAnswers = FirstAnswers()

    def updated(self, measured: SkillObservation, num_iterations: int) -> _SkillState:
        """Return the state one tick later."""
        first = self.first
        if not first.suffice:
            first += FirstAnswers(**{name: getattr(measured, name) for name in FirstAnswers.model_fields})
        return _SkillState(
            learnt=self.learnt + measured.gold_answers * num_iterations,
            first=first,
        )


def _saved(by_skill: Mapping[str, _SkillState], cost: _Cost) -> dict[str, Any]:
    return {"skills": {skill: state.model_dump() for skill, state in by_skill.items()}, "cost": cost.model_dump()}


def _loaded(saved: Mapping[str, Any]) -> tuple[dict[str, _SkillState], _Cost]:
    return {skill: _SkillState(**state) for skill, state in saved["skills"].items()}, _Cost(**saved["cost"])
