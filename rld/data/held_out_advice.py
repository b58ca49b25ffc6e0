"""What to do where all questions of a skill's file are held out, and none is left to train on."""

from __future__ import annotations

from collections.abc import Callable

from rld.data.items import Item, ItemSource


def held_out_advice(
    skill: str, source: ItemSource, level: int, num_held_out: int, *, key: Callable[[str], str], is_text: bool
) -> str:
    """Return why no row of a level is left, and what to do.

    Args:
        skill: The skill's name.
        source: The source of its items, which are of files.
        level: The level.
        num_held_out: Rows that are held out from the others.
        key: Returns what two questions that are the same have in common.
        is_text: Whether the rows are documents.
    """
    needs_label = source.make_gold is not None

    def may_be_held_out(item: Item) -> bool:
        return not needs_label or item.answer is not None

    levels = source.levels or ()
    sizes = [len({hash(key(item.question)) for item in items if may_be_held_out(item)}) for items in levels]
    place = f"skills.{skill}.held_out: {f'level {level}: ' * (len(levels) > 1)}"
    kind, example = ("document", "test.txt") if is_text else ("question", "test.jsonl")
    labelled = " with a label" * needs_label
    if source.held_out is not None:
        return f"{place}all {sizes[level]} different {kind}s of its file are held-out {kind}s too; take them out of one"
    own_file = f"score on a file of its own, by held_out: {{file: {example}}}"
    most = (min(sizes) - 1) * len(sizes)
    if most > 0:
        every = f"all {sizes[level]} different {kind}s{labelled} of its file are held out"
        return f"{place}{every}; set held_out to at most {most} (now {num_held_out}), or {own_file}"
    split = "hold out its end by a share, such as held_out: 0.1, set document_separator, or " * is_text
    return f"{place}its file has a single {kind}{labelled}, to hold out or to train on; {split}{own_file}"
