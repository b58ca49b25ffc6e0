"""The training set of supervised fine-tuning: prompts with gold answers or with a teacher's answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.recipe.stages.sft import Sft
from rld.types import Answer, Row

_BATCH = 1000
"""Examples that are encoded before they are stored."""

_TYPES = Features({name: datasets.Sequence(Value("int32")) for name in ("input_ids", "labels")})
"""How examples are stored: eight bytes a token, where numbers that Python chooses take sixteen."""

AnswerRows: TypeAlias = Callable[[Sequence[Row]], list[Answer]]
"""Returns a teacher's answers to rows."""

Encode: TypeAlias = Callable[[Sequence[Any], Sequence[Answer]], list[dict[str, list[int]]]]
"""Returns the `input_ids` of each prompt with its answer, and `labels`: the same, or -100 where they are not learnt."""

Verdicts: TypeAlias = Callable[[Sequence[Row], Sequence[str]], list[bool]]
"""Returns for each answer to a row whether it is correct."""


def sft_dataset(
    stage: Sft,
    sources: Mapping[str, SkillRows],
    skills: Sequence[str],
    *,
    seed: int,
    encode: Encode,
    teacher: AnswerRows | None,
    verdicts: Verdicts,
    require: Callable[[Sequence[Row]], None],
) -> Dataset:
    """Return prompts with target completions as token ids; skills are mixed in proportion to `stage.shares`.

    Args:
        stage: The fine-tuning stage of the recipe.
        sources: The source of each skill.
        skills: The skills to train on.
        seed: The stage's seed.
        encode: Makes token ids of prompts and answers.
        teacher: Returns a teacher's answers. None: the targets are gold answers.
        verdicts: Returns which answers are correct; used if the stage trains only on a teacher's correct answers.
        require: Raises an error where rows with gold answers cannot be learnt.

    Raises:
        DataError: a skill has no gold answers, or the teacher gives none.
    """
    shares = {skill: stage.shares.get(skill, 1.0) for skill in skills}
    num_rows = stage.rows_in_use
    if all(sources[skill].is_text for skill in skills):
        num_rows = stage.num_rows or _num_pieces(sources, shares)
    examples: list[tuple[Row, Answer]] = []
    for skill in skills:
        count = max(1, round(num_rows * shares[skill] / sum(shares.values())))
        if teacher is None:
            rows = sources[skill].rows(count, seed, gold=True)
            require(rows)
            examples += [(row, Answer(row["answer"], is_complete=not row.get("is_cut"))) for row in rows]
        else:
            prompts = sources[skill].rows(count, seed, gold=False)
            examples += _answered(skill, prompts, teacher, verdicts if stage.verify else None)
    num_cut = sum(not answer.is_complete for _, answer in examples)
    if num_cut and teacher is not None:
        warnings.warn(
            f"stage '{stage.name}': {num_cut} of {len(examples)} answers of the teacher were cut off at "
            "max_new_tokens; they are learnt without an end",
            stacklevel=2,
        )
    # `Dataset.shuffle` would leave the rows in their order, and each batch would look up where its rows are.
    order = np.random.default_rng(seed).permutation(len(examples))
    return _encoded([examples[i] for i in order], encode)


def _encoded(examples: Sequence[tuple[Row, Answer]], encode: Encode) -> Dataset:
    """Return examples as token ids, which as a list of Python numbers would take many times as much memory."""
    starts = range(0, len(examples), _BATCH)
    batches = (examples[start : start + _BATCH] for start in starts)
    encoded = (encode([row["prompt"] for row, _ in batch], [answer for _, answer in batch]) for batch in batches)
    return concatenate_datasets([Dataset.from_list(examples, _TYPES) for examples in encoded])


def _num_pieces(sources: Mapping[str, SkillRows], shares: Mapping[str, float]) -> int:
    """Return the number of rows with which skills of documents, in their shares, are all read once or more often."""
    total = sum(shares.values())
    return max(round(sources[skill].num_pieces * total / share) for skill, share in shares.items())


def _answered(skill: str, rows: list[Row], teacher: AnswerRows, verdicts: Verdicts | None) -> list[tuple[Row, Answer]]:
    """Return rows with the teacher's answers; with `verdicts`, correct ones are repeated to replace incorrect ones."""
    answers = teacher(rows)
    is_correct = [True] * len(rows) if verdicts is None else verdicts(rows, [answer.text for answer in answers])
    triples = zip(rows, answers, is_correct, strict=True)
    examples = [(row, answer) for row, answer, correct in triples if correct and answer.text.strip()]
    if not examples:
        answer = "answer" if verdicts is None else "correct answer"
        raise DataError(f"the teacher has no {answer} to any of {len(rows)} rows of skill {skill!r}")
    return [examples[i % len(examples)] for i in range(len(rows))]  # the same number of rows keeps the skills' shares
