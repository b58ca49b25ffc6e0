"""The options of a training that concern its teachers, as `TeacherScoring` reads them."""

from __future__ import annotations

from dataclasses import dataclass

from rld.losses.combination import AnyCombination


@dataclass(frozen=True)
class TeacherScoringOptions:
    """The options of the trainer's configuration that concern teachers.

    Attributes:
        combination: How several teachers become one target.
        teacher_reward: Weight of the teacher-scored reward; 0: there is none.
        distill_on: The completions that teachers teach on, `all` or `failed_completions`.
        rows_per_forward: Completions per forward of a teacher, about.
        temperature: The rollout's.
        has_policy: Whether the policy signal takes part.
        answer_length: Most tokens of a completion.
    """

    combination: AnyCombination
    teacher_reward: float
    distill_on: str
    rows_per_forward: int
    temperature: float
    has_policy: bool
    answer_length: int
