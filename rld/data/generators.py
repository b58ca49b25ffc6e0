"""Item factories of skills: a user's function, a reasoning-gym task, or the rows of a file."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rld.data.file_items import read_items
from rld.data.formats.hub import HubRows
from rld.data.items import Item, ItemFactory, ItemSource
from rld.data.listing import first_and_number
from rld.data.row_kinds import QUESTION_ANSWER, RowReader, labelled
from rld.data.stored import Selection
from rld.errors import DataError
from rld.recipe import registry
from rld.recipe.skills import DatasetSkill, FileSkill, GeneratedSkill, ReasoningGymSkill, Skill
from rld.utils import puzzles

_SPACE = re.compile(r"\s")


def item_source(name: str, skill: Skill, folder: Path, *, skips_bad_rows: bool = False) -> ItemSource:
    """Return the source of a skill's items; paths are relative to `folder`.

    Args:
        name: The skill's name.
        skill: The skill.
        folder: The recipe's folder.
        skips_bad_rows: Whether rows of files that cannot be used are left out with a warning.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """

    def read(sources: Sequence[str | HubRows], reader: RowReader) -> list[list[Sequence[Item]]]:
        paths = [
            registry.find_path(source, folder) or folder / source if isinstance(source, str) else source
            for source in sources
        ]
        return read_items(*paths, reader=reader, skill=name, skips_bad_rows=skips_bad_rows)

    held_out_sources = [] if skill.held_out_source is None else [skill.held_out_source]
    if isinstance(skill, GeneratedSkill | ReasoningGymSkill):
        held_out = next(iter(read(held_out_sources, QUESTION_ANSWER)), None)
        make: ItemFactory
        if isinstance(skill, GeneratedSkill):
            make = _Generator(registry.load("generators", skill.generator, folder), skill)
        else:
            make = _ReasoningGym(skill)
        return ItemSource(make, len(skill.levels), held_out=held_out)
    levels, *rest = read([skill.source, *held_out_sources], skill.reader)  # together, to tell all their problems
    held_out = next(iter(rest), None)
    if (
        held_out is None
        and isinstance(skill.held_out, float)
        and sum(map(len, levels)) == 1
        and levels[0][0].is_document
    ):
        levels, held_out = _beginning_and_end(levels[0][0], skill.held_out)
    make_gold = _items_with_labels(name, skill, levels, held_out) if skill.labels else None
    return ItemSource(_Choice(levels), len(levels), levels, held_out, make_gold)


def _beginning_and_end(document: Item, share: float) -> tuple[list[Sequence[Item]], list[Sequence[Item]] | None]:
    """Return a document without its end, as levels of items, and its end, which begins with white space where possible.

    Args:
        document: The document.
        share: How much of it is its end. Where one part has no visible character, the document stays whole.
    """
    text, start = document.question, round(len(document.question) * (1 - share))
    space = _SPACE.search(text, start)
    if space is not None and text[space.start() :].strip():
        start = space.start()
    if not text[:start].strip() or not text[start:].strip():
        return [[document]], None
    end = document._replace(question=text[start:], place=f"the end of {document.place}")
    return [[document._replace(question=text[:start])]], [[end]]


def _items_with_labels(
    name: str,
    skill: FileSkill | DatasetSkill,
    levels: Sequence[Sequence[Item]],
    held_out: Sequence[Sequence[Item]] | None,
) -> ItemFactory | None:
    """Return what makes items that have a label; None where all items have one.

    Raises:
        DataError: a held-out row or all rows of a level have no label, or a label is on no row.
    """
    unlabelled = [item.place for items in held_out or () for item in items if item.answer is None]
    if unlabelled:
        raise DataError(
            f"skills.{name}.held_out: the row {first_and_number(unlabelled)} has no label, and a held-out row is "
            "scored by its label; move such rows to those that are trained on"
        )
    answers = {item.answer for items in (*levels, *(held_out or ())) for item in items if item.answer is not None}
    unused = labelled.unused(skill.labels, answers)
    if unused:
        raise DataError(
            f"skills.{name}.labels: no row of {skill.origin} has the label {', '.join(map(repr, unused))}; mend it "
            "there, or leave it out"
        )
    with_labels = [Selection.where(items, lambda item: item.answer is not None) for items in levels]
    if sum(map(len, with_labels)) == sum(map(len, levels)):
        return None
    return _Choice(with_labels)


class _Generator:
    """Makes items with a function that the user supplies."""

    def __init__(self, function: Callable[..., tuple[str, str]], skill: GeneratedSkill) -> None:
        self.function, self.name, self.levels = function, skill.generator, skill.levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        returned = self.function(rng, **self.levels[level])
        match returned:
            case (str(question), str(answer)):
                return Item(question, answer)
        raise TypeError(f"{self.name} returned {returned!r:.80}; it should return (question, answer), both text")


class _ReasoningGym:
    """Makes items with a reasoning-gym task."""

    def __init__(self, skill: ReasoningGymSkill) -> None:
        self.task, self.levels = skill.reasoning_gym, skill.levels
        self.name = f"reasoning-gym's {skill.reasoning_gym}"
        self.built: dict[int, Any] = {}

    def __call__(self, level: int, rng: random.Random) -> Item:
        # Item i of a data set comes from Random(seed + i), so data sets with adjacent seeds share most items. Therefore
        # every item is the first of its own data set with a random seed. Some tasks accept at most 32 bits.
        seed = rng.getrandbits(32)
        if level not in self.built:
            self.built[level] = self._reseedable(level)
        dataset = self.built[level]
        if dataset is None:
            dataset = self._build(level, seed)
        gym_item = _first(dataset, seed)
        entry = {
            "task": self.task,
            "config": self.levels[level],
            "question": gym_item["question"],
            "answer": gym_item["answer"],
            "metadata": gym_item["metadata"],
        }
        return Item(gym_item["question"], gym_item["answer"], json.dumps(entry, default=str))

    def _build(self, level: int, seed: int) -> Any:
        with _seeded(seed):
            return puzzles.reasoning_gym(self.name).create_dataset(
                self.task, **{**self.levels[level], "seed": seed, "size": 1}
            )

    def _reseedable(self, level: int) -> Any:
        """Return a data set whose seed can be changed, or None if the task uses its seed during construction.

        Construction takes milliseconds for tasks that read word lists; an item takes a few hundredths of a millisecond.
        """
        dataset = self._build(level, 0)
        for seed in range(1, 5):
            if _first(dataset, seed)["question"] != _first(self._build(level, seed), seed)["question"]:
                return None
        return dataset


def _first(dataset: Any, seed: int) -> dict[str, Any]:
    """Return the first item of a reasoning-gym data set with a seed."""
    dataset.seed = seed
    with _seeded(seed):
        item: dict[str, Any] = dataset[0]
    return item


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's own random numbers in the block: some tasks, such as list_functions, draw from them too."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class _Choice:
    """Draws an item of a level at random from the items of a file."""

    def __init__(self, levels: Sequence[Sequence[Item]]) -> None:
        self.levels = levels

    def __call__(self, level: int, rng: random.Random) -> Item:
        if not self.levels[level]:
            raise DataError("none of its rows has a label")
        return rng.choice(self.levels[level])
