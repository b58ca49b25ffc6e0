"""The gate where completions are labels: which teachers may teach their distribution over the labels of a prompt.

Shapes: B completions of this process, L labels, K teachers, S skills.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rld.rollout.batch import RolloutBatch
from rld.rollout.label_scores import predicted_labels
from rld.rollout.record import RolloutRecord
from rld.teachers.teacher import Teacher
from rld.types import Row
from rld.utils.files import read_json, write_json

_SIGNIFICANT = 1.645
"""Standard deviations below the number right by guesses at which a teacher is worse: 5% of guesses are, one-sided."""


class LabelVerdict(NamedTuple):
    """What the gate says of the completions of a rollout."""

    factors_BK: Tensor
    """By which each teacher's weight on a completion is multiplied, in [0, 1], before they are scaled to their sum."""
    is_first_visit_B: Tensor
    """Whether the row has a gold label that the student has not learnt before, bool."""


class LabelGate:
    """Decides which teachers may teach their distribution over the labels of a prompt; no teacher is asked for it.

    Where a row has a gold label, a teacher whose likeliest label is another one may not teach on it. Where it has none,
    the gold rows so far decide, each counted once. Teachers share the weight in proportion to the squared precision of
    the label that each predicts, `((r + 1) / (n + 2))^2` if it was right on r of the n gold rows on which it predicted
    that label; the square is that of the default controller. A teacher may not teach where r is less than guesses among
    all labels would be right, by a one-sided binomial test (normal approximation with continuity correction). A few
    rows prove nothing: with four labels it takes twelve, all wrong.

    Args:
        teachers: The teachers.
        labels: The words of each skill's labels.
        accelerator: Sums over processes.
    """

    def __init__(
        self, teachers: Sequence[Teacher], labels: Mapping[str, Sequence[str]], accelerator: Accelerator
    ) -> None:
        self.teachers, self.skills, self.accelerator = list(teachers), list(labels), accelerator
        most = max(map(len, labels.values()))
        self._predictions_KSL = torch.zeros(len(self.teachers), len(labels), most, dtype=torch.float64)
        """Gold rows of all processes on which a teacher predicted a label."""
        self._correct_KSL = torch.zeros_like(self._predictions_KSL)
        """Those of them whose gold label it is."""
        self._earlier_rows: set[int] = set()
        """Gold rows of earlier rollouts. A few come back soon, and the student then says what it was taught."""
        self._rows_K: list[set[int]] = [set() for _ in self.teachers]
        """Those that each teacher's counts are of."""

    def judge(self, batch: RolloutBatch, record: RolloutRecord) -> LabelVerdict:
        """Return the verdict on the completions of a rollout, whose gold rows count.

        Args:
            batch: This process's rollout, with the teachers' scores of labels; where one was not run it is not open.
            record: Its record.
        """
        predictions_BK = predicted_labels(batch["teacher_label_scores"], batch).cpu()
        skills_B = torch.tensor([self.skills.index(record.skills[s]) for s in record.skill_ids_B.tolist()])
        gold_B, was_run_BK = record.gold_ids_B, batch["teacher_tokens"].any(-1).cpu()
        keys = [_key(row) if gold >= 0 else None for row, gold in zip(record.rows, gold_B.tolist(), strict=True)]
        is_first_visit_B = _are_new(keys, self._earlier_rows)
        counts_2KSL = torch.zeros(2, *self._predictions_KSL.shape, dtype=torch.float64)
        for k, teacher in enumerate(self.teachers):
            is_new_B = is_first_visit_B if teacher.is_student else _are_new(keys, self._rows_K[k])
            rows_B = (record.label_ids_B == 0) & was_run_BK[:, k] & is_new_B
            at = skills_B[rows_B], predictions_BK[rows_B, k]
            is_correct_B = predictions_BK[rows_B, k] == gold_B[rows_B]
            counts_2KSL[0, k].index_put_(at, torch.ones_like(is_correct_B, dtype=torch.float64), accumulate=True)
            counts_2KSL[1, k].index_put_(at, is_correct_B.double(), accumulate=True)
        predicted_KSL, correct_KSL = self.accelerator.reduce(counts_2KSL.to(self.accelerator.device), "sum").cpu()
        self._visit(keys, was_run_BK)
        self._predictions_KSL += predicted_KSL
        self._correct_KSL += correct_KSL
        sizes_B = torch.tensor([len(words) for words in record.words_B], dtype=torch.float64)
        teachers_K = torch.arange(len(self.teachers))
        right_BK = self._correct_KSL[teachers_K, skills_B[:, None], predictions_BK]
        all_BK = self._predictions_KSL[teachers_K, skills_B[:, None], predictions_BK]
        lack_BK = (all_BK / sizes_B[:, None] - right_BK - 0.5) * sizes_B[:, None]
        is_trusted_BK = lack_BK <= _SIGNIFICANT * (all_BK * (sizes_B[:, None] - 1)).sqrt()
        precision_BK = (right_BK + 1) / (all_BK + 2)
        is_right_BK = (predictions_BK == gold_B[:, None]).double()
        factors_BK = was_run_BK * torch.where(gold_B[:, None] >= 0, is_right_BK, is_trusted_BK * precision_BK**2)
        device = self.accelerator.device
        return LabelVerdict(factors_BK.float().to(device), is_first_visit_B.to(device))

    def _visit(self, keys: Sequence[int | None], was_run_BK: Tensor) -> None:
        """Remember the gold rows of a rollout of all processes, and for which teachers they count."""
        visits = [(key, was_run) for key, was_run in zip(keys, was_run_BK.tolist(), strict=True) if key is not None]
        for key, was_run in gather_object(visits):
            self._earlier_rows.add(key)
            for rows in itertools.compress(self._rows_K, was_run):
                rows.add(key)

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed, and count gold rows anew for it."""
        self._predictions_KSL[k] = self._correct_KSL[k] = 0
        self._rows_K[k].clear()

    def save(self, path: Path) -> None:
        """Write what the gate knows, by teacher."""
        parts = zip(self.teachers, self._predictions_KSL.tolist(), self._correct_KSL.tolist(), strict=True)
        teachers = {
            str(teacher.name): {"predicted": predicted, "correct": correct, "rows": sorted(rows)}
            for (teacher, predicted, correct), rows in zip(parts, self._rows_K, strict=True)
        }
        write_json(path, {"teachers": teachers, "visited": sorted(self._earlier_rows)})

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; of a teacher that it does not name nothing is known."""
        state = read_json(path)
        self._earlier_rows = set(state["visited"])
        for k, teacher in enumerate(self.teachers):
            if (entry := state["teachers"].get(str(teacher.name))) is not None:
                self._predictions_KSL[k] = torch.tensor(entry["predicted"])
                self._correct_KSL[k] = torch.tensor(entry["correct"])
                self._rows_K[k] = set(entry["rows"])


def _are_new(keys: Sequence[int | None], earlier: Set[int]) -> Tensor:
    """Return which rows have a key that is not among earlier ones, `[B]` bool; rows without a label have none."""
    return torch.tensor([key is not None and key not in earlier for key in keys])


def _key(row: Row) -> int:
    """Return a number that stands for a row's skill and prompt in memory and in checkpoints."""
    text = f"{row.get('skill')}:{row['prompt']}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
