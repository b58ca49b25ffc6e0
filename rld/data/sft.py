"""The rows that fine-tuning learns from: gold answers, or a teacher's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.recipe import registry
from rld.recipe.stages.sft import Sft
from rld.types import Row

Answer = Callable[[Sequence[Row]], list[str]]


def sft_dataset(
    stage: Sft, sources: Mapping[str, SkillRows], skills: Sequence[str], seed: int, answer: Answer | None
) -> Dataset:
    """Return prompts with the completions to learn, the skills mixed in proportion to `stage.shares`.

    Args:
        stage: The stage.
        sources: The source of each skill.
        skills: The skills to learn.
        seed: The stage's.
        answer: A teacher that answers rows. None: gold answers are learnt.

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
            rows += _answered(skill, sources[skill].rows(count, seed, gold=False), answer, stage.verify)
    return Dataset.from_list([_example(row) for row in rows]).shuffle(seed=seed)


def _example(row: Row) -> dict[str, Any]:
    """Return a row's prompt and the completion to learn, which is a message where the prompt is a chat."""
    answer = row["answer"]
    is_chat = not isinstance(row["prompt"], str)
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}] if is_chat else answer}


def _answered(skill: str, rows: list[Row], answer: Answer, verify: bool) -> list[Row]:
    """Rows with the teacher's answers: all, or the right ones, which then take the place of the others too."""
    texts = [text.strip() for text in answer(rows)]
    right = [1.0] * len(rows)
    if verify:
        exact = registry.load("rewards", "reasoning:exact_credit", Path())
        right = exact(completions=texts, answer=[row["answer"] for row in rows], entry=[row["entry"] for row in rows])
    kept = [row | {"answer": text} for row, text, credit in zip(rows, texts, right, strict=True) if credit and text]
    if not kept:
        raise DataError(f"the teacher has no right answer to any of {len(rows)} rows of skill {skill!r}")
    return [kept[i % len(kept)] for i in range(len(rows))]  # so that skills keep their shares
