"""What the steps of one rollout share: its rows, its groups and the outcomes of its completions.

Shapes: B completions of this process, A completions of all processes, R rewards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rld.errors import DataError
from rld.rollout.counts import Attempts, skill_ids
from rld.rollout.feedback import attempt_text
from rld.rollout.rewards import DEFAULT_RULE, SuccessRule
from rld.types import Row
from rld.utils.label_words import LabelWords


@dataclass
class Refilled:
    """A rollout in which prompts were replaced until their completions got different rewards.

    Attributes:
        completions: The tokens of each of this process's completions, of the final rows.
        rejected: The attempts at prompts that were replaced, over all processes, one entry per round.
        num_tokens: Tokens that this process sampled in all rounds.
        num_prompt_tokens: Tokens of the prompts of all these completions.
        feedback: What rewards say of each of the final completions. None: no reward has said anything.
    """

    completions: list[list[int]]
    rejected: list[Attempts] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    feedback: list[str] | None = None


@dataclass
class RolloutRecord:
    """One rollout, from its start to its end.

    Attributes:
        rows: The row of each of this process's completions.
        skills: The skills of the run.
        number: Rollouts of the training before this one.
        first_row: The number of this process's first completion among those of all processes.
        group_size: Completions of each prompt; they are consecutive, over all processes.
        num_fixed: Of each group the first so many are fixed and not sampled: gold answers, or the words of labels.
        is_training: Whether the rollout is for an update, not for an evaluation.
        rule: Tells from the verifier's rewards which completions are correct.
        rewards_AR: The rewards, NaN where one does not apply; the first is the verifier's. In gold groups they mean
            nothing. None until they are there.
        attempted_A: Which completions are attempts of the student. None in an evaluation.
        succeeded_A: Which attempts succeeded. None in an evaluation.
        reads: Tokens that the student computed each time that this process read the rollout for old or reference
            log-probabilities, and of these the padding.
        refilled: Completions that were sampled before TRL's rollout, and the prompts replaced until then. None: TRL
            samples, and no prompt is replaced.
        labels: The words of each skill's labels, which are the completions of its prompts. Empty: they are sampled.
        gold_groups: The numbers of the groups that are gold answers to as many prompts, over all processes.
        answers: By the number of a completion of this process, what is learnt in place of its row's gold answer.
        attempts: The text of each of this process's completions, as rewards read it. Empty until they have.
        feedback: What rewards say of each of them, "" where nothing. None: no reward has said anything.
    """

    rows: Sequence[Row]
    skills: Sequence[str]
    number: int
    first_row: int
    group_size: int
    num_fixed: int
    is_training: bool
    rule: SuccessRule = DEFAULT_RULE
    rewards_AR: Tensor | None = None
    attempted_A: Tensor | None = None
    succeeded_A: Tensor | None = None
    reads: list[tuple[int, int]] = field(default_factory=list)
    refilled: Refilled | None = None
    labels: Mapping[str, LabelWords] = field(default_factory=dict)
    gold_groups: frozenset[int] = frozenset()
    answers: Mapping[int, str] = field(default_factory=dict)
    attempts: Sequence[str] = ()
    feedback: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.skill_ids_B = skill_ids(self.rows, self.skills)
        """The index of each completion's skill, on the CPU."""

    @property
    def levels_B(self) -> Tensor:
        """The level of each completion's prompt, on the CPU."""
        return torch.tensor([row.get("level", 0) for row in self.rows])

    @property
    def group_ids_B(self) -> Tensor:
        """The number of each completion's prompt in the rollout over all processes, on the CPU."""
        return self._numbers_B // self.group_size

    @property
    def is_gold_prompt_B(self) -> Tensor:
        """Which completions are of gold groups, on the CPU."""
        return self._is_gold(self._numbers_B)

    @property
    def is_fixed_B(self) -> Tensor:
        """Which completions are fixed, on the CPU."""
        return self._is_fixed(self._numbers_B)

    def note_texts(self, completions: Sequence[Any], feedback: Sequence[str] | None) -> None:
        """Note the completions of this process as rewards read them, and what rewards say of them.

        Of completions that were sampled before TRL's rollout they have said it before.
        """
        self.attempts = [attempt_text(completion) for completion in completions]
        self.feedback = feedback if self.refilled is None else self.refilled.feedback

    def learnt_row(self, i: int) -> Row:
        """Return the row of completion i of this process with the answer that is learnt."""
        return {**self.rows[i], "answer": self.answers[i]} if i in self.answers else self.rows[i]

    @property
    def has_fixed(self) -> bool:
        """Whether some completion of any process is fixed."""
        return self.num_fixed > 0 or bool(self.gold_groups)

    @property
    def is_sampled_A(self) -> Tensor:
        """Which completions of all processes are sampled; once rewards are there, on their device."""
        assert self.rewards_AR is not None
        return ~self._is_fixed(torch.arange(len(self.rewards_AR))).to(self.rewards_AR.device)

    @property
    def compared_rewards_AR(self) -> Tensor:
        """The rewards with NaN in gold groups, so that no mean or deviation of advantages and of the log has these."""
        assert self.rewards_AR is not None
        is_gold_A = self._is_gold(torch.arange(len(self.rewards_AR))).to(self.rewards_AR.device)
        return self.rewards_AR.masked_fill(is_gold_A[:, None], math.nan)

    @property
    def _numbers_B(self) -> Tensor:
        """The number of each completion among those of all processes, on the CPU."""
        return torch.arange(self.first_row, self.first_row + len(self.rows))

    def _is_gold(self, numbers_N: Tensor) -> Tensor:
        return torch.isin(numbers_N // self.group_size, torch.tensor(sorted(self.gold_groups), dtype=torch.long))

    def _is_fixed(self, numbers_N: Tensor) -> Tensor:
        return (numbers_N % self.group_size < self.num_fixed) | self._is_gold(numbers_N)

    @property
    def words_B(self) -> list[Sequence[str]]:
        """The own words of all labels of each completion's prompt, where completions are labels."""
        return [self.labels[self.skills[s]].words for s in self.skill_ids_B.tolist()]

    @property
    def label_completions_B(self) -> list[tuple[int, str]]:
        """The number of the label that each completion says, and in which words.

        Where the skill has fewer words than there are completions, the others repeat the first; their number is -1.
        """
        completions = {s: self.labels[self.skills[s]].completions for s in set(self.skill_ids_B.tolist())}
        places = zip(self.skill_ids_B.tolist(), (self._numbers_B % self.group_size).tolist(), strict=True)
        return [
            completions[s][place] if place < len(completions[s]) else (-1, completions[s][0][1]) for s, place in places
        ]

    @property
    def label_ids_B(self) -> Tensor:
        """The label that each completion says in its own words, on the CPU; -1 for synonyms and repeated words."""
        numbers_B = self._numbers_B % self.group_size
        sizes_B = torch.tensor([len(words) for words in self.words_B])
        return numbers_B.where(numbers_B < sizes_B, -1)

    @property
    def gold_ids_B(self) -> Tensor:
        """The label in the row of each completion, on the CPU; -1 where it has none.

        Raises:
            DataError: the row has another answer.
        """
        return torch.tensor([_gold_id(row, words) for row, words in zip(self.rows, self.words_B, strict=True)])

    @property
    def is_correct_A(self) -> Tensor:
        """Which completions the verifier calls correct, bool."""
        assert self.rewards_AR is not None
        return self.rewards_AR[:, 0] >= self.rule.threshold

    def share(self, values_A: Tensor) -> Tensor:
        """Return the values of this process's completions."""
        return values_A[self.first_row : self.first_row + len(self.rows)]


@dataclass
class RolloutTotals:
    """Rollouts of a training and their tokens, over all processes.

    Attributes:
        rollouts: Rollouts.
        tokens_generated: Tokens that the student sampled.
        tokens_trained: Tokens that the student read in its updates, without padding; a prompt that completions share
            counts once.
        tokens_by_teacher: Tokens that each teacher read, its answers to the gate and those that are learnt included.
        prompts_by_teacher: Prompts that each teacher taught, by distributions or an answer, counted once per rollout.
        tokens_saved: Tokens that they would have read in addition without gate, controller and cache.
        groups: Groups of completions of one prompt.
        groups_with_differences: By reward, those of them in which it had different values.
        groups_replaced: By skill, groups that were replaced because their rewards were all the same.
        groups_without_difference: Groups whose rewards were all the same after the last replacement.
    """

    rollouts: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0
    tokens_by_teacher: dict[str, int] = field(default_factory=dict)
    prompts_by_teacher: dict[str, int] = field(default_factory=dict)
    tokens_saved: int = 0
    groups: int = 0
    groups_with_differences: dict[str, int] = field(default_factory=dict)
    groups_replaced: dict[str, int] = field(default_factory=dict)
    groups_without_difference: int = 0

    @property
    def tokens_scored(self) -> int:
        """Tokens that all teachers read."""
        return sum(self.tokens_by_teacher.values())

    @property
    def teacher_tokens(self) -> dict[str, int]:
        """The tokens that teachers scored and those that were saved, under the names of `summary.json`."""
        return {"scored": self.tokens_scored, "saved": self.tokens_saved}

    @property
    def teaching(self) -> dict[str, dict[str, int]]:
        """The tokens and prompts of each teacher, under the names of `summary.json`."""
        return {
            name: {"tokens": num_tokens, "prompts": self.prompts_by_teacher.get(name, 0)}
            for name, num_tokens in self.tokens_by_teacher.items()
        }

    def add_teachers(self, *, tokens: Mapping[str, int] = {}, prompts: Mapping[str, int] = {}) -> None:
        """Add the tokens that teachers read and the prompts that they taught."""
        for sums, counts in ((self.tokens_by_teacher, tokens), (self.prompts_by_teacher, prompts)):
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count

    def add_refill(self, record: RolloutRecord, num_same: int) -> None:
        """Count the groups that were replaced in a rollout, and those without differences that stayed."""
        assert record.refilled is not None
        self.groups_without_difference += num_same
        for s, skill in enumerate(record.skills):
            num_rejected = sum(int((rejected.skills_A == s).sum()) for rejected in record.refilled.rejected)
            self.groups_replaced[skill] = self.groups_replaced.get(skill, 0) + num_rejected // record.group_size

    def metrics(self) -> dict[str, float]:
        """Return the tokens and prompts under the names of `metrics.jsonl`."""
        tokens: dict[str, float] = {
            "tokens/generated": self.tokens_generated,
            "tokens/trained": self.tokens_trained,
            "tokens/scored": self.tokens_scored,
            "tokens/saved": self.tokens_saved,
        }
        if not self.groups_replaced:  # there is no refill
            return tokens
        num_replaced = sum(self.groups_replaced.values())
        return tokens | {
            "prompts/replaced": num_replaced,
            "prompts/all_the_same": self.groups_without_difference,
        }


def _gold_id(row: Row, words: Sequence[str]) -> int:
    """Return the number of the label that a row's answer says, up to white space around it; -1 without an answer."""
    value = row.get("answer")
    answer = "" if value is None else str(value).strip()
    if not answer:
        return -1
    labels = [text.strip() for text in words]
    if answer not in labels:
        raise DataError(f"labels: the answer {answer!r:.80} is none of {labels}; its prompt is {row['prompt']!r:.80}")
    return labels.index(answer)
