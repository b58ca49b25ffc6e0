"""A trusted reward looks over the shoulder of the one that pays.

Reinforcement finds whatever a verifier pays for, right or wrong. So a share of the completions that it called right is
shown to a reward that is harder to fool, and may be slow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rld.controllers.statistics import AuditCounts
from rld.errors import RecipeError
from rld.rollout.verifier import Verify, ask, is_success


class RewardAudit:
    """Checks a share of what was paid.

    Args:
        verify: The trusted reward: 1 for a right answer, None where it has no say.
        share: Of the paid completions, in (0, 1].
        seed: What is checked depends on it, the rollout and the completion's place alone.

    Raises:
        RecipeError: the trusted reward is a model or asynchronous, so it can't be asked.
    """

    def __init__(self, verify: Verify | None, share: float, seed: int) -> None:
        if verify is None:
            raise RecipeError("the trusted reward of an audit should be a plain function, neither a model nor async")
        self.verify, self.share, self.seed = verify, share, seed

    def counts(
        self,
        rows: Sequence[dict[str, Any]],
        completions: Sequence[Any],
        ids: Sequence[list[int]],
        paid_B: Tensor,
        skills_B: Tensor,
        num_skills: int,
        place: tuple[int, int],
    ) -> AuditCounts:
        """Check a share of this process's paid completions.

        Args:
            rows, completions, ids: As TRL gives them to rewards.
            paid_B: Which completions the first reward called right.
            skills_B: The index of each completion's skill.
            num_skills: S.
            place: The number of the rollout, and of the first completion in it over all processes.
        """
        rollout, first = place
        chosen = [
            i
            for i, paid in enumerate(paid_B.tolist())
            if paid and random.Random(f"{self.seed}:audit:{rollout}:{first + i}").random() < self.share
        ]
        counts = AuditCounts.zeros(num_skills, 0)
        if not chosen:
            return counts
        credits = ask(
            self.verify, [rows[i] for i in chosen], [completions[i] for i in chosen], [ids[i] for i in chosen]
        )
        for i, credit in zip(chosen, credits, strict=True):
            if credit is not None:
                counts.audited_S[skills_B[i]] += 1
                counts.passed_S[skills_B[i]] += is_success(credit)
        return counts
