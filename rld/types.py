"""The values that flow through one update, and the shapes of what users plug in.

Plain data only: nothing here knows a tensor or a model, so controllers and curricula are tested without training.

Words used everywhere: a **skill** is the label of a training row; a **signal** is one of `SIGNALS`; a **level** is
an index into a skill's difficulties, 0 the easiest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Align = Literal["likelihood", "vocabulary"]
"""How a teacher with another tokenizer teaches: on spans of text, or on the tokens that both vocabularies have."""

Signal = Literal["policy", "response", "feature"]

SIGNALS: tuple[Signal, ...] = ("policy", "response", "feature")
"""`policy`: reinforcement; `response`: match token distributions; `feature`: match hidden states."""

DEFAULT_SKILL = "all"
"""The skill of rows that carry no label."""

Row: TypeAlias = dict[str, Any]
"""One training or held-out row: `prompt` (text or chat messages), `answer`, `skill`, `level`, and for verifiers that
need more than the answer an `entry` (JSON text, "" otherwise)."""


class Answer(NamedTuple):
    """What a model wrote to a prompt."""

    text: str
    """Without special tokens."""
    is_complete: bool
    """Whether it ended. False: it was cut off at the greatest length."""


class Task(NamedTuple):
    """What a curriculum picks: a skill and how hard."""

    skill: str
    level: int


class Curriculum(Protocol):
    """Chooses the next prompt's task. Built as `Mine(levels, **options)`, `levels` = number of levels per skill.

    `next` may draw from `rng` but must not change the curriculum: the same state and the same `rng` give the same
    task, on every process and after a resume. `observe` is called once per update with counts over all processes.
    One that also has `allocate(shares)` is told, after each update, which share of the prompts the controller would
    give each skill, or None, and may follow it; this is no part of its state.
    """

    def next(self, rng: random.Random) -> Task: ...

    def observe(self, task: Task, successes: int, attempts: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Event:
    """A decision worth telling: what changed, for which skill, from which measurement and by which rule."""

    step: int
    kind: str
    skill: str
    about: str
    measured: str
    rule: str = ""
