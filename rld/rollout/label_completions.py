"""Completions that are not sampled: the words that say each label of a prompt, in the order of the labels.

Shapes: B completions of this process.
"""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.rollout.batch import RolloutBatch
from rld.rollout.record import RolloutRecord
from rld.utils.label_words import begins_another


def label_completions(record: RolloutRecord, encoder: PromptEncoder, max_tokens: int | None) -> list[list[int]]:
    """Return the token ids of each completion of a rollout: the words of a label of its prompt, its own or a synonym.

    Where a skill has fewer words than there are completions, the others repeat the first and count nowhere.

    Args:
        record: The rollout.
        encoder: The student's.
        max_tokens: Greatest length of a completion, the end included. None: any length.

    Raises:
        DataError: the student cannot write the words of a label, or a batch does not hold all labels of its prompts.
    """
    if len(record.rows) % record.group_size:
        raise DataError(
            f"labels: a batch of {len(record.rows)} completions does not hold all {record.group_size} labels of each "
            f"prompt; let per_device_eval_batch_size be a multiple of {record.group_size}"
        )
    completions = []
    for row, words, (_, text) in zip(record.rows, record.words_B, record.label_completions_B, strict=True):
        problem = encoder.problem(encoder.encode_completion(row["prompt"], text), text, max_tokens)
        if problem is not None:
            raise DataError(f"labels: {problem}; its prompt is {str(row['prompt'])[:80]!r}")
        completions.append(label_tokens(encoder, row["prompt"], text, words))
    return completions


def label_tokens(encoder: PromptEncoder, prompt: object, text: str, words: Sequence[str]) -> list[int]:
    """Return the token ids by which a model says a label behind a prompt.

    Args:
        encoder: The model's.
        prompt: A text or messages.
        text: Words of the label, its own or a synonym.
        words: The own words of all labels, which decide whether the end is part of them.
    """
    has_end = begins_another(words) is not None
    return encoder.encode_completion(prompt, text) if has_end else encoder.encode_with(prompt, text)[1]


def add_labels(batch: RolloutBatch, record: RolloutRecord, accelerator: Accelerator) -> None:
    """Add to a rollout what each completion says, and keep those of one prompt together when TRL shuffles them."""
    device = batch["completion_ids"].device
    batch["label_ids"], batch["gold_ids"] = record.label_ids_B.to(device), record.gold_ids_B.to(device)
    num_gold = ((batch["label_ids"] == 0) & (batch["gold_ids"] >= 0)).sum()
    batch["num_gold"] = accelerator.reduce(num_gold, reduction="sum")
    batch["prompt_numbers"] = record.group_ids_B.to(device)  # a prompt that is drawn twice has two groups
