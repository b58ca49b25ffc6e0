"""The audit: a second reward checks a share of the completions that the verifier gave 1.

Reinforcement learns whatever the verifier pays for, correct or not. A share of the paid completions is therefore given
to a reward that is harder to fool, and that may be slow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from rld.controllers.statistics import AuditCounts
from rld.errors import RecipeError
from rld.rollout.record import RolloutRecord
from rld.rollout.verifier import Verify, ask, is_success


class RewardAudit:
    """Checks a share of the paid completions.

    Args:
        verify: The audit's reward: 1 for a correct completion, None where it does not apply.
        share: Share of the paid completions that is checked, in (0, 1].
        seed: Which ones are checked depends on it, the rollout and the completion's number alone.

    Raises:
        RecipeError: the reward is a model or asynchronous, so it can't be called on any text.
    """

    def __init__(self, verify: Verify | None, share: float, seed: int) -> None:
        if verify is None:
            raise RecipeError("the reward of an audit should be a plain function, neither a model nor asynchronous")
        self.verify, self.share, self.seed = verify, share, seed

    def count(self, record: RolloutRecord, completions: Sequence[Any], ids: Sequence[list[int]]) -> AuditCounts:
        """Check a share of this process's paid completions, and count those that pass per skill.

        Args:
            record: The rollout, with its rewards.
            completions: This process's completions, as TRL gives them to rewards.
            ids: Their token ids.
        """
        paid_B = record.share(record.is_correct_A).cpu() & ~record.is_fixed_B
        checked = [i for i in paid_B.nonzero().flatten().tolist() if self._is_checked(record, i)]
        counts = AuditCounts.zeros(len(record.skills), 0)
        if not checked:
            return counts
        rows = [record.rows[i] for i in checked]
        rewards = ask(self.verify, rows, [completions[i] for i in checked], [ids[i] for i in checked])
        for i, reward in zip(checked, rewards, strict=True):
            if reward is not None:
                counts.audited_S[record.skill_ids_B[i]] += 1
                counts.passed_S[record.skill_ids_B[i]] += is_success(reward)
        return counts

    def _is_checked(self, record: RolloutRecord, i: int) -> bool:
        place = f"{self.seed}:audit:{record.number}:{record.first_row + i}"
        return random.Random(place).random() < self.share
