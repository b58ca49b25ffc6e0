"""The gate where completions are labels: which teachers may teach their distribution over the labels of a prompt.

Shapes: B completions of this process, L labels, K teachers, S skills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from rld.rollout.batch import RolloutBatch
from rld.rollout.label_scores import predicted_labels
from rld.rollout.record import RolloutRecord
from rld.teachers.teacher import Teacher
from rld.utils.files import read_json, write_json


class LabelGate:
    """Decides which teachers may teach their distribution over the labels of a prompt; no teacher is asked for it.

    Where a row has a gold label, a teacher whose likeliest label is another one may not teach on it. Where it has none,
    the gold rows so far decide: a teacher may not teach where it predicts a label that it was right with on a smaller
    share of them than a guess among all labels would be.

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
        self._predicted_KSL = torch.zeros(len(self.teachers), len(labels), most, dtype=torch.float64)
        """Gold rows of all processes on which a teacher predicted a label."""
        self._correct_KSL = torch.zeros_like(self._predicted_KSL)
        """Those of them whose gold label it is."""

    def judge(self, batch: RolloutBatch, record: RolloutRecord) -> Tensor:
        """Return which teachers may teach on which completions, `[B, K]` bool; the gold rows of the rollout count.

        Args:
            batch: This process's rollout, with the teachers' scores of labels; where one was not run it is not open.
            record: Its record.
        """
        predictions_BK = predicted_labels(batch["teacher_label_scores"], batch).cpu()
        skills_B = torch.tensor([self.skills.index(record.skills[s]) for s in record.skill_ids_B.tolist()])
        gold_B, was_run_BK = record.gold_ids_B, batch["teacher_tokens"].any(-1).cpu()
        is_counted_B = (record.label_ids_B == 0) & (gold_B >= 0)
        counts_2KSL = torch.zeros(2, *self._predicted_KSL.shape, dtype=torch.float64)
        for k in range(len(self.teachers)):
            rows_B = is_counted_B & was_run_BK[:, k]
            at = skills_B[rows_B], predictions_BK[rows_B, k]
            is_correct_B = predictions_BK[rows_B, k] == gold_B[rows_B]
            counts_2KSL[0, k].index_put_(at, torch.ones_like(is_correct_B, dtype=torch.float64), accumulate=True)
            counts_2KSL[1, k].index_put_(at, is_correct_B.double(), accumulate=True)
        predicted_KSL, correct_KSL = self.accelerator.reduce(counts_2KSL.to(self.accelerator.device), "sum").cpu()
        self._predicted_KSL += predicted_KSL
        self._correct_KSL += correct_KSL
        sizes_B = torch.tensor([len(words) for words in record.words_B], dtype=torch.float64)
        teachers_K = torch.arange(len(self.teachers))
        right_BK = self._correct_KSL[teachers_K, skills_B[:, None], predictions_BK]
        all_BK = self._predicted_KSL[teachers_K, skills_B[:, None], predictions_BK]
        is_trusted_BK = right_BK * sizes_B[:, None] >= all_BK
        open_BK = torch.where(gold_B[:, None] >= 0, predictions_BK == gold_B[:, None], is_trusted_BK)
        return (open_BK & was_run_BK).to(self.accelerator.device)

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self._predicted_KSL[k] = self._correct_KSL[k] = 0

    def save(self, path: Path) -> None:
        """Write what the gate knows, by teacher."""
        names = [str(teacher.name) for teacher in self.teachers]
        counts = zip(self._predicted_KSL.tolist(), self._correct_KSL.tolist(), strict=True)
        write_json(path, {"labels": dict(zip(names, counts, strict=True))})

    def load(self, path: Path) -> None:
        """Restore what `save` wrote."""
        state = read_json(path)["labels"]
        for k, teacher in enumerate(self.teachers):
            if str(teacher.name) in state:
                self._predicted_KSL[k], self._correct_KSL[k] = map(torch.tensor, state[str(teacher.name)])
