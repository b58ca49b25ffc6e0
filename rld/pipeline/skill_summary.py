"""What `rld check` shows of a skill's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rld.data.skill_rows import SkillRows
from rld.recipe.sizes import Lengths
from rld.types import Row
from rld.utils.label_words import LabelWords

_NUM_CHARACTERS = 200_000
"""Characters of documents by which the tokens of all are estimated; a tokenizer reads them in half a second."""

_NUM_SHOWN = 80
"""Characters of the first document that are shown."""


@dataclass(frozen=True)
class SkillSummary:
    """The rows of a skill.

    Attributes:
        skill: Its name.
        num_levels: Its levels.
        num_rows: Rows of its file, or those that were drawn from its generator.
        num_questions: Different questions among them.
        num_contradicted: Questions among them that have several gold answers.
        num_held_out: Held-out rows.
        longest_answer: Characters of the longest gold answer.
        prompt: One prompt, as a model reads it.
        answer: Its gold answer.
        lengths: Mean numbers of tokens of prompts, of the gold answers that there are, and of words that say labels.
    """

    skill: str
    num_levels: int
    num_rows: int
    num_questions: int
    num_contradicted: int
    num_held_out: int
    longest_answer: int
    prompt: str
    answer: str
    lengths: Lengths


@dataclass(frozen=True)
class TextSummary:
    """The documents of a skill.

    Attributes:
        skill: Its name.
        num_rows: Documents of its files, those that are held out among them.
        num_held_out: Held-out documents.
        num_tokens: Tokens of all documents, about.
        num_blocks: Blocks into which they are cut, about.
        beginning: The first characters of the first document.
        lengths: Tokens in front of a block, and its mean number of tokens.
    """

    skill: str
    num_rows: int
    num_held_out: int
    num_tokens: int
    num_blocks: int
    beginning: str
    lengths: Lengths


def row_summary(source: SkillRows, words: LabelWords | None, encoder: Any, characters_per_token: float) -> SkillSummary:
    """Return the summary of a skill's rows.

    Args:
        source: The rows.
        words: Those that say its labels. None: it has none.
        encoder: A `PromptEncoder`. None: its tokens are not known.
        characters_per_token: Assumed without an encoder.
    """
    rows = [row for _, row in source.examples()]

    def lengths(prompts: Sequence[Any], answers: Sequence[str]) -> list[tuple[float, float]]:
        if encoder is not None:
            return [(len(prompt), len(answer)) for prompt, answer in encoder.encode_rows(prompts, answers)]
        texts = zip(map(_text, prompts), answers, strict=True)
        return [(len(prompt) / characters_per_token, len(answer) / characters_per_token) for prompt, answer in texts]

    sizes = lengths([row["prompt"] for row in rows], [row["answer"] for row in rows])
    texts = [text for _, text in words.completions] if words is not None else []
    label_sizes = [size for _, size in lengths([rows[0]["prompt"]] * len(texts), texts)]
    answers_by_prompt: dict[str, set[str]] = {}
    for row in rows:
        answers_by_prompt.setdefault(str(row["prompt"]), set()).update(filter(None, [row["answer"]]))
    example = next((row for row in rows if row["answer"]), rows[0])
    prompt, answer = fmean(size for size, _ in sizes), 1 + _mean_answer(rows, [size for _, size in sizes])
    num_rows = math.inf if source.num_rows is None else source.num_rows
    has_answer = 1.0 if source.num_rows is None else fmean(bool(row["answer"]) for row in rows)
    return SkillSummary(
        source.skill,
        source.num_levels,
        len(rows),
        len(answers_by_prompt),
        sum(len(answers) > 1 for answers in answers_by_prompt.values()),
        len(source.held_out()),
        max(len(row["answer"]) for row in rows),
        prompt_text(example["prompt"], encoder),
        example["answer"],
        Lengths(prompt, answer, num_rows, has_answer * num_rows, fmean(label_sizes) if label_sizes else None),
    )


def prompt_text(prompt: Any, encoder: Any) -> str:
    """Return a prompt as a model reads it; its messages, where `encoder` is None and the chat template not known."""
    if encoder is not None:
        return str(encoder.render(prompt))
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _mean_answer(rows: Sequence[Row], sizes: Sequence[float]) -> float:
    """Return the mean size of the gold answers; rows without one, such as those without a label, do not count."""
    return fmean([size for row, size in zip(rows, sizes, strict=True) if row["answer"]] or [0.0])


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)


def text_summary(source: SkillRows, block: int, encoder: Any, characters_per_token: float) -> TextSummary:
    """Return the summary of a skill's documents.

    Args:
        source: The skill's documents.
        block: The most tokens of a block.
        encoder: A `PromptEncoder`. None: its tokens are not known.
        characters_per_token: Assumed without an encoder.
    """
    texts = [row["answer"] for _, row in source.examples()]
    if encoder is not None:
        sample = "".join(text[: _NUM_CHARACTERS // len(texts) + 1] for text in texts)[:_NUM_CHARACTERS]
        characters_per_token = len(sample) / len(encoder.encode_answer(sample))
    sizes = [len(text) / characters_per_token for text in texts]
    num_documents = max(source.num_rows or 0, len(texts))  # of very many, some are looked at
    scale = num_documents / len(texts)
    blocks = sum(int(size // (block - 2)) + 1 for size in sizes)  # without the tokens at both ends
    return TextSummary(
        source.skill,
        num_documents,
        len(source.held_out()),
        round(scale * sum(sizes)),
        round(scale * blocks),
        texts[0][:_NUM_SHOWN],
        Lengths(1, sum(sizes) / blocks + 1),
    )
