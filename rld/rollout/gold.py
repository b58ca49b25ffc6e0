"""Gold answers as completions."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence

from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.types import Row, skill_of


def gold_completions(rows: Sequence[Row], encoder: PromptEncoder, max_tokens: int | None) -> list[list[int]]:
    """Return each row's gold answer as the token ids of the completion by which the model would give it.

    One that `is_cut` goes on in another row, and has no end token.

    Args:
        rows: Rows with a `prompt` and an `answer`.
        encoder: The model's.
        max_tokens: Greatest length of a completion, the end token included. None: any length.

    Raises:
        DataError: a row has no answer, or one that the model cannot write.
    """
    completions = []
    for row in rows:
        ids, problem = _encoded(row, encoder, max_tokens)
        if problem is not None:
            raise DataError(f"gold completions: {problem}")
        completions.append(ids[:-1] if row.get("is_cut") else ids)
    return completions


def gold_texts(rows: Sequence[Row], encoder: PromptEncoder) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each row's prompt and of its gold answer as a completion of any length."""
    prompts = encoder.encode_all([row["prompt"] for row in rows])
    return list(zip(prompts, gold_completions(rows, encoder, None), strict=True))


def first_gold_rows(
    rows: Iterable[Row], skills: Sequence[str], count: int, encoder: PromptEncoder, max_tokens: int | None
) -> dict[str, list[Row]]:
    """Return the first rows of each skill whose gold answers can be completions; a skill without any is left out.

    A warning says which of the answers before them cannot, and why.

    Args:
        rows: Rows, of which those without an answer are passed over.
        skills: The skills.
        count: Greatest number of rows of a skill.
        encoder: The encoder of the model that would write them.
        max_tokens: As of `gold_completions`.
    """
    answered, problems = [row for row in rows if row.get("answer")], list[str]()

    def is_usable(row: Row) -> bool:
        problem = gold_problem(row, encoder, max_tokens)
        problems.extend([] if problem is None else [problem])
        return problem is None

    usable = {
        skill: list(itertools.islice((row for row in answered if skill_of(row) == skill and is_usable(row)), count))
        for skill in skills
    }
    if problems:
        warnings.warn(
            f"gradients of gold answers are measured without {len(problems)} that the student cannot write; the first "
            f"one: {problems[0]}",
            stacklevel=2,
        )
    return {skill: of_skill for skill, of_skill in usable.items() if of_skill}


def gold_problem(row: Row, encoder: PromptEncoder, max_tokens: int | None) -> str | None:
    """Return why a row's gold answer cannot be a completion of so many tokens; None if it can."""
    return _encoded(row, encoder, max_tokens)[1]


def _encoded(row: Row, encoder: PromptEncoder, max_tokens: int | None) -> tuple[list[int], str | None]:
    """Return the tokens of a row's gold answer with its end, and why they cannot be a completion; None if they can."""
    answer, place = row.get("answer"), f"its prompt is {str(row['prompt'])[:80]!r}"
    if not isinstance(answer, str) or not answer:
        return [], f"a row has no text in its column 'answer'; {place}"
    ids = encoder.encode_completion(row["prompt"], answer)
    problem = encoder.problem(ids, answer, max_tokens)
    return ids, None if problem is None else f"{problem}; {place}"
