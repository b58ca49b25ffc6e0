"""Whether a teacher in this process answers rows correctly, decoded only where its gold answer does not decide it.

Shown the gold answer as a draft (`models/drafts.py`), the teacher says in one forward how far its own answer agrees
with it. Where it agrees to the end, or ends itself, the answer is known. Where it differs, the verifier may say that a
text that begins so is never correct (`rejects_beginning`). The other answers are decoded from there on. So every
verdict is that of the answer that the teacher would give token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from rld.models.decoding import Completion, all_ends, go_on
from rld.models.drafts import ReadDrafts
from rld.models.generation import readable
from rld.models.prompting import PromptEncoder, is_chat
from rld.models.sampling import SeededSampling
from rld.rollout.verifier import Verify, is_success, rejected, rewards_of
from rld.types import Row


class Verdict(NamedTuple):
    """What the verifier says of an answer."""

    is_correct: bool | None
    """None where the verifier does not apply."""
    is_gold: bool
    """Whether the answer has the tokens of the gold answer."""


class TeacherAnswers:
    """The answers of a teacher to rows.

    Args:
        model: Its model, ready for forwards while verdicts are asked for.
        encoder: Encodes prompts for it.
        rows: The rows, at least one.
        has_draft: Which rows' gold answers are read as drafts.
        verify: The verifier.
        max_new_tokens: Greatest length of an answer.
        name: The teacher's name in errors and warnings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PromptEncoder,
        rows: Sequence[Row],
        has_draft: Sequence[bool],
        *,
        verify: Verify,
        max_new_tokens: int,
        name: str,
    ) -> None:
        self._model, self._encoder, self._rows, self._verify = model, encoder, rows, verify
        self._max_new_tokens, self._name = max_new_tokens, name
        self._ends = all_ends(model, encoder.tokenizer, encoder.ends(is_chat(rows)))
        golds = [row["answer"] if isinstance(row.get("answer"), str) else "" for row in rows]
        encoded = encoder.encode_rows([row["prompt"] for row in rows], golds)
        end = encoder.end_token(is_chat(rows))
        self._prompts = [prompt for prompt, _ in encoded]
        self._golds = [(gold if end is None else [*gold, end])[:max_new_tokens] for _, gold in encoded]
        self._readable = set(readable(model, self._prompts, max_new_tokens, name))
        thinks = encoder.thinking is not None  # before it gives the gold answer
        numbers = [i for i in sorted(self._readable) if has_draft[i] and self._golds[i] and not thinks]
        self.with_draft = numbers
        """The indices of the rows with a draft: others have none, or the model's context is too short for an answer."""
        self._place = {i: place for place, i in enumerate(numbers)}
        """For each row with a draft its place among the drafts."""
        self.pairs = [(self._prompts[i], self._golds[i]) for i in numbers]
        """The prompts with a draft, and the drafts."""
        self._drafts: ReadDrafts | None = None
        self._num_decoded = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the teacher has read and written for the answers' sake."""
        return self._num_decoded + (0 if self._drafts is None else self._drafts.num_tokens)

    def take_states(self, states: Sequence[Tensor]) -> None:
        """Take the states that predict the tokens of each draft from a forward that reads the prompts anyway."""
        num_tokens = sum(len(draft) for _, draft in self.pairs)
        self._drafts = ReadDrafts(self._model, self.pairs, states, num_tokens, self._name)

    def verdicts(self, numbers: Sequence[int], sampling: SeededSampling | None = None) -> list[Verdict]:
        """Return the verdict on the answer to each row.

        An answer to a prompt that with it is longer than the model's context is empty.

        Args:
            numbers: The indices of the rows.
            sampling: How answers are sampled. None: they are greedy.
        """
        beginnings = self._beginnings(numbers, sampling)
        answers = {i: ids for i, ids in beginnings.items() if self._is_whole(ids) or i not in self._readable}
        wrong = self._wrong({i: ids for i, ids in beginnings.items() if i not in answers})
        undecided = [i for i in beginnings if i not in answers and i not in wrong]
        for i, completion in zip(undecided, self._decode(undecided, beginnings, sampling), strict=True):
            answers[i] = completion.ids
        rows, bare = [self._rows[i] for i in answers], [self._without_end(ids) for ids in answers.values()]
        rewards = rewards_of(self._encoder, rows, self._encoder.decode(bare), self._verify) if answers else []
        verdicts = {i: Verdict(False, False) for i in wrong}
        for i, ids, reward in zip(answers, bare, rewards, strict=True):
            is_correct = None if reward is None else is_success(reward)
            verdicts[i] = Verdict(is_correct, ids == self._without_end(self._golds[i]))
        return [verdicts[i] for i in numbers]

    def _beginnings(self, numbers: Sequence[int], sampling: SeededSampling | None) -> dict[int, list[int]]:
        """Return the first tokens of each answer, as far as the drafts tell them."""
        if self._drafts is None:
            self._drafts = ReadDrafts.alone(self._model, self.pairs, name=self._name)
        with_draft = [i for i in numbers if i in self._place]
        beginnings = self._drafts.agreed([self._place[i] for i in with_draft], self._ends, sampling)
        return {i: list[int]() for i in numbers} | dict(zip(with_draft, beginnings, strict=True))

    def _is_whole(self, ids: list[int]) -> bool:
        return len(ids) == self._max_new_tokens or self._without_end(ids) != ids

    def _wrong(self, beginnings: dict[int, list[int]]) -> set[int]:
        """Return the rows whose answers are wrong whatever follows their first tokens."""
        beginnings = {i: ids for i, ids in beginnings.items() if ids}
        texts = self._encoder.decode_beginning(list(beginnings.values())) if beginnings else []
        flags = rejected(self._verify, [self._rows[i] for i in beginnings], texts, list(beginnings.values()))
        return {i for i, is_wrong in zip(beginnings, flags, strict=True) if is_wrong}

    def _decode(
        self, numbers: Sequence[int], beginnings: dict[int, list[int]], sampling: SeededSampling | None
    ) -> list[Completion]:
        """Return answers that go on from their first tokens."""
        order = sorted(numbers, key=lambda i: len(self._prompts[i]) + len(beginnings[i]))  # for little padding
        completions = go_on(
            self._model,
            self._encoder.tokenizer,
            [(self._prompts[i], beginnings[i]) for i in order],
            ends=self._ends,
            max_new_tokens=self._max_new_tokens,
            sampling=sampling,
            name=self._name,
        )
        by_row = dict(zip(order, completions, strict=True))
        self._num_decoded += sum(len(self._prompts[i]) + len(by_row[i].ids) for i in order)
        return [by_row[i] for i in numbers]

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self._ends else ids
