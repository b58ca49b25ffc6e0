"""Types of the values of one update, and protocols that user-supplied objects implement.

This module uses neither tensors nor models, so controllers and curricula can be tested without training.

Terms used throughout: a **skill** is the label of a training row; a **signal** is one of `SIGNALS`; a **level** is
an index into a skill's difficulties, 0 the easiest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Align = Literal["likelihood", "vocabulary"]
"""How a teacher with another tokenizer is aligned: on spans of text, or on the tokens of both vocabularies."""

Predicts = Literal["text", "label", "likelihood"]
"""What a model predicts of a held-out row: an answer, the probabilities of a fixed set of labels, or the likelihood of
a text."""

Signal = Literal["policy", "response", "feature"]

SIGNALS: tuple[Signal, ...] = ("policy", "response", "feature")
"""`policy`: reinforcement; `response`: match token distributions; `feature`: match hidden states."""

DEFAULT_SKILL = "all"
"""The skill of rows that carry no label."""

STUDENT_PROMPT = "student_prompt"
"""The key of the student's prompt in a row whose `prompt` is a teacher's own."""

ROLLOUT_TEXTS = "rollout_texts"
"""The key of what a rollout fills into a teacher's own prompt, in a row that such a teacher reads: texts by field."""

Row: TypeAlias = dict[str, Any]
"""One training or held-out row: `prompt` (text or chat messages), `question`, `answer`, `skill`, `level`, and for
verifiers that need more than the answer an `entry` (JSON text, "" otherwise). A document or a piece of one has an empty
prompt, no question, the text as its answer, and `is_cut`, whether the text goes on in another row."""


def skill_of(row: Row) -> str:
    """Return a row's skill."""
    return str(row.get("skill", DEFAULT_SKILL))


def is_document(row: Row) -> bool:
    """Whether a row is a document or a piece of one, of which every token is learnt: only such rows have `is_cut`."""
    return row.get("is_cut") is not None


class Answer(NamedTuple):
    """A model's answer to a prompt."""

    text: str
    """Without special tokens."""
    is_complete: bool
    """Whether the answer ended. False: it was truncated at the maximum length."""


class Task(NamedTuple):
    """What a curriculum picks: a skill and one of its levels."""

    skill: str
    level: int


class Curriculum(Protocol):
    """Chooses the next prompt's task. Built as `MyCurriculum(levels, **options)`; `levels`: number of levels per skill.

    `next` may draw from `rng` but must not change the curriculum: the same state and the same `rng` give the same
    task, on every process and after a resume. `observe` is called once per update with counts over all processes.
    If the curriculum has a method `allocate(shares)`, it is called after each update with the controller's preferred
    share of prompts per skill, or None. The curriculum may use the shares; they are not part of its state.
    """

    def next(self, rng: random.Random) -> Task: ...

    def observe(self, task: Task, successes: int, attempts: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Event:
    """A decision to report: what changed, for which skill, from which measurement and by which rule."""

    step: int
    kind: str
    skill: str
    about: str
    measured: str
    rule: str = ""
