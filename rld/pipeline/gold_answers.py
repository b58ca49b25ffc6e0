"""What a reward gives to the gold answers of rows; only the libraries that the reward imports are imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rld.data.skill_rows import PlacedRow, SkillRows
from rld.recipe import registry, trl_rewards
from rld.recipe.plugins import RewardSpec, VerifierSpec
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.rollout.feedback import log_nothing
from rld.types import Row
from rld.utils.user_calls import action, user_code

NUM_JUDGED = 16
"""Rows of each skill whose gold answers the verifier is asked about; a unit test takes a twentieth of a second."""

MOST_PASSED_OVER = 0.01
"""Share of the rows that may be passed over because the student cannot write their gold answer."""

_ROUNDING = 1e-6
"""Difference of a reward to that of a correct answer that is due to rounding."""


def gold_rewards(spec: RewardSpec | VerifierSpec, rows: Sequence[Row], folder: Path) -> list[Any]:
    """Return what a reward returns for the gold answers of rows, called as TRL calls it; nothing is checked.

    Args:
        spec: The reward, which takes no model and is not asynchronous.
        rows: Rows of one recipe, all of the same style.
        folder: The recipe's folder.

    Raises:
        Exception: whatever the reward raises.
    """
    if not rows:
        return []
    reward = trl_rewards.bound(registry.load("rewards", spec.use, folder), dict(spec.options))
    state = SimpleNamespace(global_step=0, epoch=0.0, max_steps=1)
    with user_code(spec.timeout_seconds):
        return list(reward(trainer_state=state, **_gold_batch(rows)))


def reason_without_gold(
    recipe: Recipe, folder: Path, rows: SkillRows, problem: Callable[[Row], str | None]
) -> str | None:
    """Return why a skill's gold answers are none to learn from; None if they are.

    Args:
        recipe: The recipe.
        folder: Its folder.
        rows: The skill's rows.
        problem: Returns why the student cannot learn a row's gold answer; None if it can.
    """
    spec = recipe.verifier_in_use
    if rows.skill in recipe.blocks:
        return "its rows are documents"
    if recipe.prompts.strip_thinking:
        return "answers have no thinking, which the model is to write before them (prompts.strip_thinking)"
    if not registry.can_judge(spec.use, folder):
        return f"the verifier {spec.use} cannot be asked about them before the stage"
    examples = rows.examples()
    problems = [problem(example.row) for example in examples]
    usable = [example for example, text in zip(examples, problems, strict=True) if text is None]
    if len(examples) - len(usable) > MOST_PASSED_OVER * len(examples):
        return next(filter(None, problems))
    try:
        wrong = unpaid(spec, usable[:NUM_JUDGED], folder)
    except Exception as error:  # the verifier is the user's code
        return f"the verifier {spec.use} {action(error)} when it was asked about them"
    return f"the verifier {spec.use} does not accept {wrong[0][0].row['answer']!r:.60}" if wrong else None


def may_answer(recipe: Recipe, folder: Path, stage: Distill, skill: str) -> bool:
    """Return whether correct answers of a stage's teachers may be learnt on a skill.

    Args:
        recipe: The recipe.
        folder: Its folder.
        stage: A stage of it.
        skill: A skill of the stage.
    """
    use = (stage.audit_in_use or recipe.verifier_in_use).use
    is_taught = any(spec.skills is None or skill in spec.skills for spec in stage.teachers.values())
    can_judge = skill not in recipe.blocks and registry.can_judge(use, folder)
    return stage.learns_teachers and is_taught and can_judge


def unpaid(spec: VerifierSpec, examples: Sequence[PlacedRow], folder: Path) -> list[tuple[PlacedRow, float]]:
    """Return the rows whose gold answer a verifier does not accept, each with its reward; None is no reward.

    Args:
        spec: The verifier, as for `gold_rewards`.
        examples: Rows with gold answers.
        folder: The recipe's folder.

    Raises:
        Exception: whatever the verifier raises.
    """
    least = 1.0 if spec.success_at is None else spec.success_at
    rewards = gold_rewards(spec, [row for _, row in examples], folder)
    pairs = zip(examples, rewards, strict=True)
    return [(example, reward) for example, reward in pairs if reward is not None and reward < least - _ROUNDING]


def _gold_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the arguments by which TRL asks a reward about gold answers; there is a token per character."""
    is_chat = not isinstance(rows[0]["prompt"], str)
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": [
            [{"role": "assistant", "content": row["answer"]}] if is_chat else row["answer"] for row in rows
        ],
        "completion_ids": [list(range(len(row["answer"]))) for row in rows],
        "log_extra": log_nothing,
        "log_metric": log_nothing,
        **columns,
    }
