"""What the gate asks of teachers in a rollout, and what it decides.

Shapes: B completions of this process, K teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rld.models.drafts import Pair
from rld.rollout.gate_memory import Judgement, SecondAnswer
from rld.rollout.teacher_answers import TeacherAnswers
from rld.types import Row


class GateVerdict(NamedTuple):
    """What the gate decides about a rollout, and the cost of the answers."""

    open_BK: Tensor
    """Which teachers may teach on which completions, bool."""
    assumed_BK: Tensor
    """Which of these verdicts, and of those that a teacher may not teach, are assumed, bool."""
    has_answer_BK: Tensor
    """Which of them are on an answer, now or earlier; a teacher that is down gives none, and there is no verdict."""
    second_K: Sequence[Sequence[SecondAnswer]]
    """The second answers of each teacher to prompts of all processes."""
    tokens_K: Sequence[int]
    """Tokens that each teacher of this process read and wrote for its answers."""
    share_assumed: float | None = None
    """Share of assumed verdicts on prompts of all processes, once they are counted; None where none is needed."""


@dataclass(frozen=True)
class ScoringForwards:
    """The forwards in which teachers will score a rollout, as far as the gate wants to know.

    Attributes:
        takes_drafts_K: Which teachers can read a draft beside the completions of its prompt.
        prompt_tokens_B: Tokens of each completion's prompt.
        completion_tokens_B: Tokens of each completion that teachers will score; 0 for the others.
    """

    takes_drafts_K: Sequence[bool]
    prompt_tokens_B: Sequence[int]
    completion_tokens_B: Sequence[int]

    def sizes(self, keys: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return the tokens of each prompt and those of all its completions that are scored, by its key.

        Args:
            keys: The key of each completion's prompt.
        """
        sizes: dict[str, tuple[int, int]] = {}
        for key, num_prompt, num_completion in zip(keys, self.prompt_tokens_B, self.completion_tokens_B, strict=True):
            sizes[key] = num_prompt, sizes.get(key, (0, 0))[1] + num_completion
        return sizes


@dataclass
class TeacherQuestions:
    """What one teacher is asked in a rollout."""

    rows: Mapping[str, Row]
    """The rows of the prompts whose verdicts are needed, by the prompts' keys."""
    assumed: Mapping[str, bool]
    """The verdicts that are assumed."""
    later: Sequence[str] = ()
    """The keys of the prompts whose drafts are read while the teacher scores."""
    waiting: TeacherAnswers | None = None
    """The answers to these prompts."""
    judgements: dict[str, Judgement] = field(default_factory=dict)
    second: dict[str, bool | None] = field(default_factory=dict)
    """By prompt, whether its second answer is correct; None where the verifier does not apply."""
    num_tokens: int = 0


@dataclass(frozen=True)
class GateQuestions:
    """What the gate asks in a rollout.

    Attributes:
        keys: The key of each completion's prompt.
        teachers: What each teacher is asked.
        open_BK: Which teachers may teach on which completions, those included that are judged while they score, bool.
    """

    keys: Sequence[str]
    teachers: Sequence[TeacherQuestions]
    open_BK: Tensor

    @property
    def drafts(self) -> dict[int, list[Pair]]:
        """The drafts that teachers read while they score, by the teacher's number."""
        return {
            k: questions.waiting.pairs for k, questions in enumerate(self.teachers) if questions.waiting is not None
        }
