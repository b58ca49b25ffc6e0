"""What to do where all questions of a skill's file are held out, and none is left to train on."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence, Set

from rld.data.items import Item, ItemSource, question_key


def held_out_advice(
    skill: str,
    source: ItemSource,
    level: int,
    num_held_out: int,
    *,
    keys_of_others: Set[str],
    is_text: bool,
) -> str:
    """Return why no row of a level is left, and what to do.

    Args:
        skill: The skill's name.
        source: The source of its items, which are of files.
        level: The level.
        num_held_out: Rows that are held out from the others.
        keys_of_others: The keys of questions that other skills hold out.
        is_text: Whether the rows are documents.
    """
    needs_label = source.make_gold is not None

    def may_be_held_out(item: Item) -> bool:
        return not needs_label or item.answer is not None

    levels = source.levels or ()
    questions = [{hash(question_key(item.question)) for item in items if may_be_held_out(item)} for items in levels]
    size = len(questions[level])
    place = f"skills.{skill}.held_out: {f'level {level}: ' * (len(levels) > 1)}"
    kind, example = ("document", "test.txt") if is_text else ("question", "test.jsonl")
    with_label = " with a label" * needs_label
    if source.held_out is not None:
        return f"{place}all {size} different {kind}s of its file are held-out {kind}s too; take them out of one"
    own_file = f"score on a file of its own, by held_out: {{file: {example}}}"
    reason = f"all {size} different {kind}s{with_label} of its file are held out"
    hashes = {hash(question) for question in keys_of_others}
    maximum = _most_held_out([level_questions - hashes for level_questions in questions])
    if maximum > 0:
        return f"{place}{reason}; set held_out to at most {maximum} (now {num_held_out}), or {own_file}"
    if size > 1:
        return f"{place}{reason}, some by other skills; {own_file}"
    split = "hold out its end by a share, such as held_out: 0.1, set document_separator, or " * is_text
    return f"{place}its file has a single {kind}{with_label}, to hold out or to train on; {split}{own_file}"


def _most_held_out(questions: Sequence[Set[int]]) -> int:
    """Return how many questions can be held out, level by level in turn, so that each level keeps one.

    A question of several levels that one of them holds out is held out of all. Which ones are drawn is left to chance;
    the number is right for the worst of them.

    Args:
        questions: The different questions of each level.
    """
    num_levels = len(questions)
    counts = Counter(question for level_questions in questions for question in level_questions)
    sizes = [
        (len(level_questions), sum(counts[question] > 1 for question in level_questions))
        for level_questions in questions
    ]

    def is_too_many(num_held_out: int) -> bool:
        for level, (size, num_shared) in enumerate(sizes):
            num_own = (num_held_out + num_levels - 1 - level) // num_levels
            if num_own + min(num_held_out - num_own, num_shared) >= size:
                return True
        return False

    return bisect.bisect_left(range(1, len(counts) + 1), True, key=is_too_many)
