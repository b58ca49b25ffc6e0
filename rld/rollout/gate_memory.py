"""What the gate remembers of one teacher's answers, and which verdicts it assumes.

All processes of a training remember the same, because each is told the verdicts of all. So they decide alike, and like
one process alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from rld.types import Row, skill_of

_MAX_VERDICTS = 100_000
"""Verdicts that are remembered; with more, all are forgotten."""

_EQUAL_VERDICTS = 499
"""Equal verdicts in a row on a level of a skill after which a verdict is assumed: by a uniform prior the posterior mean
of another one is then 1 in 501, below 0.2%."""

_ASKED_ANYWAY = 8
"""Where verdicts are assumed, one prompt of so many is asked nevertheless: one other verdict ends the assumption."""

_MAX_FAILURES = 64
"""Prompts that a teacher fails from the start on, without one success, before a warning doubts the verifier."""


class Judgement(NamedTuple):
    """A verdict on a teacher's greedy answer to a prompt."""

    key: str
    """The prompt's key: a hash as hexadecimal digits."""
    skill: str
    level: str
    """The level of the skill, with the skill's name."""
    is_correct: bool
    is_gold: bool | None
    """Whether the answer has the tokens of the gold answer; None where that is not known."""


class SecondAnswer(NamedTuple):
    """A sampled answer to a prompt that the teacher answered correctly."""

    skill: str
    is_correct: bool


class News(NamedTuple):
    """What one process learns of a teacher in a rollout."""

    judgements: Sequence[Judgement] = ()
    """In the order of the prompts."""
    second: Mapping[str, bool | None] = MappingProxyType({})
    """By the keys of prompts among them, whether a second answer is correct; None where the verifier does not apply."""


@dataclass
class GateMemory:
    """What the gate remembers of a teacher.

    Attributes:
        name: The teacher's name.
        verdicts: Whether it answered a prompt correctly, by the prompt's key.
        num_failures: Prompts that it failed before its first success; -1 after that success, or after the warning.
        resampled: By skill, the prompts that it answered a second time.
        golds: By skill, its greedy answers with the tokens of the gold answer, and all others.
        streaks: By level of a skill, the length of its last run of equal verdicts, with a minus where they are wrong.
    """

    name: str
    verdicts: dict[str, bool] = field(default_factory=dict)
    num_failures: int = 0
    resampled: dict[str, int] = field(default_factory=dict)
    golds: dict[str, list[int]] = field(default_factory=dict)
    streaks: dict[str, int] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return the memory as JSON."""
        return asdict(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` returned."""
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])

    def forget(self) -> None:
        """Forget the verdicts, because the teacher's weights have changed."""
        for remembered in (self.verdicts, self.resampled, self.golds, self.streaks):
            remembered.clear()

    def forget_verdicts(self) -> None:
        """Forget the verdicts of a teacher that changes all the time; how often its answers are gold still tells."""
        self.verdicts.clear()
        self.streaks.clear()

    def learn(self, news: Sequence[News]) -> list[SecondAnswer]:
        """Remember what the processes learnt in a rollout, in their order; a prompt that two asked counts once.

        Returns:
            The second answers that the verifier applies to.
        """
        if len(self.verdicts) > _MAX_VERDICTS:
            self.verdicts.clear()
        judgements, second = dict[str, Judgement](), dict[str, bool | None]()
        for part in news:
            for answer in part.judgements:
                judgements.setdefault(answer.key, answer)
            for key, is_second_correct in part.second.items():
                second.setdefault(key, is_second_correct)
        for answer in judgements.values():
            self.verdicts[answer.key] = answer.is_correct
            number = self.streaks.get(answer.level, 0)
            self.streaks[answer.level] = max(number, 0) + 1 if answer.is_correct else min(number, 0) - 1
            if answer.is_gold is not None:
                self.golds.setdefault(answer.skill, [0, 0])[0 if answer.is_gold else 1] += 1
        if judgements:
            self._warn_of_failures([answer.is_correct for answer in judgements.values()])
        for key in second:  # also those without a verdict, lest the skill be asked for ever
            skill = judgements[key].skill
            self.resampled[skill] = self.resampled.get(skill, 0) + 1
        return [
            SecondAnswer(judgements[key].skill, is_correct)
            for key, is_correct in second.items()
            if is_correct is not None
        ]

    def assumed(self, rows: Mapping[str, Row]) -> dict[str, bool]:
        """Return the verdicts that are assumed of prompts without one, by their keys."""
        streaks = {
            key: self.streaks.get(level_of(row), 0)
            for key, row in rows.items()
            if key not in self.verdicts and int(key, 16) % _ASKED_ANYWAY
        }
        return {key: streak > 0 for key, streak in streaks.items() if abs(streak) >= _EQUAL_VERDICTS}

    def share_of_golds(self, skill: str) -> float:
        """Return the expected share of answers that are the gold ones, one of two before there is any."""
        num_gold, num_other = self.golds.get(skill, [0, 0])
        return (num_gold + 1) / (num_gold + num_other + 2)

    def _warn_of_failures(self, correct: Sequence[bool]) -> None:
        if self.num_failures < 0:
            return
        failures = -1 if any(correct) else self.num_failures + len(correct)
        if failures >= _MAX_FAILURES:
            warnings.warn(
                f"teacher '{self.name}' answered none of its first {failures} prompts correctly, so it has taught "
                "nothing; if the first reward, or the audit's, does not give 1 to a correct answer, use one that does, "
                "or set gate to off",
                stacklevel=2,
            )
            failures = -1
        self.num_failures = failures


def level_of(row: Row) -> str:
    """Return the level of a row's skill, with the skill's name."""
    return f"{skill_of(row)} {row.get('level', 0)}"
