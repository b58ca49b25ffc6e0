"""Score answers and samples in two processes by a judge that gives other rewards each time. A test runs it."""

from __future__ import annotations

import random
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from tests.support import scoring, tiny

if __name__ == "__main__":
    PartialState(cpu=True)
    judged: list[str] = []

    def judge(completions: list[str], **_: Any) -> list[float]:
        judged.extend(completions)
        return [random.random() for _ in completions]

    rows = [{**row, "skill": "copy"} for row in tiny.rows(5)]
    evaluator = scoring.evaluator(rows, judge, 4, scores=["solved", "pass_at_2"], samples={"count": 2})
    said = [(one.reward, one.sample_rewards) for one in evaluator.predictions(tiny.model(), tiny.tokenizer())]
    first, second = gather_object([said])
    assert first == second, f"the processes have other rewards: {first}, {second}"
    assert sum(gather_object([len(judged)])) == 5 + 2 * 5, "each answer is judged by one process"
