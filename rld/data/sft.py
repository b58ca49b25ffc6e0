"""The rows that fine-tuning learns from: gold answers, or a teacher's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.recipe.stages.sft import Sft
from rld.types import Row

Answer = Callable[[Sequence[Row]], list[str]]
Verdicts = Callable[[Sequence[Row], Sequence[str]], list[bool]]


def sft_dataset(
    stage: Sft,
    sources: Mapping[str, SkillRows],
    skills: Sequence[str],
    *,
    seed: int,
    answer: Answer | None,
    verdicts: Verdicts,
) -> Dataset:
    """Return prompts with the completions to learn, the skills mixed in proportion to `stage.shares`.

    Args:
        stage: The stage.
        sources: The source of each skill.
        skills: The skills to learn.
        seed: The stage's.
        answer: A teacher that answers rows. None: gold answers are learnt.
        verdicts: Tells which answers to rows are correct, for a stage that learns a teacher's correct answers alone.

    Raises:
        DataError: a skill has no gold answers, or the teacher gives none.
    """
    shares = {skill: stage.shares.get(skill, 1.0) for skill in skills}
    num_rows = stage.rows_in_use
    rows = []
    for skill in skills:
        count = max(1, round(num_rows * shares[skill] / sum(shares.values())))
        if answer is None:
            rows += sources[skill].rows(count, seed, gold=True)
        else:
            prompts = sources[skill].rows(count, seed, gold=False)
            rows += _answered(skill, prompts, answer, verdicts if stage.verify else None)
    return Dataset.from_list([_example(row) for row in rows]).shuffle(seed=seed)


def _example(row: Row) -> dict[str, Any]:
    """Return a row's prompt and the completion to learn, which is a message where the prompt is a chat."""
    answer = row["answer"]
    is_chat = not isinstance(row["prompt"], str)
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}] if is_chat else answer}


def _answered(skill: str, rows: list[Row], answer: Answer, verdicts: Verdicts | None) -> list[Row]:
    """Return rows with the teacher's answers: all, or the correct ones, repeated in the place of the others."""
    texts = [text.strip() for text in answer(rows)]
    is_correct = [True] * len(rows) if verdicts is None else verdicts(rows, texts)
    learnt = [row | {"answer": text} for row, text, ok in zip(rows, texts, is_correct, strict=True) if ok and text]
    if not learnt:
        raise DataError(f"the teacher has no correct answer to any of {len(rows)} rows of skill {skill!r}")
    return [learnt[i % len(learnt)] for i in range(len(rows))]  # so that skills keep their shares
